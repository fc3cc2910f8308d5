"""A small drawing surface: antialiased by supersampling, with the font that Pillow carries."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageColor, ImageDraw, ImageFont

SCALE = 3  # drawn this many times larger, then reduced: Pillow's own lines and discs have hard edges

Point = tuple[float, float]


@dataclass(frozen=True)
class Theme:
    """Colours as #rrggbb. `series` tells the items of a latent batch apart (also for colour-blind readers); `reported`
    are the verifiers that do not decide. `faint`: how much of their hue less important marks keep."""

    background: str
    panel: str
    ink: str
    muted: str
    grid: str
    axis: str
    dot: str
    best: str
    stock: str
    draft: str
    preview: str
    on_accent: str
    series: tuple[str, ...]
    reported: tuple[str, ...]
    faint: float


THEMES = {
    "light": Theme(
        background="#ffffff",
        panel="#f1f4f7",
        ink="#1c2530",
        muted="#66727f",
        grid="#e8ecf0",
        axis="#aab4be",
        dot="#93a1b1",
        best="#1f5fe0",
        stock="#d06a00",
        draft="#0f8a6d",
        preview="#7a5af0",
        on_accent="#ffffff",
        series=("#1f5fe0", "#d06a00", "#0f8a6d", "#b8327f", "#7a5af0", "#a58200", "#0f86ad", "#8a4a2f"),
        reported=("#b8327f", "#8a7000", "#8a4a2f", "#0f86ad"),
        faint=0.6,
    ),
    "dark": Theme(
        background="#16191d",
        panel="#22272d",
        ink="#e9edf1",
        muted="#98a4b0",
        grid="#2b323a",
        axis="#56616c",
        dot="#74828f",
        best="#6aa5ff",
        stock="#ffb04d",
        draft="#3fcfa4",
        preview="#a995ff",
        on_accent="#10141a",
        series=("#6aa5ff", "#ffb04d", "#3fcfa4", "#f57fbd", "#a995ff", "#dfc24a", "#55c7ea", "#cf9274"),
        reported=("#f57fbd", "#dfc24a", "#cf9274", "#55c7ea"),
        faint=0.75,
    ),
}


def theme_of(name: str) -> Theme:
    if name not in THEMES:
        raise ValueError(f"unknown theme {name!r}; known: {', '.join(THEMES)}")
    return THEMES[name]


def mix(colour: str, other: str, share: float) -> str:
    """`share` of the first colour, the rest of the other. Fainter lines are drawn so: transparent ones show joints."""
    pairs = zip(ImageColor.getrgb(colour)[:3], ImageColor.getrgb(other)[:3], strict=True)
    return "#" + "".join(f"{round(a * share + b * (1 - share)):02x}" for a, b in pairs)


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # Aileron, embedded in Pillow since 10.1


@lru_cache(maxsize=4096)
def _drawable(character: str) -> str:
    """The character, or its unaccented form where the embedded font has no glyph for it."""
    font = _font(24)
    missing = bytes(font.getmask("\uffff"))

    def known(text: str) -> bool:
        return text.isspace() or bytes(font.getmask(text)) != missing

    if known(character):
        return character
    plain = "".join(c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c))
    return plain if plain and all(map(known, plain)) else "?"


def one_line(text: str) -> str:
    """The text on one line, in characters that the embedded font can draw."""
    return "".join(map(_drawable, " ".join(text.split())))


def text_width(text: str, size: float) -> float:
    """Width in pixels of a text of `size` pixels."""
    return _font(round(size * SCALE)).getlength(text) / SCALE


def fit(text: str, size: float, width: float) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels."""
    if text_width(text, size) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(text[:middle].rstrip() + "…", size) <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "…"


def wrap(text: str, size: float, width: float, lines: int) -> list[str]:
    """The text in at most `lines` lines of `width` pixels, broken between words; the last one is cut where needed."""
    words = text.split(" ")
    out: list[str] = []
    while words and len(out) < lines - 1:
        taken = len(words)
        while taken > 1 and text_width(" ".join(words[:taken]).strip(), size) > width:
            taken -= 1
        out.append(fit(" ".join(words[:taken]).strip(), size, width))
        words = words[taken:]
    rest = " ".join(words).strip()
    return [line for line in [*out, fit(rest, size, width)] if line]


