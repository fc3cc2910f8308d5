"""Zero-Order Search."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import Any

from ..log import Candidate
from ..recipe import SEED_RANGE, Recipe, Rotate
from ..run import Run

KEEP, REDRAW, SHRINK = STUCK = ("keep the pivot", "draw a new pivot", "shrink the angle")
SHRINK_BY = 0.7
SMALLEST_ANGLE = 1.0


@dataclass(frozen=True)
class ZeroOrderSearch:
    """Climbs from noise to better noise nearby (Zero-Order Search, ZO-N, Ma et al., arXiv 2501.09732, section 3.2).

    1. The pivot is a noise. 2. `neighbours` noises at `angle` degrees from it (0 to 180; the first author's code has a
    cosine of 0.95, which is 18.2 degrees) 3. are rendered and scored. 4. The best of pivot and neighbours is the next
    pivot, and 2 to 4 repeat. The pivot is never rendered twice. stuck: what happens when no neighbour is better: "keep
    the pivot" and draw other neighbours, "draw a new pivot", or "shrink the angle" by 0.7, not below 1 degree, until
    one is better again.

    Candidate j draws from `seed + j`. The sampler's own noise, if any, is the same for all that share a pivot's seed
    (common random numbers). In a latent batch every item has its own pivot.
    """

    neighbours: int = 2
    angle: float = 18.0
    stuck: str = KEEP
    name: str = field(default="zero-order search", init=False)

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise ValueError(f"Zero-Order Search needs at least 1 neighbour, not {self.neighbours}")
        if not 0 < self.angle <= 180:
            raise ValueError(f"the angle must be above 0 and at most 180 degrees, not {self.angle}")
        if self.stuck not in STUCK:
            raise ValueError(f"unknown choice {self.stuck!r} for no better neighbour; known: {', '.join(STUCK)}")

    def __call__(self, run: Run, seed: int) -> None:
        stock = run.stock(seed)  # step 1: the first pivot
        climbers = [_Climber(self, row, stock) for row in range(run.rows)]
        draws = count(seed + 1)
        while True:
            steps = [  # step 2: noises at one distance from the pivot
                tuple(climber.step(draw, first=position == 0) for climber in climbers)
                for position, draw in zip(range(self.neighbours), draws, strict=False)
            ]
            found = run.render(steps)  # step 3
            for climber in climbers:
                climber.move(run, found)  # step 4

    def settings(self) -> dict[str, Any]:
        return {"neighbours": self.neighbours, "angle": self.angle, "no_better_neighbour": self.stuck}


class _Climber:
    """One item of the batch: its pivot and its angle."""

    def __init__(self, search: ZeroOrderSearch, row: int, stock: Candidate):
        self.search, self.row = search, row
        self.pivot: Candidate | None = stock
        self.recipe = stock.recipes[row]
        self.angle = search.angle

    def step(self, draw: int, first: bool) -> Recipe:
        """The next noise to render: a neighbour of the pivot, or a new pivot where there is none."""
        if self.pivot is None and first:
            self.recipe = self.recipe.with_seed(draw)
            return self.recipe
        return self.recipe.then(Rotate(draw % SEED_RANGE, self.angle))

    def move(self, run: Run, found: list[Candidate]) -> None:
        """The best of pivot and neighbours is the next pivot."""
        if not found:
            return
        best = run.best([self.pivot, *found] if self.pivot is not None else found, self.row)
        stuck = best is self.pivot
        self.pivot, self.recipe = best, best.recipes[self.row]
        if not stuck:
            self.angle = self.search.angle
        elif self.search.stuck == REDRAW:
            self.pivot = None
        elif self.search.stuck == SHRINK:
            self.angle = max(self.angle * SHRINK_BY, min(self.search.angle, SMALLEST_ANGLE))
