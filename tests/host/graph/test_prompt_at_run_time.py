"""A prompt that other nodes compute, read while the workflow runs, in ComfyUI's own executor."""

import json

import graphs
import pytest
from graphs import node

pytest.importorskip("comfy")

import executor
from comfy_api.latest import io

import nodes

TEXT = "a red circle above a blue square"
HALVES = {"string_a": "a red circle", "string_b": "above a blue square", "delimiter": " "}
OUTPUTS = ("report", "show")


@pytest.fixture(scope="module")
def host():
    with pytest.MonkeyPatch.context() as patch:
        yield executor.host(patch)


@pytest.fixture
def other(monkeypatch):
    """Puts in a node of another pack."""

    def put(node_id, inputs, work, lists=False, outputs=(io.String,)):
        class Other(io.ComfyNode):
            @classmethod
            def define_schema(cls):
                made = [output.Output(is_output_list=lists) for output in outputs]
                return io.Schema(node_id=node_id, inputs=inputs, outputs=made)

            @classmethod
            def execute(cls, **given):
                return io.NodeOutput(work(**given))

        Other.RELATIVE_PYTHON_MODULE = "custom_nodes.other"
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, node_id, Other)

    return put


def graph(candidates=2, search="NoiseSearchKSampler", **changes):
    """A small search whose text is computed by the node `text`."""
    made = graphs.base(["text", 0], size=64) | {"text": node("StringConcatenate", **HALVES)}
    of_the_sampler = graphs.sampling(1, steps=2)
    if search != "NoiseSearchKSampler":
        made |= graphs.schedule(steps=2)
        of_the_sampler = {"guider": ["guider", 0], "sampler": ["sampler", 0], "sigmas": ["sigmas", 0], "seed": 1}
        of_the_sampler |= {"latent_image": ["latent", 0]}
    made["search"] = node(search, **of_the_sampler, **graphs.searching(candidates))
    made["report"] = node("NoiseSearchReport", log=["search", 5])
    made["show"] = node("PreviewAny", source=["search", 4])
    return made | changes


def told(history):
    """What the verifier was told, and from where, by the report; one per run of the search."""
    logs = [json.loads(text) for text in history["outputs"]["report"]["noise_search_report"]]
    return [(log["settings"]["prompt"], log["settings"]["prompt_from"]) for log in logs]


@pytest.mark.parametrize("search", ["NoiseSearchKSampler", "NoiseSearchSamplerAdvanced"])
def test_the_verifier_is_told_what_was_computed_and_queued_again_nothing_runs(host, search):
    extra = {"workflow": {}}
    made = graph(search=search)
    history = host.run(made, *OUTPUTS, extra={"extra_pnginfo": extra})
    [(text, source)] = told(history)
    assert text == TEXT and source == "node positive, CLIPTextEncode, computed by node text, StringConcatenate"
    assert host.all_ids <= set(made) and "search" in host.executing
    assert set(extra["noise_search"]) == {"search"} and set(extra["workflow"]["extra"]["noise_search"]) == {"search"}
    assert set(history["outputs"]) <= set(made) and history["outputs"]["search"]["text"]
    again = host.run(made, *OUTPUTS)
    assert host.executing == [] and told(again) == told(history)
    changed = made | {"text": node("StringConcatenate", **HALVES | {"string_a": "a green circle"})}
    assert told(host.run(changed, *OUTPUTS))[0][0] == "a green circle above a blue square"


def test_every_item_of_a_list_is_judged_by_its_own_text(host, other):
    other("Three", [], lambda: ["a red circle", "a blue square", "a green circle"], lists=True)
    joined = node("StringConcatenate", string_a="", string_b=["three", 0], delimiter="")
    history = host.run(graph(three=node("Three"), text=joined), *OUTPUTS)
    assert [text for text, _ in told(history)] == ["a red circle", "a blue square", "a green circle"]


def test_in_an_expansion_of_another_pack_too(host, monkeypatch):
    inner = graph()

    class Loop(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(node_id="Loop", inputs=[], outputs=[io.String.Output()], enable_expand=True)

        @classmethod
        def execute(cls):
            names = {name: f"loop.0.0.{name}" for name in inner}
            link = lambda value: [names[value[0]], value[1]] if isinstance(value, list) else value  # noqa: E731
            made = {
                names[name]: {**one, "inputs": {key: link(value) for key, value in one["inputs"].items()}}
                for name, one in inner.items()
            }
            return io.NodeOutput([names["search"], 4], expand=made)

    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "Loop", Loop)
    extra = {"workflow": {}}
    outer = {"loop": node("Loop"), "out": node("PreviewAny", source=["loop", 0])}
    history = host.run(outer, "out", extra={"extra_pnginfo": extra})
    [report] = [output for output in history["outputs"].values() if "noise_search_report" in output]
    assert json.loads(report["noise_search_report"][0])["settings"]["prompt"] == TEXT
    assert set(extra["noise_search"]) == {"loop"}
    host.run(outer, "out")
    assert host.executing == []


