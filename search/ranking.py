"""The order of a stage's candidates, kept up to date as they come.

Where a score stands for itself, a new candidate is put in its place. With several verifiers combined by rank or
z-score, it changes the scores of all: then everything is held as tensors over all candidates, so that one more costs a
few operations on them, and nothing is sorted unless the whole order is asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from itertools import product

import torch

from .aggregate import Aggregator, order, weighted

Compared = Callable[[int, int], Mapping[int, float]]  # column and row -> ranks by place, 0 the lowest
SHORTLIST = 8  # candidates at the head of the order, which are asked for again and again


class Ranking(ABC):
    """Scores and order of the candidates of one stage, for every item of the batch, by an aggregator.

    Candidates are told by their place among those of the stage, in which they came.
    """

    count: int

    @abstractmethod
    def add(self, values: torch.Tensor) -> None:
        """Adds a candidate by its raw values, float64 [rows, members]."""

    @abstractmethod
    def scores(self, row: int) -> torch.Tensor:
        """The candidates' scores for one item, in the order they came: float64 [candidates]."""

    @abstractmethod
    def merits(self, row: int) -> list[tuple[int, float]]:
        """What decides the order, larger is better: (0 or minus the number of failed gates, score) per candidate."""

    @abstractmethod
    def merit(self, row: int, place: int) -> tuple[int, float]:
        """As `merits`, for the candidate at one place."""

    @abstractmethod
    def best(self, row: int, count: int) -> list[int]:
        """The places of the best `count`, best first; of equal candidates the earlier is better."""

    @abstractmethod
    def mark(self, row: int, place: int) -> None:
        """Marks a candidate: the log marks those that have a picture."""

    @abstractmethod
    def unmark(self, row: int, place: int) -> None: ...

    @abstractmethod
    def last_marked(self, row: int, count: int) -> list[tuple[int, int]]:
        """The marked candidates that stand last: their positions in the order, from 0, and their places."""


def ranking(aggregator: Aggregator, rows: int, members: int, compared: Compared) -> Ranking:
    """An empty ranking by this aggregator. compared: what judges that compare make of it."""
    deciding, _ = aggregator.deciding(members)
    if deciding[list(aggregator.comparative)].any():
        return Ordinal(aggregator, rows, members, compared)
    return (Relative if aggregator.relative(members) else Absolute)(aggregator, rows, members)


class Absolute(Ranking):
    """Scores that stand for themselves: every row is a sorted list."""

    def __init__(self, aggregator: Aggregator, rows: int, members: int):
        aggregator.deciding(members)  # says so where the weights are too many or too few
        self.aggregator = aggregator
        self.count = 0
        self._keys: list[list[tuple[int, float, int]]] = [[] for _ in range(rows)]  # by place: smaller is better
        self._sorted: list[list[tuple[int, float, int]]] = [[] for _ in range(rows)]
        self._marked: list[list[tuple[int, float, int]]] = [[] for _ in range(rows)]

    def add(self, values: torch.Tensor) -> None:
        scores = self.aggregator(values).tolist()
        vetoes = self.aggregator.vetoes(values).tolist()
        for score, veto, keys, in_order in zip(scores, vetoes, self._keys, self._sorted, strict=True):
            key = veto, -score, self.count
            keys.append(key)
            insort(in_order, key)
        self.count += 1

    def scores(self, row: int) -> torch.Tensor:
        return torch.tensor([-below for _, below, _ in self._keys[row]], dtype=torch.float64)

    def merits(self, row: int) -> list[tuple[int, float]]:
        return [(-veto, -below) for veto, below, _ in self._keys[row]]

    def merit(self, row: int, place: int) -> tuple[int, float]:
        veto, below, _ = self._keys[row][place]
        return -veto, -below

    def best(self, row: int, count: int) -> list[int]:
        return [place for *_, place in self._sorted[row][:count]]

    def mark(self, row: int, place: int) -> None:
        insort(self._marked[row], self._keys[row][place])

    def unmark(self, row: int, place: int) -> None:
        del self._marked[row][bisect_left(self._marked[row], self._keys[row][place])]

    def last_marked(self, row: int, count: int) -> list[tuple[int, int]]:
        return [(bisect_left(self._sorted[row], key), key[-1]) for key in self._marked[row][-count:]]


