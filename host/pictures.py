"""Pillow pictures as ComfyUI images."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image


def to_image(picture: Image.Image) -> torch.Tensor:
    """A Pillow image -> IMAGE float32 [1, H, W, 3] in 0..1."""
    return torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32) / 255.0)[None]
