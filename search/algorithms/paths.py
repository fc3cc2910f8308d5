"""Search over Paths."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count, pairwise
from typing import Any

from ..engine import State
from ..log import Candidate
from ..recipe import Jump, Recipe, derive
from ..run import Run
from ..work import Look, Piece, Segment, Whole

FEWEST_BRANCHES = 2  # with a single branch there is nothing to choose


@dataclass(frozen=True)
class SearchOverPaths:
    """Goes back up in noise again and again, and keeps the best ways down (Search over Paths, Paths-N, Ma et al.,
    arXiv 2501.09732, section 3.2).

    1. `paths` noises are sampled down to noise level `sigma`. 2. From each, `branches` fresh noises take it back up by
    `forward`, 3. and it is sampled down again by `backward`. 4. The x0 predictions are scored and the best `paths`
    branches stay. 2 to 4 repeat, `backward - forward` lower each time, until level 0; there the branches are finished
    images, and the best of them wins. Levels are 1 (noise) to 0 (clean): the sigma of a flow model, the timestep over
    the number of timesteps of others. The defaults are the paper's (Table 6).

    branches 0: as many as one pass within the budget can have (the paper's scaling axis). With a given number, passes
    with new noises follow until the budget is spent. A pass that the budget cannot hold is cut short: its paths are
    finished as they are. What is too little for a pass goes into plain noises.
    """

    paths: int = 2
    branches: int = 0
    sigma: float = 0.11
    forward: float = 0.78
    backward: float = 0.81
    name: str = field(default="search over paths", init=False)

    def __post_init__(self) -> None:
        if self.paths < 1 or self.branches < 0:
            raise ValueError(
                f"Search over Paths needs 1 or more paths and 0 or more branches, not {self.paths} and {self.branches}"
            )
        if not self.backward > self.forward:
            raise ValueError(
                f"delta_backward ({self.backward:g}) must be larger than delta_forward ({self.forward:g}): otherwise "
                "every round ends at a noise level no lower than the one before, and the search never ends"
            )
        if not (0 < self.sigma < 1 and self.forward > 0 and self.sigma + self.forward <= 1):
            raise ValueError(
                f"sigma ({self.sigma:g}) and delta_forward ({self.forward:g}) must be above 0, and their sum at most "
                "1, which is pure noise"
            )

    def __call__(self, run: Run, seed: int) -> None:
        if run.engine.steps:
            run.segments.steps_between(1.0, self.sigma)  # says so at once where there can be no paths
        run.stock(seed)
        seeds = count(seed)
        for number in count():
            if not self._fits(run):
                if number == 0 and run.has_room([Whole()]):
                    run.log.warnings.append(
                        f"The budget has no room for a round of Search over Paths ({self.paths} paths with "
                        f"{self._fewest()} branches each), so plain noises were tried instead. Raise candidates, or "
                        "take fewer paths."
                    )
                break
            self._pass(run, seeds, lambda *names, number=number: derive(seed, "path", number, *names))
        for draw in seeds:
            if draw != seed:  # which is stock
                run.render([(Recipe.from_seed(draw),)])

    def settings(self) -> dict[str, Any]:
        return {
            "paths": self.paths,
            "branches": self.branches or "as many as the budget allows",
            "sigma": self.sigma,
            "delta_forward": self.forward,
            "delta_backward": self.backward,
        }

    def path(self) -> tuple[Jump, ...]:
        return tuple(Jump(0, level, level + self.forward) for level in self.levels()[:-1])

    def levels(self) -> list[float]:
        """The noise levels at which branches are compared, from `sigma` (where the paths begin) to 0."""
        step = self.backward - self.forward
        rounds = max(math.ceil(round(self.sigma / step, 6)), 1)
        return [max(round(self.sigma - index * step, 9), 0.0) for index in range(rounds)] + [0.0]

    def _pass(self, run: Run, seeds: Iterator[int], draw: Callable[..., int]) -> None:
        levels = self.levels()
        # Step 1: noises, sampled down to noise level sigma.
        paths = [run.denoise(run.start((Recipe.from_seed(next(seeds)),)), self.sigma) for _ in range(self.paths)]
        for number in range(len(levels) - 1):
            found = self._branches(run, paths, levels[number:], partial(draw, number))
            if not found:
                break
            paths = self._best(run, found)  # step 4
            if run.finishing:
                break
        else:
            return
        for path in paths[:1] if run.finishing else paths:
            pause = run.renoise(path, path.level, 0)  # adds nothing; the recipe must say that sampling paused here
            run.score(run.denoise(pause, 0.0), closing=True)

    def _branches(
        self, run: Run, paths: list[State], levels: list[float], draw: Callable[..., int]
    ) -> list[tuple[State, Candidate]]:
        """Up from levels[0] and down to levels[1], as often as leaves enough to finish the best; empty: not at all."""
        level, below = levels[:2]
        found: list[tuple[State, Candidate]] = []
        for j in range(self.branches or self._affordable(run, levels)):
            needed = (1 if found else self._fewest()) * self._round(level, below)
            if not run.has_room(needed + self._ending(below)):
                break
            for i, path in enumerate(paths):
                up = run.renoise(path, level + self.forward, draw(i, j))  # step 2
                down = run.denoise(up, below)  # step 3
                candidate = run.score(down)  # step 4, of the x0 prediction
                if candidate is not None:
                    found.append((down, candidate))
                if run.finishing:
                    return found
        return found

    def _best(self, run: Run, found: list[tuple[State, Candidate]]) -> list[State]:
        """The best `paths` of the branches, every item of the batch by its own order."""
        ranked = []
        for row in range(run.rows):
            merits = run.log.merits(row)
            ranked.append(sorted(found, key=lambda branch: merits[branch[1].index], reverse=True))
        return [run.join([branches[rank][0] for branches in ranked]) for rank in range(min(self.paths, len(found)))]

    # What is planned

    def _beginning(self) -> list[Piece]:
        begin: list[Piece] = [Segment(1.0, self.sigma)]
        return self.paths * begin

    def _round(self, level: float, below: float) -> list[Piece]:
        """The work of one branch of every path."""
        branch: list[Piece] = [Segment(level + self.forward, below), Look(below)]
        return self.paths * branch

    def _ending(self, level: float) -> list[Piece]:
        """The work of finishing all paths from a level."""
        rest: list[Piece] = [Segment(level, 0.0), Look(0.0)] if level > 0 else []
        return self.paths * rest

    def _affordable(self, run: Run, levels: list[float]) -> int:
        """Branches for which the rounds from levels[0] to the end spend what is left."""
        rounds = [piece for ends in pairwise(levels) for piece in self._round(*ends)]
        return max(run.how_often(rounds) or 0, FEWEST_BRANCHES)

    def _fewest(self) -> int:
        return min(FEWEST_BRANCHES, self.branches or FEWEST_BRANCHES)

    def _fits(self, run: Run) -> bool:
        """Whether at least one round of a pass can be had."""
        if not run.engine.steps:
            return False
        level, below = self.levels()[:2]
        return run.has_room(self._beginning() + self._fewest() * self._round(level, below) + self._ending(below))
