"""The pictures and tables of a finished search."""

import csv
import dataclasses
import io
import json
import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from noise_search.report import charts, numbers
from noise_search.report import contact_sheet as sheets
from noise_search.report.canvas import THEMES, Canvas, fit, mix, one_line, text_width, wrap
from noise_search.report.charts import score_curve
from noise_search.report.contact_sheet import contact_sheet
from noise_search.report.table import table, to_csv
from noise_search.search.aggregate import Aggregator
from noise_search.search.engine import Rendered
from noise_search.search.ledger import Cost
from noise_search.search.log import DRAFT, FINAL, PREVIEW, SearchLog
from noise_search.search.recipe import Jump, Recipe, Rotate

STAGES = {"f": FINAL, "d": DRAFT, "p": PREVIEW}
PROMPT = "two small red circles above a blue square"


def new_log(
    scores, seed=100, prompt=PROMPT, members=("CLIP Score",), pictures=None, moves=(), jumps=(), stages="", **options
):
    """A log of one score per candidate; or, where a score is a list, [rows] or [rows][members] of them.

    stages: a letter per candidate, f(inal), d(raft) or p(review); finals if left out.
    """
    values = torch.tensor(scores, dtype=torch.float64)
    values = values.reshape(len(scores), -1 if scores else 1, len(members))
    log = SearchLog(members, values.shape[1], algorithm="random search", **options)
    log.settings = {"prompt": prompt, "steps": 20, "cfg": 4.5}
    log.host = {"comfyui": "0.30.0"}
    for index, value in enumerate(values):
        recipe = Recipe.from_seed(seed + index)
        for move in moves if index else ():
            recipe = recipe.then(move)
        for jump in jumps if index else ():
            recipe = recipe.jump(jump)
        stage = STAGES[stages[index]] if stages else FINAL
        nfe = 20 if stage == FINAL else 5
        log.add(
            Rendered(
                recipes=recipe.for_items(log.rows),
                values=value,
                nfe=nfe * log.rows,
                nfe_per_row=nfe,
                seconds={"sample": 0.02 * nfe, "score": 0.1},
                thumbnails=None if pictures is None else torch.stack([pictures(index, row) for row in range(log.rows)]),
            ),
            stage,
        )
    return log


def spread(count, rows=1):
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, rows, generator=generator).tolist()


def weighted(*weights):
    return {"members": tuple("ABCDEFGH"[: len(weights)]), "aggregator": Aggregator(weights=weights)}


def with_warnings(log, *warnings):
    log.warnings += warnings
    return log


def grey(index, row, height=12, width=12):
    return torch.full((height, width, 3), 10 * index % 256, dtype=torch.uint8)


LOGS = {
    "nothing": lambda: new_log([]),
    "one candidate": lambda: new_log([0.3]),
    "two": lambda: new_log([0.3, 0.4]),
    "64": lambda: new_log(spread(64)),
    "512": lambda: new_log(spread(512)),
    "equal scores": lambda: new_log([0.1] * 9),
    "zeros": lambda: new_log([0.0] * 9),
    "negative scores": lambda: new_log([-5.0, -4.0, -90.0]),
    "tiny scores": lambda: new_log([1e-9, 2e-9, 1.5e-9]),
    "huge scores": lambda: new_log([1e30, 2e30, -3e30]),
    "stock is the best": lambda: new_log([5.0, 1.0, 2.0]),
    "3 images": lambda: new_log(spread(10, 3)),
    "20 images": lambda: new_log(spread(4, 20)),
    "3 verifiers": lambda: new_log(spread(10, 3), members=("ImageReward", "PickScore", "A very long name | of one")),
    "no prompt": lambda: new_log(spread(5), prompt=""),
    "long prompt": lambda: new_log(spread(5), prompt="a\nvery " * 200 + "long prompt"),
    "prompt without spaces": lambda: new_log(spread(5), prompt="x" * 2000),
    "prompt in other scripts": lambda: new_log(spread(5), prompt="café 猫 кот \u202e😀"),
    "largest seeds": lambda: new_log(spread(5), seed=2**64 - 5),
    "moved recipes": lambda: new_log(spread(5), moves=[Rotate(1, 18.0)] * 3),
    "moved and jumped": lambda: new_log(spread(9), 2**64 - 9, moves=[Rotate(1, 18.0)] * 999, jumps=[JUMP] * 2),
    "drafts and finals": lambda: new_log(spread(69), stages="f" + "d" * 60 + "f" * 8),
    "previews": lambda: new_log(spread(41), stages="f" + "pppf" * 10),
    "a final and its previews": lambda: new_log(spread(9), stages="f" + "p" * 8),
    "drafts, previews and finals of 3 images": lambda: new_log(spread(32, 3), stages="f" + "ppd" * 9 + "ffff"),
    "reported": lambda: new_log(spread(20, 2), **weighted(1, 0)),
    "6 reported": lambda: new_log(spread(20, 7), **weighted(1, 0, 0, 0, 0, 0, 0)),
    "reported but constant": lambda: new_log([[[s[0], 5.0]] for s in spread(20)], **weighted(1, 0)),
    "reported of 3 images": lambda: new_log(
        torch.randn(20, 3, 3).tolist(), stages="f" + "d" * 15 + "ffff", **weighted(0, 1, 0)
    ),
    "reported by a long name": lambda: new_log(
        spread(20, 2), members=("A" * 300, "B" * 300), aggregator=Aggregator(weights=(1, 0))
    ),
    "a long warning": lambda: with_warnings(new_log(spread(5)), "this is a warning and " * 40, "another"),
}


