"""Every kind of part that the official templates have, run with tiny models: see `templates.py`."""

from __future__ import annotations

import copy
import inspect
import json
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import comfy.clip_vision
import comfy.ldm.lightricks.model
import comfy.ldm.wan.model
import comfy.model_patcher
import comfy.supported_models
import comfy_extras.nodes_lt_upsampler
import executor
import folder_paths
import pytest
import tiny_models
import torch
from comfy.ops import disable_weight_init
from noise_search.host.graph import classes
from noise_search.host.graph.links import is_link, links_of, upstream
from noise_search.host.graph.part import Part, find_part
from noise_search.host.picture import workflow
from tiny_models import TinyModel

import nodes as host_nodes

CANDIDATES = 3
SIDE, FRAMES, STEPS = 128, 9, 4  # what sizes, lengths and schedules are cut to
MANY_FRAMES = 41  # where the part compares frames that are farther apart
LARGE = 200  # a number from here on is a size
FORCED_STOPS = 12  # how many nodes before the part may be stood in for because they do not run
FIRST, ALL = "the first stage", "all stages"
OF_VIDEOS = ("Wan", "Hunyuan", "Kandinsky5", "Bernini", "VOID", "ARVideo", "SeedVR2")
VERIFIER, SEARCH = "the verifier", "search"
# Types of things that are read from files, and of what only such things make.
FROM_FILES = {"CLIP", "CLIP_VISION", "CLIP_VISION_OUTPUT", "STYLE_MODEL", "MODEL_PATCH", "AUDIO_ENCODER", "AUDIO"}
FROM_FILES |= {"AUDIO_ENCODER_OUTPUT", "CONTROL_NET", "UPSCALE_MODEL", "LATENT_UPSCALE_MODEL"}


@dataclass
class Kind:
    """Templates whose parts have the same samplers, stages, latents and conditioning; the smallest part first."""

    name: str
    planned: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """equal: how many candidates were the workflow's, bit for bit; None where the part did not run. alike: whether they
    are all the same. stood_in: nodes before the part that do not run on stand-ins, and why."""

    equal: int | None
    reason: str = ""
    alike: bool = False
    vary: str = FIRST
    stood_in: Mapping[str, str] = field(default_factory=dict)


# Which kinds there are


def kinds_of(planned: Sequence[Any]) -> list[Kind]:
    found: dict[str, Kind] = {}
    for one in sorted(planned, key=lambda one: (len(one.part.nodes), one.name)):
        name = name_of(one.graph, one.part)
        found.setdefault(name, Kind(name)).planned.append(one)
    return sorted(found.values(), key=lambda kind: -len(kind.planned))


def name_of(graph: Mapping[str, Any], part: Part) -> str:
    """Samplers and what stands behind them, the latents that they begin with, guiders, and what conditions them."""
    order = [one for one in graph if one in part.nodes]
    words = [kind_of(graph, one) for one in order]
    stages = [f"{words.count(word)} " * (words.count(word) > 1) + word for word in dict.fromkeys(words)]
    latents, guiders = set(), set()
    for one in order:
        for name, link in links_of(graph, one).items():
            wanted = {*classes.input_types(kind_of(graph, one)).get(name, "").split(",")}
            if link[0] not in part.nodes and wanted & {"LATENT", "GUIDER"}:
                (latents if "LATENT" in wanted else guiders).update(made_by(graph, link))
    behind = ", ".join([*sorted(latents - guiders), *sorted(guiders)])
    return f"{' + '.join(sorted(stages))} <- {behind or 'a latent made inside'}"


def made_by(graph: Mapping[str, Any], link: Sequence[Any]) -> set[str]:
    """The classes that make what comes by a link, past switches and other nodes that hand on whatever comes in."""
    behind = links_of(graph, link[0])
    if not type_of(graph, link).startswith(("COMFY_MATCHTYPE", "*")) or not behind:
        return {kind_of(graph, link[0])}
    return {one for name, before in behind.items() if name != "switch" for one in made_by(graph, before)}


def kind_of(graph: Mapping[str, Any], node_id: str) -> str:
    return str(graph[node_id].get("class_type"))


def type_of(graph: Mapping[str, Any], link: Sequence[Any]) -> str:
    outputs = classes.node_class(kind_of(graph, link[0])).outputs if link[0] in graph else ()
    return outputs[link[1]] if link[1] < len(outputs) else "*"


