"""Several verifiers as one."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from ..search.aggregate import METHODS, Aggregator
from .verifier import HostedVerifier

MEAN_RANK, Z_SCORE, WEIGHTED_SUM = COMBINE = ("mean rank", "z-score", "weighted sum")
METHOD_OF = dict(zip(COMBINE, METHODS, strict=True))


class VerifierEnsemble:
    """Verifiers that score the same images, combined by an aggregator; a weight of 0 is reported and does not decide.

    judges: (verifier, weight), one or more; an ensemble among them brings in its members, their weights multiplied.
    combine: "mean rank", "z-score" or "weighted sum". Raises ValueError where no verifier decides.
    """

    def __init__(self, judges: Sequence[tuple[HostedVerifier | VerifierEnsemble, float]], combine: str = MEAN_RANK):
        flat = [judge for verifier, weight in judges for judge in _flat(verifier, weight)]
        for verifier, weight in flat:
            if not 0 <= weight < math.inf:
                raise ValueError(f"the weight of {', '.join(verifier.members)} must be 0 or more, not {weight}")
        weights = tuple(weight for verifier, weight in flat for _ in verifier.members)
        if not any(weights):
            names = ", ".join(name for verifier, _ in flat for name in verifier.members)
            raise ValueError(
                f"all weights are 0 ({names}), so nothing would choose the winner: give at least one verifier a weight"
            )
        if combine not in METHOD_OF:
            raise ValueError(f"unknown way to combine verifiers {combine!r}; known: {', '.join(COMBINE)}")
        self.judges = tuple(flat)
        self.aggregator = Aggregator(METHOD_OF[combine], weights)
        self.members = _unlike([name for verifier, _ in flat for name in verifier.members])
        self.needs_prompt = any(verifier.needs_prompt for verifier, _ in flat)
        self.usual_ranges = tuple(verifier.usual_range for verifier, _ in flat for _ in verifier.members)
        limits = [verifier.prompt_tokens for verifier, _ in flat if verifier.prompt_tokens is not None]
        self.prompt_tokens = min(limits, default=None)

    @property
    def patchers(self) -> list[Any]:
        """ComfyUI's handles on the networks."""
        return [verifier.patcher for verifier, _ in self.judges if verifier.patcher is not None]

    @property
    def patcher(self) -> Any:
        """The first of them: ComfyUI's cache looks for one of this name."""
        return next(iter(self.patchers), None)

    def identity(self) -> str:
        """What determines the values; the weights do not."""
        return hashlib.sha256(json.dumps([verifier.identity() for verifier, _ in self.judges]).encode()).hexdigest()

    def score(self, images: torch.Tensor, prompts: str | Sequence[str]) -> torch.Tensor:
        """Raw values of all members: float32 [B, members] on the CPU. Raises as the verifiers do."""
        return torch.cat([verifier.score(images, prompts) for verifier, _ in self.judges], dim=1)


def _flat(verifier: Any, weight: float) -> list[tuple[HostedVerifier, float]]:
    if isinstance(verifier, VerifierEnsemble):
        return [(member, weight * own) for member, own in verifier.judges]
    return [(verifier, weight)]


def _unlike(names: Sequence[str]) -> tuple[str, ...]:
    """The names, numbered where two are the same."""
    seen: Counter[str] = Counter()
    out = []
    for name in names:
        seen[name] += 1
        out.append(f"{name} ({seen[name]})" if names.count(name) > 1 else name)
    return tuple(out)