JUMP = Jump(3, 0.1, 0.9)


def border_is_empty(picture, background, width=8):
    """Whether nothing was drawn so far out that it may have been cut off."""
    inner = picture.copy()
    inner.paste(background, (width, width, picture.width - width, picture.height - width))
    return inner.getcolors() == [(picture.width * picture.height, tuple(bytes.fromhex(background[1:])))]


class Recorder(Canvas):
    """A canvas that remembers what was drawn on it, as (what, *arguments)."""

    calls: list

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if name not in ("line", "dashes", "disc", "diamond", "text", "box"):
            return found
        return lambda *args, **kwargs: (self.calls.append((name, *args)), found(*args, **kwargs))


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn on any canvas from now on."""
    calls = []
    recorder = type("RecorderHere", (Recorder,), {"calls": calls})
    monkeypatch.setattr(charts, "Canvas", recorder)
    monkeypatch.setattr(sheets, "Canvas", recorder)
    return calls


def texts(drawn):
    return [call[2] for call in drawn if call[0] == "text"]


def light(name):
    return getattr(THEMES["light"], name)


# The dark theme draws the same in other colours.
MANY_COLOURS = ("64", "3 verifiers", "drafts, previews and finals of 3 images", "reported of 3 images")
each_log = pytest.mark.parametrize(
    ("log", "theme"), [(log, "light") for log in LOGS] + [(log, "dark") for log in MANY_COLOURS]
)


# Score curve


@each_log
def test_any_log_has_a_curve_with_nothing_cut_off(log, theme):
    picture = score_curve(LOGS[log](), theme)
    assert (picture.mode, picture.width) == ("RGB", 1200)
    assert picture.height == 675 or (picture.height > 675 and log in ("6 reported",))
    assert border_is_empty(picture, THEMES[theme].background)
    assert len(picture.getcolors(1 << 20)) > 20


@pytest.mark.parametrize("size", [(480, 400), (640, 480), (1920, 1080)])
def test_a_curve_of_any_size_has_nothing_cut_off(size):
    picture = score_curve(new_log(spread(64)), width=size[0], height=size[1])
    assert picture.size == size
    assert border_is_empty(picture, light("background"))


@pytest.mark.parametrize(("scores", "levels"), [([0.3], 1), ([0.3, 0.5, 0.1, 0.5, 0.9, 0.2], 3), ([5.0, 1.0], 1)])
def test_the_curve_is_a_staircase_that_never_falls(drawn, scores, levels):
    score_curve(new_log(scores))
    lines = [call[1] for call in drawn if call[0] == "line" and call[2] == light("best")]
    [stairs] = [points for points in lines if points[0][1] > 150]  # the other one is in the legend above the plot
    x, y = zip(*stairs, strict=True)
    assert list(x) == sorted(x)
    assert list(y) == sorted(y, reverse=True)
    assert len(set(y)) == levels


def test_every_candidate_is_a_dot_at_its_score(drawn):
    score_curve(new_log([0.1, 0.3, 0.2]))
    dots = [
        call[1] for call in drawn if call[0] == "disc" and call[2] >= 4 and call[3] == light("dot") and len(call) == 5
    ]
    assert len(dots) == 3
    (_, a), (_, b), (_, c) = dots
    assert a - c == pytest.approx(c - b)
    assert a > c > b  # up is better


def test_dots_stand_at_the_evaluations_spent(drawn):
    score_curve(new_log([0.1, 0.3, 0.2]))
    x = [call[1][0] for call in drawn if call[0] == "disc" and call[3] == light("dot") and len(call) == 5]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1])


def test_stock_and_the_winner_are_marked_and_named(drawn):
    score_curve(new_log([0.1, 0.3, 0.2]))
    assert "stock  0.100" in texts(drawn)
    assert "best  0.300  ·  seed 101" in texts(drawn)
    stock = [call for call in drawn if call[0] == "diamond" and call[3] == light("stock") and call[1][1] > 150]
    assert len(stock) == 1


def test_the_gain_over_stock_is_the_headline(drawn):
    score_curve(new_log([0.1, 0.3, 0.2]))
    assert texts(drawn)[:2] == ["+0.200", "over stock"]


def test_a_gain_much_smaller_than_the_spread_is_not_shown_as_0(drawn):
    score_curve(new_log([100.0, 100.004, -900.0]))
    assert texts(drawn)[0].startswith("+0.004")


@pytest.mark.parametrize(
    ("scores", "said"),
    [([0.3], "stock, the only candidate"), ([0.3, 0.3], "all scores are equal"), ([0.3, 0.1], "nothing beat stock")],
)
def test_a_search_without_gain_says_so(drawn, scores, said):
    score_curve(new_log(scores))
    assert said in texts(drawn)


def test_a_batch_has_a_line_and_a_legend_entry_per_image(drawn):
    score_curve(new_log([[1.0, 5.0, 3.0], [2.0, 4.0, 3.5]]))
    lines = {call[2] for call in drawn if call[0] == "line" and call[3] == 2.6}
    assert lines == set(light("series")[:3])
    assert "stock to best:" in texts(drawn)
    assert [text for text in texts(drawn) if "0 to " in text] == ["1.00 to 2.00", "5.00 to 5.00", "3.00 to 3.50"]


def test_a_legend_of_many_images_is_cut_and_says_so(drawn):
    score_curve(new_log(spread(4, 20)))
    assert "image 8" in texts(drawn) and "image 9" not in texts(drawn)
    assert "and 12 images more" in texts(drawn)


def test_the_axes_are_named_with_their_units(drawn):
    score_curve(new_log(spread(5)))
    assert "denoiser evaluations (NFE) per image" in texts(drawn)
    assert "CLIP Score" in texts(drawn)


def test_the_curve_over_seconds(drawn):
    score_curve(new_log(spread(5)), axis="seconds")
    assert "seconds" in texts(drawn)
    assert {"0.5", "1.0", "2.0"} <= set(texts(drawn))


@pytest.mark.parametrize("method", ["mean_rank", "z_score", "weighted_sum"])
def test_an_ensembles_score_says_how_it_was_made(drawn, method):
    score_curve(new_log(spread(6, 2), members=("A", "B"), aggregator=Aggregator(method)))
    assert any(
        method.replace("_", " ").replace("z score", "z-score") in text and "A + B" in text for text in texts(drawn)
    )


def test_members_without_weight_do_not_name_the_score(drawn):
    score_curve(new_log(spread(6, 2), members=("A", "B"), aggregator=Aggregator(weights=(0.0, 1.0))))
    assert "B" in texts(drawn)


def dots_of(drawn, colour):
    """The candidates' dots of one colour in the plot: the only transparent discs."""
    return [call[1] for call in drawn if call[0] == "disc" and call[3] == light(colour) and len(call) == 5]


