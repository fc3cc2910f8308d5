"""HPS v2 and v2.1: the Human Preference Score."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import torch

from .base import VerifierError
from .clip import CLIPScore
from .clip_files import DualEncoder
from .descriptor import Descriptor, Entry
from .preprocess import CLIP_MEAN, CLIP_STD

FILES = (
    "Put HPS_v2.1_compressed.pt or HPS_v2_compressed.pt (Apache-2.0 licence, 1.97 GB each) of "
    "huggingface.co/xswu/HPSv2 into models/verifiers"
)


class HPS(CLIPScore):
    """100 cos(E_image, E_text) of a CLIP ViT-H/14 trained on people's choices between generated images.

    Wu et al., Human Preference Score v2 (2023, arXiv 2306.09341). Their `score` gives the cosine, their tables 100
    times that, as here. Usually 20 to 35. Only values of one prompt and of one version can be compared. Reads 77
    tokens.

    As the authors' own code does, and unlike any CLIP, the image is made to fit into the square by its longer side,
    in one bicubic resize of the float values, and the rest filled with black before normalising; nothing is cut off.
    The cosine is float32 whatever the towers' dtype.
    """

    name = "hps"
    title = "HPS"
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
        self.preprocess = replace(
            encoder.preprocess,
            resize_mode="longest",
            edge=None,
            interpolation="bicubic",
            mean=CLIP_MEAN,
            std=CLIP_STD,
            eight_bit=False,
        )

    @classmethod
    def open(cls, path: str | Path, architecture: str = "") -> DualEncoder:
        """From the published file, or a folder or file of the same CLIP in another layout. Raises VerifierError,
        naming the file to get."""
        if _has_optimizer(Path(path)):
            raise VerifierError(f"{path} is a checkpoint for training, with the optimizer's state. {FILES}")
        try:
            return super().open(path, architecture)
        except VerifierError as error:
            raise VerifierError(f"{error}. {FILES}") from error

    def _usual_range(self) -> tuple[float, float]:
        return 20.0, 35.0


def _has_optimizer(path: Path) -> bool:
    """Whether a torch.save file has an optimizer's state beside the weights; looks at its table of contents only."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            contents = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            return any(b"optimizer" in archive.read(name) for name in contents)
    except (zipfile.BadZipFile, OSError):
        return False  # damaged: reading the weights will say so


DESCRIPTOR = Descriptor(
    id="hps",
    kind=HPS,
    node="NoiseSearchHPS",
    title="HPS v2",
    description="Verifier: which image of the prompt people would prefer, as HPS v2 or v2.1 learned it.",
    aliases=("verifier", "hps", "hpsv2", "human preference score", "reward"),
    entry=Entry("clip", FILES, first="hps"),
)
