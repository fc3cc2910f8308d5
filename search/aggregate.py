"""From raw verifier values to an order: pure functions over the pool of all candidates so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    """

    method: str = "mean_rank"
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"unknown way to combine verifiers {self.method!r}; known: {', '.join(METHODS)}")
        weights = self.weights
        if weights is not None and (not any(w > 0 for w in weights) or not all(0 <= w < math.inf for w in weights)):
            raise ValueError(f"verifier weights must be finite, 0 or more, and not all 0: {list(weights)}")

    def __call__(self, raw: torch.Tensor) -> torch.Tensor:
        raw = raw.to(torch.float64)
        members = raw.shape[1]
        weights = torch.tensor(self.weights or (1.0,) * members, dtype=torch.float64)
        if len(weights) != members:
            raise ValueError(f"{len(weights)} weights for {members} verifiers")
        deciding = weights > 0
        raw, weights = raw[:, deciding], weights[deciding]
        if raw.shape[1] == 1:
            return raw[:, 0]
        columns = {"mean_rank": mid_ranks, "z_score": z_scores, "weighted_sum": lambda values: values}[self.method](raw)
        total = columns @ weights
        return total if self.method == "weighted_sum" else total / weights.sum()


def mid_ranks(raw: torch.Tensor) -> torch.Tensor:
    """Ranks of each column of [candidates, members], scaled to 0 (lowest) .. 1 (highest); ties share the middle."""
    below = (raw[:, None, :] > raw[None, :, :]).sum(dim=1)
    equal = (raw[:, None, :] == raw[None, :, :]).sum(dim=1) - 1
    count = max(raw.shape[0] - 1, 1)
    return (below + equal / 2).to(torch.float64) / count if raw.shape[0] > 1 else torch.full_like(raw, 0.5)


def z_scores(raw: torch.Tensor) -> torch.Tensor:
    """Each column of [candidates, members] minus its mean, over its standard deviation; 0 where a column is constant."""
    centred = raw - raw.mean(dim=0)
    deviation = raw.std(dim=0, correction=0)
    return torch.where(deviation > 0, centred / deviation, torch.zeros_like(raw))


def check_values(values: torch.Tensor, members: Sequence[str], rows: int, candidate: int) -> torch.Tensor:
    """The values as float32 [rows, members] on the CPU, or a ValueError that names the verifier and the candidate."""
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
        if bad.any():
            row = int(bad.nonzero()[0, 0])
            raise ValueError(
                f"verifier {member} scored candidate {candidate} (image {row + 1} of {rows}) as "
                f"{float(values[row, column])}, which is not a number to rank by"
            )
    return values


def order(scores: torch.Tensor) -> list[int]:
    """Indices from best to worst; ties keep the earlier candidate first, so that stock (0) wins a tie."""
    return torch.argsort(scores, descending=True, stable=True).tolist()