def lines_of(drawn, colour, kind="line"):
    """Lines of one colour in the plot, not those of its legend."""
    return [call[1] for call in drawn if call[0] == kind and call[2] == colour and call[1][0][1] > 150]


def faint(colour):
    return mix(light(colour), light("background"), light("faint"))


@pytest.mark.parametrize(("letter", "stage", "other"), [("d", "draft", "preview"), ("p", "preview", "draft")])
def test_drafts_and_previews_are_series_of_their_own(drawn, letter, stage, other):
    score_curve(new_log([0.1, 0.2, 0.5, 0.4, 0.3], stages="f" + letter * 3 + "f"))
    assert len(dots_of(drawn, "dot")) == 2
    assert len(dots_of(drawn, stage)) == 3
    [[*stairs]] = lines_of(drawn, faint(stage))
    assert [x for x, _ in stairs[::2]] == [x for x, _ in dots_of(drawn, stage)]
    assert len(stairs) % 2  # ends with the last of them
    assert len({y for _, y in stairs}) == 2
    [finals] = lines_of(drawn, light("best"))
    assert len({y for _, y in finals}) == 2
    assert f"{stage} and best {stage} so far" in texts(drawn)
    assert f"{other} and best {other} so far" not in texts(drawn)


def test_a_draft_better_than_all_finals_is_not_the_winner(drawn):
    score_curve(new_log([0.1, 0.9, 0.3], stages="fdf"))
    assert texts(drawn)[:2] == ["+0.200", "over stock"]
    assert "best  0.300  ·  seed 102" in texts(drawn)


def test_finals_stand_at_what_was_spent_on_drafts_too(drawn):
    score_curve(new_log([0.1, 0.3, 0.2, 0.5], stages="fddf"))
    (first, _), (last, _) = dots_of(drawn, "dot")
    (draft, _), _ = dots_of(drawn, "draft")
    assert (last - first) / (draft - first) == pytest.approx(30 / 5)


def test_the_caption_counts_each_stage(drawn):
    score_curve(new_log(spread(5), stages="fddpf"))
    assert any("2 finals, 2 drafts, 1 preview" in text for text in texts(drawn))


def test_a_search_without_drafts_does_not_speak_of_finals(drawn):
    score_curve(new_log(spread(5)))
    assert {"candidate", "best so far"} <= set(texts(drawn))
    assert not any("final" in text for text in texts(drawn))


def test_drafts_of_a_batch_are_series_in_the_hue_of_their_image(drawn):
    score_curve(new_log(spread(9, 2), stages="f" + "d" * 6 + "ff"))
    for hue in light("series")[:2]:
        assert len(lines_of(drawn, mix(hue, light("background"), light("faint")))) == 1
    assert "draft and best draft so far" in texts(drawn)


# Four candidates: the score rises, then falls; B rates the second highest and the third, which wins, lowest.
HACKED = [[[0.1, 5.0]], [[0.2, 6.0]], [[0.4, 4.0]], [[0.3, 9.0]]]


def test_a_reported_verifier_is_a_dashed_line_of_its_value_of_the_best_so_far(drawn):
    score_curve(new_log(HACKED, **weighted(1, 0)))
    [line] = lines_of(drawn, light("reported")[0], "dashes")
    levels = list(dict.fromkeys(y for _, y in line))
    assert len(levels) == 3  # the last candidate, which B likes best, is not the best
    assert levels[1] < levels[0] < levels[2]
    assert levels[2] - levels[0] == pytest.approx(levels[0] - levels[1])
    assert line[-1][1] == levels[2]


