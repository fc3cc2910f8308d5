"""Where a search fools its verifier: winners by one learned verifier, by two together, and what the exact oracle says.

    python demo/train.py --stage verifier --minutes 32 --threads 1 --seed 1 --cache C --weights W   # the second one
    COMFYUI_PATH=/path/to/ComfyUI python benchmarks/hacking.py --second W/verifier --minutes 40      # again to go on
    python benchmarks/hacking.py --report --page                             # the table, and docs/hacking.md

Held-out prompts of the demo's world (no meaning of theirs was trained on) times 64 seeds, each rendered once (16 steps,
euler, cfg 3). A is the learned verifier that comes with the pack, B one that `demo/train.py` made with another seed:
other first weights, other pictures, the same recipe. The oracle only reports. The best of N is that of Random Search
over N seeds, chosen by the pack's own aggregators, and averaged over the disjoint sets of N among the 64. 95 %
intervals are from a bootstrap over prompts; a change is that of the same prompts from the next smaller N.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import _pack
import numpy as np
import torch
from noise_search.demo.world import held_out_prompts, parse
from noise_search.search.aggregate import Aggregator, order

STEPS, CFG, SAMPLER, SCHEDULER = 16, 3.0, "euler", "simple"
SEEDS, BATCH = 64, 16
COUNTS = (1, 4, 16, 64)
MEMBERS = ("A", "B", "oracle")
SELECTORS = {
    "A alone": Aggregator(weights=(1.0, 0.0, 0.0)),
    "B alone": Aggregator(weights=(0.0, 1.0, 0.0)),
    "A and B, mean rank": Aggregator("mean_rank", (1.0, 1.0, 0.0)),
    "A and B, z-score": Aggregator("z_score", (1.0, 1.0, 0.0)),
    "the oracle": Aggregator(weights=(0.0, 0.0, 1.0)),
}
MEASURED = _pack.ROOT / ".cache" / "hacking.jsonl"
PAGE = _pack.ROOT / "docs" / "hacking.md"
RESAMPLES = 4000


def measure_all(options: argparse.Namespace) -> None:
    """Prompts in a fixed random order, each written down as it is done, until the time is up."""
    if "COMFYUI_PATH" not in os.environ:
        raise SystemExit("Set COMFYUI_PATH to a ComfyUI folder: the demo model runs inside it.")
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    from comfy.cli_args import args as comfy_args

    comfy_args.cpu = True  # before comfy.model_management is imported
    from noise_search.host.demo import load_generator
    from noise_search.host.judging.hosted import HostedVerifier, load_demo_verifier
    from noise_search.verifiers.clip import CLIPScore

    end = time.time() + 60 * options.minutes
    prompts = held_out_prompts(200)
    options.file.parent.mkdir(parents=True, exist_ok=True)
    known = {row["index"] for row in read(options.file)}
    second = HostedVerifier(CLIPScore.load(options.second, "B"))
    with torch.inference_mode():
        model, clip, vae = load_generator()
        judges = (load_demo_verifier(), second)
        encode = lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text))  # noqa: E731
        for index in np.random.default_rng(0).permutation(len(prompts)).tolist():
            if time.time() > end:
                break
            if index in known:
                continue
            values = measure(index, prompts[index], model, encode, vae, judges)
            with options.file.open("a") as file:
                file.write(json.dumps({"index": index, "prompt": prompts[index], "values": values}) + "\n")


def measure(index: int, prompt: str, model, encode, vae, judges) -> list[list[float]]:
    """What A, B and the oracle say of every seed of a prompt: [SEEDS][3]. Seed j of prompt i is 1000 i + j."""
    import comfy.sample
    from noise_search.demo.oracle import examine

    positive, negative = encode(prompt), encode("")
    values = []
    for first in range(0, SEEDS, BATCH):
        empty = torch.zeros(1, 16, 16, 16)
        seeds = range(1000 * index + first, 1000 * index + first + BATCH)
        noise = torch.cat([comfy.sample.prepare_noise(empty, seed) for seed in seeds])
        latents = comfy.sample.sample(
            model, noise, STEPS, CFG, SAMPLER, SCHEDULER, positive, negative, torch.zeros_like(noise),
            disable_pbar=True, seed=seeds[0],
        )  # fmt: skip
        images = vae.decode(latents)
        learned = [verifier.score(images, prompt)[:, 0].tolist() for verifier in judges]
        verdicts = [float(examine(image.numpy(), prompt).ok) for image in images]
        values += [list(row) for row in zip(*learned, verdicts, strict=True)]
    return values


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def winners(values: np.ndarray, aggregator: Aggregator, count: int) -> np.ndarray:
    """What the three say of the best of `count`, by prompt, the mean over the disjoint sets: [prompts, 3]."""
    out = np.zeros((len(values), len(MEMBERS)))
    for row, table in enumerate(values):
        sets = torch.from_numpy(table).reshape(-1, count, len(MEMBERS))
        best = [one[order(aggregator(one))[0]] for one in sets]
        out[row] = torch.stack(best).mean(dim=0).numpy()
    return out * np.array([1, 1, 100])  # the oracle in percent


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over prompts."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def shown(values: np.ndarray, digits: int = 1, sign: str = "") -> str:
    low, high = interval(values)
    return f"{values.mean():{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def verdict(learned: np.ndarray, right: np.ndarray) -> str:
    """What a step to a larger N did, from the changes of the score that chose and of the oracle's accuracy."""
    if interval(learned)[0] <= 0:
        return "no change"
    low, high = interval(right)
    if high < 0:
        return "hacked: worse images"
    return "better images" if low > 0 else "score rises, images no better that we can see"


