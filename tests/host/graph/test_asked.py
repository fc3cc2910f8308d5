"""A node that asks for values while the workflow runs, in ComfyUI's own executor."""

import pytest

pytest.importorskip("comfy")

import executor
from comfy_api.latest import io
from graphs import node
from noise_search.host.graph import asked
from noise_search.host.graph.graph import Graph

import nodes

SEEN, IDS = [], []


class Asks(io.ComfyNode):
    """Wants the text that is made from `link`'s node, and puts out what it was given."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Asks",
            inputs=[io.AnyType.Input("link", raw_link=True), io.Int.Input("count", default=1)],
            outputs=[io.String.Output()],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt, io.Hidden.prompt],
            is_output_node=True,
        )

    @classmethod
    def check_lazy_status(cls, **given):
        link = given["link"]
        return asked.ask(cls.hidden, given, {"text": link}) if isinstance(link, list) else []

    @classmethod
    def execute(cls, link, count, **given):
        found = asked.answers(cls.hidden, given)
        graph = Graph.of(cls.hidden)
        IDS.append((graph.node_id, graph.user_id))
        SEEN.append((found, given, graph.prompt[graph.node_id]["inputs"], cls.hidden.prompt))
        return io.NodeOutput(str(found.get("text")), ui={"text": [str(found.get("text"))]})


class Expands(io.ComfyNode):
    """Is replaced by the node above."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Expands",
            inputs=[io.AnyType.Input("link", raw_link=True)],
            outputs=[io.String.Output()],
            enable_expand=True,
        )

    @classmethod
    def execute(cls, link):
        inner = {"inner": node("Asks", link=link, count=1)}
        return io.NodeOutput(["inner", 0], expand=inner)


@pytest.fixture
def host(monkeypatch):
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "Asks", Asks)
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "Expands", Expands)
    SEEN.clear(), IDS.clear()
    return executor.host(monkeypatch)


GRAPH = {
    "a": node("StringConcatenate", string_a="a red", string_b="cat", delimiter=" "),
    "asks": node("Asks", link=["a", 0], count=1),
}


def test_the_node_itself_is_given_the_value_and_nothing_else_of_the_graph_changes(host):
    history = host.run(GRAPH, "asks")
    [(found, others, inputs, original)] = SEEN
    assert found == {"text": "a red cat"} and others == {}
    assert inputs == original["asks"]["inputs"] == GRAPH["asks"]["inputs"]
    assert host.all_ids == {"a", "asks"}
    assert history["outputs"] == {"asks": {"text": ["a red cat"]}}


def test_queued_again_nothing_runs_and_the_result_is_there(host):
    host.run(GRAPH, "asks")
    history = host.run(GRAPH, "asks")
    assert (len(SEEN), host.executing) == (1, [])
    assert history["outputs"]["asks"]["text"] == ["a red cat"]
    changed = GRAPH | {"a": node("StringConcatenate", string_a="a blue", string_b="cat", delimiter=" ")}
    host.run(changed, "asks")
    assert SEEN[-1][0] == {"text": "a blue cat"}


def test_what_is_computed_already_is_not_computed_again(host):
    shown = {"show": node("PreviewAny", source=["a", 0])}
    host.run(GRAPH | shown, "show")
    host.run(GRAPH | shown, "asks", "show")
    assert SEEN[-1][0] == {"text": "a red cat"}
    assert "a" not in host.executing


def test_every_item_of_a_list_gets_its_own(host, monkeypatch):
    class Three(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(
                node_id="Three", outputs=[io.String.Output(is_output_list=True), io.Int.Output(is_output_list=True)]
            )

        @classmethod
        def execute(cls):
            return io.NodeOutput(["a", "b", "c"], [1, 2, 3])

    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "Three", Three)
    graph = {"three": node("Three"), "asks": node("Asks", link=["three", 0], count=["three", 1])}
    assert host.run(graph, "asks")["outputs"]["asks"]["text"] == ["a", "b", "c"]


def test_in_an_expansion_it_keeps_what_it_is_there(host):
    graph = {"a": GRAPH["a"], "outer": node("Expands", link=["a", 0]), "show": node("PreviewAny", source=["outer", 0])}
    for _ in range(2):
        host.run(graph, "show")
        assert [found for found, *_ in SEEN] == [{"text": "a red cat"}]
    assert SEEN[0][2] == {"link": ["a", 0], "count": 1}
    assert IDS == [("inner", "outer")]  # the user knows the node that was expanded


@pytest.mark.parametrize("cache", ["NONE", "LRU"])
def test_with_every_cache(monkeypatch, host, cache):
    other = executor.host(monkeypatch, cache)
    other.run(GRAPH, "asks")
    assert SEEN[-1][0] == {"text": "a red cat"}


def test_where_the_host_does_not_look_there_nothing_is_asked_for():
    class Other:
        ephemeral_prompt: dict = {}

        def get_node(self, node_id):
            return {"class_type": "Asks", "inputs": {"link": ["a", 0]}}

    hidden = type("Hidden", (), {"unique_id": "asks", "dynprompt": Other()})
    assert asked.ask(hidden, {}, {"text": ["a", 0]}) == []
    assert Other.ephemeral_prompt == {}
    del Other.ephemeral_prompt
    assert asked.ask(hidden, {}, {"text": ["a", 0]}) == []


def test_what_a_node_makes_itself_it_does_not_wait_for():
    graph = {"a": node("A", text=["asks", 0]), "asks": node("Asks", link=["b", 0]), "b": node("B")}
    assert asked.leads_to(graph, ["a", 0], "asks")
    assert not asked.leads_to(graph, ["b", 0], "asks")
