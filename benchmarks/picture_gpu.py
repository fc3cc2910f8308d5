"""Search Picture on a card: memory, loads, Cancel and running out of memory, in a workflow of two stages.

    COMFYUI_PATH=/path/to/ComfyUI python benchmarks/picture_gpu.py --size flux      # needs a GPU
    COMFYUI_PATH=/path/to/ComfyUI python benchmarks/picture_gpu.py                  # the same code, tiny, anywhere

FLUX.1-dev's architecture, its VAE and a ViT-H/14 verifier with random weights (`--size tiny`: small ones, on the CPU):
KSampler, a latent upscale, KSampler with denoise 0.5, VAE Decode. The workflow is queued as often as Search Picture
then has candidates, with the verifier's score of each picture, so that the same networks are needed in the same turn.

Wanted: peak VRAM at most 1.05 x the queue's; no network loaded more often than there; Cancel within one sampling step;
and a candidate that runs out of memory once is made again. The full size has not been run yet.
"""

from __future__ import annotations

import argparse
import functools
import threading
import time
from typing import Any

import _pack  # noqa: F401  (finds what the benchmarks share)
from _server import comfy_server, finish, wall_seconds
from graphs import PROMPT, node
from overhead import VERIFIER, prepare_verifier, save

PIXELS = {"tiny": 128, "flux": 1024}
MOST_MEMORY = 1.05


def workflow(options: argparse.Namespace, seed: int, steps: int | None = None, out_of_memory_at: int = 0) -> dict:
    """The two stages, up to the picture at `picture`."""
    pixels = PIXELS[options.size]
    sampler = {"steps": steps or options.steps, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    sockets = {"model": ["models", 0], "positive": ["models", 1], "negative": ["models", 1], **sampler}
    return {
        "models": node("NoiseSearchBenchmarkModels", size=options.size, weights=options.weights),
        "verifier": node("NoiseSearchCLIPScore", model_name=VERIFIER, precision="auto", architecture=""),
        "latent": node("EmptySD3LatentImage", width=pixels, height=pixels, batch_size=1),
        "first": node("KSampler", seed=seed, latent_image=["latent", 0], denoise=1.0, **sockets),
        "larger": node("LatentUpscaleBy", samples=["first", 0], upscale_method="bilinear", scale_by=1.25),
        "second": node("KSampler", seed=1, latent_image=["larger", 0], denoise=0.5, **sockets),
        "decode": node("VAEDecode", samples=["second", 0], vae=["models", 2]),
        "picture": node("NoiseSearchBenchmarkOutOfMemory", image=["decode", 0], at=out_of_memory_at),
    }


def queued(options: argparse.Namespace, seed: int) -> dict:
    score = node("NoiseSearchVerifierScore", image=["picture", 0], verifier=["verifier", 0], prompt=PROMPT)
    best = node("NoiseSearchBestOfN", scores=["score", 0], k=1, image=["picture", 0])
    return {**workflow(options, seed), "score": score, "best": best, "save": save(["best", 0])}


def searched(options: argparse.Namespace, seed: int, candidates: int, **more: int) -> dict:
    widgets = {"candidates": candidates, "prompt": PROMPT, "top_k": 1, "vary": "the first stage"}
    search = node("NoiseSearchPicture", image=["picture", 0], verifier=["verifier", 0], **widgets)
    return {**workflow(options, seed, **more), "search": search, "save": save(["search", 0])}


def measured(server: Any) -> dict[str, Any]:
    return server.get("/noise_search_benchmark/measured?kind=wall")


def cancelled(server: Any, options: argparse.Namespace) -> tuple[float, float]:
    """(seconds from Cancel in the middle of a candidate to the end of the prompt, seconds of one step)."""
    steps = 20 * options.steps
    whole = wall_seconds(finish(server, searched(options, 900, 1, steps=steps)))
    step = whole / (1.5 * steps)

    def cancel() -> None:
        time.sleep(whole * 1.2)  # in the second candidate
        times.append(time.monotonic())
        server.post("/interrupt", {})

    times: list[float] = []
    thread = threading.Thread(target=cancel)
    thread.start()
    run = server.run(searched(options, 901, 50, steps=steps), seconds=3600)
    took = time.monotonic() - times[0]
    thread.join()
    if run.status != "interrupted":
        raise SystemExit(f"The search ended with {run.status}: {run.error}")
    return took, step


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(PIXELS), default="tiny")
    parser.add_argument("--weights", choices=["fp32", "bf16", "fp8"])
    parser.add_argument("--candidates", type=int, default=6)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--dynamic-vram", choices=["on", "off"], default="on", help="on: where ComfyUI has it")
    options = parser.parse_args()
    options.weights = options.weights or ("fp32" if options.size == "tiny" else "bf16")
    arguments = ["--disable-dynamic-vram"] if options.dynamic_vram == "off" else []
    promises = []
    prepare = functools.partial(prepare_verifier, size=options.size)
    with comfy_server(*arguments, gpu=options.size == "flux", prepare=prepare) as server:
        measured(server)
        finish(server, queued(options, 1))  # whatever happens once
        finish(server, searched(options, 1, 2))
        measured(server)
        queue = [finish(server, queued(options, 100 + number)) for number in range(options.candidates)]
        stock = measured(server)
        search = finish(server, searched(options, 200, options.candidates))
        ours = measured(server)
        print(f"{ours['device']}, {options.size}, {options.candidates} candidates of two stages")
        print(f"queue {sum(map(wall_seconds, queue)):.1f} s, Search Picture {wall_seconds(search):.1f} s")
        if stock["vram"]:
            ratio = ours["vram"] / stock["vram"]
            promises.append((f"peak VRAM {ratio:.3f} x the queue's, at most {MOST_MEMORY}", ratio <= MOST_MEMORY))
        loads = ours["loads"], stock["loads"]
        promises.append((f"{loads[0]} loads of networks, the queue {loads[1]}", loads[0] <= loads[1]))
        took, step = cancelled(server, options)
        promises.append((f"Cancel took {took:.2f} s, a step {step:.2f} s (and 0.5 s)", took <= step + 0.5))
        measured(server)
        run = finish(server, searched(options, 300, options.candidates, out_of_memory_at=2))
        [text] = run.outputs["search"]["text"]
        made = len(run.outputs["search"]["images"]) == 1 and f"{options.candidates} candidates" in text
        promises.append(("a candidate that ran out of memory once was made again", made))
    for promise, kept in promises:
        print(f"{'kept' if kept else 'MISSED'}: {promise}")
    return 0 if all(kept for _, kept in promises) else 1


if __name__ == "__main__":
    raise SystemExit(main())