def report(rows: list[dict]) -> str:
    values = np.array([row["values"] for row in rows])
    lines = [
        f"{len(rows)} held-out prompts, {SEEDS} seeds each, {STEPS} steps of {SAMPLER}, cfg {CFG:g}. Scores of A and B "
        "are cosines times 100; the oracle says in how many of 100 images everything is as asked. In brackets 95 % "
        "intervals from a bootstrap over prompts. The last two columns: change of the oracle from the next smaller N "
        "on the same prompts, and what that means beside the score that chose.",
        "",
        "| chosen by | N | score of A | score of B | oracle, % | change of the oracle | |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for name, aggregator in SELECTORS.items():
        before = None
        for count in COUNTS:
            now = winners(values, aggregator, count)
            change = said = ""
            if before is not None:
                step = now - before
                change = shown(step[:, 2], sign="+")
                deciding = [member for member, weight in enumerate(aggregator.weights or ()) if weight]
                said = verdict(step[:, deciding].mean(1), step[:, 2])
            cells = [name, str(count), *(shown(now[:, member]) for member in range(len(MEMBERS))), change, said]
            lines.append("| " + " | ".join(cells) + " |")
            before = now
    return "\n".join([*lines, "", *against(values), "", *by_kind(rows, values)])


def against(values: np.ndarray) -> list[str]:
    """What two verifiers buy over one at each N, on the same prompts."""
    lines = ["| mean rank of A and B against | " + " | ".join(f"N = {count}" for count in COUNTS[1:]) + " |"]
    lines.append("|---|" + "---:|" * len(COUNTS[1:]))
    both = SELECTORS["A and B, mean rank"]
    for name in ("A alone", "B alone"):
        steps = [
            winners(values, both, count)[:, 2] - winners(values, SELECTORS[name], count)[:, 2] for count in COUNTS[1:]
        ]
        lines.append(f"| {name}: oracle, points | " + " | ".join(shown(step, sign="+") for step in steps) + " |")
    return lines


def by_kind(rows: list[dict], values: np.ndarray) -> list[str]:
    """Where going from the best of 4 to the best of 64 helps and where it fools: by kind of prompt."""
    kinds = np.array([parse(row["prompt"]).category for row in rows])
    lines = [
        "| kind of prompt | prompts | chosen by | score that chose, 4 to 64 | oracle, % at 4 | oracle, % at 64 | |"
    ]
    lines.append("|---|---:|---|---:|---:|---:|---|")
    for kind in dict.fromkeys(kinds):
        some = values[kinds == kind]
        for name in ("A alone", "B alone", "A and B, mean rank"):
            few, many = (winners(some, SELECTORS[name], count) for count in (4, 64))
            deciding = [member for member, weight in enumerate(SELECTORS[name].weights or ()) if weight]
            score = (many - few)[:, deciding].mean(1)
            cells = [kind, str(len(some)), name, shown(score, sign="+"), shown(few[:, 2]), shown(many[:, 2])]
            lines.append("| " + " | ".join([*cells, verdict(score, (many - few)[:, 2])]) + " |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--second", type=Path, help="an open_clip folder: the second learned verifier")
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--file", type=Path, default=MEASURED, help="what is measured")
    parser.add_argument("--report", action="store_true", help="only print what is measured")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: all)")
    parser.add_argument("--page", action="store_true", help="write docs/hacking.md")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if not options.report:
        if options.second is None:
            raise SystemExit("give --second FOLDER: a second verifier, made by demo/train.py with another --seed")
        measure_all(options)
    rows = read(options.file)
    if not rows:
        raise SystemExit("nothing measured yet")
    text = report(rows)
    print(text)
    if options.page:
        head = __doc__.split("\n\n")
        about = " ".join(head[2].split())
        PAGE.write_text(f"# Verifier hacking\n\n{about}\n\nMade by `benchmarks/hacking.py`.\n\n{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
