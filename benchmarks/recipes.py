"""What making the noise of a latent batch again costs, by the size of the batch.

    python benchmarks/recipes.py

A latent of FLUX's size (16 x 128 x 128), recipes of 10 moves. *shared*: the items went the same way; *apart*: every
item has moves of its own, as after a search that chose for each item by itself; *next*: the candidate after those, one
move on, as a search makes it; *one row*: a single item of the batch.
Prints times as ratios to a batch of one, the median of some repeats [lowest, highest]. The times themselves say little
about another machine.
"""

from __future__ import annotations

import statistics
import time

import _pack  # noqa: F401 - makes the pack importable
import torch
from noise_search.search.recipe import Kept, Recipe, Rotate, noises

MOVES, REPEATS, SHAPE = 10, 5, (16, 128, 128)


def recipes(kind: str, batch: int) -> list[Recipe]:
    """One recipe for each item; for one row, one."""
    items = []
    for row in range(batch):
        first = 1 + (row * MOVES if kind in ("apart", "next") else 0)
        moves = tuple(Rotate(seed, 18.0) for seed in range(first, first + MOVES))
        items.append(Recipe(0, moves, row, batch))
    return items[-1:] if kind == "one row" else items


def seconds(kind: str, batch: int) -> float:
    items, kept = recipes(kind, batch), Kept(2**27)
    if kind == "next":
        noises(items, (batch, *SHAPE), kept=kept)
        items = [item.then(Rotate(10_000, 18.0)) for item in items]
    begun = time.perf_counter()
    noises(items, (batch, *SHAPE), kept=kept)
    return time.perf_counter() - begun


def main() -> None:
    torch.set_num_threads(1)
    sizes = {"shared": (2, 4, 16), "apart": (2, 4, 16), "next": (2, 4, 16), "one row": (4, 16)}
    seconds("shared", 1)
    print(f"torch {torch.__version__}, {MOVES} moves, latent {SHAPE}; time by that of a batch of one")
    for kind, batches in sizes.items():
        for batch in batches:
            ratios = []
            for _ in range(REPEATS):
                one = seconds(kind, 1)
                ratios.append(seconds(kind, batch) / one)
            print(f"{kind:8} {batch:4}  {statistics.median(ratios):6.1f} [{min(ratios):.1f}, {max(ratios):.1f}]")


if __name__ == "__main__":
    main()