# The workflow made small


@dataclass
class Reduced:
    """A workflow as far as its picture needs it, with tiny values in the place of what comes from files."""

    graph: dict[str, dict[str, Any]]
    picture: list[Any]
    part: Part


def reduced(planned: Any, stops: Collection[str], vary: str) -> Reduced:
    """stops: nodes before the part that are stood in for, too."""
    graph, part = planned.graph, planned.part
    family = family_of({one: graph[one] for one in upstream(graph, planned.picture[0])})
    frames = MANY_FRAMES if any(kind_of(graph, one) == "NormalizeVideoLatentStart" for one in part.nodes) else FRAMES
    seeds = {tuple(source.value)[0] for source in part.sources if is_link(source.value)}
    made: dict[str, dict[str, Any]] = {}
    waiting = [planned.picture[0]]
    while waiting:
        node_id = waiting.pop()
        if node_id in made:
            continue
        node = copy.deepcopy({"class_type": graph[node_id]["class_type"], "inputs": dict(graph[node_id]["inputs"])})
        made[node_id] = node
        if node_id not in seeds:
            shrink(node, frames)
        for name, link in links_of(graph, node_id).items():
            wanted = classes.input_types(node["class_type"]).get(name, "*")
            source = link[0]
            if source in part.nodes or (source not in stops and runs_really(graph, source)):
                waiting.append(source)
            elif stands_for(graph, link, wanted) is None:
                del node["inputs"][name]
            else:
                here = f"stand-in {source} {link[1]} {family}"
                kind, maker = stands_for(graph, link, wanted), f"{kind_of(graph, source)} {name}"
                made[here] = {
                    "class_type": "StandIn",
                    "inputs": {"kind": kind, "family": family, "made_by": maker, "number": here},
                }
                node["inputs"][name] = [here, 0]
    return Reduced(made, [*planned.picture], find_part(made, [tuple(planned.picture)], classes.node_class, vary == ALL))


def runs_really(graph: Mapping[str, Any], node_id: str) -> bool:
    """Whether a node before the part is ComfyUI's own and needs no file and no text encoder."""
    class_type = kind_of(graph, node_id)
    kind = classes.node_class(class_type)
    if class_type not in host_nodes.NODE_CLASS_MAPPINGS or kind.is_paid or "Load" in class_type:
        return False
    if {*kind.outputs} & FROM_FILES or "CLIP" in kind.inputs.values():
        return False
    return bool(links_of(graph, node_id)) or not kind.gives({"MODEL", "VAE", "IMAGE", "MASK", "VIDEO"})


def stands_for(graph: Mapping[str, Any], link: Sequence[Any], wanted: str) -> str | None:
    """The type that stands in for a link, None where nothing does and nothing need be there."""
    given = type_of(graph, link)
    kinds = [one for one in (given, *wanted.split(",")) if one in STAND_INS]
    return kinds[0] if kinds else None


