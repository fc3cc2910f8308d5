"""What a comparative judge said: not what one image is worth, but which of two is better."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Comparison:
    """One answer of a judge about two candidates.

    first, second: their work, as `Memory` names it, in the order in which they were shown. answer: from 1, the first is
    better, to 0, the second is; 0.5 for neither. judge: what tells the judge from others. made: seconds since 1970.
    """

    first: str
    second: str
    question: str
    answer: float
    judge: str
    made: float = field(default_factory=time.time, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.answer <= 1:
            raise ValueError(f"the answer to a comparison must be from 0 to 1, not {self.answer!r:.80}")
        if self.first == self.second:
            raise ValueError(f"a candidate cannot be compared with itself ({self.first!r:.80})")


class Comparisons(Protocol):
    """What judges said of the candidates of one search. The last answer to a question about a pair, in that order,
    stands."""

    def comparisons(self, works: Sequence[str], judge: str, question: str) -> list[Comparison]:
        """What this judge answered to this question about any two of these candidates, the oldest first."""
        ...

    def keep_comparison(self, comparison: Comparison) -> None: ...
