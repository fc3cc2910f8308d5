"""What remembering costs and saves: the same search without the store, with an empty one, and with all known.

    COMFYUI_PATH=/path/to/ComfyUI python benchmarks/store.py

Interleaved repeats in one run on the demo model; medians with the lowest and highest. Also what one candidate takes on
disk and how long it takes to write, and how long the key of a search takes. A minute on one core.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import _pack  # noqa: F401  makes `noise_search` importable
import torch

if "comfy" not in sys.modules:
    if "COMFYUI_PATH" not in os.environ:
        raise SystemExit("Set COMFYUI_PATH to a ComfyUI folder: the demo model runs inside it.")
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    from comfy.cli_args import args as comfy_args

    comfy_args.cpu = True  # before comfy.model_management is imported

from noise_search.host.demo import load_generator  # noqa: E402
from noise_search.host.graph.graph import Graph  # noqa: E402
from noise_search.host.judging.hosted import load_demo_verifier  # noqa: E402
from noise_search.host.memory.key import search_key  # noqa: E402
from noise_search.host.memory.store import Store  # noqa: E402
from noise_search.host.sampling.engine import Options  # noqa: E402
from noise_search.host.sampling.stock import Sampling  # noqa: E402
from noise_search.host.search import run_node  # noqa: E402
from noise_search.host.versions import host_info  # noqa: E402

PROMPT = "a red circle above a blue square"
CANDIDATES, STEPS, SIDE = 16, 16, 16


class World:
    """The demo model with one prompt."""

    def __init__(self) -> None:
        self.model, clip, self.vae = load_generator()
        encode = lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text))  # noqa: E731
        self.conditioning = encode(PROMPT), encode("")
        self.verifier = load_demo_verifier()

    def sampling(self) -> Sampling:
        latent = {"samples": torch.zeros(1, 16, SIDE, SIDE)}
        return Sampling.ksampler(self.model, STEPS, 3.0, "euler", "simple", *self.conditioning, latent)

    def seconds(self, store: Store | None) -> float:
        """The seconds of a whole search, one candidate at a time."""
        started = time.perf_counter()
        run_node(
            self.sampling, self.vae, self.verifier, 0, CANDIDATES, PROMPT, 1, Graph(), "positive",
            options=Options(batch_size=1), store=store,
        )  # fmt: skip
        return time.perf_counter() - started

    def key_seconds(self) -> float:
        """The seconds of the key, once the weights have been read."""
        sampling, versions = self.sampling(), host_info()
        started = time.perf_counter()
        search_key(sampling, self.vae, self.verifier, PROMPT, 8, versions)
        return time.perf_counter() - started


@torch.inference_mode()
def main(repeats: int) -> None:
    torch.set_num_threads(1)
    world, rows = World(), []
    world.seconds(None)  # loads everything
    with tempfile.TemporaryDirectory() as folder:
        for number in range(repeats):
            store = Store(Path(folder, str(number)))
            none, empty, known = world.seconds(None), world.seconds(store), world.seconds(store)
            rows.append((empty / none, known / none))
        size = store.overview()["searches"][0]["bytes"] / CANDIDATES
        print(f"a search of {CANDIDATES} candidates, by the same without a store; {repeats} repeats")
        for name, ratios in zip(("nothing known", "all known"), zip(*rows, strict=True), strict=True):
            print(f"  {name}: {statistics.median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}]")
        print(f"  on disk: {size / 1024:.1f} KB a candidate (a picture of {8 * SIDE}x{8 * SIDE})")
        print(f"  the key of a search: {1000 * world.key_seconds():.1f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    main(parser.parse_args().repeats)