def test_a_reported_verifier_follows_the_finals_only(drawn):
    score_curve(new_log([[[0.1, 5.0]], [[0.9, 9.0]], [[0.4, 4.0]]], stages="fdf", **weighted(1, 0)))
    assert "stock 5.00, best 4.00 (right axis)" in texts(drawn)


def test_one_reported_verifier_has_an_axis_at_the_right(drawn):
    score_curve(new_log(HACKED, **weighted(1, 0)))
    assert {"B of the best, report only", "stock 5.00, best 4.00 (right axis)", "B (report only)"} <= set(texts(drawn))
    ticks = [call for call in drawn if call[0] == "text" and call[3] == light("reported")[0] and call[1][1] > 170]
    assert len(ticks) >= 3
    [line] = lines_of(drawn, light("reported")[0], "dashes")
    places = {float(call[2]): call[1][1] for call in ticks}
    low, high = min(places), max(places)
    assert line[0][1] == pytest.approx(
        places[low] + (places[high] - places[low]) * (5.0 - low) / (high - low), abs=0.01
    )


def test_several_reported_verifiers_have_a_scale_each_and_never_hide_each_other(drawn):
    scores = [[[row[0][0], row[0][1], 10 * row[0][1]]] for row in HACKED]
    score_curve(new_log(scores, **weighted(1, 0, 0)))
    assert {
        "stock 5.00, best 4.00 (own scale: 4.00 to 6.00)",
        "stock 50.0, best 40.0 (own scale: 40.0 to 60.0)",
    } <= set(texts(drawn))
    one, two = (lines_of(drawn, light("reported")[number], "dashes")[0] for number in range(2))
    assert max(y for _, y in one) < min(y for _, y in two)
    assert not any("right axis" in text for text in texts(drawn))


def test_more_reported_verifiers_than_can_be_told_apart_are_counted(drawn):
    score_curve(LOGS["6 reported"]())
    assert "and 2 verifiers more in the table" in texts(drawn)


def test_a_reported_verifier_of_a_batch_is_the_mean_of_its_images(drawn):
    first = [[0.1, 5.0], [0.1, 1.0]]
    second = [[0.2, 7.0], [0.3, 2.0]]
    score_curve(new_log([first, second], **weighted(1, 0)))
    assert "stock 3.00, best 4.50, mean of the images (right axis)" in texts(drawn)


@pytest.mark.parametrize("width", [480, 700, 1200])
@pytest.mark.parametrize("log", ["20 images", "6 reported", "reported by a long name", "reported of 3 images"])
def test_a_legend_wraps_and_never_overlaps(drawn, log, width):
    picture = score_curve(LOGS[log](), width=width)
    assert border_is_empty(picture, light("background"))
    bottom = next(call[1][1] for call in drawn if call[0] == "text" and call[2] == "stock (no search)")
    boxes = [
        (call[1][0], call[1][1], call[1][0] + text_width(call[2], call[4]))
        for call in drawn
        if call[0] == "text" and len(call) == 5 and call[4] == 14 and call[1][1] >= min(bottom, 115)
    ]
    for number, (left, y, right) in enumerate(boxes):
        for other in boxes[:number]:
            assert other[1] != y or other[0] > right or other[2] < left


def test_the_first_warning_is_shown_and_the_others_are_counted(drawn):
    score_curve(with_warnings(new_log(spread(5)), "The scores hardly vary.", "Other.", "More."))
    assert "The scores hardly vary. (2 more warnings in the table)" in texts(drawn)


def test_a_long_warning_takes_two_lines(drawn):
    score_curve(with_warnings(new_log(spread(5)), "many words " * 25))
    assert sum("many words" in text for text in texts(drawn)) == 2
    assert not any("…" in text for text in texts(drawn))


def test_labels_do_not_cover_each_other_or_candidates(drawn):
    # Stock is followed by candidates where its label stands first.
    score_curve(new_log([0.5, 0.46, 0.455, 0.9, 0.0, *[0.1] * 30]))
    [label] = [call for call in drawn if call[0] == "text" and call[2].startswith("stock  ")]
    half = text_width(label[2], 15) / 2
    x, y = label[1]
    assert not any(abs(at[0] - x) < half and y - 11 < at[1] < y for at in dots_of(drawn, "dot"))


def test_both_axes_are_two_panels_of_one_picture(drawn):
    picture = score_curve(new_log([0.1, 0.3, 0.2]), axis="both")
    assert picture.size == (1200, 1080)
    said = texts(drawn)
    assert said.index("denoiser evaluations (NFE) per image") < said.index("seconds")
    assert said.count("Best score so far") == said.count("candidate") == 1
    assert said.count("best  0.300  ·  seed 101") == 2
    assert len(dots_of(drawn, "dot")) == 6
    one, two = lines_of(drawn, light("best"))
    assert one[0][1] < two[0][1]
    assert one[-1][0] == two[-1][0]


@pytest.mark.slow
@each_log
def test_any_log_has_a_curve_over_both_axes(log, theme):
    assert border_is_empty(score_curve(LOGS[log](), theme, "both"), THEMES[theme].background)


def test_unknown_themes_and_axes_are_named():
    with pytest.raises(ValueError, match="unknown theme 'pink'; known: light, dark"):
        score_curve(new_log([1.0]), theme="pink")
    with pytest.raises(ValueError, match="unknown axis 'steps'; known: nfe, seconds, both"):
        score_curve(new_log([1.0]), axis="steps")


# Contact sheet