class Canvas:
    """Draws in final pixels, (0, 0) top left; `image()` reduces to the final size.

    width, height: final size in pixels. background: #rrggbb, or None for transparent.
    """

    def __init__(self, width: int, height: int, background: str | None):
        self.size = (width, height)
        mode = "RGB" if background else "RGBA"
        colour = background or (0, 0, 0, 0)
        self._image = Image.new(mode, (width * SCALE, height * SCALE), colour)
        self._draw = ImageDraw.Draw(self._image, "RGBA" if background else None)

    def image(self) -> Image.Image:
        return self._image.resize(self.size, Image.Resampling.BOX)

    def line(self, points: Sequence[Point], colour: str, width: float, alpha: float = 1.0) -> None:
        xy = [(x * SCALE, y * SCALE) for x, y in points]
        self._draw.line(xy, fill=_rgba(colour, alpha), width=max(1, round(width * SCALE)), joint="curve")

    def dashes(self, points: Sequence[Point], colour: str, width: float, dash: float = 6, gap: float = 5) -> None:
        """A dashed line through the points; the dashes go on around its corners."""
        at = 0.0  # how far into the pattern
        for start, end in zip(points, points[1:], strict=False):
            length, done = math.dist(start, end), 0.0
            while done < length - 1e-6:
                inked = at < dash
                step = min((dash if inked else dash + gap) - at, length - done)
                if inked:
                    ends = [
                        (start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share)
                        for share in (done / length, (done + step) / length)
                    ]
                    self.line(ends, colour, width)
                done += step
                at = (at + step) % (dash + gap)

    def polygon(self, points: Sequence[Point], colour: str, alpha: float = 1.0) -> None:
        self._draw.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=_rgba(colour, alpha))

    def disc(self, centre: Point, radius: float, colour: str, alpha: float = 1.0) -> None:
        (x, y), r = centre, radius
        box = [(x - r) * SCALE, (y - r) * SCALE, (x + r) * SCALE, (y + r) * SCALE]
        self._draw.ellipse(box, fill=_rgba(colour, alpha))

    def diamond(self, centre: Point, radius: float, colour: str) -> None:
        x, y = centre
        self.polygon([(x, y - radius), (x + radius, y), (x, y + radius), (x - radius, y)], colour)

    def cross(self, centre: Point, radius: float, colour: str) -> None:
        x, y = centre
        for slope in (1, -1):
            self.line([(x - radius, y - slope * radius), (x + radius, y + slope * radius)], colour, 1.6)

    def box(self, left: float, top: float, right: float, bottom: float, colour: str, radius: float = 0) -> None:
        corners = [left * SCALE, top * SCALE, right * SCALE - 1, bottom * SCALE - 1]
        self._draw.rounded_rectangle(corners, radius * SCALE, fill=_rgba(colour, 1.0))

    def text(
        self,
        at: Point,
        text: str,
        colour: str,
        size: float,
        anchor: str = "ls",
        bold: bool = False,
        halo: str | None = None,
    ) -> None:
        """`anchor` as in Pillow (l, m, r; s baseline, m middle, a top); `halo` keeps it readable over other marks."""
        xy, font = (at[0] * SCALE, at[1] * SCALE), _font(round(size * SCALE))
        if halo:
            self._draw.text(xy, text, _rgba(halo, 1.0), font, anchor, stroke_width=2 * SCALE)
        # The embedded font has one weight; a thin outline of the same colour is its bold.
        self._draw.text(xy, text, _rgba(colour, 1.0), font, anchor, stroke_width=1 if bold else 0)


def _rgba(colour: str, alpha: float) -> tuple[int, int, int, int]:
    return (*ImageColor.getrgb(colour)[:3], round(255 * alpha))
