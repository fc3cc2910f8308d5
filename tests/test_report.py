"""The pictures and tables of a finished search."""

import csv
import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from noise_search.report import charts, numbers
from noise_search.report import contact_sheet as sheets
from noise_search.report.canvas import THEMES, Canvas, fit, one_line, text_width
from noise_search.report.charts import score_curve
from noise_search.report.contact_sheet import contact_sheet
from noise_search.report.table import table, to_csv
from noise_search.search.aggregate import Aggregator
from noise_search.search.engine import Rendered
from noise_search.search.log import SearchLog
from noise_search.search.recipe import Recipe, Rotate

PROMPT = "two small red circles above a blue square"


def new_log(scores, seed=100, prompt=PROMPT, members=("CLIP Score",), pictures=None, moves=(), **options):
    """A log of one score per candidate; or, where a score is a list, [rows] or [rows][members] of them."""
    values = torch.tensor(scores, dtype=torch.float64)
    values = values.reshape(len(scores), -1 if scores else 1, len(members))
    log = SearchLog(members, values.shape[1], algorithm="random search", **options)
    log.settings = {"prompt": prompt, "steps": 20, "cfg": 4.5}
    log.host = {"comfyui": "0.30.0"}
    for index, value in enumerate(values):
        recipe = Recipe.from_seed(seed + index)
        for move in moves if index else ():
            recipe = recipe.then(move)
        log.add(
            Rendered(
                recipes=recipe.for_items(log.rows),
                values=value,
                nfe=20 * log.rows,
                nfe_per_row=20,
                seconds={"sample": 0.4, "score": 0.1},
                thumbnails=None if pictures is None else torch.stack([pictures(index, row) for row in range(log.rows)]),
            )
        )
    return log


def spread(count, rows=1):
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, rows, generator=generator).tolist()


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
}


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


# Score curve


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("log", LOGS)
def test_any_log_has_a_curve_with_nothing_cut_off(log, theme):
    picture = score_curve(LOGS[log](), theme)
    assert (picture.mode, picture.size) == ("RGB", (1200, 675))
    assert border_is_empty(picture, THEMES[theme].background)
    assert len(picture.getcolors(1 << 20)) > 20


@pytest.mark.parametrize("size", [(480, 320), (640, 400), (1920, 1080)])
def test_a_curve_of_any_size_has_nothing_cut_off(size):
    picture = score_curve(new_log(spread(64)), width=size[0], height=size[1])
    assert picture.size == size
    assert border_is_empty(picture, light("background"))


@pytest.mark.parametrize(("scores", "levels"), [([0.3], 1), ([0.3, 0.5, 0.1, 0.5, 0.9, 0.2], 3), ([5.0, 1.0], 1)])
def test_the_curve_is_a_staircase_that_never_falls(drawn, scores, levels):
    score_curve(new_log(scores))
    lines = [call[1] for call in drawn if call[0] == "line" and call[2] == light("best")]
    [stairs] = [points for points in lines if points[0][1] > 150]  # the other one is in the key above the plot
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
    stock = [call for call in drawn if call[0] == "diamond" and call[3] == light("stock")]
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


def test_unknown_themes_and_axes_are_named():
    with pytest.raises(ValueError, match="unknown theme 'pink'; known: light, dark"):
        score_curve(new_log([1.0]), theme="pink")
    with pytest.raises(ValueError, match="unknown axis 'steps'; known: nfe, seconds"):
        score_curve(new_log([1.0]), axis="steps")


# Contact sheet


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("log", LOGS)
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


def test_what_was_rendered_again_is_in_the_total():
    log = new_log([1.0])
    log.extra_nfe = 20
    assert "1 candidate, 40 NFE, 0.50 s (of which 20 NFE to render winners again)" in table(log)


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


def test_what_fits_is_left_alone():
    assert fit("short", 14, 500) == "short"


def test_a_prompt_that_the_font_cannot_write_is_left_out(drawn):
    score_curve(new_log([1.0], prompt="猫と犬"))
    assert not any("“" in text or "?" in text for text in texts(drawn))


def test_letters_that_the_font_lacks_lose_their_accents():
    assert one_line("café\n\tnaïve") == "cafe naive"