@pytest.mark.slow
@each_log
def test_any_log_has_a_contact_sheet_with_nothing_cut_off(log, theme):
    picture = contact_sheet(LOGS[log](), theme)
    assert picture.mode == "RGB"
    assert border_is_empty(picture, THEMES[theme].background)


@pytest.mark.parametrize("shape", [(12, 12), (12, 24), (24, 12), (10, 200), (200, 10), (1, 1)])
def test_pictures_of_any_shape_fit(shape):
    picture = contact_sheet(new_log(spread(30), pictures=lambda i, row: grey(i, row, *shape)))
    assert border_is_empty(picture, light("background"))
    assert picture.width <= 1600


def test_a_panorama_is_not_squeezed():
    sheet = contact_sheet(new_log([1.0], pictures=lambda i, row: torch.zeros(10, 200, 3, dtype=torch.uint8)))
    column = [sheet.getpixel((36 + 119, 118 + y)) for y in range(119)]
    assert column.count((0, 0, 0)) == pytest.approx(238 / 20, abs=2)


@pytest.mark.parametrize(("count", "rows"), [(300, 1), (40, 4), (4, 100)])
def test_a_contact_sheet_is_bounded(count, rows):
    picture = contact_sheet(new_log(spread(count, rows), pictures=grey))
    assert picture.width <= 1600
    assert picture.height <= 6000


def test_pictures_come_best_first():
    log = new_log([0.1, 0.9, 0.5], pictures=grey)
    sheet = contact_sheet(log)
    middles = [sheet.getpixel((36 + place * (168 + 22) + 84, 118 + 84)) for place in range(3)]
    assert middles == [(10, 10, 10), (20, 20, 20), (0, 0, 0)]


def test_every_tile_has_rank_score_candidate_and_seed(drawn):
    contact_sheet(new_log([0.1, 0.9], pictures=grey))
    said = texts(drawn)
    assert said.index("0.900") < said.index("0.100")
    assert {"candidate 1", "seed 101", "1", "2", "best", "stock"} <= set(said)


def test_the_winner_and_stock_have_frames(drawn):
    contact_sheet(new_log([0.1, 0.9, 0.5], pictures=grey))
    frames = [call[5] for call in drawn if call[0] == "box" and call[3] - call[1] == 168 + 10]
    assert frames == [light("best"), light("stock")]


def test_a_search_that_stock_won_is_marked_with_both(drawn):
    contact_sheet(new_log([0.9, 0.1], pictures=grey))
    assert texts(drawn).count("best") == texts(drawn).count("stock") == 1


def test_how_many_are_not_shown_is_said(drawn):
    contact_sheet(new_log(spread(100), pictures=grey))
    assert "36 more pictures of lower rank not shown" in texts(drawn)
    assert sum(text.startswith("candidate ") for text in texts(drawn)) == 64


def test_nothing_is_said_where_all_are_shown(drawn):
    contact_sheet(new_log(spread(64), pictures=grey))
    assert not any("not shown" in text for text in texts(drawn))


def test_stock_is_shown_whatever_its_rank(drawn):
    contact_sheet(new_log([-99.0, *range(100)], pictures=grey), tiles=10)
    said = texts(drawn)
    assert [text for text in said if text.startswith("candidate ")][-1] == "candidate 0"
    assert "101" in said  # its rank


def test_a_batch_has_a_block_per_image_in_its_own_order(drawn):
    contact_sheet(new_log([[1.0, 9.0], [2.0, 8.0]], pictures=grey))
    said = [text for text in texts(drawn) if text.startswith(("image ", "candidate "))]
    assert said == ["image 1 of 2", "candidate 1", "candidate 0", "image 2 of 2", "candidate 0", "candidate 1"]


def test_more_images_than_tiles_say_so(drawn):
    contact_sheet(new_log(spread(2, 10)), tiles=12)
    assert any("6 more images of the batch not shown" in text for text in texts(drawn))


def blocks(drawn):
    return [text for text in texts(drawn) if text.startswith(("image ", "candidate ", "final", "draft", "preview"))]


def test_drafts_and_previews_follow_the_finals_in_blocks_of_their_own(drawn):
    contact_sheet(new_log([0.1, 0.2, 0.9, 0.3, 0.5], stages="fddpf", pictures=grey))
    said = ["finals", "candidate 4", "candidate 0", "drafts", "candidate 2", "candidate 1", "previews", "candidate 3"]
    assert blocks(drawn) == said
    assert texts(drawn).count("best") == 1


def test_drafts_fill_what_finals_leave(drawn):
    contact_sheet(new_log(spread(30), stages="f" + "d" * 19 + "p" * 8 + "ff", pictures=grey), tiles=12)
    assert [text for text in blocks(drawn) if "candidate" not in text] == ["finals", "drafts"]
    assert sum(text.startswith("candidate ") for text in texts(drawn)) == 12
    assert "10 more drafts of lower rank not shown  ·  8 more previews of lower rank not shown" in " ".join(
        texts(drawn)
    )


def test_a_batch_has_a_block_per_image_and_stage(drawn):
    contact_sheet(new_log(spread(3, 2), stages="fdf", pictures=grey))
    headings = [text for text in blocks(drawn) if text.startswith("image ")]
    assert headings == [f"image {row} of 2  ·  {stage}" for row in (1, 2) for stage in ("finals", "drafts")]


