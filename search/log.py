"""The search log: every scored candidate, and the order among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .aggregate import Aggregator, check_values, order
from .engine import Rendered
from .recipe import Recipe

LOG_FORMAT = "noise-search-log"
MAX_THUMBNAILS = 256


@dataclass(frozen=True)
class Candidate:
    """One recipe and what came of it. Never changes once logged, while its rank may.

    values: raw verifier values [rows][members]; nfe, nfe_per_row, seconds: as in `Rendered`.
    """

    index: int
    recipe: Recipe
    values: tuple[tuple[float, ...], ...]
    nfe: int
    nfe_per_row: int
    seconds: Mapping[str, float]


@dataclass
class SearchLog:
    """All candidates of one search over a latent batch of `rows` items, with `members` verifier columns.

    algorithm, settings, host: what the search ran with, written into every report.
    """

    members: tuple[str, ...]
    rows: int = 1
    aggregator: Aggregator = field(default_factory=Aggregator)
    algorithm: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    host: Mapping[str, Any] = field(default_factory=dict)
    candidates: list[Candidate] = field(default_factory=list)
    thumbnails: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    extra_nfe: int = 0

    def add(self, rendered: Rendered) -> Candidate:
        """Writes one candidate down. Raises ValueError, naming verifier and candidate, on a value that cannot rank."""
        index = len(self.candidates)
        values = check_values(rendered.values, self.members, self.rows, index)
        candidate = Candidate(
            index=index,
            recipe=rendered.recipe,
            values=tuple(tuple(row) for row in values.tolist()),
            nfe=rendered.nfe,
            nfe_per_row=rendered.nfe_per_row,
            seconds=dict(rendered.seconds),
        )
        self.candidates.append(candidate)
        if rendered.thumbnails is not None:
            for row, thumbnail in enumerate(rendered.thumbnails):
                self.thumbnails[index, row] = thumbnail
            self._forget_thumbnails()
        return candidate

    def values(self, row: int = 0) -> torch.Tensor:
        """Raw values of one item of the batch: float64 [candidates, members]."""
        data = [candidate.values[row] for candidate in self.candidates]
        return torch.tensor(data, dtype=torch.float64).reshape(len(data), len(self.members))

    def scores(self, row: int = 0) -> torch.Tensor:
        """The aggregated score of every candidate for one item of the batch: float64 [candidates]."""
        return self.aggregator(self.values(row))

    def order(self, row: int = 0) -> list[int]:
        """Candidate indices from best to worst for one item of the batch."""
        return order(self.scores(row))

    def best(self, row: int = 0) -> Candidate:
        return self.candidates[self.order(row)[0]]

    def winners(self) -> list[Recipe]:
        """The recipe of each item's best candidate: what makes the winning batch again."""
        return [self.winner(row) for row in range(self.rows)]

    def winner(self, row: int) -> Recipe:
        recipe = self.best(row).recipe
        return recipe if self.rows == 1 else recipe.for_row(row)

    @property
    def nfe(self) -> int:
        return sum(candidate.nfe for candidate in self.candidates) + self.extra_nfe

    @property
    def seconds(self) -> float:
        return sum(sum(candidate.seconds.values()) for candidate in self.candidates)

    def curve(self, row: int = 0) -> list[tuple[int, float, float]]:
        """The paper's scaling curve: (NFE spent on this item, seconds, best score so far) after each candidate."""
        points, nfe, seconds, best = [], 0, 0.0, float("-inf")
        for candidate, score in zip(self.candidates, self.scores(row).tolist(), strict=True):
            nfe += candidate.nfe_per_row
            seconds += sum(candidate.seconds.values())
            best = max(best, score)
            points.append((nfe, seconds, best))
        return points

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, ready for JSON."""
        scores = [self.scores(row).tolist() for row in range(self.rows)]
        return {
            "format": LOG_FORMAT,
            "version": 1,
            "host": dict(self.host),
            "algorithm": self.algorithm,
            "settings": dict(self.settings),
            "members": list(self.members),
            "rows": self.rows,
            "nfe": self.nfe,
            "seconds": self.seconds,
            "winners": [
                {
                    "row": row,
                    "candidate": self.best(row).index,
                    "seed": self.best(row).recipe.seed,
                    "recipe": self.winner(row).to_dict(),
                    "score": scores[row][self.best(row).index],
                }
                for row in range(self.rows if self.candidates else 0)
            ],
            "candidates": [
                {
                    "index": candidate.index,
                    "recipe": candidate.recipe.to_dict(),
                    "values": [list(row) for row in candidate.values],
                    "scores": [scores[row][candidate.index] for row in range(self.rows)],
                    "nfe": candidate.nfe,
                    "nfe_per_row": candidate.nfe_per_row,
                    "seconds": dict(candidate.seconds),
                }
                for candidate in self.candidates
            ],
        }

    def _forget_thumbnails(self) -> None:
        """Bounded memory: beyond MAX_THUMBNAILS, the lowest-ranked pictures go first; stock (candidate 0) stays."""
        if len(self.thumbnails) <= MAX_THUMBNAILS:
            return
        ranks = {(index, row): rank for row in range(self.rows) for rank, index in enumerate(self.order(row))}
        droppable = [key for key in self.thumbnails if key[0] != 0]
        if droppable:
            del self.thumbnails[max(droppable, key=ranks.__getitem__)]


class Pool:
    """A log plus the full-size results of the best `keep` candidates of each item; the rest keep none."""

    def __init__(self, log: SearchLog, keep: int = 1):
        self.log = log
        self.keep = keep
        self.results: dict[tuple[int, int], Any] = {}

    def add(self, rendered: Rendered) -> Candidate:
        candidate = self.log.add(rendered)
        for row, result in enumerate(rendered.results):
            self.results[candidate.index, row] = result
        wanted = self.wanted()
        self.results = {key: result for key, result in self.results.items() if key in wanted}
        return candidate

    def wanted(self) -> set[tuple[int, int]]:
        """(candidate, row) of each item's best `keep`."""
        return {(index, row) for row in range(self.log.rows) for index in self.log.order(row)[: self.keep]}

    def missing(self) -> list[int]:
        """Candidates among the best whose results are gone: a rank-based order may return to an earlier one."""
        return sorted({index for index, row in self.wanted() if (index, row) not in self.results})

    def restore(self, index: int, rendered: Rendered) -> None:
        """Puts back the results of a candidate that was rendered again; its evaluations count as extra."""
        wanted = self.wanted()
        for row, result in enumerate(rendered.results):
            if (index, row) in wanted:
                self.results[index, row] = result
        self.log.extra_nfe += rendered.nfe

    def top(self, rank: int) -> Sequence[Any]:
        """The results of rank `rank` (0 = best), one per item of the batch, each item by its own order."""
        return [self.results[self.log.order(row)[rank], row] for row in range(self.log.rows)]
