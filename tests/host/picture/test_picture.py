"""Search Picture on ComfyUI's own executor: every candidate is the workflow with another seed, bit for bit."""

import pytest
import torch

pytest.importorskip("comfy")

from executor import host as executor_host
from noise_search.host.picture import plan
from noise_search.nodes import picture as picture_nodes
from picture_graphs import CANDIDATES, KINDS, Keep, Listed, node, outputs, searched, stock


@pytest.fixture
def host(monkeypatch):
    import nodes

    made = executor_host(monkeypatch)
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "Keep", Keep)
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "Listed", Listed)
    Keep.kept = {}
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_every_candidate_is_the_workflow_with_another_seed(host, kind):
    graph, seeds = KINDS[kind]
    picture = [*graph][-1]
    search = searched(graph, picture)
    host.run(search, *outputs(search))
    log, tops = Keep.kept["log"][0], Keep.kept["top_images"]
    batches = len(Keep.kept["image"])
    expected = [stock(host, graph, picture, seeds, step) for step in range(CANDIDATES)]
    assert len(log.candidates) == CANDIDATES and len(tops) == CANDIDATES * batches
    assert len({tuple(map(tuple, one.values)) for one in log.candidates}) == CANDIDATES
    items = [(batch, item) for batch in range(batches) for item in range(len(expected[0][batch]))]
    assert log.rows == len(items)
    for row, (batch, item) in enumerate(items):
        for rank, index in enumerate(log.order(row)):
            assert torch.equal(tops[rank * batches + batch][item], expected[index][batch][item])
        assert torch.equal(Keep.kept["image"][batch][item], expected[log.order(row)[0]][batch][item])


class Said:
    """Makes a text, as a language model does."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "said", ("STRING",)
    runs = 0

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"colour": ("STRING", {})}}

    def said(self, colour):
        Said.runs += 1
        return (f"a {colour} circle above a blue square",)


def test_a_prompt_that_another_node_computes_is_read_while_the_workflow_runs(host, monkeypatch):
    import nodes

    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "Said", Said)
    monkeypatch.setattr(Said, "runs", 0)
    graph, _ = KINDS["KSampler"]
    encoder = node("CLIPTextEncode", clip=["demo", 1], text=["said", 0])
    search = searched({**graph, "said": node("Said", colour="red"), "pos": encoder}, "decode")
    host.run(search, *outputs(search))
    settings = Keep.kept["log"][0].settings
    assert settings["prompt"] == "a red circle above a blue square" and "said" in settings["prompt_from"]
    host.run(search, *outputs(search))
    assert Said.runs == 1 and "search" not in host.executing


@pytest.mark.parametrize("kind", ["KSampler", "SamplerCustomAdvanced", "a seed from a primitive", "a list of seeds"])
def test_on_a_comfyui_that_it_does_not_know_it_expands(host, kind, monkeypatch):
    """By node expansion, which is documented: the same winner, and a warning."""
    graph, _ = KINDS[kind]
    search = searched(graph, "decode", also=[("k", 0)])
    host.run(search, *outputs(search))
    known = dict(Keep.kept)
    for module in (picture_nodes, plan):
        monkeypatch.setattr(module, "available", lambda: "no executor")
    Keep.kept = {}
    search["search"]["inputs"]["top_k"] = 2  # or the result comes from the cache
    host.run(search, *outputs(search))
    for before, now in zip(known["image"], Keep.kept["image"], strict=True):
        assert torch.equal(before, now)
    for before, now in zip(known["also_1"], Keep.kept["also_1"], strict=True):
        assert torch.equal(before["samples"], now["samples"])
    assert Keep.kept["seed"] == known["seed"] and Keep.kept["recipe"] == known["recipe"]
    assert any("no executor" in one for one in Keep.kept["log"][0].warnings)


@pytest.mark.parametrize("cache", ["NONE", "LRU"])
def test_with_another_cache(monkeypatch, cache):
    import nodes

    made = executor_host(monkeypatch, cache)
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "Keep", Keep)
    graph, seeds = KINDS["KSampler"]
    search = searched(graph, "decode")
    made.run(search, *outputs(search))
    log, [image] = Keep.kept["log"][0], Keep.kept["image"]
    [expected] = stock(made, graph, "decode", seeds, log.best().index)
    assert torch.equal(image, expected)


class Texts:
    """A list of prompts."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_IS_LIST = "test", "listed", ("STRING",), (True,)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def listed(self):
        return (["a red circle above a blue square", "a green star"],)


def test_each_picture_of_a_list_of_prompts_is_judged_by_its_own(host, monkeypatch):
    import nodes

    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "Texts", Texts)
    encoder = node("CLIPTextEncode", clip=["demo", 1], text=["texts", 0])
    graph = {**KINDS["KSampler"][0], "texts": node("Texts"), "pos": encoder}
    search = searched(graph, "decode")
    host.run(search, *outputs(search))
    log = Keep.kept["log"][0]
    assert log.rows == 2 and len(Keep.kept["image"]) == 2
    for row, text in enumerate(Texts().listed()[0]):
        alone = searched({**graph, "pos": node("CLIPTextEncode", clip=["demo", 1], text=text)}, "decode")
        host.run(alone, *outputs(alone))
        own = Keep.kept["log"][0]
        assert [one.values[row] for one in log.candidates] == [one.values[0] for one in own.candidates]


def test_by_expansion_no_candidate_is_saved(host, monkeypatch):
    for module in (picture_nodes, plan):
        monkeypatch.setattr(module, "available", lambda: "no executor")
    graph = {**KINDS["KSampler"][0], "save": node("Saves", images=["decode", 0])}

    class Saves:
        CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "test", "save", ("IMAGE",), True

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"images": ("IMAGE",)}}

        def save(self, images):
            raise AssertionError("it was saved")

    import nodes

    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "Saves", Saves)
    search = searched(graph, "save")
    with pytest.raises(RuntimeError, match=r"Saves \(node save\) saves pictures between"):
        host.run(search, *outputs(search))
