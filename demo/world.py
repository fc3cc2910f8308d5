"""The toy world: flat pictures of one to four shapes, and the prompts that describe them.

A prompt is a *noun phrase*, two joined by "and", or two joined by a relation:

    a red circle                                   single object
    a red circle and a blue square                 colour binding
    three small green triangles                    counting
    two small red circles above a blue square      spatial relation

These are the axes of GenEval (Ghosh et al., 2023) and T2I-CompBench (Huang et al., 2023). Here "did the picture
follow the prompt?" has an exact answer, given by `oracle.examine`.

This module needs NumPy and Pillow only. Pictures are `SIZE` x `SIZE` pixels, y points down.
"""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIZE = 128
BACKGROUND = (247, 240, 228)
COLOURS = {
    "red": (217, 56, 58),
    "green": (46, 153, 92),
    "blue": (43, 101, 196),
    "yellow": (246, 186, 32),
    "purple": (139, 74, 174),
}
SHAPES = ("circle", "square", "triangle", "star")
SIZES = {"small": 22, "large": 38}  # pixels across
NUMBERS = ("a", "two", "three", "four")
RELATIONS = ("above", "below", "left of", "right of")
MIRROR = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
CATEGORIES = ("single", "colour", "counting", "spatial")
MAX_OBJECTS = 4

GRID = 8  # centres lie on a grid this fine: variety enough, and easier to learn than free positions
BORDER = 4  # pixels between a shape and the edge of the picture
GAP = 6  # pixels between two shapes
ATTEMPTS = 500  # to place all shapes of a picture
RELATION_GAP = 20  # pixels between the centres of the two sides of a relation

HELD_OUT_ONE_IN = 4
WORDS = tuple(
    sorted(
        {
            *NUMBERS,
            *SIZES,
            *COLOURS,
            *SHAPES,
            *(s + "s" for s in SHAPES),
            "and",
            "above",
            "below",
            "left",
            "right",
            "of",
        }
    )
)

_GRAMMAR = 'for example "a red circle and a blue square" or "two small red circles above a large green star"'
_PHRASE = re.compile(
    rf"(?P<number>{'|'.join(NUMBERS)}|one|an) (?:(?P<size>{'|'.join(SIZES)}) )?"
    rf"(?P<colour>{'|'.join(COLOURS)}) (?P<shape>{'|'.join(SHAPES)})(?P<plural>s?)"
)
_JOIN = re.compile(r" (and|above|below|(?:to the )?left of|(?:to the )?right of) ")


@dataclass(frozen=True)
class Group:
    """Equal objects: `count` in 1..4, `size` a key of `SIZES` or None for any, `colour`, `shape`."""

    count: int
    size: str | None
    colour: str
    shape: str

    def __str__(self) -> str:
        words = [NUMBERS[self.count - 1], self.size, self.colour, self.shape + ("s" if self.count > 1 else "")]
        return " ".join(word for word in words if word)


@dataclass(frozen=True)
class Scene:
    """What a prompt asks for: one or two groups, and how the first lies to the second (None: anyhow)."""

    groups: tuple[Group, ...]
    relation: str | None = None

    def __str__(self) -> str:
        return f" {self.relation or 'and'} ".join(str(group) for group in self.groups)

    @property
    def category(self) -> str:
        """One of `CATEGORIES`."""
        if self.relation:
            return "spatial"
        if len(self.groups) > 1:
            return "colour"
        return "single" if self.groups[0].count == 1 else "counting"

    @property
    def meaning(self) -> str:
        """The same text for prompts that mean the same: "A above B" and "B below A", "A and B" and "B and A"."""
        if self.relation in ("below", "right of"):
            return str(Scene(self.groups[::-1], MIRROR[self.relation]))
        if self.relation is None:
            return " and ".join(sorted(str(group) for group in self.groups))
        return str(self)

    @property
    def held_out(self) -> bool:
        """Whether this meaning belongs to the test set: about one in four, by hash, the same on every machine."""
        return hashlib.sha256(f"split 1: {self.meaning}".encode()).digest()[0] % HELD_OUT_ONE_IN == 0