def test_a_draft_says_what_became_of_it(drawn):
    log = new_log([0.1], pictures=grey)
    for seed, stage in ((100, DRAFT), (101, DRAFT), (102, DRAFT), (101, FINAL)):
        thumbnails = grey(1, 0)[None]
        log.add(Rendered((Recipe.from_seed(seed),), torch.tensor([[seed / 7]]), 5, 5, thumbnails=thumbnails), stage)
    contact_sheet(log)
    assert texts(drawn).count("made final") == 1
    assert texts(drawn).count("stock") == 2


def test_tiles_say_how_the_noise_was_made(drawn):
    contact_sheet(new_log(spread(3), moves=[Rotate(1, 18.0)], jumps=[JUMP] * 2, pictures=grey))
    assert any(text.endswith("102  ·  1 move  ·  2 jumps") for text in texts(drawn))


@pytest.mark.parametrize("shape", [(12, 12), (24, 12)])
def test_all_20_digits_of_a_seed_are_readable(drawn, shape):
    contact_sheet(new_log([1.0], seed=2**64 - 1, pictures=lambda i, row: grey(i, row, *shape)))
    assert any(text.endswith("18446744073709551615") for text in texts(drawn))


def test_a_candidate_without_a_picture_says_so(drawn):
    contact_sheet(new_log([0.1, 0.9]))
    assert texts(drawn).count("no picture") == 2


# Table and CSV


def test_the_table_is_in_rank_order_with_marks():
    lines = table(new_log([0.1, 0.9, 0.5])).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    assert cells[0] == ["rank", "candidate", "seed", "score", "NFE", "seconds", ""]
    assert cells[2:] == [
        ["1", "1", "101", "0.900", "20", "0.50", "best"],
        ["2", "2", "102", "0.500", "20", "0.50", ""],
        ["3", "0", "100", "0.100", "20", "0.50", "stock"],
    ]


def everything():
    """A log with something for every line and column of a table."""
    log = SearchLog(
        ("pick | er", "look"), 2, Aggregator("weighted_sum", (1.0, 0.0), (None, 5.0)), algorithm="search_over paths"
    )
    log.settings = {"prompt": "a cat\n on a  mat", "steps": 20, "cfg": 4.5, "sampler": "euler"}
    log.host = {"comfyui": "0.30.0"}
    turned = Recipe.from_seed(2**53 + 5).then(Rotate(1, 18.0))
    for recipes, values, stage, seconds, recalled in (
        ((Recipe(3, row=0, batch=2), Recipe(3, row=1, batch=2)), [[0.25, 6.0], [0.5, 4.0]], FINAL, 1.25, True),
        ((turned, turned.jump(Jump(4, 0.25, 0.75))), [[1.5, 4.5], [0.125, 7.0]], FINAL, 0.5, False),
        ((Recipe.from_seed(9),) * 2, [[0.75, 8.0], [0.875, 9.0]], DRAFT, 0.125, False),
    ):
        spent = {"sample": seconds, "score": 0.25}
        log.add(Rendered(recipes, torch.tensor(values), 40, 20, spent, recalled=recalled), stage)
    log.ledger.book("rendered again", Cost(1200))
    log.stopped = "the budget of\n60 NFE is spent"
    log.findings, log.warnings = {"drafts_made": 1, "correlation": 0.5}, ["Beware\nof it."]
    return log


def test_a_table_is_this_text():
    expected = (Path(__file__).parents[1] / "assets" / "table.md").read_text(encoding="utf-8")
    assert table(everything()).splitlines(keepends=True) == expected.splitlines(keepends=True)


def test_the_table_of_nothing_has_no_candidates():
    assert table(new_log([])).splitlines() == [
        "# Noise Search: random search", "", f"- prompt: {PROMPT}", "- score: CLIP Score", "- steps: 20", "- cfg: 4.5",
        "- comfyui: 0.30.0", "- total: 0 candidates, 0 NFE, 0.00 s",
    ]  # fmt: skip


def test_the_cells_of_the_csv_are_these():
    rows = list(csv.reader(io.StringIO(to_csv(everything()))))
    assert rows[0] == [
        *("candidate", "image", "stage", "rank", "seed", "recipe", "score", "pick | er", "look"),
        *("nfe_per_image", "nfe", "seconds", "fails_gates"),
    ]
    seed = str(2**53 + 5)
    assert [row[:5] + row[6:] for row in rows[1:]] == [
        ["0", "1", "final", "1", "3", "0.25", "0.25", "6.0", "20", "40", "1.5", ""],
        ["0", "2", "final", "2", "3", "0.5", "0.5", "4.0", "20", "40", "1.5", "look 4 < 5"],
        ["1", "1", "final", "2", seed, "1.5", "1.5", "4.5", "20", "40", "0.75", "look 4.5 < 5"],
        ["1", "2", "final", "1", seed, "0.125", "0.125", "7.0", "20", "40", "0.75", ""],
        ["2", "1", "draft", "1", "9", "0.75", "0.75", "8.0", "20", "40", "0.375", ""],
        ["2", "2", "draft", "1", "9", "0.875", "0.875", "9.0", "20", "40", "0.375", ""],
    ]
    recipes = [Recipe.from_dict(json.loads(row[5])) for row in rows[1:]]
    assert recipes == [one for candidate in everything().candidates for one in candidate.recipes]


