"""CLIP Score: how well a picture and a text agree, as a CLIP or SigLIP model sees it."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import normalize

from .base import VerifierError
from .clip_files import DualEncoder, load_dual_encoder
from .weights import content_hash, file_stamp

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_PROMPTS = 64

logger = logging.getLogger(__name__)


class CLIPScore:
    """100 cos(E_image, E_text) of any CLIP or SigLIP (Hessel et al., CLIPScore, EMNLP 2021, arXiv 2104.08718).

    The paper's value is 2.5 max(cos, 0), torchmetrics' 100 max(cos, 0). This is the latter without the clamp, which
    would make ties of all images below 0 (SigLIP's often are); above 0 the order is the paper's.
    No "A photo depicts" is put before the prompt. Usually 15 to 40 for CLIP, -5 to 20 for SigLIP; at most 100.

    The cosine is taken in float32 whatever the towers' dtype: near 0.28 a float16 cosine has steps of 2.4e-4 and a
    bfloat16 one of 2.0e-3, as large as the differences between candidates. Images go through the tower one at a time,
    so a value does not depend on the batch, bit for bit.
    """

    needs_prompt = True
    name = "clip_score"
    title = "CLIP Score"
    architecture = ""  # of a single weight file, where the verifier knows it
    factor = 100.0

    def __init__(
        self,
        encoder: DualEncoder,
        label: str,
        dtype: torch.dtype = torch.float32,
        usual_range: tuple[float, float] | None = None,
    ):
        self.encoder = encoder
        self.dtype = dtype
        self.module = encoder.module.eval().requires_grad_(False)
        if any(parameter.dtype != dtype for parameter in self.module.parameters()):
            self.module.to(dtype)  # not otherwise: verifiers may share a network that is in use
        self.members = (f"{self.title} ({label})",)
        self.usual_range = usual_range or self._usual_range()
        self.prompt_tokens = encoder.context_length
        self.preprocess = encoder.preprocess
        self._prompts: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._stamp = file_stamp(encoder.files)
        self._identity = ""

    @classmethod
    def load(
        cls,
        path: str | Path,
        label: str = "",
        architecture: str = "",
        dtype: torch.dtype = torch.float32,
        usual_range: tuple[float, float] | None = None,
    ) -> Self:
        """From a local folder or weight file (see `load_dual_encoder`); nothing is downloaded. Raises VerifierError."""
        return cls(cls.open(path, architecture), label or Path(path).stem, dtype, usual_range)

    @classmethod
    def open(cls, path: str | Path, architecture: str = "") -> DualEncoder:
        """The towers of `load`, in the dtype of the file; several verifiers can share them. Raises VerifierError."""
        with torch.inference_mode(False):  # weights born in inference mode could not be used outside it
            return load_dual_encoder(*cls.resolve(Path(path), architecture))

    @classmethod
    def resolve(cls, path: Path, architecture: str) -> tuple[Path, str]:
        """Path and architecture as `load_dual_encoder` is to take them: what decides which network is built."""
        return path, architecture or (cls.architecture if path.is_file() else "")

    def identity(self) -> str:
        """SHA-256 of the model's files, the architecture, the preprocessing and the dtype. Read once, when asked."""
        if not self._identity:
            if file_stamp(self.encoder.files) != self._stamp:
                names = ", ".join(path.name for path in self.encoder.files)
                raise VerifierError(
                    f"{self.members[0]}: its files changed after they were loaded ({names}); load it again"
                )
            settings = {
                "verifier": self.name,
                "architecture": self.encoder.architecture,
                "dtype": str(self.dtype),
                "preprocess": self.preprocess.settings(),
            }
            self._identity = f"{self.name}:{content_hash(self.encoder.files, settings)}"
        return self._identity

    @torch.no_grad()
    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Raw values, float32 [B, 1]. images: float [B, H, W, 3] in 0..1 on any device; prompts: B texts."""
        if len(images) != len(prompts):
            raise VerifierError(f"{self.members[0]}: {len(images)} images for {len(prompts)} prompts")
        values = [
            self.image_features(image) @ self.prompt_features(p) for image, p in zip(images, prompts, strict=True)
        ]
        return self.factor * torch.stack(values)[:, None] if values else torch.zeros(0, 1)

    def image_features(self, image: torch.Tensor) -> torch.Tensor:
        """The unit embedding of one image [H, W, 3], float32 [D] on the CPU."""
        pixels = self.preprocess(image.to(self._device(), torch.float32))
        return _unit(self.encoder.encode_image(pixels.to(self.dtype)))

    def prompt_features(self, prompt: str) -> torch.Tensor:
        """The unit embedding of a prompt, float32 [D] on the CPU. The last few prompts are remembered."""
        if prompt in self._prompts:
            self._prompts.move_to_end(prompt)
            return self._prompts[prompt]
        ids, tokens = self.encoder.tokenize(prompt)
        if tokens > self.encoder.context_length:
            logger.warning(
                "%s reads %d tokens of a prompt and this one has %d; the rest does not count: %r",
                self.members[0],
                self.encoder.context_length,
                tokens,
                prompt if len(prompt) <= 100 else prompt[:97] + "...",
            )
        features = _unit(self.encoder.encode_text(ids.to(self._device())))
        self._prompts[prompt] = features
        if len(self._prompts) > MAX_PROMPTS:
            self._prompts.popitem(last=False)
        return features

    def _usual_range(self) -> tuple[float, float]:
        return (-5.0, 20.0) if self.encoder.sigmoid else (15.0, 40.0)

    def _device(self) -> torch.device:
        return next(self.module.parameters()).device


def _unit(embedding: torch.Tensor) -> torch.Tensor:
    return normalize(embedding.detach()[0].to("cpu", torch.float32), dim=0)
