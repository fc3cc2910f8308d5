"""Every kind of model that ComfyUI samples, with what can be added to it, and the stock nodes' results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import comfy.hooks
import comfy.samplers
import comfy.utils
import pytest
import tiny_models
import torch
from comfy_extras import nodes_custom_sampler, nodes_model_advanced, nodes_video_model
from noise_search.host.graph.graph import Graph
from noise_search.host.sampling.stock import Sampling
from noise_search.host.search import run_node as search

import nodes as comfy_nodes

STEPS, SEED = 3, 40
SAMPLER, SCHEDULER = "dpmpp_2m_sde", "simple"  # remembers earlier steps and draws noise of its own
SIDE = 64  # pixels of the picture that belongs to a latent of 8x8
MODELS = tuple(tiny_models.BUILDERS)
UNETS = ("sd15", "sd15_v", "sdxl")
# A latent of several tensors is sampled as one flat row, in which an area or a mask of the picture has no place:
# ComfyUI stops with an error about shapes.
ONE_TENSOR = tuple(name for name in MODELS if name != "ltxav")


@dataclass(frozen=True)
class Setup:
    """What goes into a sampler node."""

    model: Any
    positive: list
    negative: list
    latent: dict[str, Any]
    cfg: float
    denoise: float = 1.0


@dataclass(frozen=True)
class Feature:
    """Something that a workflow adds: `add` to a setup of that batch, with an image in the latent or an empty one."""

    add: Callable[[Setup, tiny_models.TinyModel], Setup]
    models: tuple[str, ...] = MODELS
    batch: int = 1
    image: bool = False


def setup_of(tiny: tiny_models.TinyModel, batch: int = 1, image: bool = False) -> Setup:
    latent = tiny.latent(batch, seed=7 if image else None)
    return Setup(tiny.model, tiny.conditioning(1), tiny.conditioning(2), latent, tiny.cfg)


def with_lora(setup, tiny):
    return dataclasses.replace(setup, model=tiny.with_lora())


def with_hooks(setup, tiny):
    """A LoRA that is there for the positive prompt only, and only in the later half of the steps."""
    hooks = comfy.hooks.create_hook_lora(lora=tiny.lora(), strength_model=1.0, strength_clip=0.0)
    keyframes = comfy.hooks.HookKeyframeGroup()
    for strength, start in ((0.0, 0.0), (1.0, 0.5)):
        keyframes.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=start))
    hooks.set_keyframes_on_hooks(keyframes)
    return dataclasses.replace(setup, positive=comfy.hooks.set_hooks_for_conditioning(setup.positive, hooks))


class HintVae:
    """Encodes pictures for a ControlNet that takes latents."""

    def spacial_compression_encode(self):
        return 8

    def encode(self, pixels):
        small = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)
        return small.mean(dim=1, keepdim=True).repeat(1, 16, 1, 1)


def with_controlnet(setup, tiny):
    hint = torch.rand(1, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(3))
    positive, negative = comfy_nodes.ControlNetApplyAdvanced().apply_controlnet(
        setup.positive, setup.negative, tiny_models.controlnet(tiny.name), hint, 1.0, 0.0, 1.0, vae=HintVae()
    )
    return dataclasses.replace(setup, positive=positive, negative=negative)


def with_mask(setup, tiny):
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, 16:48, 16:48] = 1
    latent = comfy_nodes.SetLatentNoiseMask().set_mask(setup.latent, mask)[0]
    return dataclasses.replace(setup, latent=latent)


def with_areas(setup, tiny):
    """One prompt for the left half and one for the lower, which for a video is the later half too."""
    if len(tiny.shapes[0]) == 4:
        node = nodes_video_model.ConditioningSetAreaPercentageVideo()
        left = node.append(tiny.conditioning(3), 0.5, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0)[0]
        low = node.append(tiny.conditioning(4), 1.0, 0.5, 0.5, 0.0, 0.5, 0.5, 0.7)[0]
    else:
        left = comfy_nodes.ConditioningSetArea().append(tiny.conditioning(3), SIDE // 2, SIDE, 0, 0, 1.0)[0]
        low = comfy_nodes.ConditioningSetAreaPercentage().append(tiny.conditioning(4), 1.0, 0.5, 0.0, 0.5, 0.7)[0]
    return dataclasses.replace(setup, positive=setup.positive + left + low)


def with_masked_conditioning(setup, tiny):
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, :, 32:] = 1
    right = comfy_nodes.ConditioningSetMask().append(tiny.conditioning(3), mask, "default", 1.0)[0]
    return dataclasses.replace(setup, positive=setup.positive + right)


def with_one_conditioning_per_row(setup, tiny):
    return dataclasses.replace(setup, positive=tiny.conditioning(1, rows=2), negative=tiny.conditioning(2, rows=2))


def with_denoise(setup, tiny):
    return dataclasses.replace(setup, denoise=0.5)


def with_model_sampling(setup, tiny):
    if tiny.name in UNETS:
        model = nodes_model_advanced.ModelSamplingDiscrete().patch(setup.model, "v_prediction", True)[0]
    else:
        model = nodes_model_advanced.ModelSamplingSD3().patch(setup.model, 5.0)[0]
    return dataclasses.replace(setup, model=model)


def with_cfg_function(setup, tiny):
    """What RescaleCFG and its like do: a function of both predictions that rides on the MODEL."""
    model = setup.model.clone()
    model.set_model_sampler_post_cfg_function(lambda values: 0.9 * values["denoised"])
    return dataclasses.replace(setup, model=model)


FEATURES = {
    "LoRA": Feature(with_lora),
    "hooks": Feature(with_hooks),
    "ControlNet": Feature(with_controlnet, tuple(tiny_models.CONTROLNETS)),
    "inpaint mask": Feature(with_mask, image=True),
    "areas": Feature(with_areas, ONE_TENSOR),
    "masked conditioning": Feature(with_masked_conditioning, ONE_TENSOR),
    "one conditioning per row": Feature(with_one_conditioning_per_row, batch=2),
    "denoise": Feature(with_denoise, image=True),
    "model sampling": Feature(with_model_sampling),
    "CFG function": Feature(with_cfg_function),
}
NOTHING_ADDED = Feature(lambda setup, tiny: setup)
BATCH_OF_2 = dataclasses.replace(NOTHING_ADDED, batch=2)
with_every_feature = pytest.mark.parametrize(
    ("name", "feature"),
    [
        pytest.param(model, feature, id=f"{model}-{label}")
        for label, feature in FEATURES.items()
        for model in feature.models
    ],
)
with_every_model = pytest.mark.parametrize("name", MODELS)


def made(name: str, feature: Feature = NOTHING_ADDED) -> Setup:
    tiny = tiny_models.BUILDERS[name]()
    return feature.add(setup_of(tiny, feature.batch, feature.image), tiny)


class AnyVae:
    """Decodes pictures and videos to their channels' mean, a grey pixel for each of the latent."""

    def decode(self, samples):
        level = samples.float().mean(dim=1)
        return (0.5 + 0.5 * level / (1 + level.abs()))[..., None].expand(*level.shape, 3)


