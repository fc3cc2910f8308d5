"""The toy world and its oracle. No ComfyUI, no torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from noise_search.demo import world
from noise_search.demo.oracle import examine, find
from noise_search.demo.world import CATEGORIES, Group, Item, Scene, parse, render, sample_prompt, sample_scene
from PIL import Image, ImageFilter

ROOT = Path(__file__).resolve().parents[2]

groups = st.builds(
    Group,
    count=st.integers(1, 4),
    size=st.sampled_from([None, *world.SIZES]),
    colour=st.sampled_from(list(world.COLOURS)),
    shape=st.sampled_from(world.SHAPES),
)


@st.composite
def scenes(draw) -> Scene:
    first = draw(groups)
    if first.count == 4 or draw(st.booleans()):
        return Scene((first,))
    second = replace(draw(groups), count=draw(st.integers(1, 4 - first.count)))
    if (first.colour, first.shape) == (second.colour, second.shape):
        second = replace(second, colour=next(c for c in world.COLOURS if c != first.colour))
    return Scene((first, second), draw(st.sampled_from([None, *world.RELATIONS])))


def picture(*items: Item) -> np.ndarray:
    return world.draw_items(list(items))


# ------------------------------------------------------------------------------------------------------------ prompts


@given(scenes())
def test_a_prompt_reads_back_as_its_scene(scene):
    assert parse(str(scene)) == scene


@given(scenes())
def test_swapped_sides_mean_the_same(scene):
    if len(scene.groups) == 2:
        relation = scene.relation and world.MIRROR[scene.relation]
        assert Scene(scene.groups[::-1], relation).meaning == scene.meaning


@given(scenes(), scenes())
def test_equal_meanings_are_on_one_side_of_the_split(first, second):
    if first.meaning == second.meaning:
        assert first.held_out == second.held_out


def test_a_relation_and_its_mirror_do_not_mean_the_same():
    prompt = "a red circle {} a blue square"
    assert len({parse(prompt.format(word)).meaning for word in ("and", *world.RELATIONS)}) == 5


def test_case_spaces_and_a_full_stop_do_not_matter():
    assert parse("  A red  circle to the left of a Blue square. ") == parse("a red circle left of a blue square")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "cannot read ''"),
        ("a pink circle", "cannot read 'a pink circle'"),
        ("two red circle", "number and plural do not agree"),
        ("a red circles", "number and plural do not agree"),
        ("three red circles and two blue stars", "at most 4 shapes"),
        ("a red circle and a red circle", "both sides are red circles"),
        ("a red circle and a blue star and a green star", "one or two kinds"),
    ],
)
def test_a_prompt_outside_the_grammar_is_named(prompt, message):
    with pytest.raises(ValueError, match=message):
        parse(prompt)


def test_no_room_is_an_error_and_not_an_endless_search():
    with pytest.raises(ValueError, match="no room for 'three large red circles left of a large blue star'"):
        render(parse("three large red circles left of a large blue star"), np.random.default_rng(0))


# -------------------------------------------------------------------------------------------------------------- split


def test_training_and_test_prompts_share_no_meaning():
    rng = np.random.default_rng(0)
    trained = {parse(sample_prompt(rng)).meaning for _ in range(20_000)}
    tested = {parse(prompt).meaning for prompt in world.held_out_prompts()}
    assert len(tested) == 200
    assert not trained & tested


def test_the_test_set_has_every_category_and_keeps_its_order():
    prompts = world.held_out_prompts()
    counts = {c: sum(parse(p).category == c for p in prompts) for c in CATEGORIES}
    assert min(counts.values()) >= 15
    assert world.held_out_prompts(40) == prompts[:40]


def test_the_split_is_the_same_on_every_machine():
    assert [parse(p).held_out for p in ("a red circle", "a large green circle", "two red stars")] == [
        False,
        True,
        False,
    ]
    assert world.held_out_prompts(4) == [
        "a large green circle",
        "a small red circle and a small purple square",
        "three large green stars",
        "a red square below a purple circle",
    ]


def test_the_training_never_imports_the_oracle():
    source = (ROOT / "demo" / "train.py").read_text(encoding="utf-8")
    assert "import oracle" not in source and ".oracle" not in source


# ------------------------------------------------------------------------------------------------------------- oracle


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_oracle_accepts_every_true_picture(category):
    rng = np.random.default_rng(CATEGORIES.index(category))
    for _ in range(750):
        scene = sample_scene(rng, category)
        verdict = examine(render(scene, rng), str(scene))
        assert verdict.ok, verdict.text


def test_the_oracle_accepts_slightly_blurred_and_noisy_pictures():
    rng = np.random.default_rng(7)
    for _ in range(200):
        scene = sample_scene(rng)
        image = np.asarray(render(scene, rng).filter(ImageFilter.GaussianBlur(0.6)), np.float32) / 255
        assert examine(image + rng.normal(0, 0.02, image.shape), scene).ok, str(scene)


RED = Item("circle", "red", "large", 32, 32)
BLUE = Item("square", "blue", "small", 96, 96)
ASKED = "a large red circle above a small blue square"


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([], "no red circles"),
        ([RED], "no blue squares"),
        ([RED, BLUE, Item("circle", "red", "large", 96, 32)], "2 red circles"),
        ([RED, BLUE, Item("star", "green", "small", 96, 32)], "something else"),
        ([replace(RED, colour="purple"), BLUE], "no red circles"),
        ([replace(RED, shape="star"), BLUE], "no red circles"),
        ([replace(RED, colour="blue"), replace(BLUE, colour="red")], "no red circles"),
        ([replace(RED, size="small"), BLUE], "is large"),
        ([replace(RED, y=96), replace(BLUE, y=32)], "not above"),
        ([RED, BLUE, Item("circle", "red", "large", 56, 40)], "not every part is a clear shape"),
    ],
)
def test_the_oracle_rejects(items, reason):
    assert examine(picture(RED, BLUE), ASKED).ok
    verdict = examine(picture(*items), ASKED)
    assert not verdict.ok
    assert reason in verdict.text


@pytest.mark.parametrize("seed", range(5))
def test_the_oracle_rejects_pictures_of_other_scenes(seed):
    """Objects of one scene drawn, another asked: right only where the other's words are true of these objects."""
    rng = np.random.default_rng(seed)
    for _ in range(200):
        drawn, asked = sample_scene(rng), sample_scene(rng)
        kinds = lambda scene: {(g.count, g.colour, g.shape) for g in scene.groups}  # noqa: E731
        if kinds(drawn) != kinds(asked):
            assert not examine(render(drawn, rng), asked).ok, (str(drawn), str(asked))


