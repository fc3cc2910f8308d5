"""The one way in which pictures are scored, for the fused search and for Verifier Score."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ...search.comparisons import NoAnswer
from ...search.judges import Judge, Judges
from ...search.ledger import NOTHING, SCORE, Cost, Ledger
from ...verifiers.base import VerifierError
from ...verifiers.console import logger
from ..sampling.oom import retry_on_oom

log_to_console = logger(__name__)


@dataclass(frozen=True)
class Shown:
    """A candidate for the judges: one [frames, H, W, C] per row, and the prompt. broken: whether pixels are no
    numbers, so that no score would mean anything. finished: whether it is no draft or preview."""

    rows: Sequence[torch.Tensor]
    prompt: str
    broken: bool = False
    finished: bool = True


@dataclass(frozen=True)
class Scored:
    """values: float32 [rows, members], NaN where a judge was dropped, was not asked or compares, 0 for what is broken.
    looks: by column what a judge that compares keeps of each row."""

    values: torch.Tensor
    cost: Cost
    looks: Mapping[int, Sequence[Any]]


class Scorer:
    """The judges of one search at work, and which of them have failed and are left out since.

    frames: of a video that they look at, evenly spread; the value is the mean over them.
    """

    def __init__(self, judges: Judges, frames: int = 1):
        self.judges = judges
        self.frames = frames
        self._causes: dict[int, str] = {}  # by judge

    @property
    def failed(self) -> dict[int, str]:
        """The members that are left out, by column, each with what happened."""
        causes = [self._causes.get(number) for number, judge in enumerate(self.judges.judges) for _ in judge.members]
        return {column: cause for column, cause in enumerate(causes) if cause is not None}

    @property
    def deciding(self) -> dict[int, Judge]:
        """The judges that decide and have not failed, by number."""
        judges = enumerate(self.judges.judges)
        return {number: judge for number, judge in judges if any(judge.weights) and number not in self._causes}

    def score_all(self, candidates: Sequence[Shown], ledger: Ledger | None = None) -> list[Scored]:
        """Scores candidates verifier by verifier, so that each network of an ensemble is loaded once.

        ledger: where the seconds are booked. Running out of memory is tried again once the other models
        are unloaded. Raises VerifierError and what else a verifier raises.
        """
        columns: list[list[torch.Tensor]] = [[] for _ in candidates]
        looks: list[dict[int, list[Any]]] = [{} for _ in candidates]
        costs = [NOTHING] * len(candidates)
        ledger = ledger or Ledger()
        for number, judge in enumerate(self.judges.judges):
            for index, shown in enumerate(candidates):
                if shown.broken:
                    continue
                if not (shown.finished or judge.previews):
                    columns[index].append(torch.full((len(shown.rows), len(judge.members)), math.nan))
                    continue
                spent = ledger.measure()
                with ledger.clock(SCORE):
                    work = partial(self._rows, shown, judge.verifier)
                    if judge.question is not None:
                        work = partial(self._looks, shown, number, looks[index])
                    columns[index].append(self._ask(number, len(shown.rows), work))
                costs[index] = costs[index] + spent.cost
        width = len(self.judges.members)
        return [
            Scored(torch.cat(each, dim=1) if each else torch.zeros(len(shown.rows), width), cost, kept)
            for shown, each, cost, kept in zip(candidates, columns, costs, looks, strict=True)
        ]

    def asks(self, column: int) -> tuple[str, str]:
        """The identity of a column's judge, "" where it does not say, and its question."""
        judge = self.judges.at(column)[1]
        return judge.identity(), judge.question or ""

    def compare(self, column: int, first: Any, second: Any, prompt: str) -> float:
        """What a judge that compares says of two pictures by its looks: from 1, the first is better, to 0.

        Raises NoAnswer where it failed and is left out from then on, and else what it raises, as `score_all` does.
        """
        number, judge = self.judges.at(column)
        answer = self._ask(number, 1, lambda: self._answer(judge, first, second, prompt))
        if number in self._causes:
            raise NoAnswer(column, self._causes[number])
        return float(answer)

    def _answer(self, judge: Judge, first: Any, second: Any, prompt: str) -> torch.Tensor:
        answer = retry_on_oom(lambda: judge.verifier.compare(first, second, prompt), "comparing")
        if not isinstance(answer, (int, float)) or not 0 <= answer <= 1:
            raise VerifierError(
                f"verifier {judge.name} answered {answer!r:.80} to {judge.question!r}; expected a number from 1 (the "
                "first is better) to 0 (the second is)"
            )
        return torch.tensor(float(answer), dtype=torch.float64)

    def _looks(self, shown: Shown, number: int, looks: dict[int, list[Any]]) -> torch.Tensor:
        """Keeps the looks of a judge that compares, and has no values."""
        judge, column = self.judges.judges[number], sum(len(one.members) for one in self.judges.judges[:number])
        frames = [self._frames(row) for row in shown.rows]
        looks[column] = [
            retry_on_oom(partial(judge.verifier.look, one, shown.prompt), "looking at an image") for one in frames
        ]
        return torch.full((len(shown.rows), 1), math.nan)

    def _rows(self, shown: Shown, verifier: Any) -> torch.Tensor:
        return torch.stack([self._row(frames, shown.prompt, verifier) for frames in shown.rows])

    def _row(self, frames: torch.Tensor, prompt: str, verifier: Any) -> torch.Tensor:
        """Values [members] of one image, or the mean over evenly spaced frames of one video. One row at a time, so that
        a score never depends on what else is in its batch."""
        frames = self._frames(frames)
        return retry_on_oom(lambda: verifier.score(frames, [prompt] * len(frames)), "scoring").mean(dim=0)

    def _frames(self, frames: torch.Tensor) -> torch.Tensor:
        """The frames of a video that the judges look at, evenly spread."""
        picks = torch.linspace(0, len(frames) - 1, min(len(frames), self.frames)).round().long()
        return frames[picks.to(frames.device)]

    def _ask(self, number: int, rows: int, score: Callable[[], torch.Tensor]) -> torch.Tensor:
        """A judge's values [rows, members], all NaN where it is left out.

        Raises what `score` raises. Only a judge that may be dropped is, for a VerifierError or a value that is no
        number; running out of memory and Cancel are not its failure. Raises VerifierError where it was the last one
        that decides.
        """
        judge = self.judges.judges[number]
        blank = torch.full((rows, len(judge.members)), math.nan)
        if number in self._causes:
            return blank
        try:
            values = score()
            if judge.drop and judge.question is None and not torch.isfinite(values).all():
                raise VerifierError(f"verifier {judge.name} gave a score that is not a number")
        except VerifierError as error:
            if not judge.drop:
                raise
            if not self.deciding.keys() - {number}:
                raise VerifierError(f"{error}. No other verifier that decides is left") from error
            self._causes[number] = f"{error}."
            log_to_console.warning("Noise Search: dropped for the whole search: %s", self._causes[number])
            return blank
        return values
