"""The score curve: what the compute of a search bought."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from ..search.log import DRAFT, FINAL, PREVIEW, SearchLog
from .canvas import Canvas, Point, Theme, fit, mix, one_line, text_width, theme_of, wrap
from .numbers import count, nice_ticks, plain, score_digits, signed
from .words import caption, quoted_prompt, recipe_name, report_only, score_name, stages, warning

AXES = {"nfe": "denoiser evaluations (NFE) per image", "seconds": "seconds"}
BOTH = "both"
MARGIN = 36.0
MAX_IMAGES = 8  # of a batch, named in the legend
MAX_REPORTED = 4  # verifiers that do not decide
MIN_PANEL = 160.0
SYMBOL = 28.0
DASHES = ((10.0, 5.0), (4.0, 4.0), (16.0, 5.0), (2.5, 6.0))


def score_curve(
    log: SearchLog, theme: str = "light", axis: str = "nfe", width: int = 1200, height: int | None = None
) -> Image.Image:
    """The best score so far against the compute spent (the scaling curve of Ma et al., arXiv 2501.09732).

    One staircase per item of the latent batch, a dot per candidate; stock (candidate 0) and the winner are marked.
    Drafts and previews, which only rank, are separate, fainter series. Dashed lines show what the verifiers that do
    not decide say of the best candidate so far (in a batch, on average).

    log: any number of candidates. theme: "light" or "dark". axis: "nfe" (evaluations per row), "seconds" or "both", one
    above the other. width, height: pixels, at least 480 x 400; the picture is taller where its legend needs it. Returns
    an RGB picture. Raises ValueError on an unknown theme or axis.
    """
    colours = theme_of(theme)
    if axis not in (*AXES, BOTH):
        raise ValueError(f"unknown axis {axis!r}; known: {', '.join((*AXES, BOTH))}")
    axes = list(AXES) if axis == BOTH else [axis]
    width = max(width, 480)
    height = max(height or (1080 if axis == BOTH else 675), 400)
    header = _Header(log, width)
    if not log.of_stage(FINAL):
        canvas = Canvas(width, height, colours.background)
        header.draw(canvas, colours)
        canvas.text((width / 2, height / 2), "no candidates yet", colours.muted, 18, "mm")
        return canvas.image()
    plot = _Plot(log, colours, width, header.bottom)
    height = max(height, math.ceil(plot.least_height(len(axes))))
    canvas = Canvas(width, height, colours.background)
    header.draw(canvas, colours)
    plot.draw(canvas, axes)
    return canvas.image()


class _Header:
    """Title, prompt, caption and the first warning; at the right what was gained over stock."""

    def __init__(self, log: SearchLog, width: int):
        self.right = width - MARGIN
        self.headline, self.note = _headline(log) if log.of_stage(FINAL) and log.rows == 1 else ("", "")
        taken = max(text_width(self.headline, 30), text_width(self.note, 14))
        room = self.right - MARGIN
        beside = room - taken - 32 if self.headline else room
        self.lines: list[tuple[str, str]] = []  # text, name of its colour
        for text, colour in [*((line, "ink") for line in quoted_prompt(log)), (one_line(caption(log)), "muted")]:
            # The headline reaches down to the first line.
            self.lines.append((fit(text, 15, room if self.lines else beside), colour))
        for text in wrap(one_line(warning(log)), 15, room - 22, 2):
            self.lines.append((text, "stock"))
        self.bottom = 71.0 + 21 * (len(self.lines) - 1)

    def draw(self, canvas: Canvas, colours: Theme) -> None:
        if self.headline:
            canvas.text((self.right, 48), self.headline, colours.best, 30, "rs", bold=True)
            canvas.text((self.right, 70), self.note, colours.muted, 14, "rs")
        canvas.text((MARGIN, 46), "Best score so far", colours.ink, 25, bold=True)
        warned = False
        for number, (text, name) in enumerate(self.lines):
            y, colour = 71 + 21 * number, getattr(colours, name)
            left = MARGIN
            if name == "stock":
                left += 22
                if not warned:
                    _warning_sign(canvas, (MARGIN + 7, y - 5), colour, colours.background)
                    warned = True
            canvas.text((left, y), text, colour, 15)


def _headline(log: SearchLog) -> tuple[str, str]:
    every = log.scores(0).tolist()
    scores = [every[candidate.index] for candidate in log.of_stage(FINAL)]
    best = log.best(0).index
    gain = every[best] - scores[0]
    if log.vetoed_by(best, 0):
        return plain(every[best], score_digits(scores)), "no candidate passes the gates"
    if best and gain <= 0:
        return plain(every[best], score_digits(scores)), "stock fails a gate"
    if gain:
        return signed(gain, score_digits([gain])), "over stock"
    if len(scores) == 1:
        why = "stock, the only candidate" if len(every) == 1 else "stock, the only finished candidate"
        why = why if log.has_stock else "the recipe, made again"
    else:
        why = "all scores are equal" if max(scores) == min(scores) else "nothing beat stock"
    return plain(every[best], score_digits(scores)), why


def _warning_sign(canvas: Canvas, centre: Point, colour: str, background: str) -> None:
    x, y = centre
    canvas.polygon([(x - 8, y + 6.5), (x, y - 8), (x + 8, y + 6.5)], colour)
    canvas.line([(x, y - 3.2), (x, y + 1.6)], background, 1.8)
    canvas.disc((x, y + 4), 1, background)


@dataclass(frozen=True)
class _Series:
    """The candidates of one stage for one item of the batch, as they were made."""

    stage: str
    row: int
    candidates: list[int]
    scores: list[float]
    vetoed: list[bool]  # whether each fails a gate
    best: list[int]  # the place in this series of the best so far, after each

    @property
    def best_scores(self) -> list[float]:
        return [self.scores[place] for place in self.best]


@dataclass(frozen=True)
class _Reported:
    """A verifier that does not decide: its value of the best candidate so far, after each final."""

    name: str
    colour: str
    dash: tuple[float, float]
    values: list[float]
    digits: int

    @property
    def change(self) -> str:
        """The score of stock and of the winner, in words."""
        return f"stock {plain(self.values[0], self.digits)}, best {plain(self.values[-1], self.digits)}"


@dataclass(frozen=True)
class _Entry:
    """One entry of the legend: a mark, and what it stands for."""

    draw: Callable[[Canvas, float, float], None]  # at the left end and the middle of its place
    name: str
    note: str = ""

    @property
    def indent(self) -> float:
        return 0 if self.draw is _nothing else SYMBOL + 8

    @property
    def width(self) -> float:
        return self.indent + text_width(self.name, 14) + (8 + text_width(self.note, 14) if self.note else 0)


class _Plot:
    """The legend and, below it, one or two panels with the same vertical axes."""

    def __init__(self, log: SearchLog, colours: Theme, width: int, top: float):
        self.log, self.colours, self.width = log, colours, width
        scores = [log.scores(row).tolist() for row in range(log.rows)]
        self.series = [
            _series(log, stage, row)
            for stage in (PREVIEW, DRAFT, FINAL)  # the finals on top
            for row in range(log.rows)
            if log.of_stage(stage)
        ]
        self.finals = [series for series in self.series if series.stage == FINAL]
        self.digits = score_digits([score for row in scores for score in row])
        self.low, self.high = min(map(min, scores)), max(map(max, scores))
        self.reported = self._reported()
        self.on_axis = self.reported[0] if len(report_only(log)) == 1 else None
        self.legend_top = top + 34
        self.legend = self._flow(self._entries())
        self.title = self.legend_top + 22 * (len(self.legend) - 1) + 34
        self.top = self.title + 16

    def least_height(self, panels: int) -> float:
        return self.top + panels * (MIN_PANEL + 62) + (panels - 1) * 14

    def draw(self, canvas: Canvas, axes: Sequence[str]) -> None:
        self._draw_legend(canvas)
        room = (canvas.size[1] - self.top - (len(axes) - 1) * 14) / len(axes)
        for number, axis in enumerate(axes):
            top = self.top + number * (room + 14)
            _Panel(canvas, self, axis, top, top + room - 62).draw()
        self._titles(canvas)

    def hue(self, series: _Series) -> str:
        """The colour of a series: by stage, or in a batch by item."""
        if self.log.rows > 1:
            return self.colours.series[series.row % len(self.colours.series)]
        return {DRAFT: self.colours.draft, PREVIEW: self.colours.preview, FINAL: self.colours.best}[series.stage]

    def faint(self, colour: str) -> str:
        return mix(colour, self.colours.background, self.colours.faint)

    def _titles(self, canvas: Canvas) -> None:
        room = self.width - 2 * MARGIN
        if self.on_axis:
            name = fit(one_line(f"{self.on_axis.name} (report only)"), 14, room / 2 - 12)
            canvas.text((self.width - MARGIN, self.title), name, self.on_axis.colour, 14, "rs")
            room -= text_width(name, 14) + 24
        canvas.text((MARGIN, self.title), fit(one_line(score_name(self.log)), 14, room), self.colours.muted, 14)

    def _reported(self) -> list[_Reported]:
        log = self.log
        best = [[series.candidates[place] for place in series.best] for series in self.finals]
        found = []
        for number, member in enumerate(report_only(log)[:MAX_REPORTED]):
            each = [[log.candidates[index].values[row][member] for index in best[row]] for row in range(log.rows)]
            values = [sum(column) / log.rows for column in zip(*each, strict=True)]
            everything = [candidate.values[row][member] for candidate in log.candidates for row in range(log.rows)]
            digits = score_digits(everything)
            # In a batch the hues belong to the images.
            hue = self.colours.reported[number] if log.rows == 1 else self.colours.ink
            found.append(_Reported(log.members[member], hue, DASHES[number], values, digits))
        return found

    # Legend

    def _entries(self) -> list[_Entry]:
        log, colours, made = self.log, self.colours, stages(self.log)
        batch, only_finals = log.rows > 1, made == [FINAL]
        entries = []
        if batch:
            entries.append(_Entry(_nothing, "stock to best:"))
            for series in self.finals[:MAX_IMAGES]:
                change = f"{plain(series.scores[0], self.digits)} to {plain(series.best_scores[-1], self.digits)}"
                entries.append(_Entry(_line(self.hue(series), 3), f"image {series.row + 1}", change))
            hidden = log.rows - MAX_IMAGES
            if hidden > 0:
                entries.append(_Entry(_nothing, f"and {count(hidden, 'image')} more"))
            entries.append(_Entry(_stock(colours.muted), "stock (no search)"))
            entries.append(_Entry(_ring(colours.muted, colours.background), "best"))
        else:
            entries.append(_Entry(_dot(colours.dot, 4.2), "candidate" if only_finals else "final"))
            entries.append(_Entry(_line(colours.best, 3), "best so far" if only_finals else "best final so far"))
            entries.append(_Entry(_stock(colours.stock, dashed=True), "stock (no search)"))
        for series in self.series:
            if series.stage != FINAL and series.row == 0:
                hue = colours.muted if batch else self.hue(series)
                name = f"{series.stage} and best {series.stage} so far"
                entries.append(_Entry(_faint_series(self.faint(hue)), name))
        if any(any(series.vetoed) for series in self.series):
            entries.append(_Entry(_crossed(colours.muted), "fails a gate"))
        mean = ", mean of the images" if batch else ""
        for reported in self.reported:
            room = self.width - 2 * MARGIN - SYMBOL - 8
            note = reported.change + mean
            if not self.on_axis:
                low, high = (plain(end(reported.values), reported.digits) for end in (min, max))
                note += f" (own scale: {low} to {high})"
            else:
                note += " (right axis)"
            name = f"{one_line(reported.name)} of the best, report only"
            note = fit(note, 14, room * 0.6)
            entries.append(_Entry(_dashed(reported), fit(name, 14, room - text_width(note, 14) - 8), note))
        hidden = len(report_only(log)) - MAX_REPORTED
        if hidden > 0:
            entries.append(_Entry(_nothing, f"and {count(hidden, 'verifier')} more in the table"))
        return entries

    def _flow(self, entries: list[_Entry]) -> list[list[tuple[float, _Entry]]]:
        """The entries in lines, each with its left end."""
        lines: list[list[tuple[float, _Entry]]] = [[]]
        x = MARGIN
        for entry in entries:
            if lines[-1] and x + entry.width > self.width - MARGIN:
                lines.append([])
                x = MARGIN
            lines[-1].append((x, entry))
            x += entry.width + 26
        return lines

    def _draw_legend(self, canvas: Canvas) -> None:
        for number, line in enumerate(self.legend):
            y = self.legend_top + 22 * number
            for x, entry in line:
                entry.draw(canvas, x, y - 5)
                left = x + entry.indent
                canvas.text((left, y), entry.name, self.colours.ink, 14)
                if entry.note:
                    canvas.text((left + text_width(entry.name, 14) + 8, y), entry.note, self.colours.muted, 14)


class _Panel:
    """One pair of axes and everything inside."""

    def __init__(self, canvas: Canvas, plot: _Plot, axis: str, top: float, bottom: float):
        self.canvas, self.plot, self.axis, self.top, self.bottom = canvas, plot, axis, top, bottom
        self.log, self.colours = plot.log, plot.colours
        column = 0 if axis == "nfe" else 1
        self.spent = [point[column] for point in self.log.spent()]
        self.end = (self.spent[-1] or 1.0) * (1.02 if len(self.spent) > 1 else 2)
        self.x_ticks = nice_ticks(0, self.end, max(3, (plot.width - 160) // 120))
        height = bottom - top
        # Room above for the winner's label and below for stock's.
        self.y_low, self.y_high = _padded(plot.low, plot.high, min(40, 0.2 * height) / height, 44 / height)
        self.y_ticks = nice_ticks(self.y_low, self.y_high, max(3, round(height / 75)))
        self.left = MARGIN + max(text_width(label, 14) for _, label in self.y_ticks) + 12
        self.right = plot.width - MARGIN
        self.right_ticks: list[tuple[float, str]] = []
        if plot.on_axis:
            # Below the winner's label and mostly below the staircase, which would hide it.
            self.right_low, self.right_high = _padded(min(plot.on_axis.values), max(plot.on_axis.values), 0.14, 0.36)
            self.right_ticks = nice_ticks(self.right_low, self.right_high, max(4, round(height / 75)))
            self.right -= max(text_width(label, 14) for _, label in self.right_ticks) + 12

    def x(self, spent: float) -> float:
        return self.left + (self.right - self.left) * spent / self.end

    def y(self, score: float) -> float:
        return self.bottom - (self.bottom - self.top) * (score - self.y_low) / (self.y_high - self.y_low)

    def right_y(self, value: float) -> float:
        share = (value - self.right_low) / (self.right_high - self.right_low)
        return self.bottom - (self.bottom - self.top) * share

    def draw(self) -> None:
        self._axes()
        if self.log.rows == 1:
            stairs = self._staircase(self.plot.finals[0])
            area = [(stairs[0][0], self.bottom), *stairs, (self.right, self.bottom)]
            self.canvas.polygon(area, self.colours.best, 0.07)
        for series in self.plot.series:
            self._dots(series)
        for series in self.plot.series:
            if series.stage != FINAL:
                width = 1.8 if self.log.rows <= 8 else 1.2
                self.canvas.line(self._staircase(series), self.plot.faint(self.plot.hue(series)), width)
        self._reported()
        if self.log.rows == 1:
            self._single(self.plot.finals[0])
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
        if self.plot.on_axis:
            hue = self.plot.on_axis.colour
            canvas.line([(self.right, self.top), (self.right, self.bottom)], colours.axis, 1.4)
            for value, label in self.right_ticks:
                y = self.right_y(value)
                canvas.line([(self.right - 5, y), (self.right, y)], hue, 1.4)
                canvas.text((self.plot.width - MARGIN, y), label, hue, 14, "rm")

    def _staircase(self, series: _Series) -> list[Point]:
        points: list[Point] = []
        for index, score in zip(series.candidates, series.best_scores, strict=True):
            x = self.x(self.spent[index])
            if points:
                points.append((x, points[-1][1]))
            points.append((x, self.y(score)))
        # A stage that is over ends where its last candidate was made.
        return [*points, (self.right, points[-1][1])] if series.stage == FINAL else points

    def _dots(self, series: _Series) -> None:
        batch, many = self.log.rows > 1, len(self.log.candidates) * self.log.rows
        if batch:
            radius, colour, alpha = 3.4 if many <= 256 else 2.2, self.plot.hue(series), 0.4
        else:
            radius, colour, alpha = 4.2 if many <= 64 else 3.2 if many <= 256 else 2.4, self.colours.dot, 0.75
        if series.stage != FINAL:
            radius, colour, alpha = 0.75 * radius, self.plot.hue(series), (0.5 if batch else 0.8) * self.colours.faint
        for index, score, vetoed in zip(series.candidates, series.scores, series.vetoed, strict=True):
            at = (self.x(self.spent[index]), self.y(score))
            if vetoed:
                self.canvas.cross(at, radius, colour)
            else:
                self.canvas.disc(at, radius, colour, alpha)

    def _reported(self) -> None:
        for reported, points in zip(self.plot.reported, self._reported_lines(), strict=True):
            self.canvas.dashes(points, reported.colour, 2, *reported.dash)

    def _reported_lines(self) -> list[list[Point]]:
        made, bands, lines = self.plot.finals[0].candidates, len(self.plot.reported), []
        for number, reported in enumerate(self.plot.reported):
            if not self.plot.on_axis:
                # Each in its own band: lines that go the same way would hide each other.
                below = 0.08 + 0.6 * (bands - 1 - number) / bands
                low, high = min(reported.values), max(reported.values)
                self.right_low, self.right_high = _padded(low, high, below, 1 - below - 0.5 / bands)
            points: list[Point] = []
            for index, value in zip(made, reported.values, strict=True):
                x = self.x(self.spent[index])
                if points:
                    points.append((x, points[-1][1]))
                points.append((x, self.right_y(value)))
            lines.append([*points, (self.right, points[-1][1])])
        return lines

    def _single(self, finals: _Series) -> None:
        canvas, colours, scores = self.canvas, self.colours, finals.scores
        place = finals.candidates.index(self.log.order(0)[0])
        stock, best = scores[0], scores[place]
        first = (self.x(self.spent[finals.candidates[0]]), self.y(stock))
        if place:
            canvas.dashes([first, (self.right, first[1])], colours.stock, 1.6)
        canvas.line(self._staircase(finals), colours.best, 3)
        for made in dict.fromkeys(finals.best):
            canvas.disc((self.x(self.spent[finals.candidates[made]]), self.y(scores[made])), 4.6, colours.best)
        index = finals.candidates[place]
        at = (self.x(self.spent[index]), self.y(best))
        canvas.disc(at, 10, colours.background)
        canvas.disc(at, 9, colours.best)
        canvas.disc(at, 6, colours.background)
        canvas.disc(at, 3.6, colours.best)
        name = recipe_name(self.log.candidates[index].recipes[0])
        word = "best" if place else "stock" if self.plot.log.has_stock else "recipe"
        taken = self._marks()
        label = f"{word}  {plain(best, self.plot.digits)}  ·  {name}"
        box = self._label(at, label, colours.best, (-20, 32), taken)
        if not place:
            canvas.diamond(at, 4.6, colours.stock)
            return
        canvas.diamond(first, 10, colours.background)
        canvas.diamond(first, 8, colours.stock)
        # As good as a wall of marks: the two labels should not meet.
        taken += [(x, y) for x in range(int(box[0]), int(box[2]) + 1, 4) for y in (box[1], box[3])] * 9
        self._label(first, f"stock  {plain(stock, self.plot.digits)}", colours.stock, (24, -15), taken)

    def _marks(self) -> list[Point]:
        """Where there is something that a label should not cover."""
        marks, lines = [], self._reported_lines()
        for series in self.plot.series:
            lines.append(self._staircase(series))
            marks += [
                (self.x(self.spent[index]), self.y(score))
                for index, score in zip(series.candidates, series.scores, strict=True)
            ]
        for line in lines:
            for start, end in zip(line, line[1:], strict=False):
                parts = max(round(math.dist(start, end) / 6), 1)
                marks += [
                    (start[0] + (end[0] - start[0]) * part / parts, start[1] + (end[1] - start[1]) * part / parts)
                    for part in range(parts)
                ]
        return marks

    def _label(
        self, at: Point, text: str, colour: str, baselines: Sequence[float], taken: Sequence[Point]
    ) -> tuple[float, float, float, float]:
        """Writes a label near its mark, where it covers least; of equal places the first. Returns its box.

        baselines: how far below the mark it may stand. It stays inside the plot.
        """
        text = fit(text, 15, self.right - self.left - 8)
        half = text_width(text, 15) / 2
        boxes = []
        for dy in baselines:
            for dx in (0.0, half - 12, 12 - half, half + 12, half + 40, half + 90, half + 140):
                x = min(max(at[0] + dx, self.left + half + 4), self.right - half - 4)
                boxes.append((x - half, at[1] + dy - 14, x + half, at[1] + dy + 4))

        def covered(box: tuple[float, float, float, float]) -> float:
            inside = sum(box[0] - 4 < x < box[2] + 4 and box[1] - 3 < y < box[3] + 3 for x, y in taken)
            # Far from its mark only where that really helps.
            distance = abs((box[0] + box[2]) / 2 - at[0])
            return inside * (1 + distance / 300) + (1000 if box[1] < self.top or box[3] > self.bottom else 0)

        best = min(boxes, key=covered)
        middle = ((best[0] + best[2]) / 2, best[3] - 4)
        self.canvas.text(middle, text, colour, 15, "ms", bold=True, halo=self.colours.background)
        return best

    def _batch(self) -> None:
        canvas, colours, plot = self.canvas, self.colours, self.plot
        for series in plot.finals:
            canvas.line(self._staircase(series), plot.hue(series), 2.6 if self.log.rows <= 8 else 1.6)
        for series in plot.finals:
            at = (self.x(self.spent[series.candidates[0]]), self.y(series.scores[0]))
            canvas.diamond(at, 8.5, colours.background)
            canvas.diamond(at, 6.5, plot.hue(series))
            place = series.candidates.index(self.log.order(series.row)[0])
            at = (self.x(self.spent[series.candidates[place]]), self.y(series.scores[place]))
            canvas.disc(at, 8, colours.background)
            canvas.disc(at, 6.8, plot.hue(series))
            canvas.disc(at, 3.6, colours.background)


def _series(log: SearchLog, stage: str, row: int) -> _Series:
    made, every = [candidate.index for candidate in log.of_stage(stage)], log.merits(row)
    merits = [every[index] for index in made]
    best: list[int] = []
    for place, merit in enumerate(merits):
        best.append(place if not best or merit > merits[best[-1]] else best[-1])
    return _Series(stage, row, made, [score for _, score in merits], [failing < 0 for failing, _ in merits], best)


def _padded(low: float, high: float, below: float, above: float) -> tuple[float, float]:
    """A wider range, of which these shares lie below `low` and above `high`."""
    span = high - low or abs(high) * 0.2 or 1.0
    if high == low:
        low, high = low - span / 2, high + span / 2
    unit = span / (1 - below - above)
    return low - below * unit, high + above * unit


# Marks of the legend


def _nothing(canvas: Canvas, x: float, y: float) -> None:
    pass


def _dot(colour: str, radius: float) -> Callable[[Canvas, float, float], None]:
    return lambda canvas, x, y: canvas.disc((x + SYMBOL / 2, y), radius, colour)


def _crossed(colour: str) -> Callable[[Canvas, float, float], None]:
    return lambda canvas, x, y: canvas.cross((x + SYMBOL / 2, y), 4.2, colour)


def _line(colour: str, width: float) -> Callable[[Canvas, float, float], None]:
    return lambda canvas, x, y: canvas.line([(x, y), (x + SYMBOL, y)], colour, width)


def _ring(colour: str, background: str) -> Callable[[Canvas, float, float], None]:
    def draw(canvas: Canvas, x: float, y: float) -> None:
        canvas.disc((x + SYMBOL / 2, y), 6.4, colour)
        canvas.disc((x + SYMBOL / 2, y), 3.4, background)

    return draw


def _stock(colour: str, dashed: bool = False) -> Callable[[Canvas, float, float], None]:
    def draw(canvas: Canvas, x: float, y: float) -> None:
        if dashed:
            canvas.dashes([(x, y), (x + SYMBOL, y)], colour, 1.6, 5, 3.5)
        canvas.diamond((x + SYMBOL / 2, y), 6, colour)

    return draw


def _faint_series(colour: str) -> Callable[[Canvas, float, float], None]:
    def draw(canvas: Canvas, x: float, y: float) -> None:
        canvas.line([(x, y), (x + SYMBOL, y)], colour, 1.8)
        canvas.disc((x + SYMBOL / 2, y), 3.2, colour)

    return draw


def _dashed(reported: _Reported) -> Callable[[Canvas, float, float], None]:
    return lambda canvas, x, y: canvas.dashes([(x, y), (x + SYMBOL, y)], reported.colour, 2, *reported.dash)
