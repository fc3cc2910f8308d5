"""The contact sheet: what the search looked at, best first."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from PIL import Image, ImageOps

from ..search.log import FINAL, SearchLog
from .canvas import Canvas, Theme, fit, one_line, text_width, theme_of, wrap
from .numbers import count, plain, score_digits
from .words import caption, failed_gates, quoted_prompt, recipe_name, score_name, stages

TILE = 168  # a thumbnail covers as many pixels as a square of this side
GAP = 22
MARGIN = 36
LABEL = 46
REASON = 18  # of why a candidate fails a gate
HEADING = 34
MAX_WIDTH = 1600
MIN_SEED_SHARE = 0.7  # of the usual size of a seed
MIN_EACH = 3  # rather fewer images of a large batch than fewer candidates of each


@dataclass(frozen=True)
class _Tile:
    index: int
    row: int
    stage: str
    rank: int
    score: float


@dataclass(frozen=True)
class _Block:
    """Tiles of one item of the batch and one stage, best first. heading: "" where there is only one block."""

    heading: str
    tiles: list[_Tile]
    digits: int


def contact_sheet(log: SearchLog, theme: str = "light", tiles: int = 64) -> Image.Image:
    """Thumbnails in rank order with score, candidate and seed; stock (candidate 0) and the winner are marked, and what
    fails a gate.

    log: any number of candidates; each item of a latent batch has its own block, in its own order, and where there is
    room left further blocks for its drafts and previews. theme: "light" or "dark". tiles: at most this many pictures
    altogether; the sheet says how many are not shown, and stock is always among the shown where an item has room for
    two. Returns an RGB picture. Raises ValueError on an unknown theme.
    """
    colours = theme_of(theme)
    tiles = max(tiles, 1)
    each = max(tiles // log.rows, min(tiles, MIN_EACH))
    images = min(log.rows, tiles // each)
    blocks = [block for row in range(images) for block in _blocks(log, row, each)]
    wide, high = _tile_size(log)
    most = max((len(block.tiles) for block in blocks), default=0)
    fitting = (MAX_WIDTH - 2 * MARGIN + GAP) // (wide + GAP)
    lines = max(-(-most // fitting), 1)
    columns = max(-(-most // lines), 3)  # even lines look better than long ones and a rest; 3 give the title room
    width = 2 * MARGIN + columns * wide + (columns - 1) * GAP
    reasons = any(failed_gates(log, tile.index, tile.row) for block in blocks for tile in block.tiles)
    line_height = high + LABEL + REASON * reasons + GAP
    heights = [(HEADING if block.heading else 0) + -(-len(block.tiles) // columns) * line_height for block in blocks]
    notes = wrap(_notes(log, images, blocks), 14, width - 2 * MARGIN, 3)
    height = 118 + (sum(heights) or line_height) + (10 + 20 * len(notes) if notes else 8)

    canvas = Canvas(width, height, colours.background)
    pictures: list[tuple[Image.Image, tuple[int, int]]] = []
    badges: list[tuple[Image.Image, tuple[int, int]]] = []
    _header(canvas, log, colours)
    y = 118
    for block, block_height in zip(blocks, heights, strict=True):
        top = y
        if block.heading:
            canvas.text((MARGIN, top + 16), block.heading, colours.ink, 16, bold=True)
            top += HEADING
        for place, tile in enumerate(block.tiles):
            left = MARGIN + place % columns * (wide + GAP)
            above = top + place // columns * line_height
            _draw_tile(canvas, log, tile, (left, above, wide, high), block.digits, colours)
            thumbnail = log.thumbnails.get((tile.index, tile.row))
            if thumbnail is None:
                canvas.text((left + wide / 2, above + high / 2), "no picture", colours.muted, 13, "mm")
            else:
                pictures.append((_picture(thumbnail, wide, high, colours.panel), (left, above)))
            badges += _badges(log, tile, (left, above, wide), colours)
        y += block_height
    for number, line in enumerate(notes):
        canvas.text((MARGIN, y + 4 + 20 * number), line, colours.muted, 14)

    sheet = canvas.image()
    mask = _rounded(wide, high)
    for picture, at in pictures:
        sheet.paste(picture, at, mask)
    for badge, at in badges:
        sheet.paste(badge, at, badge)
    return sheet


def _blocks(log: SearchLog, row: int, limit: int) -> list[_Block]:
    """Finals, then as far as there is room drafts and previews, `limit` tiles in all."""
    blocks = []
    image = f"image {row + 1} of {log.rows}" if log.rows > 1 else ""
    for stage in stages(log):
        tiles = _tiles(log, row, stage, limit)
        if tiles:
            titles = [title for title in (image, f"{stage}s" if stages(log) != [FINAL] else "") if title]
            blocks.append(_Block("  ·  ".join(titles), tiles, score_digits([tile.score for tile in tiles])))
        limit -= len(tiles)
    return blocks


def _tiles(log: SearchLog, row: int, stage: str, limit: int) -> list[_Tile]:
    """The best `limit` of one item's candidates that still have a picture, stock among the finals whatever its rank."""
    scores = log.scores(row).tolist()
    order = log.order(row, stage)
    ranked = [_Tile(index, row, stage, rank, scores[index]) for rank, index in enumerate(order, start=1)]
    with_picture = [tile for tile in ranked if (tile.index, row) in log.thumbnails] if log.thumbnails else ranked
    shown = with_picture[:limit]
    if stage == FINAL and limit > 1 and all(tile.index for tile in shown):
        shown[limit - 1 :] = [tile for tile in ranked if tile.index == 0]
    return shown