def parse(prompt: str) -> Scene:
    """Read a prompt. Upper case, extra spaces and a final full stop do not matter.

    Raises ValueError, with the prompt and the reason, for anything outside the grammar, more than `MAX_OBJECTS`
    objects, or two groups that could not be told apart.
    """
    text = " ".join(prompt.lower().replace(".", " ").split())
    parts = _JOIN.split(text)
    if len(parts) not in (1, 3):
        raise ValueError(f"The demo world cannot read {prompt!r}: one or two kinds of shapes, {_GRAMMAR}.")
    groups = tuple(_parse_group(part, prompt) for part in parts[::2])
    if sum(group.count for group in groups) > MAX_OBJECTS:
        raise ValueError(f"The demo world draws at most {MAX_OBJECTS} shapes, and {prompt!r} asks for more.")
    if len(groups) == 2 and _kind(groups[0]) == _kind(groups[1]):
        raise ValueError(f"In {prompt!r} both sides are {_kind(groups[0])[0]} {_kind(groups[0])[1]}s: name two kinds.")
    relation = None if len(parts) == 1 or parts[1] == "and" else parts[1].removeprefix("to the ")
    return Scene(groups, relation)


def _parse_group(text: str, prompt: str) -> Group:
    found = _PHRASE.fullmatch(text)
    if not found:
        raise ValueError(f"The demo world cannot read {text!r} in {prompt!r}: write {_GRAMMAR}.")
    count = 1 if found["number"] in ("one", "an") else NUMBERS.index(found["number"]) + 1
    if (count > 1) != bool(found["plural"]):
        raise ValueError(f"The demo world cannot read {text!r} in {prompt!r}: number and plural do not agree.")
    return Group(count, found["size"], found["colour"], found["shape"])


def _kind(group: Group) -> tuple[str, str]:
    return group.colour, group.shape


def sample_scene(rng: np.random.Generator, category: str | None = None) -> Scene:
    """A random scene of a category (None: any, harder ones more often), from both sides of the split."""
    category = category or str(rng.choice(CATEGORIES, p=(0.15, 0.25, 0.3, 0.3)))
    if category == "single":
        return Scene((_sample_group(rng, 1),))
    if category == "counting":
        return Scene((_sample_group(rng, int(rng.integers(2, MAX_OBJECTS + 1))),))
    if category not in CATEGORIES:
        raise ValueError(f"Unknown category {category!r}: one of {', '.join(CATEGORIES)}.")
    while True:
        if category == "colour":
            first, second = _sample_group(rng, 1), _sample_group(rng, 1)
            if first.colour != second.colour and first.shape != second.shape:
                return Scene((first, second))
        else:
            counts = (1, 1) if rng.random() < 0.6 else ((2, 1), (1, 2))[rng.integers(2)]
            first, second = _sample_group(rng, counts[0]), _sample_group(rng, counts[1])
            if _kind(first) != _kind(second):
                return Scene((first, second), RELATIONS[rng.integers(len(RELATIONS))])


def _sample_group(rng: np.random.Generator, count: int) -> Group:
    size = None if rng.random() < 0.5 else tuple(SIZES)[rng.integers(len(SIZES))]
    return Group(count, size, tuple(COLOURS)[rng.integers(len(COLOURS))], SHAPES[rng.integers(len(SHAPES))])


def sample_prompt(rng: np.random.Generator, category: str | None = None, held_out: bool = False) -> str:
    """A random prompt of a category (None: any) from the training set or from the test set."""
    while (scene := sample_scene(rng, category)).held_out != held_out:
        pass
    return str(scene)


def held_out_prompts(count: int = 200) -> list[str]:
    """The test set: `count` prompts (4 or more) of different held-out meanings, the categories taking turns.

    A category with too few meanings (there are 60 single objects, sizes included) gives all it has. The list is
    the same on every machine, and a shorter list is the start of a longer one.
    """
    pools = {category: _held_out_pool(category) for category in CATEGORIES}
    prompts: list[str] = []
    while len(prompts) < count and any(pools.values()):
        prompts += [pools[category].pop(0) for category in CATEGORIES if pools[category]]
    return prompts[:count]


def _held_out_pool(category: str, limit: int = 200) -> list[str]:
    rng = np.random.default_rng(2501_09732)
    found: dict[str, str] = {}
    for _ in range(20 * limit):
        scene = sample_scene(rng, category)
        if scene.held_out:
            found.setdefault(scene.meaning, str(scene))
        if len(found) == limit:
            break
    return list(found.values())


