"""What Search Picture costs beside the workflow that it searches.

    COMFYUI_PATH=/path/to/ComfyUI python benchmarks/picture.py

One real ComfyUI on the CPU, with the embedded model; candidates of about a second. In turns, with seeds of their own:

1. the stock workflow, queued once per candidate with the next seed, and Search Picture with as many candidates. Both
   score every picture (in the stock workflow Verifier Score does), and show what they score or choose.
2. Search KSampler with batch_size 1 on the same work.

Ratios are of neighbours, by wall time: the median of all turns and its 95 % interval by bootstrap. Then in servers of
their own: the peak of resident memory with 32 pictures of 24 MB by that with 4; the time from Cancel in the middle of a
candidate to the end of the prompt, by that of a step; and what is computed when the same is queued again, with more
candidates, and after the server was killed in the middle of a search.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import statistics
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import _pack  # noqa: F401  (finds what the benchmarks share)
from _server import comfy_server, finish, wall_seconds
from graphs import base, node
from resident_memory import GIVE_BACK, PEAK, resident

MOST_TO_STOCK, MOST_TO_FUSED, MOST_MEMORY = 1.03, 1.05, 1.05
SIDE = 1448  # pixels: 24 MB
FEW, MANY = 4, 32


def sampling(seed: int, steps: int) -> dict[str, Any]:
    schedule = {"steps": steps, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple"}
    sockets = {"model": ["demo", 0], "positive": ["positive", 0], "negative": ["negative", 0]}
    return {**sockets, **schedule, "seed": seed, "latent_image": ["latent", 0], "denoise": 1.0}


def workflow(seed: int, steps: int) -> dict[str, Any]:
    sampler = node("KSampler", **sampling(seed, steps))
    return {**base(), "sampler": sampler, "decode": node("VAEDecode", samples=["sampler", 0], vae=["demo", 2])}


def stock(seed: int, steps: int) -> dict[str, Any]:
    score = node("NoiseSearchVerifierScore", image=["decode", 0], verifier=["demo", 3], prompt="")
    return {**workflow(seed, steps), "score": score, "show": node("PreviewAny", source=["score", 1])}


def picture(seed: int, steps: int, candidates: int, side: int = 0) -> dict[str, Any]:
    """Search Picture, on a picture enlarged to `side` where it is not 0."""
    graph, source = workflow(seed, steps), ["decode", 0]
    if side:
        graph["larger"] = node(
            "ImageScale", image=source, upscale_method="nearest-exact", width=side, height=side, crop="disabled"
        )
        source = ["larger", 0]
    widgets = {"candidates": candidates, "prompt": "", "top_k": 1, "vary": "the first stage"}
    graph["search"] = node("NoiseSearchPicture", image=source, verifier=["demo", 3], **widgets)
    return graph | {"show": node("PreviewAny", source=["search", 1])}


def fused(seed: int, steps: int, candidates: int) -> dict[str, Any]:
    widgets = {"candidates": candidates, "prompt": "", "top_k": 1, "batch_size": 1}
    search = node("NoiseSearchKSampler", **sampling(seed, steps), vae=["demo", 2], verifier=["demo", 3], **widgets)
    return {**base(), "search": search, "show": node("PreviewAny", source=["search", 3])}


def costs(options: argparse.Namespace) -> list[tuple[str, bool]]:
    """The time of a candidate by the stock workflow's, and by Search KSampler's."""
    steps, candidates = options.steps, options.candidates
    to_stock, to_fused, seconds = [], [], []
    with comfy_server(threads=1) as server:
        for graph in (stock(1, steps), picture(1, steps, 2), fused(1, steps, 2)):  # what happens once
            finish(server, graph)
        for turn in range(options.turns):
            seed = 1000 * (turn + 1)
            ways = {
                "stock": lambda seed=seed: [stock(seed + number, steps) for number in range(candidates)],
                "picture": lambda seed=seed: [picture(seed + 100, steps, candidates)],
                "fused": lambda seed=seed: [fused(seed + 200, steps, candidates)],
            }
            order = [*ways]
            random.Random(turn).shuffle(order)
            took = {name: sum(wall_seconds(finish(server, graph)) for graph in ways[name]()) for name in order}
            to_stock.append(took["picture"] / took["stock"])
            to_fused.append(took["picture"] / took["fused"])
            seconds.append(took["stock"] / candidates)
    print(f"a candidate of the stock workflow takes {statistics.median(seconds):.2f} s; {options.turns} turns")
    promises = []
    for name, ratios, most in (
        ("the stock workflow queued again", to_stock, MOST_TO_STOCK),
        ("Search KSampler with batch_size 1", to_fused, MOST_TO_FUSED),
    ):
        median, (low, high) = statistics.median(ratios), interval(ratios)
        promises.append((f"{median:.3f} [{low:.3f}, {high:.3f}] x {name}, at most {most}", median <= most))
    return promises


def interval(values: list[float]) -> tuple[float, float]:
    """The 95 % interval of the median, by bootstrap."""
    draws = random.Random(0)
    medians = sorted(statistics.median(draws.choices(values, k=len(values))) for _ in range(2000))
    return medians[49], medians[1949]


def memory() -> list[tuple[str, bool]]:
    peaks = []
    for candidates in (FEW, MANY):
        with mock.patch.dict(os.environ, GIVE_BACK), comfy_server(threads=1) as server:
            process = Path("/proc", str(server.process.pid))
            finish(server, picture(1, 2, 2, SIDE))
            (process / "clear_refs").write_text("5")
            finish(server, picture(100, 2, candidates, SIDE))
            peaks.append(resident(process)[PEAK])
    ratio = peaks[1] / peaks[0]
    text = f"{MANY} pictures of 24 MB take {ratio:.3f} x what {FEW} take at the peak, at most {MOST_MEMORY}"
    return [(text, ratio <= MOST_MEMORY)]


def cancel(server: Any) -> list[tuple[str, bool]]:
    steps = 400
    whole = wall_seconds(finish(server, picture(1, steps, 1)))
    times: list[float] = []

    def interrupt() -> None:
        time.sleep(whole * 1.5)  # in the middle of the second candidate
        times.append(time.monotonic())
        server.post("/interrupt", {})

    thread = threading.Thread(target=interrupt)
    thread.start()
    run = server.run(picture(2, steps, 20), seconds=600)
    took = time.monotonic() - times[0]
    thread.join()
    step = whole / steps
    kept = run.status == "interrupted" and took <= step + 0.25
    return [(f"Cancel took {took:.3f} s, a step takes {step:.3f} s (at most 0.25 s more)", kept)]


def again(server: Any, steps: int) -> list[tuple[str, bool]]:
    """What is computed of what is known."""
    server.post("/noise_search/store", {"enabled": True})
    graph = picture(5000, steps, 6)
    finish(server, graph)
    second = finish(server, graph)
    ran = [data["node"] for data in second.of_type("executing") if data.get("node")]
    promises = [(f"queued again, {len(ran)} nodes run", not ran)]
    known = recalled(finish(server, picture(5000, steps, 9)))
    promises.append((f"with 9 candidates in place of 6, {known} are known", known == 6))
    before = stored(server.home)  # all seeds of one workflow are one entry in the list of searches
    thread = threading.Thread(target=lambda: (time.sleep(8), server.process.kill()))
    thread.start()
    with suppress(ConnectionError, OSError, TimeoutError):
        server.run(picture(6000, steps, 40), seconds=120)
    thread.join()
    server.process.wait()
    made = stored(server.home) - before
    server.__enter__()
    known = recalled(finish(server, picture(6000, steps, made + 2)))
    promises.append((f"killed after {made} candidates, {known} are known", known == made > 0))
    return promises


def recalled(run: Any) -> int:
    """How many candidates a search knew, by what its node says."""
    found = re.search(r"(\d+) of (\d+) candidates w", run.outputs["search"]["text"][0])
    return int(found[1]) if found else 0


def stored(home: Path) -> int:
    """How many candidates the store has."""
    import sqlite3

    [file] = (home / "user" / "__noise_search").glob("*.sqlite3")
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
        return connection.execute("SELECT count(*) FROM entries").fetchone()[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--candidates", type=int, default=3)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--only", choices=["costs", "memory", "cancel", "again"])
    options = parser.parse_args()
    promises = []
    if options.only in (None, "costs"):
        promises += costs(options)
    if options.only in (None, "memory"):
        promises += memory()
    if options.only in (None, "cancel", "again"):
        with comfy_server(threads=1) as server:
            promises += cancel(server) if options.only != "again" else []
            promises += again(server, options.steps) if options.only != "cancel" else []
    for promise, kept in promises:
        print(f"{'kept' if kept else 'MISSED'}: {promise}")
    return 0 if all(kept for _, kept in promises) else 1


if __name__ == "__main__":
    raise SystemExit(main())
