"""The oracle: does a picture of the toy world show exactly what its prompt asks for?

It looks at the pixels alone: it separates what is not background into connected parts, names the colour of each
part by the nearest palette colour and its shape by the best overlap with a template, then compares counts, sizes
and places with the prompt. It is exact, and no part of the training ever sees it.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from .world import BACKGROUND, COLOURS, SHAPES, SIZE, SIZES, Scene, parse, sprite

FOREGROUND = 60.0  # RGB distance (0..441) from the background at which a pixel belongs to an object
COLOUR_RADIUS = 70.0  # an object's own colour is at most this far from the palette
SPECK = 12  # parts of fewer pixels are noise, not objects
TEMPLATE = 32  # shapes are compared at this many pixels across
MIN_OVERLAP = 0.76  # intersection over union with the best template
MIN_ACROSS, LARGE_FROM, MAX_ACROSS = 15.0, 30.0, 52.0  # pixels across: small is below LARGE_FROM, large above
RELATION_MARGIN = 8.0  # pixels between the centres of the two sides of a relation


@dataclass(frozen=True)
class Found:
    """One part of the picture. `colour` or `shape` is None where it is not clearly any; x, y is its centre."""

    colour: str | None
    shape: str | None
    size: str | None
    x: float
    y: float

    def __str__(self) -> str:
        if self.colour and self.shape and self.size:
            return f"{self.size} {self.colour} {self.shape}"
        return " ".join(["unclear", self.colour or "", "shape"]).replace("  ", " ")


@dataclass(frozen=True)
class Verdict:
    """`ok`: the picture shows exactly what was asked. `text`: one sentence, what was found and what was asked."""

    ok: bool
    text: str
    found: tuple[Found, ...]


def examine(image, prompt: str | Scene) -> Verdict:
    """Compare a picture with its prompt.

    image: PIL image, or array [H, W, 3], uint8 in 0..255 or floating point in [0, 1]; resized to the world's 128
    pixels when it is larger or smaller. Raises ValueError for a prompt outside the world's grammar.
    """
    scene = prompt if isinstance(prompt, Scene) else parse(prompt)
    found = tuple(find(image))
    problem = _compare(found, scene)
    text = f"found: {describe(found)}; asked: {scene}" + (f" ({problem})" if problem else "")
    return Verdict(problem is None, text, found)


def describe(found: tuple[Found, ...]) -> str:
    """Count equal objects, the most frequent first: "2 small red circles, 1 large blue square"."""
    counts = Counter(sorted(str(part) for part in found))
    return ", ".join(f"{n} {name}{'s' if n > 1 else ''}" for name, n in counts.most_common()) or "nothing"


def find(image) -> list[Found]:
    """All objects in the picture, from top to bottom."""
    pixels = _pixels(image)
    ink = np.linalg.norm(pixels - np.float32(BACKGROUND), axis=-1) > FOREGROUND
    labels, _ = ndimage.label(ink)
    parts = []
    for index, window in enumerate(ndimage.find_objects(labels), start=1):
        mask = labels[window] == index
        if mask.sum() >= SPECK:
            parts.append(_name(mask, pixels[window], window))
    return parts


def _pixels(image) -> np.ndarray:
    """float32 [128, 128, 3] in 0..255."""
    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        if array.dtype != np.uint8:
            array = np.rint(np.clip(np.nan_to_num(array), 0, 1) * 255).astype(np.uint8)
        image = Image.fromarray(array)
    image = image.convert("RGB")
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return np.asarray(image, np.float32)


def _name(mask: np.ndarray, pixels: np.ndarray, window: tuple[slice, slice]) -> Found:
    height, width = mask.shape
    across = (height * width) ** 0.5
    size = ("small" if across < LARGE_FROM else "large") if MIN_ACROSS <= across <= MAX_ACROSS else None
    return Found(
        _colour(mask, pixels),
        _shape(mask),
        size,
        (window[1].start + window[1].stop - 1) / 2,
        (window[0].start + window[0].stop - 1) / 2,
    )


def _colour(mask: np.ndarray, pixels: np.ndarray) -> str | None:
    """The palette colour of the inside (the rim mixes with the background), if most of it agrees."""
    inside = ndimage.binary_erosion(mask, iterations=2)
    inside = inside if inside.sum() >= SPECK else mask
    distances = np.linalg.norm(pixels[inside][:, None] - np.float32(list(COLOURS.values())), axis=-1)
    nearest = distances.argmin(1)
    best = int(np.bincount(nearest).argmax())
    share = float(((nearest == best) & (distances[:, best] < COLOUR_RADIUS)).mean())
    return tuple(COLOURS)[best] if share >= 0.8 else None


def _shape(mask: np.ndarray) -> str | None:
    """The template with the largest overlap, scaled to the part's box; None if no overlap is good."""
    height, width = mask.shape
    if not 0.7 < width / height < 1.45:
        return None
    part = _stretch(mask.astype(np.float32))
    overlaps = {shape: np.minimum(part, t).sum() / np.maximum(part, t).sum() for shape, t in _templates().items()}
    best = max(overlaps, key=overlaps.__getitem__)
    return best if overlaps[best] >= MIN_OVERLAP else None


@functools.cache
def _templates() -> dict[str, np.ndarray]:
    masks = {}
    for shape in SHAPES:
        mask = sprite(shape, SIZES["large"]) > 0.3
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        masks[shape] = _stretch(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32))
    return masks


def _stretch(mask: np.ndarray) -> np.ndarray:
    image = Image.fromarray(mask).resize((TEMPLATE, TEMPLATE), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _compare(found: tuple[Found, ...], scene: Scene) -> str | None:
    """What is wrong, or None."""
    if any(part.colour is None or part.shape is None or part.size is None for part in found):
        return "not every part is a clear shape"
    sides = []
    for group in scene.groups:
        kind = [p for p in found if (p.colour, p.shape) == (group.colour, group.shape)]
        if len(kind) != group.count:
            return f"{len(kind) or 'no'} {group.colour} {group.shape}{'' if len(kind) == 1 else 's'}, not {group.count}"
        if group.size and any(part.size != group.size for part in kind):
            return f"not every {group.colour} {group.shape} is {group.size}"
        sides.append(kind)
    if len(found) != sum(group.count for group in scene.groups):
        return "something else is in the picture"
    if scene.relation and not _related(sides[0], sides[1], scene.relation):
        return f"not {scene.relation}"
    return None


def _related(first: list[Found], second: list[Found], relation: str) -> bool:
    """Every centre of the first side lies in the asked direction of every centre of the second, by a margin."""
    if relation in ("below", "right of"):
        first, second = second, first
    if relation in ("above", "below"):
        return max(p.y for p in first) + RELATION_MARGIN <= min(p.y for p in second)
    return max(p.x for p in first) + RELATION_MARGIN <= min(p.x for p in second)
