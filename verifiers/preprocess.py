"""Images of any size to the pixels a tower was trained on: from a tensor to a tensor, on the same device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate, pad

from .base import VerifierError

MAX_PIXELS = 2**25  # of a resized image: a ratio of 660 at 224 pixels
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop or pad, normalise; what open_clip's `image_transform` does with PIL, for one tensor.

    size: (height, width) of the result. resize_mode: "shortest" (the shortest edge to `edge` or else to the size, then
    centre crop), "longest" (the longest edge fits, the rest filled with black before normalising), "squash" (both
    edges, aspect ratio lost). interpolation: "bicubic" or "bilinear", antialiased. eight_bit: the image is rounded to 8
    bits and resized by PIL, or else resized as torchvision resizes a float tensor: both ways at once, and values that
    bicubic takes outside of 0..1 stay. crop_down: where the centre is half a pixel off, it is the upper left one, as in
    transformers, or else the even one, as in torchvision.

    The pixels before normalising are those of the PIL pipeline, bit for bit. PIL is told to go across first and then
    down: Pillow 13 goes down first where the height shrinks much more than the width; Pillow up to 12 never did. It is
    many times as fast on a CPU as the same integers in torch, and what it gets from a GPU is a byte per value.
    """

    size: tuple[int, int] = (224, 224)
    resize_mode: str = "shortest"
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    edge: int | None = None
    eight_bit: bool = True
    crop_down: bool = False

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """image: float [H, W, 3] in 0..1. Returns float32 [1, 3, height, width], normalised."""
        height, width = image.shape[:2]
        target = self.resized(height, width)
        if target[0] * target[1] > MAX_PIXELS:
            raise VerifierError(
                f"an image of {width}x{height} pixels is too long and narrow to score: it would be resized to "
                f"{target[1]}x{target[0]} before its centre is cut out; crop it first"
            )
        resize = _resized_by_pil if self.eight_bit else _resized_as_floats
        pixels = resize(image.detach().to(torch.float32).clamp(0, 1), target, self.interpolation)
        pixels = self._centre(pixels)
        mean = torch.tensor(self.mean, device=pixels.device)[:, None, None]
        std = torch.tensor(self.std, device=pixels.device)[:, None, None]
        return (pixels - mean) / std

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) to which an image is resized before it is cropped or padded.

        The shortest edge becomes exactly its target and the other is rounded down, as torchvision's Resize does; the
        longest-edge mode and non-square sizes round to the nearest, as open_clip's own resize does.
        """
        rows, columns = self.size
        if self.resize_mode == "squash":
            return self.size
        if self.resize_mode == "shortest" and (self.edge is not None or rows == columns):
            edge = self.edge or rows
            if height <= width:
                return edge, max(edge, int(edge * width / height))
            return max(edge, int(edge * height / width)), edge
        choose = max if self.resize_mode == "longest" else min
        ratio = choose(height / rows, width / columns)
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def settings(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def _centre(self, pixels: torch.Tensor) -> torch.Tensor:
        rows, columns = self.size
        below, right = max(0, rows - pixels.shape[2]), max(0, columns - pixels.shape[3])
        if below or right:
            pixels = pad(pixels, (right // 2, right - right // 2, below // 2, below - below // 2))
        whole = math.floor if self.crop_down else round
        top, left = whole((pixels.shape[2] - rows) / 2), whole((pixels.shape[3] - columns) / 2)
        return pixels[:, :, top : top + rows, left : left + columns]


def _resized_by_pil(image: torch.Tensor, size: tuple[int, int], interpolation: str) -> torch.Tensor:
    """image: [H, W, 3] in 0..1. Returns [1, 3, *size] in steps of 1/255."""
    picture = Image.fromarray((image * 255).round().to(torch.uint8).cpu().contiguous().numpy())
    for step in ((size[1], picture.height), (size[1], size[0])):
        picture = picture.resize(step, FILTERS[interpolation])
    pixels = torch.from_numpy(np.array(picture, dtype=np.float32)).movedim(-1, 0)[None].contiguous()
    return (pixels / 255).to(image.device)  # divided on the CPU: a GPU multiplies by 1/255


def _resized_as_floats(image: torch.Tensor, size: tuple[int, int], interpolation: str) -> torch.Tensor:
    """image: [H, W, 3] in 0..1. Returns [1, 3, *size]."""
    # contiguous, since the kernels for other strides round differently
    pixels = image.movedim(-1, 0)[None].contiguous()
    if size == tuple(pixels.shape[2:]):
        return pixels
    return interpolate(pixels, size, mode=interpolation, antialias=True, align_corners=False)
