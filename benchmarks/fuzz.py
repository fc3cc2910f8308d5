"""Reads a hundred thousand random, damaged and hostile recipes, and counts what became of them.

    python benchmarks/fuzz.py
    COMFYUI_PATH=/path/to/ComfyUI python benchmarks/fuzz.py     also by the nodes, and workflows that carry recipes

Ends with an error at the first that is neither a recipe that comes back as it was nor refused with a sentence. A minute
or two. The routes have tests of their own.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import _pack

sys.path.append(str(_pack.ROOT / "tests" / "support"))
import fuzzing  # noqa: E402
from noise_search.search.recipe import RecipeError, from_json, to_json  # noqa: E402

LONGEST_SENTENCE = 500
GRAPH = {"7": {"class_type": "NoiseSearchKSampler", "inputs": {"seed": 1}}}


def read(text: str) -> str:
    """What becomes of a text where a recipe is expected."""
    try:
        recipes = from_json(text)
    except RecipeError as error:
        assert len(str(error)) < LONGEST_SENTENCE
        return "refused"
    assert from_json(to_json(recipes)) == recipes
    return "read"


def by_the_nodes():
    """A function that gives a text to both nodes that take a recipe, as ComfyUI does."""
    from noise_search.nodes.graph import NoiseFromRecipe
    from noise_search.nodes.searches import Replay

    def read(text: str) -> str:
        try:
            for kind in (NoiseFromRecipe, Replay):
                kind.execute(recipe=text)
        except ValueError as error:
            assert len(str(error)) < LONGEST_SENTENCE
            return "refused by a node"
        return "taken by the nodes"

    return read


def workflows(count: int, seed: int) -> Counter[str]:
    """Reads workflows in which the part that carries the winners is damaged, or all of it."""
    from noise_search.host.graph import travel
    from noise_search.search.recipe import Recipe

    good: dict = {"nodes": [], "extra": {"ds": {}}}
    winners = travel.Winners(((Recipe(1),), (Recipe(2),)), ((0.5, 0.25),))
    travel.leave(good, GRAPH, "7", 0, winners)
    parts = [
        lambda workflow: workflow,
        lambda workflow: workflow["extra"],
        lambda workflow: workflow["extra"]["noise_search"]["7"],
        lambda workflow: workflow["extra"]["noise_search"]["7"]["runs"][0],
    ]
    found: Counter[str] = Counter()
    for number, part in enumerate(parts):
        for workflow in fuzzing.workflows(count // len(parts), seed + number, good, part):
            usable = travel.find(workflow, GRAPH, "7", 0) is not None
            found["workflows with a winner" if usable else "workflows without"] += 1
            travel.leave(workflow, GRAPH, "7", 0, winners)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    readers, counts, slowest = [read], Counter[str](), 0.0
    if comfy := os.environ.get("COMFYUI_PATH"):
        sys.path.insert(0, comfy)
        from comfy.cli_args import args

        args.cpu = True
        readers.append(by_the_nodes())
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # whatever is written where it should not be is seen here
        for text in fuzzing.recipe_texts(options.count, options.seed):
            for reader in readers:
                start = time.perf_counter()
                counts[reader(text)] += 1
                slowest = max(slowest, time.perf_counter() - start)
        if len(readers) > 1:
            counts += workflows(options.count // 5, options.seed)
        written = [path.name for path in Path(folder).rglob("*")]
        os.chdir(home)
    for name, count in counts.items():
        print(f"{count:8} {name}")
    print(f"{slowest:8.2f} seconds at most for one\n{len(written):8} files written {written or ''}")
    if written:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
