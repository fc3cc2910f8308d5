"""Nothing that a stranger writes into a recipe, a workflow or a file crashes, hangs, or reaches outside.

`python benchmarks/fuzz.py` does the same with 100,000 recipes.
"""

import json
import os
import random
import sqlite3
from contextlib import suppress
from types import SimpleNamespace

import fuzzing
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noise_search.search.recipe import RecipeError, from_json, to_json

pytestmark = pytest.mark.any_host

RECIPES, SEED = 10_000, 1
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(fuzzing.KEYS) | st.text(), inner),
)


def read(text):
    """Whether a text is a recipe. Anything but a RecipeError that repeats it in short is a crash."""
    try:
        recipes = from_json(text)
    except RecipeError as error:
        assert len(str(error)) < 500
        return False
    assert from_json(to_json(recipes)) == recipes
    return True


def test_a_text_is_a_recipe_that_comes_back_or_an_error_that_says_why():
    good = sum(read(text) for text in fuzzing.recipe_texts(RECIPES, SEED))
    assert RECIPES / 4 < good < RECIPES / 2


@pytest.mark.slow
@settings(max_examples=500)
@given(json_values)
def test_any_json_is_a_recipe_that_comes_back_or_an_error(value):
    read(json.dumps(value))


@settings(max_examples=500)
@given(st.text())
def test_any_text_is_a_recipe_that_comes_back_or_an_error(text):
    read(text)


# In the host


@pytest.fixture(scope="module")
def host():
    pytest.importorskip("comfy")
    import torch
    from noise_search.host.graph import travel
    from noise_search.host.graph.graph import Graph
    from noise_search.host.memory import store
    from noise_search.host.sampling.noise import RecipeNoise
    from noise_search.nodes.graph import NoiseFromRecipe
    from noise_search.nodes.searches import Replay
    from noise_search.search.engine import Rendered
    from noise_search.search.recipe import Recipe

    return SimpleNamespace(
        torch=torch,
        travel=travel,
        nodes=(NoiseFromRecipe, Replay),
        Store=store.Store,
        RecipeNoise=RecipeNoise,
        Graph=Graph,
        Rendered=Rendered,
        Recipe=Recipe,
    )


def test_the_nodes_take_a_recipe_or_raise_value_error(host):
    for text in fuzzing.recipe_texts(2000, SEED + 1):
        for kind in host.nodes:
            try:
                kind.execute(recipe=text)
            except ValueError as error:
                assert len(str(error)) < 500


def test_both_nodes_take_what_stands_in_a_picture(host):
    """The whole entry of its metadata, one winner of it, or the recipe alone."""
    found = [host.Recipe(11).for_batch(2).for_row(row) for row in (0, 1)]
    one = {"recipe": to_json(found), "seed": 11, "score": [0.5, 0.25], "prompt": "a cat", "sha256": ["ab", "cd"]}
    noise, replay = host.nodes
    for text in (json.dumps({"5:3": [one]}), json.dumps(one), one["recipe"]):
        assert noise.execute(recipe=text).result[0].recipes == tuple(found)
        assert replay.execute(recipe=text).result[0].recipes == tuple(found)
    two = json.dumps({"4": [one, {**one, "recipe": '{"seed": 12}'}]})
    for kind in host.nodes:
        with pytest.raises(ValueError, match="there are 2 winners in this text; .*node 4, run 2: .*12"):
            kind.execute(recipe=two)


def test_noise_of_any_recipe_is_noise_or_a_value_error(host):
    """On a latent of four numbers; a batch of thousands is what it says."""
    latent = {"samples": host.torch.zeros(1, 1, 2, 2)}
    for text in fuzzing.recipe_texts(2000, SEED + 2):
        try:
            noise = host.RecipeNoise(from_json(text)).generate_noise(latent)
        except ValueError:
            continue
        assert host.torch.isfinite(noise).all()


GRAPH = {"7": {"class_type": "NoiseSearchKSampler", "inputs": {"seed": 1}}}