class Likes:
    """A verifier without weights that likes these images or videos [frames, H, W, 3] most. Keeps what it saw."""

    members = ("likeness",)
    needs_prompt = False
    usual_range = (-1.0, 0.0)

    def __init__(self, liked):
        self.liked = liked
        self.seen: list[torch.Tensor] = []

    def score(self, images, prompts):
        self.seen.append(images)
        distances = torch.stack([(images - image).abs().mean(dim=(1, 2, 3)) for image in self.liked])
        return -distances.amin(dim=0).reshape(-1, 1)


def parts(samples) -> list[torch.Tensor]:
    return list(samples.unbind()) if samples.is_nested else [samples]


def equal(ours, stock) -> bool:
    return len(parts(ours)) == len(parts(stock)) and all(
        torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(parts(ours), parts(stock), strict=True)
    )


def assert_same_latent(ours: dict, stock: dict) -> None:
    assert ours["samples"].is_nested == stock["samples"].is_nested
    assert equal(ours["samples"], stock["samples"])
    assert set(ours) == set(stock)


def decoded(samples) -> torch.Tensor:
    """[rows, frames, H, W, 3] of a batch."""
    images = AnyVae().decode(parts(samples)[0])
    return images if images.ndim == 5 else images[:, None]


@torch.inference_mode()
def stock_ksampler(setup: Setup, seed: int = SEED) -> dict:
    return comfy_nodes.common_ksampler(
        setup.model, seed, STEPS, setup.cfg, SAMPLER, SCHEDULER,
        setup.positive, setup.negative, dict(setup.latent), setup.denoise,
    )[0]  # fmt: skip


@cache
def stock(name: str, feature: Feature = NOTHING_ADDED, seed: int = SEED) -> dict:
    return stock_ksampler(made(name, feature), seed)


def sampling_of(setup: Setup) -> Sampling:
    return Sampling.ksampler(
        setup.model, STEPS, setup.cfg, SAMPLER, SCHEDULER,
        setup.positive, setup.negative, dict(setup.latent), setup.denoise,
    )  # fmt: skip


def sigmas_of(setup: Setup) -> torch.Tensor:
    return comfy.samplers.KSampler(setup.model, STEPS, "cpu", SAMPLER, SCHEDULER, setup.denoise).sigmas


@torch.inference_mode()
def stock_advanced(guider, sigmas, latent, noise=None) -> tuple[dict, dict]:
    noise = noise or nodes_custom_sampler.Noise_RandomNoise(SEED)
    sampler = comfy.samplers.sampler_object(SAMPLER)
    return nodes_custom_sampler.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, dict(latent)).args


def advanced_sampling(guider, sigmas, latent) -> Sampling:
    return Sampling.advanced(guider, comfy.samplers.sampler_object(SAMPLER), sigmas, dict(latent))


@torch.inference_mode()
def searched(sampling: Sampling, verifier, candidates: int = 1):
    return search(lambda: sampling, AnyVae(), verifier, SEED, candidates, "", 1, Graph(), "positive")


def cfg_guider(setup: Setup):
    return nodes_custom_sampler.CFGGuider.execute(setup.model, setup.positive, setup.negative, setup.cfg).args[0]


def basic_guider(setup: Setup):
    return nodes_custom_sampler.BasicGuider.execute(setup.model, setup.positive).args[0]


def dual_cfg_guider(setup: Setup):
    middle = [[setup.positive[0][0].flip(1), setup.positive[0][1]]]
    return nodes_custom_sampler.DualCFGGuider.execute(
        setup.model, setup.positive, middle, setup.negative, 3.0, 2.0, "regular"
    ).args[0]


GUIDERS = {"BasicGuider": basic_guider, "CFGGuider": cfg_guider, "DualCFGGuider": dual_cfg_guider}


class Contrast:
    """A verifier without weights: how far apart the pixels are."""

    members = ("contrast",)
    needs_prompt = False
    usual_range = (0.0, 1.0)

    def score(self, images, prompts):
        return images.float().std(dim=(1, 2, 3)).reshape(-1, 1).cpu()


class FineContrast(Contrast):
    """For pictures that hardly differ."""

    usual_range = (0.0, 0.05)
