"""Images of any size to the pixels a tower was trained on, as tensors, on the device where they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import interpolate, pad

from .base import VerifierError

MAX_PIXELS = 2**25  # of a resized image: a ratio of 660 at 224 pixels
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop or pad, normalise; what open_clip's `image_transform` does with PIL, for one tensor.

    size: (height, width) of the result. resize_mode: "shortest" (the shortest edge to `edge` or else to the size, then
    centre crop), "longest" (the longest edge fits, the rest filled with black before normalising), "squash" (both
    edges, aspect ratio lost). interpolation: "bicubic" or "bilinear", antialiased. eight_bit: as PIL resizes, or else
    as torchvision resizes a float tensor: both ways at once, and values that bicubic takes outside of 0..1 stay.

    As PIL does, it resizes first across and then down, antialiased and back to 8-bit steps each time. From an 8-bit
    image the pixels before normalising are those of the PIL pipeline, but for 3 in 100 at most that are 1/255 or 2/255
    away. (Pillow 13 goes down first where the height shrinks much more than the width; Pillow up to 12 never did.)
    """

    size: tuple[int, int] = (224, 224)
    resize_mode: str = "shortest"
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    edge: int | None = None
    eight_bit: bool = True

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """image: float [H, W, 3] in 0..1. Returns float32 [1, 3, height, width], normalised."""
        # contiguous, since the kernels for other strides round differently
        pixels = image.to(torch.float32).clamp(0, 1).movedim(-1, 0)[None].contiguous()
        height, width = pixels.shape[2:]
        target = self.resized(height, width)
        if target[0] * target[1] > MAX_PIXELS:
            raise VerifierError(
                f"an image of {width}x{height} pixels is too long and narrow to score: it would be resized to "
                f"{target[1]}x{target[0]} before its centre is cut out; crop it first"
            )
        for step in ((height, target[1]), target) if self.eight_bit else (target,):
            if step != tuple(pixels.shape[2:]):
                pixels = interpolate(pixels, step, mode=self.interpolation, antialias=True, align_corners=False)
                pixels = (pixels.clamp(0, 1) * 255).round() / 255 if self.eight_bit else pixels
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
        top = round((pixels.shape[2] - rows) / 2)
        left = round((pixels.shape[3] - columns) / 2)
        return pixels[:, :, top : top + rows, left : left + columns]
