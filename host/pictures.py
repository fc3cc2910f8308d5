"""Pillow pictures as ComfyUI images, and images as a few bytes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image


def to_image(picture: Image.Image) -> torch.Tensor:
    """A Pillow image -> IMAGE float32 [1, H, W, 3] in 0..1."""
    return torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32) / 255.0)[None]


COARSE = 8  # colours a side
MOST_COARSE = 16  # of a batch, or of a video's frames


def coarse(images: Iterable[torch.Tensor]) -> tuple[bytes, ...]:
    """What is to be seen in the first images of these batches [B, H, W, C]: for each 8 x 8 colours, 3 bytes each."""
    each = [image for batch in images for image in batch[:MOST_COARSE]][:MOST_COARSE]
    found = []
    for image in each:
        image = image[..., :3].detach().float().cpu().nan_to_num(0.0).clamp(0, 1).movedim(-1, 0)
        colours = torch.nn.functional.adaptive_avg_pool2d(image, COARSE).expand(3, -1, -1)
        found.append((255 * colours).round().to(torch.uint8).numpy().tobytes())
    return tuple(found)


def in_colour(images: torch.Tensor) -> torch.Tensor:
    """IMAGE with a grey channel [B, H, W, 1] as RGB, which ComfyUI's savers want; any other as it is."""
    return images.expand(*images.shape[:-1], 3) if images.shape[-1] == 1 else images
