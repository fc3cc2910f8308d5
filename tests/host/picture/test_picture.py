"""Search Picture on ComfyUI's own executor: every candidate is the workflow with another seed, bit for bit."""

from copy import deepcopy

import pytest
import torch

pytest.importorskip("comfy")

from executor import host as executor_host
from noise_search.host.picture import plan
from noise_search.nodes import picture as picture_nodes

CANDIDATES = 3


class Keep:
    """An output node that keeps what it gets, a list for each key."""

    kept: dict = {}
    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE, INPUT_IS_LIST = "test", "keep", (), True, True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("*",), "key": ("STRING",)}}

    def keep(self, value, key):
        Keep.kept[key[0]] = value
        return ()


class Listed:
    """Hands on a list of seeds."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_IS_LIST = "test", "listed", ("INT",), (True,)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"first": ("INT", {}), "second": ("INT", {})}}

    def listed(self, first, second):
        return ([first, second],)


@pytest.fixture
def host(monkeypatch):
    import nodes

    made = executor_host(monkeypatch)
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "Keep", Keep)
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "Listed", Listed)
    Keep.kept = {}
    return made


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


HEAD = {
    "demo": node("NoiseSearchDemoCheckpoint"),
    "pos": node("CLIPTextEncode", clip=["demo", 1], text="a red circle above a blue square"),
    "neg": node("CLIPTextEncode", clip=["demo", 1], text=""),
    "latent": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
}
SCHEDULE = {"steps": 4, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple"}
CONDS = {"model": ["demo", 0], "positive": ["pos", 0], "negative": ["neg", 0]}


def ksampler(seed=5, latent="latent", **changes):
    inputs = {"seed": seed, **SCHEDULE, **CONDS, "latent_image": [latent, 0], "denoise": 1.0} | changes
    return node("KSampler", **inputs)


def advanced(seed, latent, start, end, add, leftover):
    return node(
        "KSamplerAdvanced", noise_seed=seed, **SCHEDULE, **CONDS, latent_image=[latent, 0], add_noise=add,
        start_at_step=start, end_at_step=end, return_with_leftover_noise=leftover,
    )  # fmt: skip


def decoded(last, **nodes):
    return {**HEAD, **nodes, "decode": node("VAEDecode", samples=[last, 0], vae=["demo", 2])}


CUSTOM = {
    "sampler": node("KSamplerSelect", sampler_name="euler"),
    "sigmas": node("BasicScheduler", model=["demo", 0], scheduler="simple", steps=4, denoise=1.0),
}
KINDS = {
    "KSampler": (decoded("k", k=ksampler()), ["k.seed"]),
    "with noise of its own": (decoded("k", k=ksampler(sampler_name="euler_ancestral")), ["k.seed"]),
    "the last seed": (decoded("k", k=ksampler(seed=2**64 - 2)), ["k.seed"]),
    "a pair": (
        decoded("low", high=advanced(7, "latent", 0, 2, "enable", "enable"),
                low=advanced(0, "high", 2, 4, "disable", "disable")),
        ["high.noise_seed"],
    ),
    "SamplerCustom": (
        decoded(
            "k", **CUSTOM,
            k=node("SamplerCustom", add_noise=True, noise_seed=9, cfg=3.0, **CONDS, sampler=["sampler", 0],
                   sigmas=["sigmas", 0], latent_image=["latent", 0]),
        ),
        ["k.noise_seed"],
    ),
    "SamplerCustomAdvanced": (
        decoded(
            "k", **CUSTOM, noise=node("RandomNoise", noise_seed=11), guider=node("CFGGuider", cfg=3.0, **CONDS),
            k=node("SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], sampler=["sampler", 0],
                   sigmas=["sigmas", 0], latent_image=["latent", 0]),
        ),
        ["noise.noise_seed"],
    ),
    "a seed from a primitive": (
        decoded("k", k=ksampler(seed=["number", 0]), number=node("PrimitiveInt", value=4)),
        ["number.value"],
    ),
    "image to image": (
        decoded("k", first=ksampler(seed=1), back=node("VAEDecode", samples=["first", 0], vae=["demo", 2]),
                again=node("VAEEncode", pixels=["back", 0], vae=["demo", 2]),
                k=ksampler(seed=3, latent="again", denoise=0.6)),
        ["first.seed"],
    ),
    "two stages of one seed": (
        decoded("k", first=ksampler(seed=["number", 0]), k=ksampler(seed=["number", 0], latent="first", denoise=0.5),
                number=node("PrimitiveInt", value=4)),
        ["number.value"],
    ),
    "after the decoder": (
        {**decoded("k", k=ksampler()),
         "small": node("ImageScaleBy", image=["decode", 0], upscale_method="area", scale_by=0.5)},
        ["k.seed"],
    ),
    "a batch": (
        decoded("k", latent=node("EmptySD3LatentImage", width=64, height=64, batch_size=2), k=ksampler()),
        ["k.seed"],
    ),
    "a list of seeds": (
        decoded("k", k=ksampler(seed=["two", 0]), two=node("Listed", first=3, second=40)),
        ["two.first", "two.second"],
    ),
}  # fmt: skip


def searched(graph, picture, also=(), **inputs):
    graph = deepcopy(graph)
    widgets = {"candidates": CANDIDATES, "prompt": "", "top_k": CANDIDATES, "vary": "the first stage", **inputs}
    more = {f"also_{number}": [*link] for number, link in enumerate(also, 1)}
    graph["search"] = node("NoiseSearchPicture", image=[picture, 0], verifier=["demo", 3], **widgets, **more)
    for slot, name in enumerate(["image", "seed", "recipe", "log", "top_images", *more]):
        graph[f"keep {name}"] = node("Keep", value=["search", slot], key=name)
    return graph


def outputs(graph):
    return [name for name, one in graph.items() if one["class_type"] == "Keep"]


def stock(host, graph, picture, seeds, step):
    """The pictures of the workflow itself with its seeds moved on."""
    graph = deepcopy(graph)
    for where in seeds:
        name, widget = where.split(".")
        graph[name]["inputs"][widget] = (graph[name]["inputs"][widget] + step) % 2**64
    graph["keep"] = node("Keep", value=[picture, 0], key="stock")
    host.run(graph, "keep")
    return Keep.kept["stock"]


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
