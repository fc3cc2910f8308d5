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
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import _pack
import numpy as np
import torch
from noise_search.demo.world import held_out_prompts
from noise_search.search.aggregate import Aggregator
from noise_search.search.budget import Budget
from noise_search.search.draft_and_final import DraftAndFinal
from noise_search.search.log import FINAL, Pool, SearchLog
from noise_search.search.paths import SearchOverPaths
from noise_search.search.random_search import RandomSearch
from noise_search.search.run import search
from noise_search.search.zero_order import ZeroOrderSearch

STEPS, CFG, SAMPLER, SCHEDULER = 16, 3.0, "euler", "simple"
BUDGETS = (16, 64, 256, 1024)  # NFE: 1, 4, 16 and 64 images' worth
LARGE = 1024  # for every LARGE_EVERY-th prompt only: it takes most of the time
LARGE_EVERY = 4
JUDGES = ("learned", "oracle")
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
        from noise_search.demo.oracle import judge

        verdicts = [float(judge(image.numpy(), prompt).ok) for image, prompt in zip(images, prompts, strict=True)]
        return torch.cat([self.learned.score(images, prompts), torch.tensor(verdicts)[:, None]], dim=1)


class RememberingEngine:
    """An engine that computes nothing twice, but counts it every time. One prompt's worth."""

    rows = 1
    deterministic = True
    chunk = 1

    def __init__(self, engine, known=None):
        self.engine = engine
        self.known = {} if known is None else known
        self.members, self.steps = engine.members, engine.steps
        self.nfe, self.seconds = 0, 0.0

    def pending(self):
        return self.nfe, self.seconds

    def drafts(self, steps):
        return RememberingEngine(self.engine.drafts(steps), self.known.setdefault(("drafts", steps), {}))

    def render(self, candidates):
        for recipes in candidates:
            yield self._answer(("render", recipes), lambda recipes=recipes: next(self.engine.render([recipes])))

    def start(self, recipes):
        return self.engine.start(recipes)

    def denoise(self, state, level):
        return self._recall(("denoise", state.recipes, state.level, level), lambda: self.engine.denoise(state, level))

    def renoise(self, state, level, seed):
        return self.engine.renoise(state, level, seed)

    def score(self, state):
        return self._answer(("score", state.recipes, state.level), lambda: self.engine.score(state))

    def join(self, states):
        return self.engine.join(states)

    def steps_between(self, start, end):
        return self.engine.steps_between(start, end)

    def _recall(self, key, compute):
        """The result of some work, and its cost added to what is pending."""
        if key not in self.known:
            nfe, seconds = self.engine.pending()
            result = compute()
            after = self.engine.pending()
            if isinstance(getattr(result, "nfe", None), int):  # an answer: the engine starts counting anew
                spent = result.nfe - nfe, sum(result.seconds.values()) - seconds
                result = replace(result, results=(), thumbnails=None)
            else:
                spent = after[0] - nfe, after[1] - seconds
            self.known[key] = result, spent
        result, spent = self.known[key]
        self.nfe, self.seconds = self.nfe + spent[0], self.seconds + spent[1]
        return result

    def _answer(self, key, compute):
        result = self._recall(key, compute)
        nfe, seconds, self.nfe, self.seconds = self.nfe, self.seconds, 0, 0.0
        return replace(result, nfe=nfe, nfe_per_row=nfe, seconds={"all": seconds})


def measure(index: int, prompt: str, world) -> dict[str, dict]:
    """All searches of one prompt: {"algorithm/selector/budget": {"learned", "oracle", "nfe", ...}}."""
    from noise_search.host.engine import ComfyEngine
    from noise_search.host.sampling import Sampling

    model, encode, vae, judges = world
    latent = {"samples": torch.zeros(1, 16, 16, 16)}
    positive, negative = encode(prompt), encode("")
    sampling = Sampling.ksampler(model, STEPS, CFG, SAMPLER, SCHEDULER, positive, negative, latent)
    engine = RememberingEngine(ComfyEngine(sampling, vae, judges, prompt))
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
    from noise_search.host.verifier import load_demo_verifier

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--part", type=int, default=0, help="with --parts: measure every so many prompts only")
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--file", type=Path, default=MEASURED)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    if not options.report:
        measure_all(options)
    report(options)


def report(options):
    pass


if __name__ == "__main__":
    main()
