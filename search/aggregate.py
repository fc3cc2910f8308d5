"""From raw verifier values to an order: pure functions over the pool of all candidates so far."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

METHODS = ("mean_rank", "z_score", "weighted_sum")


@dataclass(frozen=True)
class Aggregator:
    """Turns raw values [candidates, members] into scores [candidates], higher is better.

    One deciding member: its raw value is the score, whatever the method. Several: `mean_rank` is the verifier ensemble
    of Ma et al. (arXiv 2501.09732, section 3.1) with mid-ranks on ties, scaled to 0 (worst of the pool) to 1 (best);
    `z_score` and `weighted_sum` add standardised and raw values. `weights` has one number per member, 1 if left out;
    a member of weight 0 is reported and does not decide.

    `comparative` has the members whose columns are no values but ranks in the order of a judge that compares. They go
    in as the share of the others that a candidate is ahead of, 0 to 1, whatever the method.

    `gates` has the least value per member that passes, None where all do. Gates leave the scores as they are: `vetoes`
    counts those that a candidate fails, and whoever puts candidates in order takes fewer vetoes first.
    """

    method: str = "mean_rank"
    weights: tuple[float, ...] | None = None
    gates: tuple[float | None, ...] | None = None
    comparative: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"unknown way to combine verifiers {self.method!r}; known: {', '.join(METHODS)}")
        weights = self.weights
        if weights is not None and (not any(w > 0 for w in weights) or not all(0 <= w < math.inf for w in weights)):
            raise ValueError(f"verifier weights must be finite, 0 or more, and not all 0: {list(weights)}")
        if not all(gate is None or math.isfinite(gate) for gate in self.gates or ()):
            raise ValueError(f"a verifier's gate must be a finite number: {list(self.gates or ())}")

    def relative(self, members: int) -> bool:
        """Whether a score says only how a candidate compares with the rest of its pool."""
        deciding = [member for member in range(members) if not self.weights or self.weights[member] > 0]
        return len(deciding) > 1 and self.method != "weighted_sum" or not set(self.comparative).isdisjoint(deciding)

    def deciding(self, members: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Which members decide, bool [members], and the weights of those."""
        weights = torch.tensor(self.weights or (1.0,) * members, dtype=torch.float64)
        if len(weights) != members:
            raise ValueError(f"{len(weights)} weights for {members} verifiers")
        return weights > 0, weights[weights > 0]

    def __call__(self, raw: torch.Tensor) -> torch.Tensor:
        raw = raw.to(torch.float64)
        count, members = raw.shape
        deciding, weights = self.deciding(members)
        if self.comparative and count:
            raw = raw.clone()
            among = list(self.comparative)
            raw[:, among] = mid_ranks(raw[:, among]) / (count - 1) if count > 1 else 0.5
        raw = raw[:, deciding]
        if raw.shape[1] == 1 or count == 0:
            return raw[:, 0]
        if self.method == "mean_rank":
            if count == 1:
                return torch.full((1,), 0.5, dtype=torch.float64)
            # Divided once, after the sum: mid-ranks are whole or half numbers, so equal mean ranks come out equal.
            return weighted(mid_ranks(raw), weights) / (weights.sum() * (count - 1))
        if self.method == "z_score":
            return weighted(z_scores(raw), weights) / weights.sum()
        return weighted(raw, weights)

    def fails(self, raw: torch.Tensor) -> torch.Tensor:
        """Which gates candidates fail: raw values [candidates, members] to bool of the same shape."""
        gates = self.gates or (None,) * raw.shape[1]
        if len(gates) != raw.shape[1]:
            raise ValueError(f"{len(gates)} gates for {raw.shape[1]} verifiers")
        least = torch.tensor([-math.inf if gate is None else gate for gate in gates], dtype=torch.float32)
        return raw.to(torch.float32) < least  # in the precision of verifiers' values: what says 5 passes a gate of 5

    def vetoes(self, raw: torch.Tensor) -> torch.Tensor:
        """How many gates each candidate fails: raw values [candidates, members] to int64 [candidates]."""
        return self.fails(raw).sum(dim=1)

    def without(self, dropped: Collection[int], members: int) -> Aggregator:
        """This aggregator without some members: they neither decide nor veto. ValueError where nobody else decides."""
        weights, gates = self.weights or (1.0,) * members, self.gates or (None,) * members
        return Aggregator(
            self.method,
            tuple(0.0 if member in dropped else weight for member, weight in enumerate(weights)),
            tuple(None if member in dropped else gate for member, gate in enumerate(gates)),
            self.comparative,
        )