def test_a_half_erased_shape_is_not_clear():
    image = picture(RED)
    image[32:, :] = np.float32(world.BACKGROUND) / 255
    assert not examine(image, "a red circle").ok


def test_the_verdict_says_what_was_found_and_asked():
    items = [Item("circle", "red", "small", x, 32) for x in (24, 64)] + [BLUE]
    verdict = examine(picture(*items), "a red circle")
    assert verdict.text.startswith("found: 2 small red circles, 1 small blue square; asked: a red circle")


def test_the_oracle_reads_bytes_floats_and_other_sizes_alike():
    image = render(parse(ASKED), np.random.default_rng(1))
    array = np.asarray(image)
    forms = [image, array, array.astype(np.float32) / 255, image.resize((256, 256), Image.Resampling.LANCZOS)]
    assert [examine(form, ASKED).ok for form in forms] == [True] * 4


def test_found_objects_carry_their_place():
    part = find(picture(RED))[0]
    assert (part.x, part.y) == pytest.approx((31.5, 31.5), abs=1)


def test_the_world_needs_no_torch_and_no_comfyui():
    code = (
        "import importlib.util, sys; "
        "spec = importlib.util.spec_from_file_location('pack', 'demo/__init__.py', submodule_search_locations=['demo'])"
        "; sys.modules['pack'] = module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module); "
        "import pack.oracle; assert not {'torch', 'comfy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
