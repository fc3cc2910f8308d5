"""The contract every verifier keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch


class VerifierError(ValueError):
    """A verifier that cannot be loaded or cannot score. The message repeats the input and says what to do."""


@runtime_checkable
class Verifier(Protocol):
    """Scores images, with their prompts; higher is better.

    members: one name per column of the values ("CLIP Score (ViT-B-32)").
    needs_prompt: whether an empty prompt is an error.
    usual_range: (low, high) of typical values, for axes and tooltips.
    module: the torch module that holds the weights (None if there are none); the host moves it between devices.
    """

    members: tuple[str, ...]
    needs_prompt: bool
    usual_range: tuple[float, float]
    module: torch.nn.Module | None

    def identity(self) -> str:
        """What determines the values: a hash of the weights and the settings."""
        ...

    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Raw values, float32 [B, members], on any device.

        images: float [B, H, W, 3] in 0..1 on the module's device; prompts: B texts. What else is in the batch has no
        influence on an image's value.
        """
        ...
