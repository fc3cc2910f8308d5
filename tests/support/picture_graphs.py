"""Workflows to search the picture of, and what keeps what comes out, on the executor of `executor.py`."""

from __future__ import annotations

from copy import deepcopy

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
