"""The score curve: what the compute of a search bought."""

from __future__ import annotations

import math

from PIL import Image

from ..search.log import SearchLog
from .canvas import Canvas, Theme, fit, one_line, text_width, theme_of
from .numbers import count, nice_ticks, plain, score_digits, signed
from .words import caption, quoted_prompt, score_name

MAX_LEGEND = 8
KEY_WIDTH = 372
AXES = {"nfe": "denoiser evaluations (NFE) per image", "seconds": "seconds"}


def score_curve(
    log: SearchLog, theme: str = "light", axis: str = "nfe", width: int = 1200, height: int = 675
) -> Image.Image:
    """The best score so far against the compute spent (the scaling curve of Ma et al., arXiv 2501.09732).

    One staircase per item of the latent batch, a dot per candidate; stock (candidate 0) and the winner are marked.

    log: any number of candidates. theme: "light" or "dark". axis: "nfe" (evaluations per row) or "seconds".
    width, height: pixels, at least 480 x 320. Returns an RGB picture. Raises ValueError on an unknown theme or axis.
    """
    colours = theme_of(theme)
    if axis not in AXES:
        raise ValueError(f"unknown axis {axis!r}; known: {', '.join(AXES)}")
    width, height = max(width, 480), max(height, 320)
    canvas = Canvas(width, height, colours.background)
    _header(canvas, log, colours)
    if log.candidates:
        _Plot(canvas, log, colours, axis).draw()
    else:
        canvas.text((width / 2, height / 2), "no candidates yet", colours.muted, 18, "mm")
    return canvas.image()


def _header(canvas: Canvas, log: SearchLog, colours: Theme) -> None:
    width = canvas.size[0]
    left, right = 36.0, width - 36.0
    if log.candidates and log.rows == 1:
        scores = log.scores(0).tolist()
        best, gain = max(scores), max(scores) - scores[0]
        if gain:
            headline, note = signed(gain, score_digits([gain])), "over stock"
        else:
            headline, note = plain(best, score_digits(scores)), _why_stock(scores)
        canvas.text((right, 48), headline, colours.best, 30, "rs", bold=True)
        canvas.text((right, 70), note, colours.muted, 14, "rs")
        right -= max(text_width(headline, 30), text_width(note, 14)) + 32
    canvas.text((left, 46), "Best score so far", colours.ink, 25, bold=True)
    lines = quoted_prompt(log)
    lines.append(one_line(caption(log)))
    for number, (line, colour) in enumerate(zip(lines, (colours.ink, colours.muted)[-len(lines) :], strict=True)):
        canvas.text((left, 71 + 21 * number), fit(line, 15, right - left), colour, 15)


def _why_stock(scores: list[float]) -> str:
    if len(scores) == 1:
        return "stock, the only candidate"
    return "all scores are equal" if max(scores) == min(scores) else "nothing beat stock"


