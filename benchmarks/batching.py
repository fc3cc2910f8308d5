"""What a batch changes: every sampler of ComfyUI on the demo model, four candidates in one batch and each alone.

    COMFYUI_PATH=/path/to/ComfyUI python benchmarks/batching.py

Per sampler: the largest difference of a row from its solo run, by the size of the latent (its largest value), and of
the scores of the demo's verifier; or why its candidates are never batched. A minute on one core.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass

import _pack  # noqa: F401  makes `noise_search` importable
import torch

if "comfy" not in sys.modules:
    if "COMFYUI_PATH" not in os.environ:
        raise SystemExit("Set COMFYUI_PATH to a ComfyUI folder: the demo model runs inside it.")
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    from comfy.cli_args import args as comfy_args

    comfy_args.cpu = True  # before comfy.model_management is imported

import comfy.samplers  # noqa: E402
from noise_search.host.demo import load_generator  # noqa: E402
from noise_search.host.judging.hosted import load_demo_verifier  # noqa: E402
from noise_search.host.sampling import batching  # noqa: E402
from noise_search.host.sampling.stock import Sampling  # noqa: E402
from noise_search.host.versions import comfyui_version  # noqa: E402
from noise_search.search.recipe import Recipe  # noqa: E402

PROMPT = "a red circle above a blue square"
CANDIDATES = 4


@dataclass(frozen=True)
class Difference:
    """How far rows in a batch are from their solo runs. latent: by the latent's size; score: of the verifier."""

    latent: float
    score: float = 0.0


def sampling_of(model, conditioning, sampler: str, steps: int, side: int, scheduler: str = "simple") -> Sampling:
    latent = {"samples": torch.zeros(1, 16, side, side)}
    return Sampling.ksampler(model, steps, 3.0, sampler, scheduler, *conditioning, latent)


def difference(sampling: Sampling, score=None) -> Difference:
    """The largest over the rows of one batch. score: of a LATENT, where it is wanted too."""
    candidates = [(Recipe.from_seed(seed),) for seed in range(CANDIDATES)]
    worst = Difference(0.0)
    for one, recipes in zip(batching.sample_together(sampling, candidates, None), candidates, strict=True):
        solo = batching.sample_alone(sampling, recipes, None)
        row, own = one.latent["samples"], solo.latent["samples"]
        worst = Difference(
            max(worst.latent, float((row - own).abs().max() / own.abs().max())),
            max(worst.score, abs(score(one.latent) - score(solo.latent))) if score else 0.0,
        )
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--side", type=int, default=16, help="of the latent; 16 is what the model was trained at")
    parser.add_argument("--scheduler", default="simple", choices=comfy.samplers.KSampler.SCHEDULERS)
    options = parser.parse_args()

    with torch.inference_mode():
        model, clip, vae = load_generator()
        verifier = load_demo_verifier()
        conditioning = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (PROMPT, "")]
        score = lambda latent: float(verifier.score(vae.decode(latent["samples"]), PROMPT))  # noqa: E731
        print(f"ComfyUI {comfyui_version()}, torch {torch.__version__}, {options.steps} steps, batches of {CANDIDATES}")
        print("\n| sampler | latent | score |\n|---|---|---|")
        for name in comfy.samplers.KSampler.SAMPLERS:
            sampling = sampling_of(model, conditioning, name, options.steps, options.side, options.scheduler)
            why = batching.obstacle(sampling)
            if why is None:
                found = difference(sampling, score)
                print(f"| {name} | {found.latent:.1e} | {found.score:.1e} |", flush=True)
            else:
                print(f"| {name} | alone: {why} | |", flush=True)


if __name__ == "__main__":
    main()
