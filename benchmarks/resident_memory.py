"""Whether a longer search takes more memory: the server's resident memory for few and for many candidates.

    COMFYUI_PATH=/path/to/ComfyUI python benchmarks/resident_memory.py

Every search runs in a fresh ComfyUI on the CPU: Search KSampler on the embedded model, once at its own 128x128 for 8
and 512 candidates, and once with a VAE that enlarges every picture to 1024x1024 for 8 and 64. Two candidates are
searched first, so that what loads once is there; then the peak is set back (Linux only, where /proc lets us) and the
search runs. The larger search may take up to 5 % more, at its peak and after it. What is a matter of time is not
measured here: a few steps, and a fixed number of candidates at once.

glibc gives large blocks back to the system until it learns that they are common; from then on they come from a heap
where small blocks between them keep the freed space in the process. That comes and goes by chance (1024x1024 after 64
candidates: 1.01 to 1.12 of 8) and says nothing about what the search holds, so that limit is fixed for the server
here. `--allocator default` leaves it as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import _pack
from _server import comfy_server, finish
from graphs import base, node

LIMIT = 1.05
SEARCHES = {"128x128": (0, 8, 512), "1024x1024": (1024, 8, 64)}  # enlarged to; fewest and most candidates
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
PEAK, AFTER = "VmHWM", "VmRSS"  # as Linux calls them


def graph(seed: int, candidates: int, size: int, options: argparse.Namespace) -> dict[str, Any]:
    """A search whose pictures are enlarged to `size`, where it is not 0."""
    larger = {"larger": node("NoiseSearchBenchmarkLargerVAE", vae=["demo", 2], size=size)} if size else {}
    search = node(
        "NoiseSearchKSampler",
        model=["demo", 0],
        seed=seed,
        steps=options.steps,
        cfg=3.0,
        sampler_name="euler",
        scheduler="simple",
        positive=["positive", 0],
        negative=["negative", 0],
        latent_image=["latent", 0],
        denoise=1.0,
        vae=["larger", 0] if size else ["demo", 2],
        verifier=["demo", 3],
        candidates=candidates,
        prompt="",
        top_k=4,
        batch_size=options.batch_size,
    )
    save = node("SaveImage", images=["search", 1], filename_prefix="benchmark")
    return base() | larger | {"search": search, "save": save}


def measure(candidates: int, size: int, options: argparse.Namespace) -> dict[str, float]:
    """Resident memory of the server's process in MiB: before, at its peak, and after the search."""
    allocator = GIVE_BACK if options.allocator == "steady" else {}
    with mock.patch.dict(os.environ, allocator), comfy_server(threads=options.threads) as server:
        process = Path("/proc", str(server.process.pid))
        finish(server, graph(1, 2, size, options))
        before = resident(process)[AFTER]
        (process / "clear_refs").write_text("5")  # sets the peak back
        finish(server, graph(1000, candidates, size, options))
        found = resident(process)
    return {"before": before, "peak": found[PEAK], "after": found[AFTER]}


def resident(process: Path) -> dict[str, float]:
    """The lines on memory in /proc/PID/status, in MiB."""
    lines = [line.split() for line in (process / "status").read_text().splitlines() if line.endswith(" kB")]
    return {name.rstrip(":"): int(kilobytes) / 1024 for name, kilobytes, _ in lines}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1, help="OMP_NUM_THREADS of the server")
    parser.add_argument("--allocator", choices=["steady", "default"], default="steady")
    parser.add_argument("--only", choices=list(SEARCHES))
    parser.add_argument("--many", type=int, help="candidates of the larger search")
    parser.add_argument("--json", type=Path, default=_pack.ROOT / ".cache" / "memory.json", help="figures")
    options = parser.parse_args()
    if not Path("/proc/self/clear_refs").exists():
        raise SystemExit("This benchmark reads the memory of a process as Linux shows it, in /proc.")

    table: dict[str, dict[int, dict[str, float]]] = {}
    promises = []
    print(f"{'resident memory, MiB':<24}{'candidates':>12}{'before':>10}{'peak':>10}{'after':>10}")
    for name in [options.only] if options.only else SEARCHES:
        size, few, many = SEARCHES[name]
        table[name] = {}
        for candidates in (few, options.many or many):
            row = table[name][candidates] = measure(candidates, size, options)
            cells = "".join(f"{value:>10.0f}" for value in row.values())
            print(f"{name:<24}{candidates:>12}{cells}", flush=True)
        small, large = table[name].values()
        for when in ("peak", "after"):
            ratio = large[when] / small[when]
            text = f"{name}, {when}: {candidates} candidates take {ratio:.3f} of what {few} take, at most {LIMIT}"
            promises.append((text, ratio <= LIMIT))
    for text, kept in promises:
        print(f"{'PASS' if kept else 'FAIL'}  {text}")
    settings = {name: value for name, value in vars(options).items() if name != "json"}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"settings": settings, "table": table, "promises": dict(promises)}) + "\n")
    return 0 if all(kept for _, kept in promises) else 1


if __name__ == "__main__":
    sys.exit(main())
