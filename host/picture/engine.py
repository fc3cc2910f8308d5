"""PictureEngine: makes candidates by running a part of the user's graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...search.comparisons import Sight
from ...search.engine import Recipes, Rendered
from ...search.judges import Judges
from ...search.ledger import SCORE, Ledger
from ..judging.hosted import broken, is_broken
from ..judging.scorer import Scored, Scorer, Shown
from ..sampling.engine import Options, thumbnails
from .workflow import Made, Workflow


@dataclass(frozen=True)
class PictureResult:
    """One row's full-size result: its picture [frames, H, W, C], and its part of what else was asked for."""

    image: torch.Tensor
    extras: list[Any]


class PictureEngine:
    """Makes pictures with a workflow, and scores them. It only has whole trajectories: where one begins and ends is the
    workflow's business.

    prompts: the texts that the verifier judges by, one for all pictures or one for each batch. first: the recipes that
    the search begins with. on_step: called before each evaluation. finish: whether the search was asked to end.
    """

    parts: tuple[type, ...] = ()
    chunk = 1

    def __init__(
        self,
        workflow: Workflow,
        prompts: Sequence[str],
        first: Recipes,
        judges: Judges,
        on_step: Callable[[], None],
        options: Options,
        finish: Callable[[], bool] = lambda: False,
    ):
        self.workflow, self.prompts, self.first, self.judges = workflow, prompts, first, judges
        self.on_step: Callable[[], None] | None = on_step
        self.scorer = Scorer(judges, options.frames)
        self.members, self.comparative = judges.members, judges.comparative
        self.finals_only = judges.finals_only
        self.finish = finish
        self.made: Made | None = None  # with the first recipes, to find out the rows
        self.notes: list[str] = []
        workflow.on_evaluation = self._step

    def _step(self) -> None:
        if self.on_step is not None:
            self.on_step()

    @property
    def steps(self) -> int:
        return self.workflow.steps

    @property
    def rows(self) -> int:
        if self.workflow.layout is None:
            self.made = self.workflow.make(self.first)
        return self.workflow.rows

    @property
    def ledger(self) -> Ledger:
        return self.workflow.ledger

    @ledger.setter
    def ledger(self, ledger: Ledger) -> None:
        self.workflow.evaluations.ledger = ledger

    def render(self, candidates: Sequence[Recipes]) -> Iterator[Rendered]:
        for number, recipes in enumerate(candidates):
            if number and self.finish():
                return
            made, self.made = self.made, None
            if made is None or recipes != self.first:
                made = self.workflow.make(recipes)
            yield self._answer(made)

    def remake(self, recipes: Recipes) -> Rendered:
        return next(self.render([recipes]))

    def asks(self, column: int) -> tuple[str, str]:
        return self.scorer.asks(column)

    def compare(self, column: int, row: int, first: Sight, second: Sight) -> float:
        with self.ledger.clock(SCORE):
            return self.scorer.compare(column, first.look(column, row), second.look(column, row), self.prompt_of(row))

    def prompt_of(self, row: int) -> str:
        """The text that a row is judged by."""
        layout = self.workflow.layout
        if len(self.prompts) == 1 or layout is None or layout.together:
            return self.prompts[0]
        numbers = [number for number, batch in enumerate(layout.batches) for _ in range(batch.rows)]
        return self.prompts[min(numbers[row], len(self.prompts) - 1)]

    def _answer(self, made: Made) -> Rendered:
        images = made.images
        bad = is_broken(images)
        error = broken(f"the image of seed {made.recipes[0].seed}") if bad else None
        scored = self._score(images, bad)
        cost = self.ledger.answer(made.cost + sum((one.cost for one in scored[1:]), scored[0].cost))
        nfe = round(cost.nfe)
        looks: dict[int, list[Any]] = {}
        for one in scored:
            for column, kept in one.looks.items():
                looks.setdefault(column, []).extend(kept)
        return Rendered(
            recipes=made.recipes,
            values=torch.cat([one.values for one in scored]),
            nfe=nfe,
            nfe_per_row=nfe // len(images),
            seconds=cost.phases,
            results=[PictureResult(*pair) for pair in zip(images, made.extras, strict=True)],
            thumbnails=thumbnails(images) if error is None else None,
            error=error,
            failed=self.scorer.failed,
            looks=lambda: looks,
        )

    def _score(self, images: Sequence[torch.Tensor], bad: bool) -> list[Scored]:
        """Scores the rows: together, where all have one prompt."""
        texts = [self.prompt_of(row) for row in range(len(images))]
        if len({*texts}) == 1:
            return self.scorer.score_all([Shown(images, texts[0], bad)], self.ledger)
        return self.scorer.score_all(
            [Shown([image], text, bad) for image, text in zip(images, texts, strict=True)], self.ledger
        )
