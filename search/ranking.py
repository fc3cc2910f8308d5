"""The order of a stage's candidates, kept up to date as they come.

Where a score stands for itself, a new candidate is put in its place. With several verifiers combined by rank or
z-score, or judges that compare, it changes the scores of all. Then one more costs a few operations on tensors over all
candidates, which take little beside the rest; scores, and the whole order, are computed when somebody asks for them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from dataclasses import replace
from itertools import pairwise

import torch

from .aggregate import Aggregator, order, weighted

SHORTLIST = 8  # candidates at the head of the order, which are asked for again and again
FRACTION, LARGE = 64, 4096  # sums of ranks are exact with weights in steps of 1/64, below 4,096
ROUNDING = 1e-10  # of what is summed: doubles have 16 digits, and over thousands of candidates a few are lost


class Ranking(ABC):
    """Scores and order of the candidates of one stage, for every item of the batch, by an aggregator.

    Candidates are told by their place among those of the stage, in which they came.
    """

    count: int

    @abstractmethod
    def add(self, values: torch.Tensor) -> None:
        """Adds a candidate by its raw values, float64 [rows, members]; of a judge that compares, by its level."""

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
    def last_marked(self, count: int) -> list[list[int]]:
        """By row, the places of the `count` marked candidates that stand last, the last first."""

    @abstractmethod
    def position(self, row: int, place: int) -> int:
        """Where a candidate stands in the order, from 0."""


def ranking(aggregator: Aggregator, rows: int, members: int) -> Ranking:
    """An empty ranking by this aggregator."""
    aggregator.deciding(members)  # says so where the weights are too many or too few
    return (Relative if aggregator.relative(members) else Absolute)(aggregator, rows, members)


class Absolute(Ranking):
    """Scores that stand for themselves: every row is a sorted list."""

    def __init__(self, aggregator: Aggregator, rows: int, members: int):
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

    def last_marked(self, count: int) -> list[list[int]]:
        return [[place for *_, place in marked[: -count - 1 : -1]] for marked in self._marked]

    def position(self, row: int, place: int) -> int:
        return bisect_left(self._sorted[row], self._keys[row][place])


class Relative(Ranking):
    """Scores that say how a candidate compares with the others.

    Each has a key, the larger the better: the score, or what gives the same order and takes less to compute, and less
    the more gates fail. Where keys are so close that rounding may have made the difference, the scores decide.
    """

    def __init__(self, aggregator: Aggregator, rows: int, members: int):
        deciding, self._weights = aggregator.deciding(members)
        self._members = deciding.nonzero().flatten().tolist()
        self._comparative = [at for at, member in enumerate(self._members) if member in aggregator.comparative]
        self._by_rank = aggregator.method == "mean_rank" and len(self._members) > 1
        self._by_spread = aggregator.method == "z_score" and len(self._members) > 1 and not self._comparative
        self._whole = bool((self._weights * FRACTION % 1 == 0).all()) and float(self._weights.amax()) < LARGE
        self._gated = any(gate is not None for gate in aggregator.gates or ())
        self.aggregator, self.rows, self.count = aggregator, rows, 0
        self._plain = replace(aggregator, weights=tuple(self._weights.tolist()), gates=None, comparative=())
        self._values = _Table(rows, len(self._members))  # of the members that decide
        self._leads = _Table(rows, len(self._members))  # how many a candidate beats, less those that beat it
        self._spread = _Spread()
        self._vetoes = _Table(rows)
        self._unmarked = _Table(rows)  # infinity, 0 where marked
        self._forget()

    def _forget(self) -> None:
        """Lets go of what holds until another candidate comes."""
        self._scores: dict[int, torch.Tensor] = {}  # by row
        self._keyed: tuple[torch.Tensor, float] | None = None
        self._first: list[list[int]] = []  # by row, the best

    def add(self, values: torch.Tensor) -> None:
        new = values[:, self._members]
        if self._by_rank or self._comparative:
            ahead = torch.sign(self._values.get() - new[..., None])
            self._leads.get().add_(ahead)
            self._leads.append(-ahead.sum(dim=-1))
        if self._by_spread:
            self._spread.add(new)
        self._values.append(new)
        if self._gated:
            self._vetoes.append(self.aggregator.vetoes(values))
        self._unmarked.append(torch.full((self.rows,), torch.inf))
        self.count += 1
        self._forget()

    def scores(self, row: int) -> torch.Tensor:
        if row not in self._scores:
            if self._by_rank and self.count > 1:
                ranks = weighted(self._ranks().movedim(1, -1), self._weights)
                self._scores = dict(enumerate(ranks / (self._weights.sum() * (self.count - 1))))
            else:
                self._scores[row] = self._plain(self._columns()[row].T.contiguous())
        return self._scores[row]

    def merits(self, row: int) -> list[tuple[int, float]]:
        vetoes = self._vetoes.get()[row].tolist() if self._gated else [0] * self.count
        return [(-int(veto), score) for veto, score in zip(vetoes, self.scores(row).tolist(), strict=True)]

    def merit(self, row: int, place: int) -> tuple[int, float]:
        return -int(self._vetoes.get()[row, place]) if self._gated else 0, float(self.scores(row)[place])

    def best(self, row: int, count: int) -> list[int]:
        if count > SHORTLIST:
            return self._in_order(row, torch.arange(self.count))[:count]
        if not self._first:
            self._first = self._heads(self._keys()[0], SHORTLIST)
        return self._first[row][:count]

    def mark(self, row: int, place: int) -> None:
        self._unmarked.get()[row, place] = 0.0

    def unmark(self, row: int, place: int) -> None:
        self._unmarked.get()[row, place] = torch.inf

    def last_marked(self, count: int) -> list[list[int]]:
        return self._heads(-self._keys()[0] - self._unmarked.get(), count, last=True)

    def position(self, row: int, place: int) -> int:
        keys, close = self._keys()[0][row], self._keys()[1]
        own = float(keys[place])
        above = _count(keys > own + close)
        if not close:
            return above + _count(keys[:place] == own)
        if _count(keys >= own - close) == above + 1:
            return above
        return above + self._in_order(row, ((keys - own).abs() <= close).nonzero().flatten()).index(place)

    def _heads(self, keys: torch.Tensor, count: int, last: bool = False) -> list[list[int]]:
        """By row, the places of the `count` largest of these keys, in order, but for those of minus infinity.
        last: the keys are negated, and so is what comes first of equal ones."""
        close, heads, sign = self._keys()[1], [], -1 if last else 1
        top = keys.topk(min(count + 1, self.count))
        for row, found in enumerate(zip(top.values.tolist(), top.indices.tolist(), strict=True)):
            pairs = [(-key, sign * place) for key, place in zip(*found, strict=True) if key > -torch.inf]
            gaps = [other - one for (one, _), (other, _) in pairwise(pairs)]
            if all(gap > close for gap in (gaps if close else gaps[count - 1 :])):
                heads.append([sign * place for _, place in sorted(pairs)[:count]])
            else:  # others belong there as well as these, or rounding decides
                places = (keys[row] >= -pairs[:count][-1][0] - close).nonzero().flatten()
                heads.append(self._in_order(row, places)[::sign][:count])
        return heads

    def _in_order(self, row: int, places: torch.Tensor) -> list[int]:
        """These places, which ascend, from best to worst."""
        keys, close = self._keys()
        decides = self.scores(row) if close else keys[row]
        return places[order(decides[places], self._vetoes.get()[row, places] if self._gated else None)].tolist()

    def _keys(self) -> tuple[torch.Tensor, float]:
        """The keys, float64 [rows, candidates], and how far apart two may be without telling which score is higher; 0
        where equal keys mean equal scores."""
        if self._keyed is None:
            if self._by_rank and self._whole:
                keys, close = weighted(self._leads.get().movedim(1, -1), self._weights), 0.0
            elif self._by_spread:
                shares = self._spread.shares(self._weights)
                keys = weighted(self._values.get().movedim(1, -1), shares.T[..., None])
                close = ROUNDING * float((shares * self._spread.size).sum(dim=1).amax())
            else:
                keys, close = torch.stack([self.scores(row) for row in range(self.rows)]), 0.0
            if self._gated:
                veto = float(keys.amax() - keys.amin()) + 1.0  # more than any score makes good
                keys = keys - veto * self._vetoes.get()
                close += ROUNDING * (veto + float(keys.abs().amax()))
            self._keyed = keys, close
        return self._keyed

    def _ranks(self) -> torch.Tensor:
        """As `mid_ranks` has them, [rows, members, candidates]."""
        return (self._leads.get() + (self.count - 1)) / 2

    def _columns(self) -> torch.Tensor:
        """What counts, [rows, members, candidates]: values, and of a judge that compares the share of the others that a
        candidate is ahead of."""
        columns = self._values.get()
        if self._comparative:
            columns = columns.clone()
            shares = self._ranks()[:, self._comparative] / (self.count - 1) if self.count > 1 else 0.5
            columns[:, self._comparative] = shares
        return columns


def _count(which: torch.Tensor) -> int:
    return int(torch.count_nonzero(which))


class _Spread:
    """How far values [rows, members] spread, kept up to date as they come (Welford's algorithm)."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, new: torch.Tensor) -> None:
        if not self.count:
            self.mean, self.least, self.most, self.squares = new, new, new, torch.zeros_like(new)
        self.count += 1
        apart = new - self.mean
        self.mean = self.mean + apart / self.count
        self.squares = self.squares + apart * (new - self.mean)
        self.least, self.most = torch.minimum(self.least, new), torch.maximum(self.most, new)

    @property
    def size(self) -> torch.Tensor:
        """The largest, without its sign."""
        return torch.maximum(-self.least, self.most)

    def shares(self, weights: torch.Tensor) -> torch.Tensor:
        """The weights over the standard deviation; 0 where all are equal."""
        return torch.where(self.least == self.most, 0.0, weights / (self.squares / self.count).sqrt())


class _Table:
    """A tensor [rows, ..., candidates] that grows by one candidate at a time."""

    def __init__(self, *rest: int):
        self._data = torch.zeros(*rest, 16, dtype=torch.float64)
        self._count = 0

    def append(self, values: torch.Tensor) -> None:
        """values: [rows, ...]"""
        if self._count == self._data.shape[-1]:
            self._data = torch.cat([self._data, torch.zeros_like(self._data)], dim=-1)
        self._data[..., self._count] = values
        self._count += 1

    def get(self) -> torch.Tensor:
        return self._data[..., : self._count]