@dataclass(frozen=True)
class Item:
    """One drawn object; `x`, `y` is its centre in pixels."""

    shape: str
    colour: str
    size: str
    x: int
    y: int


def place(scene: Scene, rng: np.random.Generator) -> list[Item]:
    """Choose sizes (one per group, where the prompt leaves it open) and places: apart, and in the asked relation.

    Raises ValueError when there is no room: three large shapes do not fit on one side of a fourth.
    """
    sizes = [group.size or tuple(SIZES)[rng.integers(len(SIZES))] for group in scene.groups]
    for _ in range(ATTEMPTS):
        boxes = _place_boxes(scene, sizes, rng)
        if boxes:
            return [Item(group.shape, group.colour, size, x, y) for group, size, x, y in boxes]
    raise ValueError(f"The demo world found no room for {str(scene)!r} in {ATTEMPTS} attempts.")


def _place_boxes(scene: Scene, sizes: list[str], rng: np.random.Generator):
    """One attempt; None when an object finds no free place."""
    axis = 1 if scene.relation in ("above", "below") else 0
    before = scene.relation in ("above", "left of")
    divide = int(rng.integers(52, SIZE - 52 + 1))
    placed: list[tuple[Group, str, int, int]] = []
    for index, (group, size) in enumerate(zip(scene.groups, sizes, strict=True)):
        half = SIZES[size] // 2 + BORDER
        low, high = [half, half], [SIZE - half, SIZE - half]
        if scene.relation:
            if (index == 0) == before:
                high[axis] = divide - RELATION_GAP // 2
            else:
                low[axis] = divide + RELATION_GAP // 2
        for _ in range(group.count):
            for _ in range(30):
                x, y = (int(rng.integers(-(-low[i] // GRID), high[i] // GRID + 1)) * GRID for i in (0, 1))
                if all(_apart(x, y, size, other) for other in placed):
                    placed.append((group, size, x, y))
                    break
            else:
                return None
    return placed


def _apart(x: int, y: int, size: str, other: tuple[Group, str, int, int]) -> bool:
    reach = (SIZES[size] + SIZES[other[1]]) // 2 + GAP
    return abs(x - other[2]) >= reach or abs(y - other[3]) >= reach


@functools.cache
def sprite(shape: str, pixels: int) -> np.ndarray:
    """The shape as an antialiased mask, float32 [pixels, pixels] in [0, 1]."""
    scale = 16
    side = pixels * scale
    canvas = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(canvas)
    if shape == "circle":
        draw.ellipse((0, 0, side - 1, side - 1), fill=255)
    elif shape == "square":
        inset = round(0.04 * side)
        draw.rounded_rectangle((inset, inset, side - 1 - inset, side - 1 - inset), radius=side // 10, fill=255)
    elif shape == "triangle":
        draw.polygon([(side / 2, 0.04 * side), (0, 0.94 * side), (side, 0.94 * side)], fill=255)
    elif shape == "star":
        points = []
        for corner in range(10):
            radius = side * (0.53 if corner % 2 == 0 else 0.25)
            angle = np.pi * corner / 5
            points.append((side / 2 + radius * np.sin(angle), side * 0.53 - radius * np.cos(angle)))
        draw.polygon(points, fill=255)
    else:
        raise ValueError(f"Unknown shape {shape!r}: one of {', '.join(SHAPES)}.")
    return np.asarray(canvas, np.float32).reshape(pixels, scale, pixels, scale).mean((1, 3)) / 255


def draw_items(items: list[Item]) -> np.ndarray:
    """Draw objects on the background: float32 [SIZE, SIZE, 3] in [0, 1]."""
    picture: np.ndarray = np.empty((SIZE, SIZE, 3), np.float32)
    picture[:] = np.float32(BACKGROUND) / 255
    for item in items:
        mask = sprite(item.shape, SIZES[item.size])[..., None]
        top, left = item.y - mask.shape[0] // 2, item.x - mask.shape[1] // 2
        patch = picture[top : top + mask.shape[0], left : left + mask.shape[1]]
        patch += mask * (np.float32(COLOURS[item.colour]) / 255 - patch)
    return picture


def render(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """A random picture that shows exactly what the scene asks for."""
    return Image.fromarray(np.rint(draw_items(place(scene, rng)) * 255).astype(np.uint8))
