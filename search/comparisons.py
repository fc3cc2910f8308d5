"""What a comparative judge said: not what one image is worth, but which of two is better."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

LOWEST = -sys.float_info.max  # the level of candidates without a place


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


class NoAnswer(Exception):
    """A judge that compares failed, and the search goes on without it. cause: what happened."""

    def __init__(self, column: int, cause: str):
        super().__init__(cause)
        self.column, self.cause = column, cause


class Sight:
    """A candidate as the judges that compare know it. work: its name in the memory, "" without one. looks: what each of
    them keeps of its picture, by column one per row; called once, when one of them is asked for the first time."""

    def __init__(self, work: str, looks: Callable[[], Mapping[int, Sequence[Any]]]):
        self.work = work
        self._looks = looks
        self._made: Mapping[int, Sequence[Any]] | None = None

    def look(self, column: int, row: int) -> Any:
        """What the judge of a column keeps of the picture of one row."""
        if self._made is None:
            self._made, self._looks = self._looks(), dict  # what they are made from is no longer needed
        return self._made[column][row]


class Comparing(Protocol):
    """The part of an engine that has judges which compare. comparative: their columns among its members."""

    comparative: tuple[int, ...]

    def asks(self, column: int) -> tuple[str, str]:
        """The identity of a column's judge, and its question."""
        ...

    def compare(self, column: int, row: int, first: Sight, second: Sight) -> float:
        """From 1, the first is better for this item of the batch, to 0, the second is. Raises NoAnswer."""
        ...


def comparative_members(engine: Any) -> tuple[int, ...]:
    """The members of an engine whose judges compare; one without such judges need not say so."""
    return getattr(engine, "comparative", ())


def finals_only_members(engine: Any) -> tuple[int, ...]:
    """The members of an engine whose judges are shown finished pictures only: of drafts and previews they have no
    value. An engine without such judges need not say so."""
    return getattr(engine, "finals_only", ())


class Ladder:
    """The order in which one judge that compares has some candidates, of one item of the batch: those that it finds
    equal share a rung. Each finds its place by halving, so it takes few answers; what else was answered plays no part.

    levels: a number for each candidate, of which only the order says anything.
    """

    def __init__(self) -> None:
        self.rungs: list[list[int]] = []  # best first
        self.levels: dict[int, float] = {}

    def find(self, new: int, ask: Callable[[int, int], float]) -> tuple[int, bool]:
        """The place of a candidate: a rung, and whether it shares that. ask: the answer on one that is there and the
        new one."""
        low, high = 0, len(self.rungs)
        while low < high:
            middle = (low + high) // 2
            answer = ask(self.rungs[middle][0], new)
            if answer == 0.5:
                return middle, True
            low, high = (middle + 1, high) if answer > 0.5 else (low, middle)
        return low, False

    def put(self, new: int, place: tuple[int, bool]) -> bool:
        """Puts a candidate where it was found to be. Returns whether the others keep their levels."""
        rung, shared = place
        beside = [self.levels[of[0]] for of in self.rungs[rung if shared else max(rung - 1, 0) : rung + 1]]
        if not shared:
            self.rungs.insert(rung, [])
        self.rungs[rung].append(new)
        if shared:
            self.levels[new] = beside[0]
        elif len(beside) < 2:  # at an end
            self.levels[new] = beside[0] + (1.0 if rung == 0 else -1.0) if beside else 0.0
        else:
            self.levels[new] = sum(beside) / 2
            if self.levels[new] in beside:  # there is no number between them
                numbered = enumerate(reversed(self.rungs))
                self.levels = {index: float(number) for number, of in numbered for index in of}
                return False
        return True

    def ranks(self) -> dict[int, float]:
        """The candidates' ranks, 0 the lowest, as `mid_ranks` has them."""
        ranks, below = {}, 0
        for rung in reversed(self.rungs):
            ranks.update(dict.fromkeys(rung, below + (len(rung) - 1) / 2))
            below += len(rung)
        return ranks
