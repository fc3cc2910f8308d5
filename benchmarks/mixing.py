"""What batches do to a search when a patch of the model mixes their rows: does another candidate win, and is it said?

    COMFYUI_PATH=/path/to/ComfyUI python benchmarks/mixing.py

Every patch of `benchmarks/patches.py`, `--seeds` searches each, with batches and one candidate at a time. *mixed*: the
rows of batches that are not what they are alone, without any check. *wrong*: searches that would choose another
candidate so; *wrong, checked*: that do, with the checks; *silent*: those of them without a warning; *warned*: searches
with a warning. On the demo model and, for patches of a UNet, on a tiny one. Half an hour on one core; `--only WORD`
for those with a word in their name.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import batching as rounding  # the benchmark of samplers: it sets ComfyUI up
import torch
from noise_search.host.graph.graph import Graph
from noise_search.host.sampling import batching
from noise_search.host.sampling.engine import Options
from noise_search.host.sampling.stock import Sampling
from noise_search.host.search import run_node
from noise_search.host.versions import comfyui_version
from noise_search.search.recipe import Recipe

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))  # for the tiny models

import patches  # noqa: E402
import tiny_models  # noqa: E402

STEPS, CANDIDATES, BATCH = 8, 9, 4
MIXED_ABOVE = 1e-3  # rows beyond it count as mixed


class Pixels:
    """A VAE without weights."""

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        return samples[:, :3].movedim(1, -1).float() / 8 + 0.5


class Contrast:
    """A verifier without weights: how far apart the pixels are."""

    members = ("contrast",)
    needs_prompt = False

    def score(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return images.float().std(dim=(1, 2, 3)).reshape(-1, 1)


@dataclass
class Counts:
    """Numbers of searches: another winner without checks, with them, of those without a warning, with a warning; the
    share of rows that are mixed."""

    searches: int = 0
    mixed: float = 0.0
    wrong: int = 0
    checked: int = 0
    silent: int = 0
    warned: int = 0
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.mixed:.0%} | {self.wrong} | {self.checked} | {self.silent} | {self.warned} of {self.searches}"


@contextlib.contextmanager
def remembering() -> Iterator[Callable[[Sampling, int], Any]]:
    """Within it nothing is sampled alone twice. Gives a function that samples a seed alone."""
    alone, made = batching.sample_alone, {}

    def once(sampling: Sampling, recipes: Any, callback: Any) -> Any:
        key = sampling.steps, recipes
        if key in made:
            sampling.evaluations.count(round(made[key].cost.nfe))
        else:
            made[key] = alone(sampling, recipes, callback)
        return made[key]

    batching.sample_alone = once
    try:
        yield lambda sampling, seed: once(sampling, sampling.complete((Recipe.from_seed(seed),)), None)
    finally:
        batching.sample_alone = alone


def count(
    make: Callable[[], Sampling], seeds: int, candidates: int = CANDIDATES, batch: int = BATCH, unchecked: bool = True
) -> Counts:
    """Searches from `seeds` neighbouring seeds. unchecked: also what comes of batches that nobody checks."""
    counts = Counts(seeds)
    score = lambda one: float(Contrast().score(Pixels().decode(one.latent["samples"]), []))  # noqa: E731
    with remembering() as alone:
        sampling = make()
        solo = [alone(sampling, seed) for seed in range(seeds + candidates - 1)]
        scores = torch.tensor([score(one) for one in solo])
        for seed in range(seeds):
            best = seed + int(scores[seed : seed + candidates].argmax())
            if unchecked:
                share, winner = without_checks(make(), seed, candidates, batch, solo, score)
                counts.mixed += share / seeds
                counts.wrong += winner != best
            result = run_node(
                make, Pixels(), Contrast(), seed, candidates, "", 1, Graph(), "positive", options=Options(batch)
            )
            said = [text for text in result.log.warnings if "batch" in text]
            counts.checked += result.seed != best
            counts.silent += result.seed != best and not said
            counts.warned += bool(said)
            counts.warnings = tuple(dict.fromkeys([*counts.warnings, *said]))
    return counts


def without_checks(sampling, seed, candidates, batch, solo, score) -> tuple[float, int]:
    """The share of rows that are mixed, and the winner, where all but the first are sampled in batches."""
    scores, mixed = [score(solo[seed])], 0
    others = list(range(seed + 1, seed + candidates))
    for start in range(0, len(others), batch):
        part = others[start : start + batch]
        try:
            rows = batching.sample_together(sampling, [(Recipe.from_seed(one),) for one in part], None)
        except Exception:  # it takes no batches
            return 0.0, seed + int(torch.tensor([score(one) for one in solo[seed : seed + candidates]]).argmax())
        scores += map(score, rows)
        for one, row in zip(part, rows, strict=True):
            mixed += batching._difference(row.latent["samples"], solo[one].latent["samples"]) > MIXED_ABOVE
    return mixed / len(others), seed + int(torch.tensor(scores).argmax())


def unet_sampling(patch: patches.Patch, steps: int = STEPS, side: int = 8) -> Sampling:
    tiny = tiny_models.sd15()
    latent = {"samples": torch.zeros(1, 4, side, side)}
    return Sampling.ksampler(
        patch(tiny.model), steps, tiny.cfg, "euler", "simple", tiny.conditioning(1), tiny.conditioning(2), latent
    )


def cases(demo: tuple[Any, Any], steps: int = STEPS) -> dict[str, tuple[bool, Callable[[], Sampling]]]:
    """By name: whether it mixes, and what makes a Sampling with it. demo: MODEL, and its two conditionings."""
    model, conditioning = demo
    found = {}
    for mixes, unets, others in (
        (True, patches.UNET_MIXING, patches.MIXING),
        (False, patches.UNET_HARMLESS, patches.HARMLESS),
    ):
        for name, patch in unets.items():
            side = 16 if name == "HyperTile" else 8  # its tiles are 4 wide
            found[name] = mixes, lambda patch=patch, side=side: unet_sampling(patch, steps, side)
        for name, patch in others.items():
            found[name] = mixes, lambda patch=patch: rounding.sampling_of(patch(model), conditioning, "euler", steps, 8)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--candidates", type=int, default=CANDIDATES)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--only", default="", help="patches with this in their name")
    options = parser.parse_args()
    with torch.inference_mode():
        model, clip, _ = rounding.load_generator()
        conditioning = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (rounding.PROMPT, "")]
        print(
            f"ComfyUI {comfyui_version()}, torch {torch.__version__}, {options.seeds} searches of "
            f"{options.candidates} candidates, {options.steps} steps, batches of {options.batch}\n"
        )
        print("| patch | mixes | mixed | wrong | wrong, checked | silent | warned |\n|---|---|---|---|---|---|---|")
        for name, (mixes, make) in cases((model, conditioning), options.steps).items():
            if options.only in name:
                counts = count(make, options.seeds, options.candidates, options.batch)
                print(f"| {name} | {'yes' if mixes else 'no'} | {counts} |", flush=True)


if __name__ == "__main__":
    main()