class Relative(Ranking):
    """Scores that say how a candidate compares with the others."""

    def __init__(self, aggregator: Aggregator, rows: int, members: int):
        self.aggregator, self.rows = aggregator, rows
        self.count = 0
        self._deciding, self._weights = aggregator.deciding(members)
        self._gated = any(gate is not None for gate in aggregator.gates or ())
        self._values = _Table(rows, members)
        self._ranks = _Table(rows, len(self._weights))  # of the members that decide, as `mid_ranks` has them
        self._vetoes = _Table(rows, dtype=torch.int64)
        self._scores: torch.Tensor | None = None
        self._short: dict[int, list[int]] = {}  # by row, the first of the order
        self._marked: list[list[int]] = [[] for _ in range(rows)]

    def add(self, values: torch.Tensor) -> None:
        if self.aggregator.method == "mean_rank":
            self._rank(values[:, self._deciding])
        self._values.append(values)
        self._vetoes.append(self.aggregator.vetoes(values) if self._gated else torch.zeros((), dtype=torch.int64))
        self.count += 1
        self._scores = None
        self._short.clear()

    def scores(self, row: int) -> torch.Tensor:
        if self._scores is None:
            self._scores = self._all_scores()
        return self._scores[row]

    def merits(self, row: int) -> list[tuple[int, float]]:
        return list(zip((-self._vetoes.get()[row]).tolist(), self.scores(row).tolist(), strict=True))

    def merit(self, row: int, place: int) -> tuple[int, float]:
        return -int(self._vetoes.get()[row, place]), float(self.scores(row)[place])

    def best(self, row: int, count: int) -> list[int]:
        if count > SHORTLIST:
            return self._find_best(row, count)
        if row not in self._short:
            self._short[row] = self._find_best(row, SHORTLIST)
        return self._short[row][:count]

    def _order_of(self, row: int, places: Sequence[int]) -> list[int]:
        at = torch.tensor(places)[:, None]
        scores = self.scores(row)
        better, equal = scores > scores[at], scores == scores[at]
        if int(equal.sum()) > len(places):
            better |= equal & (torch.arange(self.count) < at)
        if self._gated:
            vetoes = self._vetoes.get()[row]
            better = (vetoes < vetoes[at]) | ((vetoes == vetoes[at]) & better)
        return better.sum(dim=1).tolist()

    def mark(self, row: int, place: int) -> None:
        insort(self._marked[row], place)

    def unmark(self, row: int, place: int) -> None:
        self._marked[row].remove(place)

    def last_marked(self, row: int, count: int) -> list[tuple[int, int]]:
        places = self._marked[row]
        if not places:
            return []
        at = torch.tensor(places)
        best_first = order(self.scores(row)[at], self._vetoes.get()[row][at] if self._gated else None)
        last = [places[one] for one in best_first[-count:]]
        return list(zip(self._order_of(row, last), last, strict=True))

    def _find_best(self, row: int, count: int) -> list[int]:
        scores = self.scores(row)
        if self._gated or count >= self.count:
            return order(scores, self._vetoes.get()[row])[:count]
        enough = scores.topk(count).values[-1]
        places = (scores >= enough).nonzero().flatten()
        return places[order(scores[places])[:count]].tolist()

    def _rank(self, new: torch.Tensor) -> None:
        """Ranks with a candidate more, [rows, members that decide]: half a place for each that is equal."""
        values, ranks = self._values.get()[:, :, self._deciding], self._ranks.get()
        new = new[:, None]
        below, equal = (values < new).to(torch.float64), (values == new).to(torch.float64)
        ranks += 1.0 - below - 0.5 * equal
        self._ranks.append(below.sum(dim=1) + 0.5 * equal.sum(dim=1))

    def _all_scores(self) -> torch.Tensor:
        if self.aggregator.method != "mean_rank":
            return torch.stack([self.aggregator(values) for values in self._values.get()])
        if self.count == 1:
            return torch.full((self.rows, 1), 0.5, dtype=torch.float64)
        return weighted(self._ranks.get(), self._weights) / (self._weights.sum() * (self.count - 1))


class Ordinal(Relative):
    """Scores in which judges decide that only compare."""

    def __init__(self, aggregator: Aggregator, rows: int, members: int, compared: Compared):
        super().__init__(aggregator, rows, members)
        self._compared = compared

    def _rank(self, new: torch.Tensor) -> None:
        """Does nothing: the judges' orders are known only once they have found a candidate's place."""

    def _all_scores(self) -> torch.Tensor:
        values = self._values.get().clone()
        for row, column in product(range(self.rows), self.aggregator.comparative):
            ranks = self._compared(column, row)
            values[row, :, column] = 0.0
            values[row, list(ranks), column] = torch.tensor(list(ranks.values()), dtype=torch.float64)
        return torch.stack([self.aggregator(of_row) for of_row in values])


class _Table:
    """A tensor [rows, candidates, ...] that grows by one candidate at a time."""

    def __init__(self, rows: int, *rest: int, dtype: torch.dtype = torch.float64):
        self._data = torch.zeros(rows, 16, *rest, dtype=dtype)
        self._count = 0

    def append(self, values: torch.Tensor) -> None:
        """values: [rows, ...]"""
        if self._count == self._data.shape[1]:
            self._data = torch.cat([self._data, torch.zeros_like(self._data)], dim=1)
        self._data[:, self._count] = values
        self._count += 1

    def get(self) -> torch.Tensor:
        return self._data[:, : self._count]