def badges(drawn):
    """What stands in the corners of each tile, by its candidate."""
    found, tile = {}, None
    for text in texts(drawn):
        if named := re.fullmatch("(?:candidate|c) ([0-9]+)", text):
            tile = found.setdefault(int(named[1]), [])
        elif tile is not None:
            tile.append(text)
    return {candidate: {"made final", "best", "stock", "vetoed"} & set(words) for candidate, words in found.items()}


def test_a_draft_says_whether_it_was_made_final(drawn):
    log = new_log([0.1, 0.2, 0.9, 0.3], stages="fddd", pictures=grey)
    for index, score in ((2, 0.5), (3, 0.8)):
        recipes, picture = log.candidates[index].recipes, grey(9, 0)[None]
        log.add(Rendered(recipes, torch.tensor([[score]]), 20, 20, thumbnails=picture), FINAL)
    contact_sheet(log)
    assert badges(drawn) == {0: {"stock"}, 1: set(), 2: {"made final"}, 3: {"made final"}, 4: set(), 5: {"best"}}


def test_the_table_says_prompt_settings_host_and_totals():
    text = table(new_log([0.1, 0.9, 0.5]))
    for line in (f"- prompt: {PROMPT}", "- score: CLIP Score", "- steps: 20", "- cfg: 4.5", "- comfyui: 0.30.0"):
        assert line in text.splitlines()
    assert "- total: 3 candidates, 60 NFE, 1.50 s" in text.splitlines()


@pytest.mark.parametrize("log", LOGS)
def test_the_lines_of_a_table_are_equally_long(log):
    blocks = table(LOGS[log]()).split("\n\n")
    for block in blocks:
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len(set(map(len, lines))) <= 1
        assert len({line.count("|") for line in lines}) <= 1


def test_several_verifiers_have_a_column_each_and_one_has_none():
    assert "| PickScore |" in table(new_log(spread(4, 2), members=("ImageReward", "PickScore")))
    assert "| CLIP Score |" not in table(new_log(spread(4)))


def test_a_batch_has_a_table_per_image():
    text = table(new_log([[1.0, 9.0], [2.0, 8.0]]))
    assert text.index("## Image 1 of 2") < text.index("## Image 2 of 2")
    assert text.count("| rank |") == 2


def test_moved_recipes_are_told_apart_by_their_moves():
    assert "| moves |" in table(LOGS["moved recipes"]())
    assert "| moves |" not in table(new_log([1.0]))