def mid_ranks(raw: torch.Tensor) -> torch.Tensor:
    """Ranks in each column of [candidates, members]: 0 (lowest) to candidates - 1; ties share the mean of theirs."""
    columns = []
    for column in raw.unbind(dim=1):
        _, group, size = torch.unique(column, return_inverse=True, return_counts=True)
        size = size.to(torch.float64)
        below = size.cumsum(0) - size
        columns.append((below + (size - 1) / 2)[group])
    return torch.stack(columns, dim=1)


def z_scores(raw: torch.Tensor) -> torch.Tensor:
    """Columns of [candidates, members] minus their mean, over their standard deviation; 0 where one is constant."""
    columns = raw.T.contiguous()
    constant = columns.amax(dim=1) == columns.amin(dim=1)  # their deviation is not exactly 0: the mean is rounded
    scaled = (raw - raw.mean(dim=0)) / raw.std(dim=0, correction=0)
    return torch.where(constant, torch.zeros_like(raw), scaled)


def weighted(columns: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum of the columns [..., members] times their weights, member by member: equal candidates get equal sums, to the
    last bit."""
    total = torch.zeros(columns.shape[:-1], dtype=torch.float64)
    for column, weight in zip(columns.unbind(dim=-1), weights, strict=True):
        total = total + column * weight
    return total


def check_values(
    values: torch.Tensor, members: Sequence[str], rows: int, candidate: int, failed: Collection[int] = ()
) -> torch.Tensor:
    """The values as float32 [rows, members] on the CPU, or a ValueError that names the verifier and the candidate.

    failed: members that need not have a value, as those of judges that compare.
    """
    values = torch.as_tensor(values)
    names = ", ".join(members)
    if tuple(values.shape) != (rows, len(members)):
        raise ValueError(
            f"candidate {candidate}: verifier {names} returned values of shape {tuple(values.shape)}, "
            f"expected {(rows, len(members))} (images, members)"
        )
    values = values.detach().to("cpu", torch.float32)
    for column, member in enumerate(members):
        bad = ~torch.isfinite(values[:, column])
        if bad.any() and column not in failed:
            row = int(bad.nonzero()[0, 0])
            raise ValueError(
                f"verifier {member} scored candidate {candidate} (image {row + 1} of {rows}) as "
                f"{float(values[row, column])}, which is not a number to rank by: try another precision (fp16 can "
                "overflow), or get its file again"
            )
    return values


def order(scores: torch.Tensor, vetoes: torch.Tensor | None = None) -> list[int]:
    """Indices from best to worst: fewer vetoes first, then higher scores; both are [candidates].

    Ties keep the earlier candidate first, so that stock (0) wins a tie.
    """
    by_score = torch.argsort(scores, descending=True, stable=True)
    if vetoes is None:
        return by_score.tolist()
    return by_score[torch.argsort(vetoes[by_score], stable=True)].tolist()


def spearman(first: torch.Tensor, second: torch.Tensor) -> float:
    """Spearman's rank correlation of two [n], -1 to 1, with mid-ranks on ties; 0 where one of them is constant."""
    ranks = mid_ranks(torch.stack([first, second], dim=1).to(torch.float64))
    ranks = ranks - ranks.mean(dim=0)
    norm = float(ranks.norm(dim=0).prod())
    return float((ranks[:, 0] * ranks[:, 1]).sum()) / norm if norm else 0.0
