"""The one interface between the algorithms and the world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from .recipe import Recipe


@dataclass(frozen=True)
class Rendered:
    """What an engine made from one recipe.

    values: raw verifier values, float32 [rows, members], higher is better; one row per item of the latent batch.
    nfe: rows through the denoiser, counted inside the model call; nfe_per_row: per row, as the paper counts.
    seconds: wall time by phase ("sample", "decode", "score").
    results: one opaque full-size result per row (latent and image), which only the best keep.
    thumbnails: uint8 [rows, height, width, 3], or None.
    """

    recipe: Recipe
    values: torch.Tensor
    nfe: int
    nfe_per_row: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    results: Sequence[Any] = ()
    thumbnails: torch.Tensor | None = None


class Engine(Protocol):
    """Makes candidates. `members` names the columns of their values, `rows` is the size of the latent batch."""

    members: tuple[str, ...]
    rows: int

    def render(self, recipes: Sequence[Recipe]) -> list[Rendered]:
        """Whole trajectories from these noises, decoded and scored, in order.

        With several rows, the recipes in the answer say their batch (`Recipe.for_batch`), so that one row can be taken.
        """
        ...
