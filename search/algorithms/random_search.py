"""Random Search."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any

from ..recipe import Recipe
from ..run import Run


@dataclass(frozen=True)
class RandomSearch:
    """Best of N independent noises (Random Search, Ma et al., arXiv 2501.09732, section 3.2).

    Candidate j is the stock run with `seed + j` (modulo 2**64), so candidate 0 is the image without any search.
    """

    name = "random search"

    def __call__(self, run: Run, seed: int) -> None:
        run.stock(seed)
        draws = count(seed + 1)
        while True:
            run.render([(Recipe.from_seed(next(draws)),) for _ in range(run.engine.chunk)])

    def settings(self) -> dict[str, Any]:
        return {}