def shrink(node: dict[str, Any], frames: int) -> None:
    """Sizes, lengths and schedules of a node."""
    inputs = node["inputs"]
    for name, value in inputs.items():
        if "seed" in name or isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if name == "steps":
            inputs[name] = min(value, STEPS)
        elif name in ("start_at_step", "end_at_step", "step"):
            inputs[name] = value if value in (0, 10000) else min(value, STEPS // 2)
        elif name in ("length", "video_frames", "frames_number", "num_frames", "max_frames"):
            inputs[name] = min(value, frames)
        elif name in ("width", "height", "largest_size", "value") and value >= LARGE:
            inputs[name] = SIDE
        elif name == "value" and value > frames and isinstance(value, int):
            inputs[name] = frames
        elif "megapixels" in name:
            inputs[name] = SIDE * SIDE / 1024**2


def family_of(graph: Mapping[str, Any]) -> str:
    """The tiny model that stands in for a template's: that of the same latents."""
    kinds = {kind_of(graph, one) for one in graph}
    files = " ".join(str(value).lower() for node in graph.values() for value in node["inputs"].values())
    if {"LTXVConcatAVLatent", "LTXVSeparateAVLatent"} & kinds or "MiniMax" in " ".join(kinds):
        return "ltxav"
    if any(kind.startswith("LTXV") or kind.startswith("EmptyLTXV") for kind in kinds):
        return "ltxv"
    if "SamplerARVideo" in kinds:
        return "causal_wan"
    if "Wan22ImageToVideoLatent" in kinds:
        return "wan22"
    if {"WanImageToVideo", "WanFirstLastFrameToVideo", "WanFunInpaintToVideo"} & kinds:
        return "wan_i2v"
    if any(
        word in " ".join(kinds) for word in ("Wan", "Hunyuan", "Kandinsky5", "Bernini", "VOID", "ARVideo", "SeedVR2")
    ):
        return "wan"
    if "wan2" in files or "qwen_image" in files or "qwen-image" in files:
        return "wan"
    if "svd_xt" in files:  # it animates a picture of another model; one of the same latents stands for both
        return "sd15"
    if "sd_xl" in files or "sdxl" in files:
        return "sdxl"
    if "sd3.5" in files:
        return "sd3"
    return "sd15" if "v1-5" in files else "flux"


# What stands in


def wan_like(name: str, channels: int, out: int, seed: int) -> TinyModel:
    network = comfy.ldm.wan.model.WanModel(
        in_dim=channels, out_dim=out, dim=128, ffn_dim=128, num_heads=1, num_layers=1, dtype=torch.float32,
        operations=disable_weight_init,
    )  # fmt: skip
    return TinyModel(name, tiny_models.from_state_dict(network, seed=seed), ((out, 3, 8, 8),), 4096, ())


def causal_wan() -> TinyModel:
    """Wan that makes frame after frame, as the sampler of Causal Forcing asks for."""
    like = tiny("wan")
    config = comfy.supported_models.WAN21_CausalAR_T2V(dict(like.model.model.model_config.unet_config))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({})
    tiny_models.randomise(model.diffusion_model, seed=11)
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.CoreModelPatcher(model, load_device=cpu, offload_device=cpu)
    return replace(like, name="causal_wan", model=patcher)


def ltxv() -> TinyModel:
    sizes = {"cross_attention_dim": 64, "attention_head_dim": 32, "num_attention_heads": 2, "caption_channels": 32}
    network = comfy.ldm.lightricks.model.LTXVModel(
        **sizes, num_layers=1, dtype=torch.float32, operations=disable_weight_init
    )
    model = tiny_models.from_state_dict(network, 7, {"config": json.dumps({"transformer": sizes})})
    extras = {"attention_mask": torch.ones(1, tiny_models.TOKENS, dtype=torch.long)}
    return TinyModel("ltxv", model, ((128, 2, 4, 4),), 32, (), extras=extras)


FAMILIES = {**tiny_models.BUILDERS, "ltxv": ltxv, "causal_wan": causal_wan}
FAMILIES["wan_i2v"] = lambda: wan_like("wan_i2v", 36, 16, 9)
FAMILIES["wan22"] = lambda: wan_like("wan22", 48, 48, 10)
MADE: dict[str, TinyModel] = {}


def tiny(family: str) -> TinyModel:
    if family not in MADE:
        MADE[family] = FAMILIES[family]()
    return MADE[family]


class TinyVae:
    """Scales pictures and means of channels: it says what ComfyUI's VAE says of itself, and has no weights."""

    def __init__(self, family: str, audio: bool = False):
        shape = tiny(family).shapes[-1 if audio else 0]
        self.latent_channels, self.latent_dim = shape[0], len(shape) - 1
        self.ratio, self.time = (32, 8) if family.startswith("ltx") else (16, 4) if family == "wan22" else (8, 4)
        same = SimpleNamespace(normalize=lambda x: x * 0.5, un_normalize=lambda x: x * 2)
        self.first_stage_model = SimpleNamespace(
            per_channel_statistics=same, latent_frequency_bins=shape[-1],
            num_of_latents_from_frames=lambda frames, rate: max(1, round(frames / 3)),
        )  # fmt: skip
        self.downscale_index_formula = (self.time, self.ratio, self.ratio)
        self.upscale_index_formula = self.downscale_index_formula
        self.downscale_ratio = self.upscale_ratio = self.ratio

    def spacial_compression_encode(self):
        return self.ratio

    spacial_compression_decode = spacial_compression_encode

    def temporal_compression_decode(self):
        return self.time if self.latent_dim == 3 else None

    def throw_exception_if_invalid(self):
        pass

    def encode(self, pixels):
        x = pixels.float().movedim(-1, 1)[:, :3]
        height, width = (max(1, size // self.ratio) for size in x.shape[-2:])
        x = torch.nn.functional.interpolate(x, (height, width), mode="area") * 2 - 1
        x = x.repeat(1, self.latent_channels // 3 + 1, 1, 1)[:, : self.latent_channels]
        return x[:: self.time].movedim(0, 1)[None].contiguous() if self.latent_dim == 3 else x

    def decode(self, samples, **_):
        x = samples.float()
        x = torch.stack([x[:, channel::3].mean(1) for channel in range(3)], -1)  # [B, (T,) H, W, 3]
        if samples.ndim == 5:
            x = torch.cat([x[:, :1], x[:, 1:].repeat_interleave(self.time, 1)], 1)
        for side in (-3, -2):
            x = x.repeat_interleave(self.ratio, side)
        return torch.sigmoid(x)

    def encode_tiled(self, pixels, **_):
        return self.encode(pixels)

    def decode_tiled(self, samples, **_):
        return self.decode(samples)


class Upsampler(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, latents):
        return self.scale * latents.repeat_interleave(2, -1).repeat_interleave(2, -2)


def upsampler(*_: Any) -> Any:
    if "load_models_gpu" not in inspect.getsource(comfy_extras.nodes_lt_upsampler):  # older hosts
        return Upsampler()
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.CoreModelPatcher(Upsampler(), load_device=cpu, offload_device=cpu)
    patcher.model_dtype = lambda: torch.float32
    return patcher


def picture(generator: torch.Generator, frames: int) -> torch.Tensor:
    return torch.rand(frames, SIDE, SIDE, 3, generator=generator)


def conditioning(family: str, made_by: str, seed: int) -> Any:
    made = tiny(family).conditioning(seed)
    if "Edit" in made_by:  # the encoders of models that edit a picture take it along
        made = [
            [one, {**extra, "reference_latents": [tiny(family).latent(seed=seed)["samples"]]}] for one, extra in made
        ]
    return made


def latent(family: str, made_by: str, seed: int) -> Any:
    made = tiny(family).latent(seed=seed)
    if getattr(made["samples"], "is_nested", False) and "MiniMax" not in made_by:
        made["samples"] = made["samples"].unbind()["Audio" in made_by]
    return made


def clip_vision(*given: Any) -> Any:
    """Of a picture, in the loader's place; of nothing, in the encoder's."""
    pictures = given[0] if isinstance(given[0], torch.Tensor) else torch.zeros(1, SIDE, SIDE, 3)
    output = comfy.clip_vision.Output()
    output.last_hidden_state = output.penultimate_hidden_states = torch.zeros(1, 3, 32)
    output.image_embeds = torch.nn.functional.adaptive_avg_pool1d(pictures[:1].flatten(1), 32)
    output.image_sizes = [(3, SIDE, SIDE)]
    return output


def audio_features(*_: Any) -> Any:
    return {"encoded_audio_all_layers": [torch.zeros(1, 40, 1024)] * 25, "audio_samples": 16000}


STAND_INS = {
    "MODEL": lambda family, made_by, seed: tiny(family).model,
    "VAE": lambda family, made_by, seed: TinyVae(family, "udio" in made_by),
    "CONDITIONING": conditioning,
    "LATENT": latent,
    "IMAGE": lambda family, made_by, seed: picture(
        torch.Generator().manual_seed(seed), FRAMES if "Video" in made_by or "video" in made_by else 1
    ),
    "MASK": lambda family, made_by, seed: (picture(torch.Generator().manual_seed(seed), 1)[..., 0] > 0.5).float(),
    "INT": lambda family, made_by, seed: SIDE if "width" in made_by or "height" in made_by else FRAMES,
    "FLOAT": lambda family, made_by, seed: 24.0 if "rate" in made_by or "fps" in made_by else 0.5,
    "BOOLEAN": lambda family, made_by, seed: True,
    "LATENT_UPSCALE_MODEL": upsampler,
    "CLIP_VISION": lambda family, made_by, seed: SimpleNamespace(encode_image=lambda image, **_: clip_vision(image)),
    "CLIP_VISION_OUTPUT": clip_vision,
    "AUDIO_ENCODER_OUTPUT": audio_features,
    "AUDIO": lambda family, made_by, seed: {"waveform": torch.zeros(1, 2, 16000), "sample_rate": 16000},
    "CONTROL_NET": lambda family, made_by, seed: tiny_models.controlnet(family),
}


class StandIn:
    """Gives a tiny value of a type, always the same."""

    CATEGORY, FUNCTION, RETURN_TYPES = "benchmark", "made", ("*",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {name: ("STRING", {}) for name in ("kind", "family", "made_by", "number")}}

    def made(self, kind, family, made_by, number):
        return (STAND_INS[kind](family, made_by, zlib.crc32(number.encode())),)


class Judge:
    """Gives a verifier without weights, as a loader does."""

    CATEGORY, FUNCTION, RETURN_TYPES = "benchmark", "made", ("NOISE_SEARCH_VERIFIER",)
    members, needs_prompt, usual_range = ("contrast",), False, (0.0, 0.001)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def made(self):
        return (self,)

    def score(self, images, prompts):
        return images.float().std(dim=(1, 2, 3)).reshape(-1, 1).cpu()


class Kept:
    """An output node that keeps what it gets."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE, INPUT_IS_LIST = "benchmark", "keep", (), True, True
    values: dict[str, list[Any]] = {}

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("*",), "key": ("STRING", {})}}

    def keep(self, value, key):
        Kept.values[key[0]] = value
        return ()


class Quiet:
    """A server that nobody listens to."""

    client_id = last_node_id = last_prompt_id = None

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


OWN = {"StandIn": StandIn, "Judge": Judge, "Kept": Kept}


# Runs


def host_of(monkeypatch: pytest.MonkeyPatch) -> executor.Host:
    """ComfyUI's executor, with the nodes of this file."""
    host = executor.host(monkeypatch)
    for name, node in OWN.items():
        monkeypatch.setitem(host_nodes.NODE_CLASS_MAPPINGS, name, node)
    return host


def searched(host: executor.Host, small: Reduced, vary: str, as_noises: bool = False) -> dict[str, list[Any]]:
    """What Search Picture gives on the picture of a workflow. as_noises: its noises are put in as those that are no
    seed, by samplers that take a noise in the place of those that take a seed."""
    widgets = {"candidates": CANDIDATES, "prompt": "", "top_k": CANDIDATES, "vary": vary}
    graph = {**small.graph, VERIFIER: {"class_type": "Judge", "inputs": {}}}
    graph[SEARCH] = {
        "class_type": "NoiseSearchPicture",
        "inputs": {"image": small.picture, "verifier": [VERIFIER, 0], **widgets},
    }
    for slot, name in ((3, "log"), (4, "top_images")):
        graph[name] = {"class_type": "Kept", "inputs": {"value": [SEARCH, slot], "key": name}}
    Kept.values = {}
    with patch.object(workflow, "seed_of", lambda *_: None) if as_noises else nullcontext():
        host.run(graph, "log", "top_images")
    return Kept.values


def stock(host: executor.Host, small: Reduced, step: int) -> list[torch.Tensor]:
    """The pictures of the workflow itself with its seeds moved on."""
    graph = copy.deepcopy(small.graph)
    for source in small.part.sources:
        node_id, name = source.node_id, source.seed
        while is_link(value := graph[node_id]["inputs"][name]):
            node_id = value[0]
            inputs = graph[node_id]["inputs"]
            name = next(one for one in ("value", "seed", "noise_seed", "int") if one in inputs)
        if (node_id, name) != (source.node_id, source.seed) and graph[node_id].get("moved"):
            continue
        graph[node_id]["inputs"][name] = (graph[node_id]["inputs"][name] + step) % 2**64
        graph[node_id]["moved"] = True
    graph = {one: {key: value for key, value in node.items() if key != "moved"} for one, node in graph.items()}
    graph["keep"] = {"class_type": "Kept", "inputs": {"value": small.picture, "key": "picture"}}
    Kept.values = {}
    host.run(graph, "keep")
    return Kept.values["picture"]


def equal(found: Mapping[str, list[Any]], expected: Sequence[Sequence[torch.Tensor]]) -> int:
    """How many of the pictures that came out, best first, are those of the workflow."""
    log, tops = found["log"][0], found["top_images"]
    batches = len(expected[0])
    same = 0
    for rank in range(CANDIDATES):
        here = tops[rank * (len(tops) // CANDIDATES) : (rank + 1) * (len(tops) // CANDIDATES)]
        rows = [picture for batch in here for picture in (batch if log.rows > batches else [batch])]
        wanted = []
        for row in range(log.rows):
            pictures = expected[log.order(row)[rank]]
            items = [one for batch in pictures for one in (batch if log.rows > batches else [batch])]
            wanted.append(items[row] if log.rows == len(items) else torch.cat([*pictures]))
        same += all(torch.equal(one[..., :3], other[..., :3]) for one, other in zip(rows, wanted, strict=True))
    return same


def run_kind(host: executor.Host, planned: Any, as_noises: bool, vary: str = FIRST) -> Outcome:
    """Compares one template's part with the workflow itself."""
    if lacking := {kind_of(planned.graph, one) for one in planned.part.nodes} - {*host_nodes.NODE_CLASS_MAPPINGS}:
        return Outcome(None, f"this ComfyUI has not {', '.join(sorted(lacking))}")
    stops: dict[str, str] = {}
    for _ in range(FORCED_STOPS):
        small = reduced(planned, stops, vary)
        try:
            expected = [stock(host, small, step) for step in range(CANDIDATES)]
            break
        except RuntimeError as error:
            at, why = failed_at(small, str(error))
            if at in planned.part.nodes or at in stops or at not in planned.graph:
                return Outcome(None, f"{planned.graph.get(at, {}).get('class_type', '')} {error}")
            stops[at] = why
    else:
        return Outcome(None, "too many nodes before the part do not run on stand-ins")
    named = {kind_of(planned.graph, one): why for one, why in stops.items()}
    if vary == FIRST and small.part.nodes != planned.part.nodes:
        return Outcome(None, f"another part is found in the small workflow: {small.part.nodes ^ planned.part.nodes}")
    if (
        all(map(torch.equal, expected[0], expected[1])) and vary == FIRST
    ):  # as no stand-in takes the first stage's result
        return run_kind(host, planned, as_noises, ALL)
    try:
        found = searched(host, small, vary, as_noises)
    except RuntimeError as error:
        return Outcome(0, str(error), stood_in=named)
    alike = all(map(torch.equal, expected[0], expected[1]))
    return Outcome(equal(found, expected), "", alike, vary, named)


def failed_at(small: Reduced, error: str) -> tuple[str, str]:
    """The node that failed, and why; of a value that cannot be stood in for, the node that takes it."""
    at = next((one for one in small.graph if error.startswith(f"{one}: ")), "")
    if at.startswith("stand-in"):
        takes = (one for one in small.graph for link in links_of(small.graph, one).values() if link[0] == at)
        return next(takes), "there is no tiny one of its kind"
    return at, error[len(at) + 2 :]


def run_all(planned: Sequence[Any], as_noises: bool) -> None:
    """Runs one template of every kind, and prints a table."""
    from server import PromptServer

    folder_paths.set_output_directory(mkdtemp(prefix="noise-search-output-"))
    kinds = kinds_of(planned)
    print(f"\n{len(kinds)} kinds of part, each with seed, seed + 1, seed + 2 against the workflow itself")
    counts: dict[str, int] = defaultdict(int)
    with pytest.MonkeyPatch.context() as monkeypatch:
        host = executor.host(monkeypatch)
        for name, node in OWN.items():
            monkeypatch.setitem(host_nodes.NODE_CLASS_MAPPINGS, name, node)
            monkeypatch.setattr(PromptServer, "instance", Quiet(), raising=False)  # some nodes say something to it
        for kind in kinds:
            tried = [*attempts(host, kind, as_noises)]
            one, outcome = tried[-1]
            said = "not run" if outcome.equal is None else f"{outcome.equal} of {CANDIDATES} equal"
            said += " (all alike)" * outcome.alike
            counts[said] += 1
            more = ", with the noises of all stages varied" * (outcome.vary == ALL)
            print(f"{said:14} {len(kind.planned):3} templates  {kind.name}  ({one.name}{more})", flush=True)
            for name, why in outcome.stood_in.items():
                print(f"{'':14} {name} is stood in for: {' '.join(why.split())[:200]}")
            for one, outcome in tried:
                if outcome.reason:
                    print(f"{'':14} {one.name}: {' '.join(outcome.reason.split())[:400]}", flush=True)
    print(", ".join(f"{count} x {said}" for said, count in counts.items()))


def attempts(host: executor.Host, kind: Kind, as_noises: bool) -> Iterator[tuple[Any, Outcome]]:
    """The templates of a kind until one runs, at most three."""
    for one in kind.planned[:3]:
        outcome = run_kind(host, one, as_noises)
        yield one, outcome
        if outcome.equal is not None:
            return
