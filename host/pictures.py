"""Pillow pictures as ComfyUI images and back, and images as a few bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image

COARSE = 8  # colours a side
MOST_COARSE = 16  # of a batch, or of a video's frames


def to_image(picture: Image.Image) -> torch.Tensor:
    """A Pillow image -> IMAGE float32 [1, H, W, 3] in 0..1."""
    return torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32) / 255.0)[None]


def as_saved(image: torch.Tensor) -> np.ndarray:
    """The pixels of an image [H, W, C] as ComfyUI's savers write them: 8 bits, rounded down in the image's own type."""
    image = image.float() if image.dtype == torch.bfloat16 else image  # which NumPy does not know
    return np.clip(255.0 * image.detach().cpu().numpy(), 0, 255).astype(np.uint8)


def pixels_sha256(image: torch.Tensor) -> str:
    """SHA-256 of an image [H, W, C] as ComfyUI's savers write it."""
    return hashlib.sha256(as_saved(image).tobytes()).hexdigest()


def to_pil(image: torch.Tensor) -> Image.Image:
    """[H, W, 3 or more] float in 0..1 -> a Pillow image."""
    return Image.fromarray(as_saved(image[..., :3]))


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
