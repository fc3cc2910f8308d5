"""The walk through a graph, which everything that looks behind a node goes by."""

import pytest
from noise_search.host.graph.links import inputs_of, is_link, links_of, upstream, walk

BEFORE = {"a": ["b", "c"], "b": ["d"], "c": ["d", "a"], "d": []}


def test_a_walk_goes_along_the_first_link_as_far_as_it_can_and_comes_to_each_once():
    assert list(walk(["a"], BEFORE.__getitem__)) == ["a", "b", "d", "c"]
    assert list(walk(["c", "b"], BEFORE.__getitem__)) == ["c", "d", "a", "b"]
    assert list(walk([], BEFORE.__getitem__)) == []


def test_a_walk_asks_for_what_comes_before_once_and_after_it_gave_the_place_out():
    asked = []

    def before(one):
        asked.append(one)
        return BEFORE[one]

    going = walk(["a"], before)
    assert next(going) == "a" and asked == []
    assert next(going) == "b" and asked == ["a"]
    assert sorted(list(going) + ["a", "b"]) == sorted(asked) == ["a", "b", "c", "d"]


def test_what_stands_before_a_node_whatever_a_client_sends():
    graph = {
        "1": {"class_type": "A", "inputs": {"x": ["2", 0], "y": ["gone", 1], "z": "2", "w": [3, 0], "v": ["4", True]}},
        "2": {"class_type": "B", "inputs": {"x": ["1", 0], "y": ["5", 0]}},
        "3": {"class_type": "C"},
        "4": {"class_type": "D"},
        "5": {"class_type": "E", "inputs": ["no", "mapping"]},
        "6": "no node",
    }
    assert set(upstream(graph, "1")) == {"1", "2", "5"}
    assert set(upstream(graph, "2")) == {"1", "2", "5"}
    assert upstream(graph, "gone") == {} and upstream({}, "1") == {}
    assert links_of(graph, "1") == {"x": ["2", 0], "y": ["gone", 1]}
    assert inputs_of(graph, "6") == inputs_of(graph, "5") == inputs_of(graph, "gone") == {}


@pytest.mark.parametrize("value", [["1", 0], ["a:1", 3]])
def test_a_link(value):
    assert is_link(value)


@pytest.mark.parametrize("value", [("1", 0), ["1"], ["1", 0, 0], [1, 0], ["1", "0"], ["1", True], "1", None])
def test_no_link(value):
    assert not is_link(value)
