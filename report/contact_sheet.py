"""The contact sheet: what the search looked at, best first."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from PIL import Image, ImageOps

from ..search.log import SearchLog
from .canvas import Canvas, Theme, fit, one_line, text_width, theme_of
from .numbers import count, plain, score_digits
from .words import caption, quoted_prompt, score_name

TILE = 168  # a thumbnail covers as many pixels as a square of this side
GAP = 22
MARGIN = 36
LABEL = 46
HEADING = 34
MAX_WIDTH = 1600
MIN_EACH = 3  # rather fewer images of a large batch than fewer candidates of each


@dataclass(frozen=True)
class _Tile:
    index: int
    rank: int
    score: float


def contact_sheet(log: SearchLog, theme: str = "light", tiles: int = 64) -> Image.Image:
    """Thumbnails in rank order with score, candidate and seed; stock (candidate 0) and the winner are marked.

    log: any number of candidates; each item of a latent batch has its own block, in its own order. theme: "light" or
    "dark". tiles: at most this many pictures altogether; the sheet says how many are not shown, and stock is always
    among the shown where an item has room for two. Returns an RGB picture. Raises ValueError on an unknown theme.
    """
    colours = theme_of(theme)
    tiles = max(tiles, 1)
    each = max(tiles // log.rows, min(tiles, MIN_EACH))
    blocks = [_tiles(log, row, each) for row in range(min(log.rows, tiles // each))]
    wide, high = _tile_size(log)
    most = max(map(len, blocks))
    fitting = (MAX_WIDTH - 2 * MARGIN + GAP) // (wide + GAP)
    lines = max(-(-most // fitting), 1)
    columns = max(-(-most // lines), 3)  # even lines look better than long ones and a rest; 3 give the title room
    width = 2 * MARGIN + columns * wide + (columns - 1) * GAP
    line_height = high + LABEL + GAP
    heights = [(HEADING if log.rows > 1 else 0) + max(-(-len(block) // columns), 1) * line_height for block in blocks]
    notes = _notes(log, blocks)
    height = 118 + sum(heights) + (30 if notes else 8)

    canvas = Canvas(width, height, colours.background)
    pictures: list[tuple[Image.Image, tuple[int, int]]] = []
    badges: list[tuple[Image.Image, tuple[int, int]]] = []
    _header(canvas, log, colours)
    y = 118
    for row, (block, block_height) in enumerate(zip(blocks, heights, strict=True)):
        top = y
        if log.rows > 1:
            canvas.text((MARGIN, top + 16), f"image {row + 1} of {log.rows}", colours.ink, 16, bold=True)
            top += HEADING
        digits = score_digits([tile.score for tile in block])
        for place, tile in enumerate(block):
            left = MARGIN + place % columns * (wide + GAP)
            above = top + place // columns * line_height
            _draw_tile(canvas, log, row, tile, (left, above, wide, high), digits, colours)
            thumbnail = log.thumbnails.get((tile.index, row))
            if thumbnail is None:
                canvas.text((left + wide / 2, above + high / 2), "no picture", colours.muted, 13, "mm")
            else:
                pictures.append((_picture(thumbnail, wide, high, colours.panel), (left, above)))
            badges += _badges(tile, (left, above, wide), colours)
        y += block_height
    if notes:
        canvas.text((MARGIN, y + 4), notes, colours.muted, 14)

    sheet = canvas.image()
    mask = _rounded(wide, high)
    for picture, at in pictures:
        sheet.paste(picture, at, mask)
    for badge, at in badges:
        sheet.paste(badge, at, badge)
    return sheet


def _tiles(log: SearchLog, row: int, limit: int) -> list[_Tile]:
    """The best `limit` candidates of one item that still have a picture, stock among them whatever its rank."""
    if not log.candidates:
        return []
    scores = log.scores(row).tolist()
    ranked = [_Tile(index, rank, scores[index]) for rank, index in enumerate(log.order(row), start=1)]
    with_picture = [tile for tile in ranked if (tile.index, row) in log.thumbnails] if log.thumbnails else ranked
    shown = with_picture[:limit]
    if limit > 1 and all(tile.index for tile in shown):
        shown[limit - 1 :] = [tile for tile in ranked if tile.index == 0]
    return shown


def _tile_size(log: SearchLog) -> tuple[int, int]:
    """Width and height of a picture on the sheet, in the log's own proportions (up to 2 : 1 either way)."""
    ratio = 1.0
    for thumbnail in log.thumbnails.values():
        ratio = min(max(thumbnail.shape[1] / thumbnail.shape[0], 0.5), 2.0)
        break
    return round(TILE * math.sqrt(ratio)), round(TILE / math.sqrt(ratio))