class _Plot:
    """The axes and everything inside them."""

    def __init__(self, canvas: Canvas, log: SearchLog, colours: Theme, axis: str):
        self.canvas, self.log, self.colours, self.axis = canvas, log, colours, axis
        self.scores = [log.scores(row).tolist() for row in range(log.rows)]
        self.digits = score_digits([score for row in self.scores for score in row])
        column = 0 if axis == "nfe" else 1
        self.spent = [point[column] for point in log.curve(0)]
        width, height = canvas.size
        everything = [score for row in self.scores for score in row]
        low, high = min(everything), max(everything)
        span = high - low or abs(high) * 0.2 or 1.0
        # Room above for the winner's label and below for stock's.
        self.low, self.high = low - 0.10 * span, high + 0.14 * span
        self.y_ticks = nice_ticks(self.low, self.high, max(3, (height - 220) // 75))
        self.end = (self.spent[-1] or 1.0) * (1.02 if len(self.spent) > 1 else 2)
        self.x_ticks = nice_ticks(0, self.end, max(3, (width - 160) // 120))
        y_labels = [label for _, label in self.y_ticks]
        self.left = 36 + max(text_width(label, 14) for label in y_labels) + 12
        self.right, self.top, self.bottom = width - 36.0, 150.0, height - 62.0
        if log.rows > 1:
            self.right -= self._legend_width() + 24

    def x(self, spent: float) -> float:
        return self.left + (self.right - self.left) * spent / self.end

    def y(self, score: float) -> float:
        return self.bottom - (self.bottom - self.top) * (score - self.low) / (self.high - self.low)

    def draw(self) -> None:
        self._axes()
        if self.log.rows == 1:
            self._single()
        else:
            self._batch()

    def _axes(self) -> None:
        canvas, colours = self.canvas, self.colours
        for value, label in self.y_ticks:
            canvas.line([(self.left, self.y(value)), (self.right, self.y(value))], colours.grid, 1)
            canvas.text((self.left - 12, self.y(value)), label, colours.muted, 14, "rm")
        canvas.line([(self.left, self.bottom), (self.right, self.bottom)], colours.axis, 1.4)
        for value, label in self.x_ticks:
            canvas.line([(self.x(value), self.bottom), (self.x(value), self.bottom + 5)], colours.axis, 1.4)
            canvas.text((self.x(value), self.bottom + 11), label, colours.muted, 14, "ma")
        canvas.text(((self.left + self.right) / 2, self.bottom + 48), AXES[self.axis], colours.muted, 14, "ms")
        room = self.right - 36 - (KEY_WIDTH if self.log.rows == 1 else 0)
        canvas.text((36, self.top - 22), fit(one_line(score_name(self.log)), 14, room), colours.muted, 14)

    def _staircase(self, scores: list[float]) -> list[tuple[float, float]]:
        points: list[tuple[float, float]] = []
        best = -math.inf
        for spent, score in zip(self.spent, scores, strict=True):
            if points:
                points.append((self.x(spent), self.y(best)))
            best = max(best, score)
            points.append((self.x(spent), self.y(best)))
        points.append((self.right, self.y(best)))
        return points

    def _single(self) -> None:
        self._key()
        canvas, colours, scores = self.canvas, self.colours, self.scores[0]
        winner = self.log.order(0)[0]
        stock_y = self.y(scores[0])
        stairs = self._staircase(scores)
        floor = self.bottom
        canvas.polygon([(stairs[0][0], floor), *stairs, (self.right, floor)], colours.best, 0.07)
        radius = 4.2 if len(scores) <= 64 else 3.2 if len(scores) <= 256 else 2.4
        for spent, score in zip(self.spent, scores, strict=True):
            canvas.disc((self.x(spent), self.y(score)), radius, colours.dot, 0.75)
        if winner != 0:
            canvas.dashes((stairs[0][0], stock_y), (self.right, stock_y), colours.stock, 1.6)
        canvas.line(stairs, colours.best, 3)
        best = -math.inf
        for spent, score in zip(self.spent, scores, strict=True):
            if score > best:
                best = score
                canvas.disc((self.x(spent), self.y(score)), 4.6, colours.best)
        at = (self.x(self.spent[winner]), self.y(scores[winner]))
        canvas.disc(at, 10, colours.background)
        canvas.disc(at, 9, colours.best)
        canvas.disc(at, 6, colours.background)
        canvas.disc(at, 3.6, colours.best)
        seed = f"seed {self.log.candidates[winner].recipes[0].seed}"
        if winner == 0:
            self._label((at[0], at[1] - 20), f"stock  {plain(scores[0], self.digits)}  ·  {seed}", "best")
            canvas.diamond(at, 4.6, colours.stock)
            return
        self._label((at[0], at[1] - 20), f"best  {plain(scores[winner], self.digits)}  ·  {seed}", "best")
        canvas.diamond((self.x(self.spent[0]), stock_y), 10, colours.background)
        canvas.diamond((self.x(self.spent[0]), stock_y), 8, colours.stock)
        self._label((self.x(self.spent[0]) + 14, stock_y + 24), f"stock  {plain(scores[0], self.digits)}", "stock")

    def _key(self) -> None:
        """What dot and lines mean, at the right of the score's name."""
        canvas, colours, y = self.canvas, self.colours, self.top - 22
        x = self.right - KEY_WIDTH + 24
        canvas.disc((x, y - 5), 4.2, colours.dot)
        canvas.text((x + 10, y), "candidate", colours.muted, 14)
        canvas.line([(x + 92, y - 5), (x + 112, y - 5)], colours.best, 3)
        canvas.text((x + 120, y), "best so far", colours.muted, 14)
        canvas.dashes((x + 210, y - 5), (x + 232, y - 5), colours.stock, 1.6, dash=5, gap=3.5)
        canvas.text((x + 240, y), "stock (no search)", colours.muted, 14)

    def _label(self, at: tuple[float, float], text: str, colour: str) -> None:
        """A label centred above its mark, moved inwards where it would leave the plot."""
        half = text_width(text, 15) / 2
        x = min(max(at[0], self.left + half + 4), self.right - half)
        hue = getattr(self.colours, colour)
        self.canvas.text((x, at[1]), text, hue, 15, "ms", bold=True, halo=self.colours.background)

    def _batch(self) -> None:
        canvas, colours = self.canvas, self.colours
        rows = range(self.log.rows)
        hues = [colours.series[row % len(colours.series)] for row in rows]
        radius = 3.4 if len(self.spent) * len(rows) <= 256 else 2.2
        for row in rows:
            for spent, score in zip(self.spent, self.scores[row], strict=True):
                canvas.disc((self.x(spent), self.y(score)), radius, hues[row], 0.4)
        for row in rows:
            canvas.line(self._staircase(self.scores[row]), hues[row], 2.6 if len(rows) <= 8 else 1.6)
        for row in rows:
            at = (self.x(self.spent[0]), self.y(self.scores[row][0]))
            canvas.diamond(at, 8.5, colours.background)
            canvas.diamond(at, 6.5, hues[row])
            winner = self.log.order(row)[0]
            at = (self.x(self.spent[winner]), self.y(self.scores[row][winner]))
            canvas.disc(at, 8, colours.background)
            canvas.disc(at, 6.8, hues[row])
            canvas.disc(at, 3.6, colours.background)
        self._legend(hues)

    def _legend_rows(self) -> list[tuple[str, str]]:
        shown = range(min(self.log.rows, MAX_LEGEND))
        return [
            (
                f"image {row + 1}",
                f"{plain(self.scores[row][0], self.digits)} to {plain(max(self.scores[row]), self.digits)}",
            )
            for row in shown
        ]

    def _legend_width(self) -> float:
        widths = [28 + text_width(name, 14) + 14 + text_width(change, 14) for name, change in self._legend_rows()]
        return max(*widths, 150)

    def _legend(self, hues: list[str]) -> None:
        canvas, colours = self.canvas, self.colours
        left, y = self.right + 24, self.top + 12
        right = canvas.size[0] - 36
        canvas.text((right, y), "stock to best", colours.muted, 13, "rs")
        for (name, change), hue in zip(self._legend_rows(), hues, strict=False):
            y += 25
            canvas.line([(left, y - 5), (left + 18, y - 5)], hue, 3)
            canvas.text((left + 28, y), name, colours.ink, 14)
            canvas.text((right, y), change, colours.muted, 14, "rs")
        hidden = self.log.rows - MAX_LEGEND
        if hidden > 0:
            y += 25
            canvas.text((left, y), f"and {count(hidden, 'image')} more", colours.muted, 14)
        y += 38
        canvas.diamond((left + 9, y - 5), 6, colours.muted)
        canvas.text((left + 28, y), "stock", colours.muted, 14)
        y += 23
        canvas.disc((left + 9, y - 5), 6.4, colours.muted)
        canvas.disc((left + 9, y - 5), 3.4, colours.background)
        canvas.text((left + 28, y), "best", colours.muted, 14)
