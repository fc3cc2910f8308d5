"""Best-of-N on the published rewards of a real model: what selection is worth, in seconds and without a GPU.

The data are rewards that three verifiers gave to real FLUX.1-dev images, published with TTSnap (arXiv 2511.22242) and
not part of this project: an .npz of float arrays `image_reward`, `pick_score`, `hps_v2`, each [prompts, seeds, steps],
whose last step is the final image. The searches are the pack's own: `RandomSearch`, its budget, log and
aggregators.

    python benchmarks/replay.py --data flux_rewards.npz

A gain is the final score of the selected image minus the mean over all seeds of that prompt, over their standard
deviation. The mean is also what stock gives on average, so this is the expected gain over stock. Confidence intervals
are bootstrapped over prompts. "exact" is the expectation over all subsets of N seeds, from order statistics; "if
Gaussian" is what Gaussian scores would give. Real scores give less where they have a ceiling, which shows as a negative
skewness: most of the spread is in the failures, and the best images of a prompt score about the same.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import _pack  # noqa: F401
import numpy as np
import torch
from noise_search.search.aggregate import Aggregator, order
from noise_search.search.algorithms.random_search import RandomSearch
from noise_search.search.budget import Budget
from noise_search.search.comparisons import Sight
from noise_search.search.engine import Recipes, Rendered
from noise_search.search.ledger import Ledger
from noise_search.search.log import Pool, SearchLog
from noise_search.search.recipe import Recipe
from noise_search.search.run import search as run_search

VERIFIERS = ("image_reward", "pick_score", "hps_v2")
BUDGETS = (1, 2, 4, 8, 16, 32, 64)
CROSS_BUDGET = 16
BOOTSTRAPS = 4000


class ReplayEngine:
    """Implements `search.engine.Engine` on recorded rewards: the recipe's seed picks the image.

    rewards: [seeds, steps, members], the last step being the final image. orders: members of which only the order of
    their rewards is used, as that of a judge that compares. Independent seeds only: no moves, no segments, no drafts,
    one row.
    """

    rows = 1
    chunk = 1
    parts = ()

    def __init__(self, rewards: torch.Tensor, members: Sequence[str], orders: Sequence[str] = ()):
        self.rewards = rewards
        self.members = tuple(members)
        self.comparative = tuple(column for column, name in enumerate(members) if name in orders)
        self.steps = rewards.shape[1]
        self.ledger = Ledger()

    def render(self, candidates: Sequence[Recipes]) -> Iterator[Rendered]:
        for recipes in candidates:
            [recipe] = recipes
            if recipe != Recipe.from_seed(recipe.seed):
                raise ValueError(f"recorded rewards know seeds alone, not {recipe}")
            values = self.rewards[recipe.seed % len(self.rewards), -1:].clone()
            looks = {column: [float(values[0, column])] for column in self.comparative}
            values[:, list(self.comparative)] = math.nan
            nfe, results = self.steps, (recipe.seed,)
            yield Rendered(recipes, values, nfe=nfe, nfe_per_row=nfe, results=results, looks=partial(dict, looks))

    def remake(self, recipes: Recipes) -> Rendered:
        return next(self.render([recipes]))

    def asks(self, column: int) -> tuple[str, str]:
        return f"recorded order of {self.members[column]}", "Which is better?"

    def compare(self, column: int, row: int, first: Sight, second: Sight) -> float:
        apart = first.look(column, row) - second.look(column, row)
        return 0.5 + 0.5 * (apart > 0) - 0.5 * (apart < 0)


def search(engine: ReplayEngine, seed: int, candidates: int, aggregator: Aggregator | None = None) -> SearchLog:
    """One Random Search from `seed`; the pool keeps no pictures, as there are none."""
    log = SearchLog(engine.members, engine.rows, aggregator or Aggregator())
    return run_search(RandomSearch(), engine, Pool(log, keep=0), seed, Budget(candidates)).log


def standardised(final: torch.Tensor) -> torch.Tensor:
    """[prompts, seeds, ...] minus the mean over seeds, over their standard deviation (0 where that is 0)."""
    deviation = final.std(dim=1, keepdim=True, correction=0)
    return torch.where(deviation > 0, (final - final.mean(dim=1, keepdim=True)) / deviation, 0.0)


def expected_best(values: torch.Tensor, n: int) -> torch.Tensor:
    """The mean over all subsets of n of the largest value. values: [..., seeds]; returns [...].

    The i-th smallest of `seeds` values (i from 1) is the largest of C(i - 1, n - 1) of the C(seeds, n) subsets.
    """
    count = values.shape[-1]
    total = math.comb(count, n)
    weights = torch.tensor([math.comb(i, n - 1) / total for i in range(count)], dtype=torch.float64)
    return values.to(torch.float64).sort(dim=-1).values @ weights


def expected_best_gaussian(n: int) -> float:
    """The mean of the largest of n standard normal numbers: the integral of x n phi(x) Phi(x)^(n - 1)."""
    x = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    normal = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    return float(torch.trapezoid(x * n * normal.log_prob(x).exp() * normal.cdf(x) ** (n - 1), x))


def interval(per_prompt: torch.Tensor, generator: torch.Generator) -> tuple[float, float]:
    """The 95 % bootstrap interval over prompts of the mean of [prompts]."""
    picks = torch.randint(len(per_prompt), (BOOTSTRAPS, len(per_prompt)), generator=generator)
    low, high = per_prompt[picks].mean(dim=1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def shuffled(rewards: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The rewards [seeds, ...] in another order, so that consecutive seeds are a random subset."""
    return rewards[torch.randperm(len(rewards), generator=generator)]


