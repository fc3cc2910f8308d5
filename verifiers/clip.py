"""CLIP Score: how well a picture and a text agree, as a CLIP or SigLIP model sees it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn.functional import normalize

from .clip_files import DualEncoder, load_dual_encoder
from .descriptor import Descriptor, Entry
from .network import NetworkVerifier

FILES = (
    "Put open_clip_config.json and open_clip_model.safetensors (MIT licence, 605 MB) of "
    "huggingface.co/laion/CLIP-ViT-B-32-laion2B-s34B-b79K into a folder such as models/verifiers/ViT-B-32"
)


class CLIPScore(NetworkVerifier):
    """100 cos(E_image, E_text) of any CLIP or SigLIP (Hessel et al., CLIPScore, EMNLP 2021, arXiv 2104.08718).

    The paper's value is 2.5 max(cos, 0), torchmetrics' 100 max(cos, 0). This is the latter without the clamp, which
    would make ties of all images below 0 (SigLIP's often are); above 0 the order is the paper's.
    No "A photo depicts" is put before the prompt. Usually 15 to 40 for CLIP, -5 to 20 for SigLIP; at most 100.

    The cosine is taken in float32 whatever the towers' dtype: near 0.28 a float16 cosine has steps of 2.4e-4 and a
    bfloat16 one of 2.0e-3, as large as the differences between candidates. Images go through the tower one at a time,
    so a value does not depend on the batch, bit for bit.
    """

    name = "clip_score"
    title = "CLIP Score"
    factor = 100.0
    encoder: DualEncoder

    @classmethod
    def open(cls, path: str | Path, architecture: str = "") -> DualEncoder:
        """The towers in a local folder or weight file (see `load_dual_encoder`), in the dtype of the file; several
        verifiers can share them. Raises VerifierError."""
        with torch.inference_mode(False):  # weights born in inference mode could not be used outside it
            return load_dual_encoder(*cls.resolve(Path(path), architecture))

    def value(self, image: torch.Tensor, prompt: str) -> torch.Tensor:
        """The value of one image [H, W, 3], a float32 scalar on the CPU."""
        return self.factor * (self.image_features(image) @ self.prompt_features(prompt))

    def image_features(self, image: torch.Tensor) -> torch.Tensor:
        """The unit embedding of one image [H, W, 3], float32 [D] on the CPU."""
        return _unit(self.encoder.encode_image(self.pixels(image)))

    def prompt_features(self, prompt: str) -> torch.Tensor:
        """The unit embedding of a prompt, float32 [D] on the CPU. The last few prompts are remembered."""
        return self._prompts.read(prompt, self._read_prompt)

    def _read_prompt(self, prompt: str) -> torch.Tensor:
        ids, _ = self.encoder.tokenize(prompt)
        return _unit(self.encoder.encode_text(ids.to(self._device())))

    def _usual_range(self) -> tuple[float, float]:
        return (-5.0, 20.0) if self.encoder.sigmoid else (15.0, 40.0)


def _unit(embedding: torch.Tensor) -> torch.Tensor:
    return normalize(embedding.detach()[0].to("cpu", torch.float32), dim=0)


DESCRIPTOR = Descriptor(
    id="clip_score",
    kind=CLIPScore,
    node="NoiseSearchCLIPScore",
    title="CLIP Score",
    description="Verifier: how well the image fits the prompt, as the cosine of their CLIP embeddings.",
    aliases=("verifier", "clip", "siglip", "prompt alignment"),
    entry=Entry(
        "clip",
        FILES,
        tooltip="Put a CLIP or SigLIP with both towers into models/verifiers and press R: a folder of transformers or "
        "open_clip, or one weight file. Files with both towers in models/clip_vision or models/text_encoders are "
        "listed too. Nothing is downloaded.",
        with_suffix=True,
    ),
)
