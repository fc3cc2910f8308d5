"""How well the demo model follows prompts, and what choosing among seeds buys, judged by the exact oracle.

    COMFYUI_PATH=/path/to/ComfyUI python benchmarks/demo_model.py

On held-out prompts (no meaning of theirs was trained on) times seeds: the share of pictures that show exactly what
was asked, for one sample and for the best of N by the learned verifier and by the oracle. Sampling is ComfyUI's own
(`comfy.sample.sample`), the seeds of a prompt in one batch. Best of N is averaged over disjoint sets of N seeds; the
95 % interval is from a bootstrap over prompts. About 15 minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import _pack  # makes `noise_search` importable
import numpy as np
import torch

if "COMFYUI_PATH" not in os.environ:
    raise SystemExit("Set COMFYUI_PATH to a ComfyUI folder: the demo model runs inside it.")
sys.path.insert(0, os.environ["COMFYUI_PATH"])
from comfy.cli_args import args as comfy_args  # noqa: E402

comfy_args.cpu = True  # before comfy.model_management is imported

import comfy.sample  # noqa: E402
from noise_search.demo.oracle import examine  # noqa: E402
from noise_search.demo.world import CATEGORIES, held_out_prompts, parse  # noqa: E402
from noise_search.host.demo import load_generator  # noqa: E402
from noise_search.host.judging.hosted import load_demo_verifier  # noqa: E402

CATEGORY_NAMES = {
    "single": "single object",
    "colour": "colour binding",
    "counting": "counting",
    "spatial": "spatial",
}
RESAMPLES = 2000


def render(prompts: list[str], options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """For every prompt and seed: the oracle's verdict, bool, and the learned verifier's score; both [prompts, seeds].

    Seed j of prompt i is 1000 i + j.
    """
    verdicts = np.zeros((len(prompts), options.seeds), bool)
    scores = np.zeros((len(prompts), options.seeds))
    started = time.time()
    with torch.inference_mode():
        model, clip, vae = load_generator()
        verifier = load_demo_verifier()
        encode = lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text))  # noqa: E731
        negative = encode("")
        for i, prompt in enumerate(prompts):
            positive = encode(prompt)
            empty = torch.zeros(1, 16, 16, 16)
            noise = torch.cat([comfy.sample.prepare_noise(empty, 1000 * i + j) for j in range(options.seeds)])
            latents = comfy.sample.sample(
                model,
                noise,
                options.steps,
                options.cfg,
                options.sampler,
                options.scheduler,
                positive,
                negative,
                torch.zeros_like(noise),
                disable_pbar=True,
                seed=1000 * i,
            )
            images = vae.decode(latents)
            scores[i] = verifier.score(images, prompt)[:, 0].numpy()
            verdicts[i] = [examine(image.numpy(), prompt).ok for image in images]
            if (i + 1) % 20 == 0:
                print(f"{i + 1} of {len(prompts)} prompts, {time.time() - started:.0f} s", file=sys.stderr, flush=True)
    return verdicts, scores


def best_of(verdicts: np.ndarray, scores: np.ndarray, n: int) -> np.ndarray:
    """The share of right winners per prompt, over its disjoint sets of `n` seeds: [prompts]."""
    sets = verdicts.shape[1] // n
    shape = (len(verdicts), sets, n)
    winners = scores[:, : sets * n].reshape(shape).argmax(-1)[..., None]
    return np.take_along_axis(verdicts[:, : sets * n].reshape(shape), winners, -1)[..., 0].mean(1)


def interval(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over prompts."""
    means = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def summarise(prompts: list[str], verdicts: np.ndarray, scores: np.ndarray) -> dict[str, dict[str, dict]]:
    """Per choice and category, and overall: accuracy in percent with its interval and the number of prompts."""
    by_oracle = verdicts.astype(float)
    choices: dict[str, Callable[[], np.ndarray]] = {"one sample": lambda: verdicts.mean(1)}
    for source, ranking in (("verifier", scores), ("oracle", by_oracle)):
        for n in (4, 16):
            if verdicts.shape[1] >= n:
                choices[f"best of {n} by the {source}"] = lambda ranking=ranking, n=n: best_of(verdicts, ranking, n)
    categories = np.array([parse(prompt).category for prompt in prompts])
    rng = np.random.default_rng(0)
    table: dict[str, dict[str, dict]] = {}
    for choice, compute in choices.items():
        values = compute() * 100
        rows = {name: values[categories == name] for name in CATEGORIES if (categories == name).any()}
        rows["overall"] = values
        table[choice] = {
            name: {"percent": float(row.mean()), "interval": interval(row, rng), "prompts": len(row)}
            for name, row in rows.items()
        }
    return table


def show(table: dict[str, dict[str, dict]]) -> None:
    columns = list(next(iter(table.values())))
    print(f"{'accuracy by the oracle, %':<28}" + "".join(f"{CATEGORY_NAMES.get(c, c):>22}" for c in columns))
    print(f"{'prompts':<28}" + "".join(f"{next(iter(table.values()))[c]['prompts']:>22}" for c in columns))
    for choice, row in table.items():
        cells = (f"{row[c]['percent']:.1f} [{row[c]['interval'][0]:.1f}, {row[c]['interval'][1]:.1f}]" for c in columns)
        print(f"{choice:<28}" + "".join(f"{cell:>22}" for cell in cells))


def check(table: dict[str, dict[str, dict]]) -> list[tuple[str, bool]]:
    """What the demo model promises, and whether it holds."""
    overall = {choice: row["overall"]["percent"] for choice, row in table.items()}
    one = overall["one sample"]
    promises = [(f"one sample follows the prompt in 25 to 70 % of cases: {one:.1f} %", 25 <= one <= 70)]
    for source, points in (("verifier", 10), ("oracle", 25)):
        if (best := overall.get(f"best of 16 by the {source}")) is not None:
            text = f"best of 16 by the {source} is at least {points} points better: {best - one:+.1f}"
            promises.append((text, best - one >= points))
    return promises


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--sampler", default="euler")
    parser.add_argument("--scheduler", default="simple")
    parser.add_argument("--json", type=Path, default=_pack.ROOT / ".cache" / "demo_model.json", help="figures")
    options = parser.parse_args()

    started = time.time()
    prompts = held_out_prompts(options.prompts)
    verdicts, scores = render(prompts, options)
    table = summarise(prompts, verdicts, scores)
    promises = check(table)
    settings = {name: getattr(options, name) for name in ("seeds", "steps", "cfg", "sampler", "scheduler")}
    print(f"{len(prompts)} held-out prompts, {settings}, {time.time() - started:.0f} s")
    show(table)
    for text, kept in promises:
        print(f"{'PASS' if kept else 'FAIL'}  {text}")
    record = {
        "settings": settings,
        "table": table,
        "promises": dict(promises),
        "prompts": prompts,
        "verdicts": verdicts.astype(int).tolist(),
        "scores": scores.round(4).tolist(),
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(record) + "\n")
    return 0 if all(kept for _, kept in promises) else 1


if __name__ == "__main__":
    sys.exit(main())