def own_gains(
    rewards: torch.Tensor, name: str, repeats: int, generator: torch.Generator
) -> dict[int, tuple[int, torch.Tensor]]:
    """(NFE of a search, gain per prompt [prompts]) of best-of-N by one verifier on itself, for each N.

    rewards: [prompts, seeds, steps]. Each repeat splits the seeds anew into disjoint subsets of N, one search each.
    """
    prompts, seeds = rewards.shape[:2]
    mean = rewards[:, :, -1].mean(dim=1)
    deviation = rewards[:, :, -1].std(dim=1, correction=0)
    gains = {}
    for n in [n for n in BUDGETS if n <= seeds]:
        total = torch.zeros(prompts, dtype=torch.float64)
        for prompt in range(prompts):
            best = []
            for _ in range(repeats):
                engine = ReplayEngine(shuffled(rewards[prompt], generator)[:, :, None], [name])
                ends = [search(engine, seed, n).curve()[-1] for seed in range(0, seeds - n + 1, n)]
                best += [score for _, _, score in ends]
            total[prompt] = sum(best) / len(best)
        nfe = ends[0][0]
        gains[n] = nfe, torch.where(deviation > 0, (total - mean) / deviation, 0.0)
    return gains


def cross_gains(
    rewards: torch.Tensor, names: Sequence[str], n: int, repeats: int, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Gain per prompt and member [prompts, members] of best-of-n, selected by each member alone and by ensembles.

    rewards: [prompts, seeds, steps, members].
    """
    prompts, seeds, _, members = rewards.shape
    rules = {
        name: Aggregator(weights=tuple(float(m == member) for m in range(members))) for member, name in enumerate(names)
    }
    if members > 1:
        rules["mean rank of all"] = Aggregator("mean_rank")
        rules["z-score of all"] = Aggregator("z_score")
    final = standardised(rewards[:, :, -1])
    gains = {rule: torch.zeros(prompts, members, dtype=torch.float64) for rule in rules}
    for prompt in range(prompts):
        starts = list(range(0, seeds - n + 1, n))
        for _ in range(repeats):
            permutation = torch.randperm(seeds, generator=generator)
            engine = ReplayEngine(rewards[prompt, permutation], names)
            for start in starts:
                log = search(engine, start, n)
                for rule, aggregator in rules.items():
                    winner = order(aggregator(log.values()))[0]
                    [recipe] = log.candidates[winner].recipes
                    gains[rule][prompt] += final[prompt, permutation[recipe.seed]] / (len(starts) * repeats)
    return gains


def load(path: Path, names: Sequence[str]) -> torch.Tensor:
    """The rewards as float64 [prompts, seeds, steps, members]; exits with a sentence if they are not in the file."""
    if not path.is_file():
        raise SystemExit(f"no such file: {path}. Give the rewards' .npz with --data.")
    with np.load(path, allow_pickle=False) as arrays:
        for name in names:
            if name not in arrays:
                raise SystemExit(f"{path} has no array {name!r}; it has {', '.join(arrays)}")
            if arrays[name].ndim != 3:
                raise SystemExit(f"{name} in {path} has shape {arrays[name].shape}, expected [prompts, seeds, steps]")
        return torch.stack([torch.from_numpy(arrays[name].astype(np.float64)) for name in names], dim=-1)


def measure(rewards: torch.Tensor, names: Sequence[str], repeats: int, seed: int) -> dict:
    """Everything that the tables show, as plain numbers."""
    generator = torch.Generator().manual_seed(seed)
    z = standardised(rewards[:, :, -1])
    prompts, seeds, _, members = rewards.shape
    result: dict = {"prompts": prompts, "seeds": seeds, "repeats": repeats, "best_of_n": {}, "cross": {}}
    for member, name in enumerate(names):
        rows = []
        for n, (nfe, gain) in own_gains(rewards[..., member], name, repeats, generator).items():
            low, high = interval(gain, generator)
            exact = float(expected_best(z[..., member], n).mean())
            gaussian = expected_best_gaussian(n)
            own = {"gain": float(gain.mean()), "low": low, "high": high}
            rows.append({"n": n, "nfe": nfe, **own, "exact": exact, "gaussian": gaussian})
        skewness, kurtosis = float((z[..., member] ** 3).mean()), float((z[..., member] ** 4).mean())
        top = float(z[..., member].amax(dim=1).mean())
        result["best_of_n"][name] = {"rows": rows, "skewness": skewness, "kurtosis": kurtosis, "mean_maximum": top}
    n = min(CROSS_BUDGET, seeds)
    result["cross_n"] = n
    for rule, gain in cross_gains(rewards, names, n, repeats, generator).items():
        intervals = [interval(gain[:, member], generator) for member in range(members)]
        result["cross"][rule] = {
            name: {"gain": float(gain[:, member].mean()), "low": intervals[member][0], "high": intervals[member][1]}
            for member, name in enumerate(names)
        }
    return result


def show(result: dict) -> None:
    print(
        f"{result['prompts']} prompts x {result['seeds']} seeds; gain in within-prompt standard deviations, "
        f"mean [95 % interval over prompts]"
    )
    names = list(result["best_of_n"])
    print("\nRandom Search by NFE, each verifier judged by itself")
    print(f"{'N':>4}  {'NFE':>6}" + "".join(f"{name:>26}" for name in names))
    for rows in zip(*(table["rows"] for table in result["best_of_n"].values()), strict=True):
        print(f"{rows[0]['n']:>4}  {rows[0]['nfe']:>6,}" + "".join(map(cell, rows)))
    for name, table in result["best_of_n"].items():
        print(f"\nBest of N by {name}, judged by itself")
        print(f"{'N':>4}  {'gain':>6}  {'95 % interval':>16}  {'exact':>6}  {'if Gaussian':>11}")
        for row in table["rows"]:
            print(
                f"{row['n']:>4}  {row['gain']:>+6.3f}  [{row['low']:+.3f}, {row['high']:+.3f}]  {row['exact']:>+6.3f}"
                f"  {row['gaussian']:>+11.3f}"
            )
        print(
            f"      shape of the rewards: skewness {table['skewness']:+.2f}, kurtosis {table['kurtosis']:.2f} "
            f"(Gaussian 0 and 3); best of all {result['seeds']} is {table['mean_maximum']:+.2f} on average"
        )
    print(f"\nBest of {result['cross_n']}, selected by the row, judged by the column")
    print(f"{'selected by':<18}" + "".join(f"{name:>26}" for name in names))
    for rule, columns in result["cross"].items():
        print(f"{rule:<18}" + "".join(map(cell, columns.values())))


def cell(gain: dict) -> str:
    """A gain with its interval, as wide as its column."""
    text = f"{gain['gain']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
    return f"{text:>26}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the .npz of rewards")
    parser.add_argument("--verifier", choices=(*VERIFIERS, "all"), default="all")
    parser.add_argument("--repeats", type=int, default=1, help="how often the seeds are split anew into subsets")
    parser.add_argument("--seed", type=int, default=0, help="of the subsets and of the bootstrap")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    options = parser.parse_args(arguments)
    names = VERIFIERS if options.verifier == "all" else (options.verifier,)
    start = time.perf_counter()
    result = measure(load(options.data, names), names, max(options.repeats, 1), options.seed)
    show(result)
    print(f"\n{time.perf_counter() - start:.1f} s")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)  # the tensors are tiny
    raise SystemExit(main())
