"""PickScore: which picture of a prompt people would pick."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from .base import VerifierError
from .clip import CLIPScore
from .clip_files import TRANSFORMERS_WEIGHTS, DualEncoder, has_tokenizer
from .descriptor import Descriptor, Entry

FILES = (
    "Put config.json and model.safetensors (MIT licence, 3.94 GB) of huggingface.co/yuvalkirstain/PickScore_v1, or "
    "model.safetensors alone, into a folder models/verifiers/PickScore_v1"
)


class PickScore(CLIPScore):
    """exp(logit_scale) cos(E_image, E_text) of a CLIP ViT-H/14 trained on people's choices.

    Kirstain et al., Pick-a-Pic (NeurIPS 2023, arXiv 2305.01569): the value their repository prints before its softmax
    over the images, which a verifier must not take (a value would depend on the rest of the batch). Some ports leave
    out the factor, about 100. Usually 18 to 24; compare only values of one prompt. Reads 77 tokens.

    The image is resized to 224 pixels on its shorter side and its centre cut out, as transformers cuts it. Cosine and
    factor are float32 and float64 whatever the towers' dtype.
    """

    name = "pickscore"
    title = "PickScore"
    architecture = "ViT-H-14"
    weights = 986_109_441
    source = FILES

    def __init__(
        self,
        encoder: DualEncoder,
        label: str,
        dtype: torch.dtype = torch.float32,
        usual_range: tuple[float, float] | None = None,
    ):
        super().__init__(encoder, label, dtype, usual_range)
        self.factor = encoder.scale
        self.preprocess = replace(encoder.preprocess, crop_down=True)

    @classmethod
    def open(cls, path: str | Path, architecture: str = "") -> DualEncoder:
        """From a transformers folder, with or without the tokenizer (then CLIP's own), or from one file in
        transformers' or open_clip's layout, which is a ViT-H-14 unless `architecture` says otherwise. Raises
        VerifierError, naming the file to get."""
        try:
            return super().open(path, architecture)
        except VerifierError as error:
            raise VerifierError(f"{error}. {FILES}") from error

    @classmethod
    def resolve(cls, path: Path, architecture: str) -> tuple[Path, str]:
        if path.is_dir() and not has_tokenizer(path):  # the published folder has none
            path = next((path / name for name in TRANSFORMERS_WEIGHTS if (path / name).is_file()), path)
        return super().resolve(path, architecture)

    def _usual_range(self) -> tuple[float, float]:
        return 18.0, 24.0


DESCRIPTOR = Descriptor(
    id="pickscore",
    kind=PickScore,
    node="NoiseSearchPickScore",
    title="PickScore",
    description="Verifier: which image of the prompt people would pick, as PickScore v1 learned it.",
    aliases=("verifier", "pick a pic", "human preference", "reward"),
    entry=Entry("clip", FILES, first="pick"),
)
