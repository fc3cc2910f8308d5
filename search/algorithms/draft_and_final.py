"""Draft and Final."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

from ..aggregate import spearman
from ..algorithm import Algorithm, typical_jumps
from ..budget import BudgetSpent
from ..engine import Recipes, drafts
from ..log import DRAFT, Candidate, SearchLog
from ..recipe import Jump, Recipe
from ..run import Run
from ..work import Whole
from .random_search import RandomSearch
from .replay import ReplayRecipe

LOW_CORRELATION = 0.3
MIN_PAIRS = 4  # of drafts and finals, to report a correlation
MIN_PAIRS_TO_WARN = 6  # with fewer, a low one is easily chance


@dataclass(frozen=True)
class DraftAndFinal:
    """Ranks cheap drafts, renders the best in full and decides on those (cheaper search iterations, Fig. 10 of Ma et
    al., arXiv 2501.09732; draft and refine as in Flash-BoN, arXiv 2607.04461).

    `inner` searches on a schedule of `draft_steps` of the full schedule's own sigmas, so that draft and final are the
    same trajectory, coarse and fine; then the best `finals` drafts are rendered on all sigmas, and the winner is
    chosen by the scores of the finals alone. Stock (candidate 0) is always among them. draft_steps 0: a quarter of the
    steps, at least 6 (3 where there are fewer than 12). finals 0: the square root of the number of drafts.

    Reports the rank correlation between drafts and finals: where it is low, the drafts did not show which noise is
    better. For samplers that add no noise: with others a draft is another image.
    """

    inner: Algorithm = field(default_factory=RandomSearch)
    draft_steps: int = 0
    finals: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.inner, ReplayRecipe):
            raise ValueError(
                "Replay Recipe makes one candidate and has nothing to draft; connect it to the search node"
            )
        if isinstance(self.inner, DraftAndFinal):
            raise ValueError("Draft and Final cannot search by Draft and Final; connect another search to it")
        if self.draft_steps < 0 or self.finals < 0:
            raise ValueError(f"draft_steps ({self.draft_steps}) and finals ({self.finals}) must be 0 or more")

    @property
    def name(self) -> str:
        return f"draft and final ({self.inner.name})"

    def __call__(self, run: Run, seed: int) -> None:
        steps = self.steps(run.engine.steps)
        if not drafts(run.engine).deterministic:
            sampler = run.log.settings.get("sampler", "this one")
            raise ValueError(
                "Draft and Final needs a sampler that adds no noise of its own, such as euler, heun, dpmpp_2m or "
                f"uni_pc. With {sampler} (as with ancestral, SDE, LCM and the like) a draft and its final are "
                "different images. Choose another sampler, or search without Draft and Final."
            )
        stock = run.stock(seed)
        final = Whole(tuple(typical_jumps(self.inner)))
        drafting = run.drafts(steps, DRAFT, lambda coming: [run.price(self._finals(run, coming) * [final])])
        with suppress(BudgetSpent):
            self.inner(drafting, seed)
        # Out of patience, only the promised finals remain to be made; asked to finish, the best draft alone; else all
        # that the budget has room for.
        impatient = run.spending.satisfied()
        try:
            promised = 1 if run.finishing else self._finals(run)
            ranks: Iterator[int] = iter(range(promised)) if impatient else count()
            while chosen := self._ranked(run, stock, islice(ranks, run.engine.chunk)):
                run.render(chosen, closing=True)
        finally:
            self._report(run)
        if not impatient:  # too little is left for a draft and its final
            for draw in count(seed + max(run.log.count(DRAFT) + len(run.log.dropped), 1)):
                run.render([(Recipe.from_seed(draw),)])

    def path(self) -> Sequence[Jump]:
        return typical_jumps(self.inner)

    def settings(self) -> dict[str, Any]:
        return {
            "draft_steps": self.draft_steps or "a quarter",
            "finals": self.finals or "the square root of the drafts",
            **self.inner.settings(),
        }

    def steps(self, full: int) -> int:
        """How many steps a draft has where the final has `full`. Raises ValueError where that saves nothing."""
        wanted = self.draft_steps or max(6 if full >= 12 else 3, round(full / 4))
        if wanted >= full:
            raise ValueError(
                f"a draft of {wanted} steps is no cheaper than the sampler's {full}. "
                + (f"Set draft_steps below {full}, or search" if full > 1 else "Search")
                + " without Draft and Final."
            )
        return wanted

    def _finals(self, run: Run, coming: int = 0) -> int:
        """How many drafts are to be rendered in full, once `coming` more are there. The draft of stock is not."""
        drafts = run.log.count(DRAFT) + coming
        return min(self.finals or math.ceil(math.sqrt(drafts)), max(drafts - 1, 1))

    def _ranked(self, run: Run, stock: Candidate, ranks: Iterable[int]) -> list[Recipes]:
        """The recipes of the drafts at these ranks, every item of the batch by its own order, stock left out."""
        others = []
        for row in range(run.rows):
            order = [run.log.candidates[index] for index in run.log.order(row, DRAFT)]
            others.append([draft.recipes[row] for draft in order if draft.recipes != stock.recipes])
        return [tuple(drafts[rank] for drafts in others) for rank in ranks if rank < len(others[0])]

    def _report(self, run: Run) -> None:
        """Logs how well the drafts predicted the finals, as the mean over the items of the batch."""
        log = run.log
        log.findings["drafts"] = log.count(DRAFT)
        log.findings["draft_steps"] = self.steps(run.engine.steps)
        pairs = [_pairs(log, row) for row in range(log.rows)]
        fewest = min(map(len, pairs))
        if fewest < MIN_PAIRS:
            return
        correlation = sum(_correlation(log, row, of) for row, of in enumerate(pairs)) / len(pairs)
        log.findings["draft_final_rank_correlation"] = round(correlation, 4)
        if correlation < LOW_CORRELATION and fewest >= MIN_PAIRS_TO_WARN:
            log.warnings.append(
                f"Drafts and finals rank the noises differently (rank correlation {correlation:.2f}): a draft of "
                f"{self.steps(run.engine.steps)} steps says little about the finished image here. Raise draft_steps, "
                "or search without Draft and Final."
            )


def _pairs(log: SearchLog, row: int) -> list[tuple[int, int]]:
    """(draft, final) of the same noise, by their indices."""
    drafts = {draft.recipes[row]: draft.index for draft in log.of_stage(DRAFT)}
    return [(drafts[final.recipes[row]], final.index) for final in log.of_stage() if final.recipes[row] in drafts]


def _correlation(log: SearchLog, row: int, pairs: list[tuple[int, int]]) -> float:
    """Spearman's correlation of the scores of drafts and finals of the same noise."""
    scores = log.scores(row)
    draft, final = zip(*pairs, strict=True)
    return spearman(scores[list(draft)], scores[list(final)])