def travelled(host):
    """A workflow as this pack leaves it."""
    workflow = {"nodes": [], "extra": {"ds": {}}}
    for run in range(2):
        recipes = tuple((host.Recipe(run + rank),) for rank in range(2))
        host.travel.leave(workflow, GRAPH, "7", run, host.travel.Winners(recipes, ((0.5, float("nan")),)))
    return workflow


def test_any_workflow_is_read(host):
    good, found = travelled(host), 0
    assert host.travel.find(good, GRAPH, "7", 1).recipes[0] == (host.Recipe(1),)
    paths = [
        lambda workflow: workflow,
        lambda workflow: workflow["extra"],
        lambda workflow: workflow["extra"]["noise_search"],
        lambda workflow: workflow["extra"]["noise_search"]["7"]["runs"][0],
    ]
    for number, path in enumerate(paths):
        for workflow in fuzzing.workflows(1500, SEED + number, good, path):
            try:
                found += host.travel.find(workflow, GRAPH, "7", 0) is not None
            except host.travel.Unusable as error:
                assert len(str(error)) < 500
            host.travel.replaced(workflow, GRAPH, "7", lambda: {"ref.png": "0"})
            host.travel.leave(workflow, GRAPH, "7", 0, host.travel.Winners(((host.Recipe(1),),), ((0.5,),)))
    assert 50 < found < 3000


def test_any_metadata_is_read(host):
    chance = random.Random(SEED)
    for _ in range(2000):
        extra = {name: fuzzing.anything(chance) for name in ("workflow", "noise_search")}
        graph = host.Graph("7", GRAPH, extra)
        assert isinstance(graph.runs, list)
        with suppress(host.travel.Unusable):
            graph.winners()


def test_of_a_huge_workflow_only_so_much_is_read(host):
    """4096 moves each in far more recipes than a node gives out."""
    moves = [{"move": "rotate", "seed": seed, "angle": 1.0} for seed in range(4096)]
    workflow = travelled(host)
    workflow["extra"]["noise_search"]["7"]["runs"][0]["recipes"] = [[{"seed": 1, "moves": moves}]] * 10_000
    assert len(host.travel.find(workflow, GRAPH, "7", 0).recipes) == host.travel.MOST_RANKS


COLUMNS = ("recipes", '"values"', "nfe", "seconds", "together", "thumbnails", "bytes", "session")


def tampered(store, chance):
    """Puts something else into a column of every entry."""
    value = fuzzing.plain(chance)
    if chance.random() < 0.5:
        value = json.dumps(fuzzing.anything(chance))
    if isinstance(value, str):
        value = value.encode("utf-8", "replace").decode() if chance.random() < 0.7 else os.urandom(30)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        value = 2**63 - 1
    connection = sqlite3.connect(store.file)
    try:
        with connection:
            connection.execute(f"UPDATE entries SET {chance.choice(COLUMNS)} = ?", (value,))
    except sqlite3.IntegrityError:  # None where there must be something
        pass
    finally:
        connection.close()


def test_any_content_of_the_file_is_read_or_put_aside(host, tmp_path):
    """What the store says of a candidate can be used, or it says that the file is broken."""
    chance, used = random.Random(SEED), 0
    for number in range(150):
        store = host.Store(tmp_path / "inside" / str(number))
        with store.memory("key") as memory:
            pictures = host.torch.zeros(1, 4, 4, 3, dtype=host.torch.uint8)
            values = host.torch.tensor([[0.5]])
            memory.keep_candidate("work", host.Rendered((host.Recipe(1),), values, 4, 4, {"sample": 1.0}, (), pictures))
        tampered(store, chance)
        with store.memory("key") as memory:
            known = memory.candidate("work")
            memory.segment("work")
        store.overview()
        if known is not None:
            used += 1
            assert known.values.ndim == 2
            assert len(known.values) == len(known.recipes)
            assert isinstance(known.nfe, int) and known.nfe >= 0
            assert all(type(value) is float and value >= 0 for value in known.seconds.values())
    assert used
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]
