"""Keys of searches over tiny models."""

from functools import partial

import torch
from any_model import (
    FEATURES,
    SAMPLER,
    SCHEDULER,
    STEPS,
    AnyVae,
    made,
    sampling_of,
)
from noise_search.host.memory.key import search_key

VERSIONS = {"comfyui": "1", "noise_search": "2", "torch": "3"}
TWO_MODELS = ("sd15", "sd3")


class Judge:
    members = ("judge",)

    def __init__(self, name="a"):
        self.name = name

    def identity(self):
        return self.name


@torch.inference_mode()
def key(sampling, vae=None, verifier=None, prompt="a cat", frames=8, versions=VERSIONS, files=()):
    return search_key(sampling, vae or AnyVae(), verifier or Judge(), prompt, frames, versions, files)


def all_keys():
    setups = {"plain": lambda name: made(name)} | {
        label: partial(lambda feature, name: made(name, feature), feature) for label, feature in FEATURES.items()
    }
    return {
        f"{name} {label}": key(sampling_of(setup(name)), vae(name))
        for name in TWO_MODELS
        for label, setup in setups.items()
        if label == "plain" or name in FEATURES[label].models
    }


def vae(name):
    from noise_search.host.demo import load_generator

    with torch.inference_mode():
        return load_generator()[2]


def base():
    return made("sd15")


def ksampler(sampler=SAMPLER, scheduler=SCHEDULER, steps=STEPS):
    from noise_search.host.sampling.stock import Sampling

    setup = base()
    return Sampling.ksampler(
        setup.model, steps, setup.cfg, sampler, scheduler, setup.positive, setup.negative, dict(setup.latent)
    )
