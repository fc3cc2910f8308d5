"""What compute buys: every search on the demo model at equal NFE, chosen by one judge and judged by the other.

    COMFYUI_PATH=/path/to/ComfyUI python benchmarks/scaling.py --minutes 60      # measure; again to go on
    python benchmarks/scaling.py --report                                        # table and plot from what is measured

Held-out prompts (no meaning of theirs was trained on); the same first seed for every search of a prompt. Stock is
candidate 0, 16 NFE (16 steps, euler, cfg 3). "learned" selects by the demo's learned verifier, "oracle" by the exact
oracle, which says yes or no; both judge every winner. The figures of the smaller budgets of Random Search and of
Zero-Order Search are those of the first candidates of their longest run; the others run once per budget, as their
plans depend on it. A 95 % interval is from a bootstrap over prompts. What several searches have in common (a recipe
rendered, a trajectory begun) is computed once and counted in each.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

import _pack
import numpy as np
import torch
from noise_search.demo.world import held_out_prompts
from noise_search.report.canvas import Canvas, theme_of
from noise_search.report.numbers import nice_ticks
from noise_search.search.aggregate import Aggregator
from noise_search.search.algorithms.draft_and_final import DraftAndFinal
from noise_search.search.algorithms.paths import SearchOverPaths
from noise_search.search.algorithms.random_search import RandomSearch
from noise_search.search.algorithms.zero_order import ZeroOrderSearch
from noise_search.search.budget import Budget
from noise_search.search.log import FINAL, Pool, SearchLog
from noise_search.search.remember import Notes, RememberingEngine
from noise_search.search.run import search

STEPS, CFG, SAMPLER, SCHEDULER = 16, 3.0, "euler", "simple"
BUDGETS = (16, 64, 256, 1024)  # NFE: 1, 4, 16 and 64 images' worth
LARGE = 1024  # for every LARGE_EVERY-th prompt only: it takes most of the time
LARGE_EVERY = 4
SHOWN_BUDGETS = tuple(budget for budget in BUDGETS if budget < LARGE)
JUDGES = ("learned", "oracle")
NAMES = {"learned": "the learned verifier", "oracle": "the oracle"}
ALGORITHMS = {
    "random": RandomSearch(),
    "zero-order": ZeroOrderSearch(),
    "paths": SearchOverPaths(),
    "draft and final": DraftAndFinal(),
}
PREFIXES = ("random", "zero-order")
MEASURED = _pack.ROOT / ".cache" / "scaling.jsonl"
RESAMPLES = 4000


class BothJudges:
    """The learned verifier and the oracle, as two members of one verifier."""

    members = JUDGES
    needs_prompt = True

    def __init__(self, learned):
        self.learned = learned

    def score(self, images, prompts):
        from noise_search.demo.oracle import examine

        verdicts = [float(examine(image.numpy(), prompt).ok) for image, prompt in zip(images, prompts, strict=True)]
        return torch.cat([self.learned.score(images, prompts), torch.tensor(verdicts)[:, None]], dim=1)


def measure(index: int, prompt: str, world) -> dict[str, dict]:
    """All searches of one prompt: {"algorithm/selector/budget": {"learned", "oracle", "nfe", ...}}."""
    from noise_search.host.sampling.engine import ComfyEngine
    from noise_search.host.sampling.stock import Sampling

    model, encode, vae, judges = world
    latent = {"samples": torch.zeros(1, 16, 16, 16)}
    positive, negative = encode(prompt), encode("")
    sampling = Sampling.ksampler(model, STEPS, CFG, SAMPLER, SCHEDULER, positive, negative, latent)
    engine = RememberingEngine(ComfyEngine(sampling, vae, judges, prompt), Notes())  # nothing is computed twice
    budgets = [budget for budget in BUDGETS if budget < LARGE or index % LARGE_EVERY == 0]
    rows: dict[str, dict] = {}
    for name, algorithm in ALGORITHMS.items():
        for selector in JUDGES:
            aggregator = Aggregator(weights=tuple(float(judge == selector) for judge in JUDGES))
            for budget in [max(budgets)] if name in PREFIXES else budgets:
                log = SearchLog(engine.members, aggregator=aggregator)
                limit = Budget(candidates=budget // STEPS, nfe=budget)
                search(algorithm, engine, Pool(log, keep=0), 1000 * index, limit)
                for reached in budgets if name in PREFIXES else [budget]:
                    rows[f"{name}/{selector}/{reached}"] = winner(log, selector, reached)
    return rows


def winner(log: SearchLog, selector: str, budget: int) -> dict:
    """What both judges say of the best final that the first `budget` NFE made."""
    column, spent = JUDGES.index(selector), log.spent()
    finals = [one for one in log.candidates if one.stage == FINAL and spent[one.index][0] <= budget]
    best = max(finals, key=lambda candidate: candidate.values[0][column])  # of equal ones the first
    nfe = max(spent[one.index][0] for one in log.candidates if spent[one.index][0] <= budget)
    row = dict(zip(JUDGES, best.values[0], strict=True)) | {"nfe": nfe, "finals": len(finals)}
    if "draft_final_rank_correlation" in log.findings:
        row["correlation"] = log.findings["draft_final_rank_correlation"]
    return row


def measure_all(options: argparse.Namespace) -> None:
    """Prompts in a fixed random order, each written down as it is done, until the time is up."""
    if "COMFYUI_PATH" not in os.environ:
        raise SystemExit("Set COMFYUI_PATH to a ComfyUI folder: the demo model runs inside it.")
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    from comfy.cli_args import args as comfy_args

    comfy_args.cpu = True  # before comfy.model_management is imported
    from noise_search.host.demo import load_generator
    from noise_search.host.judging.hosted import load_demo_verifier

    prompts = shuffled_prompts()
    options.file.parent.mkdir(parents=True, exist_ok=True)
    end = time.time() + 60 * options.minutes
    with torch.inference_mode():
        model, clip, vae = load_generator()
        judges = BothJudges(load_demo_verifier())
        world = model, lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text)), vae, judges
        for index in range(options.part, len(prompts), options.parts):
            if time.time() > end:
                break
            if index in {row["index"] for row in read(options.file)}:
                continue
            started = time.time()
            rows = measure(index, prompts[index], world)
            record = {"index": index, "prompt": prompts[index], "seconds": time.time() - started, "rows": rows}
            with options.file.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(f"prompt {index}: {record['seconds']:.0f} s", file=sys.stderr, flush=True)


def shuffled_prompts() -> list[str]:
    """The held-out prompts in a fixed random order, so that any number of them is a fair sample."""
    prompts = held_out_prompts(200)
    return [prompts[i] for i in np.random.default_rng(0).permutation(len(prompts))]


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def report(file: Path, folder: Path) -> None:
    """Prints the tables, and writes them and the plot where the documentation shows them."""
    records = read(file)
    if not records:
        raise SystemExit(f"nothing measured yet in {file}")
    text = tables(records)
    print(text)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scaling.md").write_text(text)
    plot(records).save(folder / "scaling.png", optimize=True)


def column(records: list[dict], key: str, judge: str) -> np.ndarray:
    """One number per prompt that has this row: what a judge says of its winner, the oracle's in percent."""
    values = np.array([record["rows"][key][judge] for record in records if key in record["rows"]])
    return values * 100 if judge == "oracle" else values


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean, and 95 % bootstrap interval over prompts."""
    picks = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    means = values[picks].mean(1)
    return float(values.mean()), float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def tables(records: list[dict]) -> str:
    """Markdown: every search by both judges, and its difference from Random Search on the same prompts."""
    large = [record for record in records if f"random/learned/{LARGE}" in record["rows"]]
    lines = [
        "# What compute buys on the demo model",
        "",
        f"`python benchmarks/scaling.py` on {len(records)} prompts that the model never saw; {STEPS} steps, {SAMPLER}, "
        f"cfg {CFG:g}, so that {STEPS} NFE are one image, and {STEPS} NFE are stock: the image without a search. Mean "
        "and 95 % interval over prompts. *oracle*: how often the winner shows exactly what was asked, in %; *learned*: "
        "the winner's score by the learned verifier. Zero-order has 2 neighbours at 18 degrees, paths the paper's "
        "levels; 64 NFE are too few for a round of paths, which then are plain noises.",
        "",
        "![The same as a plot](scaling.png)",
    ]
    for selector in JUDGES:
        for judge in (selector, *[judge for judge in JUDGES if judge != selector]):
            lines += ["", f"## Selected by {NAMES[selector]}, judged by {NAMES[judge]}", ""]
            lines += table(records, selector, judge, SHOWN_BUDGETS)
    lines += ["", "## Against Random Search at equal NFE, on the same prompts", ""]
    lines += against_random(records, SHOWN_BUDGETS[1:])
    if large:
        lines += ["", f"## Up to {LARGE:,} NFE, on {len(large)} of the prompts", ""]
        lines += ["Too few for narrow intervals; compare within the table.", ""]
        for selector in JUDGES:
            lines += [f"Selected by {NAMES[selector]}, judged by the oracle:", ""]
            lines += [*table(large, selector, "oracle", BUDGETS), ""]
    lines += ["", "## What was spent", "", *notes(records)]
    return "\n".join(lines) + "\n"


def table(records: list[dict], selector: str, judge: str, budgets: tuple[int, ...]) -> list[str]:
    """One line per budget, one column per search."""
    lines = ["| NFE | " + " | ".join(ALGORITHMS) + " |", "|---:|" + "---|" * len(ALGORITHMS)]
    for budget in budgets:
        means = [interval(column(records, f"{name}/{selector}/{budget}", judge)) for name in ALGORITHMS]
        cells = [f"{mean:.1f} [{low:.1f}, {high:.1f}]" for mean, low, high in means]
        lines.append(f"| {budget:,}{' (stock)' * (budget == STEPS)} | " + " | ".join(cells) + " |")
    return lines


def against_random(records: list[dict], budgets: tuple[int, ...]) -> list[str]:
    """Differences on the same prompts, whose intervals are narrower than those of the two means."""
    others = [name for name in ALGORITHMS if name != "random"]
    lines = ["| selected by | judged by | NFE | " + " | ".join(others) + " |", "|---|---|---:|" + "---|" * len(others)]
    for selector in JUDGES:
        for judge in JUDGES:
            for budget in budgets:
                base = column(records, f"random/{selector}/{budget}", judge)
                apart = [interval(column(records, f"{name}/{selector}/{budget}", judge) - base) for name in others]
                cells = [f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]" for mean, low, high in apart]
                lines.append(f"| {selector} | {judge} | {budget} | " + " | ".join(cells) + " |")
    return lines


def notes(records: list[dict]) -> list[str]:
    """What the tables do not show: NFE left unspent, and how well drafts predicted finals."""
    correlations = []
    lines = ["The NFE spent and the finished images among which the winner was chosen, on average:", ""]
    lines += ["| NFE | " + " | ".join(ALGORITHMS) + " |", "|---:|" + "---|" * len(ALGORITHMS)]
    for budget in SHOWN_BUDGETS[1:]:
        cells = []
        for name in ALGORITHMS:
            rows = [record["rows"][f"{name}/learned/{budget}"] for record in records]
            nfe, finals = (np.mean([row[what] for row in rows]) for what in ("nfe", "finals"))
            cells.append(f"{nfe:.0f} NFE, {finals:.1f} images")
            correlations += [row["correlation"] for row in rows if "correlation" in row]
        lines.append(f"| {budget} | " + " | ".join(cells) + " |")
    mean = np.mean(correlations)
    return [*lines, "", f"Rank correlation of drafts (6 of {STEPS} steps) and finals, mean over searches: {mean:.2f}."]


def plot(records: list[dict]):
    """Four panels: by selector and judge, the mean against NFE for every search, with its interval."""
    colours = theme_of("light")
    canvas = Canvas(1200, 860, colours.background)
    canvas.text((36, 46), "What compute buys on the demo model", colours.ink, 25, bold=True)
    canvas.text((36, 72), f"mean over {len(records)} held-out prompts, 95 % intervals", colours.muted, 15)
    for number, name in enumerate(ALGORITHMS):
        x, hue = 545 + 155 * number, colours.series[number]
        canvas.line([(x, 66), (x + 26, 66)], hue, 3)
        canvas.disc((x + 13, 66), 4.5, hue)
        canvas.text((x + 34, 71), name, colours.ink, 15)
    for row, judge in enumerate(reversed(JUDGES)):
        for place, selector in enumerate(JUDGES):
            panel(canvas, colours, records, selector, judge, (70 + 570 * place, 130 + 370 * row, 500, 280))
    return canvas.image()


def panel(canvas, colours, records, selector: str, judge: str, box: tuple[float, float, float, float]) -> None:
    """One selector and one judge. box: left, top, width, height."""
    left, top, width, height = box
    series = [
        [(budget, *interval(values)) for budget in SHOWN_BUDGETS if len(values := column(records, key(budget), judge))]
        for key in (lambda budget, name=name: f"{name}/{selector}/{budget}" for name in ALGORITHMS)
    ]
    low = min(point[2] for line in series for point in line)
    high = max(point[3] for line in series for point in line)
    low, high = low - 0.06 * (high - low + 0.1), high + 0.06 * (high - low + 0.1)

    def at(budget: int, value: float, shift: float = 0) -> tuple[float, float]:
        share = (math.log2(budget / SHOWN_BUDGETS[0]) + 0.3) / (math.log2(SHOWN_BUDGETS[-1] / SHOWN_BUDGETS[0]) + 0.7)
        return left + width * share + shift, top + height * (high - value) / (high - low)

    unit = "exactly as asked, %" if judge == "oracle" else "score by the learned verifier"
    canvas.text((left, top - 14), f"{unit}; selected by {NAMES[selector]}", colours.ink, 15, bold=True)
    for value, label in nice_ticks(low, high, 5):
        y = at(SHOWN_BUDGETS[0], value)[1]
        canvas.line([(left, y), (left + width, y)], colours.grid, 1)
        canvas.text((left - 8, y), label, colours.muted, 13, "rm")
    for budget in SHOWN_BUDGETS:
        canvas.text((at(budget, low)[0], top + height + 10), f"{budget:,} NFE", colours.muted, 13, "ma")
    for number, line in enumerate(series):
        hue, shift = colours.series[number], (number - 1.5) * 7
        for budget, _, bottom, upper in line:
            canvas.line([at(budget, bottom, shift), at(budget, upper, shift)], hue, 1.6, 0.5)
        canvas.line([at(budget, mean, shift) for budget, mean, *_ in line], hue, 2.6)
        for budget, mean, *_ in line:
            canvas.disc(at(budget, mean, shift), 4.5, hue)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--part", type=int, default=0, help="with --parts: measure only one in this many prompts")
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--file", type=Path, default=MEASURED, help="where each prompt's figures are written down")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument(
        "--output", type=Path, default=_pack.ROOT / "docs", help="folder for scaling.md and scaling.png"
    )
    options = parser.parse_args()
    if not options.report:
        measure_all(options)
    if options.part == 0:
        report(options.file, options.output)


if __name__ == "__main__":
    main()