def _notes(log: SearchLog, blocks: list[list[_Tile]]) -> str:
    parts = []
    hidden = sum(len(log.candidates) - len(block) for block in blocks)
    if hidden:
        parts.append(f"{count(hidden, 'more picture')} of lower rank not shown")
    if len(blocks) < log.rows:
        parts.append(f"{count(log.rows - len(blocks), 'more image')} of the batch not shown")
    return "  ·  ".join(parts)


def _header(canvas: Canvas, log: SearchLog, colours: Theme) -> None:
    room = canvas.size[0] - 2 * MARGIN
    canvas.text((MARGIN, 46), "Contact sheet", colours.ink, 25, bold=True)
    lines = quoted_prompt(log)
    lines.append(one_line(f"best first by {score_name(log)}  ·  {caption(log)}"))
    for number, (line, colour) in enumerate(zip(lines, (colours.ink, colours.muted)[-len(lines) :], strict=True)):
        canvas.text((MARGIN, 71 + 21 * number), fit(line, 15, room), colour, 15)


def _draw_tile(
    canvas: Canvas, log: SearchLog, row: int, tile: _Tile, place: tuple[int, int, int, int], digits: int, colours: Theme
) -> None:
    left, top, wide, high = place
    accent = colours.best if tile.rank == 1 else colours.stock if tile.index == 0 else None
    if accent:
        canvas.box(left - 5, top - 5, left + wide + 5, top + high + 5, accent, radius=10)
        canvas.box(left - 2, top - 2, left + wide + 2, top + high + 2, colours.background, radius=8)
    canvas.box(left, top, left + wide, top + high, colours.panel, radius=6)
    base = top + high + 24
    score = plain(tile.score, digits)
    canvas.text((left, base), score, accent or colours.ink, 16, bold=True)
    candidate = f"candidate {tile.index}" if wide >= 150 else f"c {tile.index}"
    canvas.text((left + wide, base), candidate, colours.muted, 13, "rs")
    recipe = log.candidates[tile.index].recipes[row]
    moves = f"  ·  {count(len(recipe.moves), 'move')}" if recipe.moves else ""
    seed = f"seed {recipe.seed}{moves}"
    if text_width(seed, 13) > wide:
        seed = f"{recipe.seed}{moves}"
    size = 13 * min(
        1.0, max(0.97 * wide / text_width(seed, 13), 0.7)
    )  # a seed has up to 20 digits, and each one matters
    canvas.text((left, base + 18), fit(seed, size, wide), colours.muted, size)


def _badges(tile: _Tile, place: tuple[int, int, int], colours: Theme) -> list[tuple[Image.Image, tuple[int, int]]]:
    """The rank in the top left corner; "best" and "stock" in the top right one."""
    left, top, wide = place
    rank = _pill(f"{tile.rank}", colours.background, colours.ink)
    badges = [(rank, (left + 6, top + 6))]
    right = left + wide - 6
    words = [("best", colours.best)] if tile.rank == 1 else []
    words += [("stock", colours.stock)] if tile.index == 0 else []
    for word, colour in words:
        badge = _pill(word, colour, colours.on_accent)
        right -= badge.width
        badges.append((badge, (right, top + 6)))
        right -= 4
    return badges


def _pill(text: str, fill: str, ink: str) -> Image.Image:
    width = max(round(text_width(text, 13)) + 14, 22)
    canvas = Canvas(width, 22, None)
    canvas.box(0, 0, width, 22, fill, radius=11)
    canvas.text((width / 2, 11.5), text, ink, 13, "mm", bold=True)
    return canvas.image()


def _rounded(width: int, height: int) -> Image.Image:
    canvas = Canvas(width, height, "#000000")
    canvas.box(0, 0, width, height, "#ffffff", radius=6)
    return canvas.image().convert("L")


def _picture(thumbnail: torch.Tensor, width: int, height: int, background: str) -> Image.Image:
    """uint8 [height, width, 3] as a picture of the tile's size, in its own proportions."""
    picture = Image.fromarray(thumbnail.to("cpu", torch.uint8).numpy())
    return ImageOps.pad(picture, (width, height), Image.Resampling.LANCZOS, color=background)
