"""What a workflow keeps of the winners, and whom it is for: read and written without a server."""

import copy
import json
import math

import pytest

pytest.importorskip("comfy")

from noise_search.host.graph.graph import Graph
from noise_search.host.graph.travel import MOST_RANKS, MOST_RUNS, Winners, difference, find, leave, replaced
from noise_search.search.recipe import METADATA, Recipe

PROMPT = {
    "1": {"class_type": "Loader", "inputs": {"name": "model.safetensors"}},
    "2": {"class_type": "Text", "inputs": {"text": "a cat", "strength": 1.0}},
    "3": {"class_type": "Search", "inputs": {"model": ["1", 0], "positive": ["2", 0], "seed": 5}},
    "4": {"class_type": "Save", "inputs": {"images": ["3", 1]}},
}


def found(*seeds):
    """One rank for each seed."""
    return Winners(tuple((Recipe.from_seed(seed),) for seed in seeds), ((0.5,),), (b"grey",))


def saved(winners, runs=1, files=dict):
    workflow = {"extra": {"other": 1}}
    for run in range(runs):
        leave(workflow, PROMPT, "3", run, winners, files)
    return workflow


def changed(node, **values):
    prompt = copy.deepcopy(PROMPT)
    prompt[node] |= values
    return prompt


def test_a_node_sees_what_it_wrote_so_far():
    runs = lambda written: Graph("5", PROMPT, {METADATA: {"5": written, "6": [2]}}).runs  # noqa: E731
    assert runs([{"seed": 1}]) == [{"seed": 1}]
    assert runs("anything") == Graph("7", PROMPT, {}).runs == []


def test_what_is_left_is_found_again_by_its_node_and_run():
    workflow = saved(found(5, 6), runs=2)
    assert find(workflow, PROMPT, "3", 0) == find(workflow, PROMPT, "3", 1) == found(5, 6)
    assert find(workflow, PROMPT, "3", 2) is None and find(workflow, PROMPT, "2", 0) is None
    assert workflow["extra"]["other"] == 1


@pytest.mark.parametrize(
    ("node", "values", "same"),
    [
        ("1", {"class_type": "AnotherLoader"}, False),
        ("3", {"class_type": "AnotherSearch"}, False),
        ("2", {"inputs": {"text": "a dog", "strength": 1.0}}, False),
        ("2", {"inputs": {"text": "a cat", "strength": 1}}, True),  # as a browser writes it
        ("3", {"inputs": {"model": ["1", 1], "positive": ["2", 0], "seed": 5}}, False),
        ("4", {"class_type": "AnotherSave"}, True),  # comes after the search
    ],
)
def test_it_is_the_same_search_while_nothing_before_it_changes(node, values, same):
    assert (find(saved(found(5)), changed(node, **values), "3", 0) is not None) == same


def test_a_workflow_may_come_from_anybody_so_that_few_ranks_are_read():
    many = found(*range(MOST_RANKS + 50))
    assert find(saved(many), PROMPT, "3", 0).recipes == many.recipes[:MOST_RANKS]


def test_a_record_of_before_pictures_were_kept_is_read():
    workflow = saved(found(5))
    del workflow["extra"]["noise_search"]["3"]["runs"][0]["pictures"]
    assert find(workflow, PROMPT, "3", 0) == Winners(((Recipe(5),),), ((0.5,),))


def test_of_a_node_that_runs_very_often_the_first_runs_are_kept():
    workflow = saved(found(5), runs=MOST_RUNS)
    leave(workflow, PROMPT, "3", MOST_RUNS, found(6))
    assert find(workflow, PROMPT, "3", MOST_RUNS - 1) == found(5) and find(workflow, PROMPT, "3", MOST_RUNS) is None


def test_another_file_of_the_same_name_is_another_search_and_is_named():
    workflow = saved(found(5), files=lambda: {"model.safetensors": "then"})
    assert find(workflow, PROMPT, "3", 0, files=lambda: {"model.safetensors": "then"}) == found(5)
    now = lambda: {"model.safetensors": "now"}  # noqa: E731
    assert find(workflow, PROMPT, "3", 0, files=now) is None
    assert replaced(workflow, PROMPT, "3", now) == ["model.safetensors"]
    assert replaced(workflow, changed("1", class_type="AnotherLoader"), "3", now) == []


def test_what_a_changed_search_found_takes_the_place_of_what_was_there():
    workflow = saved(found(5), runs=3)
    other = changed("2", class_type="OtherText")
    leave(workflow, other, "3", 1, found(8))
    assert [find(workflow, other, "3", run) for run in range(3)] == [None, found(8), None]
    assert find(workflow, PROMPT, "3", 0) is None


@pytest.mark.parametrize("workflow", [None, 5, [], {"extra": 3}, {"extra": {"noise_search": 7}}])
def test_a_workflow_that_is_none_keeps_nothing_or_what_it_can(workflow):
    before = copy.deepcopy(workflow)
    assert find(workflow, PROMPT, "3", 0) is None
    leave(workflow, PROMPT, "3", 0, found(5))
    holds = isinstance(workflow, dict) and isinstance(workflow["extra"], dict)
    assert find(workflow, PROMPT, "3", 0) == (found(5) if holds else None)
    assert holds or workflow == before


def test_a_seed_that_a_browser_rounds_is_the_same_search_and_no_other_is():
    seed, rounded = 2**60 + 1, int(float(2**60 + 1))
    exact, browsers, other = (
        changed("3", inputs={"model": ["1", 0], "positive": ["2", 0], "seed": one})
        for one in (seed, rounded, seed + 512)
    )
    workflow = {}
    leave(workflow, exact, "3", 0, found(seed), dict)
    assert find(workflow, exact, "3", 0) == find(workflow, browsers, "3", 0) == found(seed)
    assert find(workflow, other, "3", 0) is None


def test_a_verifier_that_was_dropped_leaves_a_workflow_that_every_browser_reads():
    workflow = saved(Winners(((Recipe(5),),), ((0.5, math.nan),)))
    read = find(json.loads(json.dumps(workflow, allow_nan=False)), PROMPT, "3", 0)
    assert read.scores[0][0] == 0.5 and math.isnan(read.scores[0][1])


SAVED = Winners(((Recipe(5),),), ((0.5, 7.0),), (bytes([100] * 12),))


@pytest.mark.parametrize(
    ("scores", "shade", "said"),
    [
        (((0.5, 7.0),), 100, ""),
        (((0.51, 7.0),), 102, ""),  # as far apart as they may be
        (((0.515, 7.0),), 100, "it scores 0.515, 7 here and 0.5, 7 when it was saved"),
        (((0.5, 17.0),), 100, ""),  # of a verifier that does not repeat itself
        (((0.5,),), 100, "it scores 0.5 here and 0.5, 7 when it was saved"),
        (((0.5, 7.0),), 103, "its colours are off by 3 of 255"),
        (((0.4, 7.0),), 90, "it scores 0.4, 7 here and 0.5, 7 when it was saved and its colours are off by 10 of 255"),
    ],
)
def test_what_tells_a_winner_from_the_saved_one(scores, shade, said):
    assert difference(SAVED, scores, [bytes([shade] * 12)], [0.0101, math.inf]) == said


def test_a_picture_of_another_size_is_another_and_an_old_record_has_none():
    assert difference(SAVED, SAVED.scores, [bytes(9)], [0.01, 0.01]) == "its colours are off by 255 of 255"
    old = Winners(SAVED.recipes, SAVED.scores)
    assert difference(old, SAVED.scores, [bytes(9)], [0.01, 0.01]) == ""