def _tile_size(log: SearchLog) -> tuple[int, int]:
    """Width and height of a picture on the sheet, in the log's own proportions (up to 2 : 1 either way)."""
    ratio = 1.0
    for thumbnail in log.thumbnails.values():
        ratio = min(max(thumbnail.shape[1] / thumbnail.shape[0], 0.5), 2.0)
        break
    return round(TILE * math.sqrt(ratio)), round(TILE / math.sqrt(ratio))


def _notes(log: SearchLog, images: int, blocks: list[_Block]) -> str:
    parts = []
    for stage in stages(log):
        shown = sum(tile.stage == stage for block in blocks for tile in block.tiles)
        hidden = images * len(log.of_stage(stage)) - shown
        if hidden:
            noun = "picture" if stages(log) == [FINAL] else stage
            parts.append(f"{count(hidden, f'more {noun}')} of lower rank not shown")
    if images < log.rows:
        parts.append(f"{count(log.rows - images, 'more image')} of the batch not shown")
    return "  ·  ".join(parts)


def _header(canvas: Canvas, log: SearchLog, colours: Theme) -> None:
    room = canvas.size[0] - 2 * MARGIN
    canvas.text((MARGIN, 46), "Contact sheet", colours.ink, 25, bold=True)
    lines = quoted_prompt(log)
    lines.append(one_line(f"best first by {score_name(log)}  ·  {caption(log)}"))
    for number, (line, colour) in enumerate(zip(lines, (colours.ink, colours.muted)[-len(lines) :], strict=True)):
        canvas.text((MARGIN, 71 + 21 * number), fit(line, 15, room), colour, 15)


def _draw_tile(
    canvas: Canvas, log: SearchLog, tile: _Tile, place: tuple[int, int, int, int], digits: int, colours: Theme
) -> None:
    left, top, wide, high = place
    accent = colours.best if tile.rank == 1 else colours.stock if tile.index == 0 else None
    if tile.stage != FINAL:
        accent = None
    if accent:
        canvas.box(left - 5, top - 5, left + wide + 5, top + high + 5, accent, radius=10)
        canvas.box(left - 2, top - 2, left + wide + 2, top + high + 2, colours.background, radius=8)
    canvas.box(left, top, left + wide, top + high, colours.panel, radius=6)
    base = top + high + 24
    score = plain(tile.score, digits)
    canvas.text((left, base), score, accent or colours.ink, 16, bold=True)
    candidate = f"candidate {tile.index}" if wide >= 150 else f"c {tile.index}"
    canvas.text((left + wide, base), candidate, colours.muted, 13, "rs")
    recipe = log.candidates[tile.index].recipes[tile.row]
    seed = recipe_name(recipe)
    if text_width(seed, 13) > wide:
        seed = seed.removeprefix("seed ")
    if text_width(seed, 13 * MIN_SEED_SHARE) > wide:
        # A seed has up to 20 digits, and each one matters; how many moves there are matters less.
        seed = str(recipe.seed)
    size = 13 * min(1.0, max(0.97 * wide / text_width(seed, 13), MIN_SEED_SHARE))
    canvas.text((left, base + 18), fit(seed, size, wide), colours.muted, size)
    if failing := failed_gates(log, tile.index, tile.row, numbers_first=True):  # the tile may be too narrow for all
        canvas.text((left, base + 36), fit(one_line(failing), 12, wide), colours.stock, 12)


def _badges(
    log: SearchLog, tile: _Tile, place: tuple[int, int, int], colours: Theme
) -> list[tuple[Image.Image, tuple[int, int]]]:
    """The rank in the top left corner; in the top right one "best" and "stock", or of a draft what became of it."""
    left, top, wide = place
    rank = _pill(f"{tile.rank}", colours.background, colours.ink)
    badges = [(rank, (left + 6, top + 6))]
    right = left + wide - 6
    recipe = log.candidates[tile.index].recipes[tile.row]
    is_stock = recipe == log.candidates[0].recipes[tile.row]
    if tile.stage == FINAL:
        words = [("best", colours.best)] * (tile.rank == 1) + [("stock", colours.stock)] * (
            tile.index == 0 and log.has_stock
        )
    elif is_stock:
        words = [("stock", colours.stock)]
    else:
        finals = [final.recipes[tile.row] for final in log.of_stage(FINAL)]
        words = [("made final", colours.draft)] * (recipe in finals)
    if log.vetoed_by(tile.index, tile.row):
        words.append(("vetoed", colours.muted))
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
