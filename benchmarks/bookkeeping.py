"""What a candidate costs beside its sampling and scoring, by how many candidates there are.

    COMFYUI_PATH=/path/to/ComfyUI python benchmarks/bookkeeping.py

Searches of 128 and of 2,048 candidates in turn, with an engine that has the candidates ready, small pictures included:
what is left is the run, the ledger, the log and its order, the pool, the progress bar with its text and, in a column
of its own, what Search KSampler does with the result. Prints milliseconds per candidate, the median of some repeats
[lowest, highest], and the ratio of the two sizes, which should be 1; the ratio is what
can be compared between machines.
The store's own writing is in `benchmarks/store.py`; here candidates are remembered in memory.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import _pack  # noqa: F401  makes `noise_search` importable
import torch

if "comfy" not in sys.modules:
    if "COMFYUI_PATH" not in os.environ:
        raise SystemExit("Set COMFYUI_PATH to a ComfyUI folder: progress and metadata are told to it.")
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    from comfy.cli_args import args as comfy_args

    comfy_args.cpu = True  # before comfy.model_management is imported

import comfy.utils  # noqa: E402
from noise_search.host.graph.graph import Graph  # noqa: E402
from noise_search.host.progress import SearchProgress  # noqa: E402
from noise_search.host.result import collect  # noqa: E402
from noise_search.host.sampling.engine import Result  # noqa: E402
from noise_search.host.search import write_metadata  # noqa: E402
from noise_search.search.aggregate import Aggregator  # noqa: E402
from noise_search.search.algorithms.random_search import RandomSearch  # noqa: E402
from noise_search.search.budget import Budget  # noqa: E402
from noise_search.search.engine import Recipes, Rendered  # noqa: E402
from noise_search.search.ledger import Cost, Ledger  # noqa: E402
from noise_search.search.log import Pool, SearchLog  # noqa: E402
from noise_search.search.remember import Notes, RememberingEngine  # noqa: E402
from noise_search.search.run import search  # noqa: E402

SMALL, LARGE, ROWS, STEPS, TOP_K = 128, 2048, 4, 8, 4
ENSEMBLES = {
    "one verifier": Aggregator(weights=(1.0, 0.0)),
    "mean rank": Aggregator("mean_rank"),
    "z-score": Aggregator("z_score"),
    "one verifier, gate": Aggregator(weights=(1.0, 0.0), gates=(None, 0.0)),
}


class Ready:
    """An engine whose candidates are there already; it takes its own time."""

    members = ("first", "second")
    rows, steps, chunk, parts = ROWS, STEPS, 1, ()

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.generator = torch.Generator().manual_seed(0)
        self.picture = torch.randint(0, 256, (ROWS, 24, 24, 3), generator=self.generator, dtype=torch.uint8)
        latent, image = torch.zeros(1, 4, 8, 8), torch.zeros(1, 64, 64, 3)
        self.results = [Result(latent, latent, image)] * ROWS
        self.seconds = 0.0

    def render(self, candidates: Sequence[Recipes]) -> Iterator[Rendered]:
        for recipes in candidates:
            begun = time.process_time()
            self.ledger.spend(Cost(ROWS * STEPS, {"sample": 0.1}))
            self.ledger.answer()
            whole = recipes[0].for_items(ROWS) if len(recipes) == 1 else recipes
            values = torch.rand(ROWS, len(self.members), generator=self.generator)
            seconds = {"sample": 0.1}
            made = Rendered(whole, values, ROWS * STEPS, STEPS, seconds, self.results, self.picture.clone())
            self.seconds += time.process_time() - begun
            yield made

    def remake(self, recipes: Recipes) -> Rendered:
        return next(self.render([recipes]))


def measure(aggregator: Aggregator, candidates: int) -> tuple[float, float]:
    """Seconds per candidate beside the engine: during the search, and for what comes after it."""
    latent = {"samples": torch.zeros(ROWS, 4, 8, 8)}
    model = SimpleNamespace(load_device=torch.device("cpu"), model=SimpleNamespace(latent_format=None))
    sampling = SimpleNamespace(
        steps=STEPS, rows=ROWS, evaluations=SimpleNamespace(rows=0), model=model, latent=latent, ratios={}
    )
    engine = Ready()
    log = SearchLog(engine.members, ROWS, aggregator, usual_ranges=((0.0, 1.0), (0.0, 1.0)))
    pool, progress = Pool(log, TOP_K), SearchProgress(sampling, candidates, "1")
    begun = time.process_time()
    remembering = RememberingEngine(engine, Notes())
    search(RandomSearch(), remembering, pool, 0, Budget(candidates), progress.candidate)
    progress.finished()
    during = time.process_time() - begun - engine.seconds
    begun = time.process_time()
    result = collect(pool, sampling)
    progress.end(result.image[0], result.text)
    write_metadata(result, "a prompt", Graph("1", {"1": {"class_type": "x", "inputs": {}}}, {"workflow": {}}))
    after = time.process_time() - begun
    progress.close()
    assert len(log.candidates) == candidates
    return during / candidates, after / candidates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    comfy.utils.PROGRESS_BAR_ENABLED = False  # what a console makes of its bar is its own
    print(f"torch {torch.__version__}, {ROWS} rows, ms per candidate")
    print(f"{'':20} {SMALL:>22,} {LARGE:>22,} {'ratio':>18} {'per row':>8} {'after, at the largest':>22}")
    for name, aggregator in ENSEMBLES.items():
        measure(aggregator, SMALL)
        small, large, after = [], [], []
        for _ in range(repeats):
            small.append(1000 * min(measure(aggregator, SMALL)[0] for _ in range(3)))
            during, rest = measure(aggregator, LARGE)
            large.append(1000 * during)
            after.append(1000 * rest)
        ratios = [one / other for one, other in zip(large, small, strict=True)]
        columns = [f"{statistics.median(x):.3f} [{min(x):.3f}, {max(x):.3f}]" for x in (small, large, ratios)]
        per_row = statistics.median(large) / ROWS
        print(f"{name:20} {columns[0]:>22} {columns[1]:>22} {columns[2]:>18} {per_row:8.3f} {max(after):22.3f}")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