def cells_of(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_the_table_ranks_each_stage_among_its_own():
    cells = cells_of(table(new_log([0.1, 0.2, 0.9, 0.3, 0.5], stages="fddpf")))
    assert cells[0] == ["rank", "candidate", "stage", "seed", "score", "NFE", "seconds", ""]
    assert [(line[0], line[1], line[2], line[-1]) for line in cells[2:]] == [
        ("1", "4", "final", "best"),
        ("2", "0", "final", "stock"),
        ("1", "2", "draft", ""),
        ("2", "1", "draft", ""),
        ("1", "3", "preview", ""),
    ]


def test_moves_and_jumps_have_columns_where_there_are_any():
    assert cells_of(table(new_log(spread(3), jumps=[JUMP] * 2)))[0][3] == "jumps"
    both = cells_of(table(new_log(spread(3), moves=[Rotate(1, 9.0)], jumps=[JUMP] * 2)))
    assert both[0][3:5] == ["moves", "jumps"]
    assert sorted(line[3:5] for line in both[2:]) == [["0", "0"], ["1", "2"], ["1", "2"]]


def test_the_table_says_why_the_search_ended_and_what_it_found():
    log = with_warnings(new_log(spread(3)), "Beware.", "Of the\ndog.")
    log.stopped = "the budget of 60 NFE is spent"
    log.findings = {"drafts": 12, "draft_final_rank_correlation": 0.62}
    lines = table(log).splitlines()
    start = lines.index("- ended because: the budget of 60 NFE is spent")
    found = ["- drafts: 12", "- draft final rank correlation: 0.62", "- warning: Beware.", "- warning: Of the dog."]
    assert lines[start + 1 : start + 5] == found
    assert "ended because" not in table(new_log(spread(3)))


def test_verifiers_that_do_not_decide_are_marked_in_the_table():
    head = cells_of(table(new_log(spread(4, 2), **weighted(1, 0))))[0]
    assert "A" in head and "B (report only)" in head


def test_the_items_of_a_batch_may_have_recipes_of_their_own():
    log = new_log([[1.0, 2.0]])
    recipes = (Recipe.from_seed(7), Recipe.from_seed(8).then(Rotate(2**63 + 1, 9.0)))
    log.add(Rendered(recipes, torch.tensor([[5.0], [6.0]]), 40, 20))
    assert [line[2] for line in cells_of(table(log)) if line[1] == "1"] == ["7", "8"]
    lines = list(csv.DictReader(io.StringIO(to_csv(log))))[2:]
    assert [line["seed"] for line in lines] == ["7", "8"]
    browser = lambda text: json.loads(text, parse_int=lambda digits: int(float(digits)))  # noqa: E731
    assert [Recipe.from_dict(browser(line["recipe"])) for line in lines] == list(recipes)


def test_what_was_rendered_again_is_in_the_total():
    log = new_log([1.0])
    log.ledger.book("trial of batches", Cost(20))
    assert "1 candidate, 40 NFE, 0.50 s (of which 20 NFE extra, for trials, repeats and what was left out)" in table(
        log
    )


def test_csv_reads_back_with_all_digits():
    log = new_log(spread(5, 2), members=("A, with a comma",))
    lines = list(csv.DictReader(io.StringIO(to_csv(log))))
    assert [(int(line["candidate"]), int(line["image"])) for line in lines] == [
        (i, r) for i in range(5) for r in (1, 2)
    ]
    for line in lines:
        values = log.candidates[int(line["candidate"])].values[int(line["image"]) - 1]
        assert float(line["A, with a comma"]) == values[0]
        assert log.order(int(line["image"]) - 1)[int(line["rank"]) - 1] == int(line["candidate"])


def test_csv_has_the_stage_with_ranks_among_it_and_verifiers_that_do_not_decide():
    log = new_log([[[0.1, 1 / 3]], [[0.9, 2.0]], [[0.2, 3.0]]], stages="fdf", **weighted(1, 0))
    lines = list(csv.DictReader(io.StringIO(to_csv(log))))
    assert [(line["stage"], line["rank"]) for line in lines] == [("final", "2"), ("draft", "1"), ("final", "1")]
    assert [float(line["B"]) for line in lines] == [log.candidates[index].values[0][1] for index in range(3)]


def test_csv_is_as_the_standard_has_it():
    text = to_csv(new_log(spread(2), members=('a "b",\nc',)))
    assert '"a ""b"",\nc"' in text
    assert text.endswith("\r\n") and text.count("\r\n") == 3
    assert {len(line) for line in csv.reader(io.StringIO(text, newline=""), strict=True)} == {11}


# Numbers and words


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(3, 12))
def test_ticks_are_round_even_inside_and_about_as_many_as_wanted(low, span, wanted):
    high = low + span
    ticks = numbers.nice_ticks(low, high, wanted)
    values = [value for value, _ in ticks]
    assert 2 <= len(values) <= wanted + 1
    assert low - span * 1e-6 <= values[0] and values[-1] <= high + span * 1e-6
    gaps = [b - a for a, b in zip(values, values[1:], strict=False)]
    assert max(gaps) == pytest.approx(min(gaps), rel=1e-3)
    mantissa = gaps[0] / 10 ** math.floor(math.log10(gaps[0]) + 1e-9)
    assert any(mantissa == pytest.approx(nice, rel=1e-3) for nice in (1, 2, 2.5, 5))


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 10, ["0.0", "2.5", "5.0", "7.5", "10.0"]),
        (0, 1280, ["0", "500", "1,000"]),
        (-0.11, 0.11, ["-0.1", "0.0", "0.1"]),
        (0.2, 0.3, ["0.200", "0.225", "0.250", "0.275", "0.300"]),
        (0, 3e-9, ["0", "1e-09", "2e-09", "3e-09"]),
    ],
)
def test_ticks_are_written_as_people_do(low, high, labels):
    assert [label for _, label in numbers.nice_ticks(low, high, 4)] == labels


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.31234, 3, "0.312"),
        (-0.0001, 2, "0.00"),
        (-1.5, 1, "-1.5"),
        (12345.6, 0, "12,346"),
        (3e30, 0, "3e+30"),
        (2e-9, 12, "2e-09"),
    ],
)
def test_plain_numbers(value, digits, text):
    assert numbers.plain(value, digits) == text


@pytest.mark.parametrize(
    ("scores", "digits"),
    [([0.1, 0.3], 3), ([100.0, 900.0], 0), ([5.0, 5.0], 2), ([0.0], 3), ([], 3), ([1, 1.00004], 7)],
)
def test_digits_tell_scores_apart(scores, digits):
    assert numbers.score_digits(scores) == digits


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.417, "0.42 s"),
        (12.34, "12.3 s"),
        (59.96, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.9, "1 h 00 min"),
        (7621, "2 h 07 min"),
    ],
)
def test_durations(seconds, text):
    assert numbers.duration(seconds) == text


@given(st.text(), st.integers(30, 300))
def test_fitted_text_fits(text, width):
    assert text_width(fit(one_line(text), 14, width), 14) <= width


@given(st.text(), st.integers(30, 300), st.integers(1, 4))
def test_wrapped_text_fits_and_loses_no_word_before_the_end(text, width, lines):
    wrapped = wrap(one_line(text), 14, width, lines)
    assert len(wrapped) <= lines
    assert all(text_width(line, 14) <= width for line in wrapped)
    if not any("…" in line for line in wrapped):
        assert " ".join(wrapped).split() == one_line(text).split()


def test_what_fits_is_left_alone():
    assert fit("short", 14, 500) == "short"


def test_a_prompt_that_the_font_cannot_write_is_left_out(drawn):
    score_curve(new_log([1.0], prompt="猫と犬"))
    assert not any("“" in text or "?" in text for text in texts(drawn))


def test_letters_that_the_font_lacks_lose_their_accents():
    assert one_line("café\n\tnaïve") == "cafe naive"


def test_the_table_says_what_was_known_from_an_earlier_search():
    log = new_log([1.0, 3.0, 2.0])
    log.candidates[1] = dataclasses.replace(log.candidates[1], recalled=True)
    text = table(log)
    assert "known from an earlier search: 1 candidate, 20 NFE not spent again" in text
    assert [line.count("known") for line in text.splitlines() if line.startswith("|")][2:] == [1, 0, 0]