@pytest.mark.parametrize(
    "changes",
    [
        {"text": node("StringConcatenate", **HALVES | {"string_b": ["search", 4]})},
        {"search": ("prompt", "what I meant")},
    ],
    ids=["a circle", "a typed prompt"],
)
def test_what_waits_for_the_search_itself_and_what_nobody_needs_is_not_asked_for(changes):
    from types import SimpleNamespace

    from comfy_execution.graph import DynamicPrompt
    from noise_search.host.graph.verifier_prompt import ask_for_prompt
    from noise_search.search.judges import judges_of

    class Reads:
        members, needs_prompt = ("a",), True

        def score(self, images, prompts): ...

    made = graph()
    typed = ""
    if "text" in changes:
        made |= changes
    else:
        typed = changes["search"][1]
    hidden = SimpleNamespace(unique_id="search", dynprompt=DynamicPrompt(made))
    assert ask_for_prompt(hidden, {}, [typed], judges_of(Reads()), "positive") == []
    assert not hidden.dynprompt.ephemeral_prompt
    hidden.dynprompt = DynamicPrompt(graph())
    assert ask_for_prompt(hidden, {}, [""], judges_of(Reads()), "positive")


def test_verifier_score_reads_it_too(host):
    score = node("NoiseSearchVerifierScore", image=["decode", 0], verifier=["demo", 3], prompt="")
    made = graph() | {
        "sampled": node("KSampler", **graphs.sampling(1, steps=2)),
        "decode": node("VAEDecode", samples=["sampled", 0], vae=["demo", 2]),
        "score": score,
        "value": node("PreviewAny", source=["score", 1]),
    }
    typed = made | {"score": {**score, "inputs": score["inputs"] | {"prompt": TEXT}}}
    values = [host.run(one, "value")["outputs"]["value"] for one in (made, typed)]
    assert values[0] == values[1]


def test_a_text_that_comes_out_empty_is_refused_with_where_it_came_from(host):
    empty = node("StringConcatenate", string_a="", string_b="", delimiter=" ")
    with pytest.raises(RuntimeError, match="search: .*computed by node text, StringConcatenate.*no words in it: ' '"):
        host.run(graph(text=empty), *OUTPUTS)


@pytest.mark.parametrize("left", ["a [red:blue:0.5] circle", "a red circle"])
def test_syntax_that_another_pack_may_carry_out_is_read_as_it_stands_with_a_word(host, other, left):
    other("Fills", [io.String.Input("text")], lambda text: text.replace("__colour__", "red"))
    made = graph(text=node("Fills", text=left.replace("red circle", "__colour__ circle")))
    history = host.run(made, *OUTPUTS)
    [(text, source)] = told(history)
    assert text == left
    [log] = [json.loads(text) for text in history["outputs"]["report"]["noise_search_report"]]
    warned = [one for one in log["warnings"] if "the verifier reads it as it stands" in one]
    assert len(warned) == ("[" in left)
    assert ("reads it as it stands" in history["outputs"]["search"]["text"][0]) == ("[" in left)
    if warned:
        assert "node text, Fills" in warned[0]


@pytest.mark.parametrize(
    ("kind", "prompt", "noted"),
    [
        ("ReferenceLatent", "", True),
        ("TextEncodeQwenImageEditPlus", "", True),
        ("ReferenceLatent", "a man without a hat", False),
        ("SkipLayerGuidanceDiT", "", False),
    ],
)
def test_an_instruction_is_no_description(kind, prompt, noted):
    """ "remove the hat" is a bad text to judge the picture by; what was written for the verifier is not asked about."""
    from noise_search.host.graph.graph import Graph
    from noise_search.host.graph.verifier_prompt import prompt_notes, verifier_prompts
    from noise_search.search.judges import judges_of

    nodes = {
        "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["x", 0], "text": "remove the hat"}},
        "more": {"class_type": kind, "inputs": {"conditioning": ["text", 0]}},
        "search": {"class_type": "NoiseSearchKSampler", "inputs": {"positive": ["more", 0], "prompt": prompt}},
    }
    graph = Graph("search", nodes)
    judges = judges_of(Reads())
    told = verifier_prompts([prompt], judges, graph, "positive")
    notes = [one for one in prompt_notes(told, judges, graph, "positive") if "what to do" in one]
    assert bool(notes) is noted and all(f"node more, {kind}" in one for one in notes)


class Reads:
    members, needs_prompt = ("reads",), True

    def score(self, images, prompts):
        raise AssertionError("it is not asked")
