"""What a search costs beside the denoiser: Search KSampler against the stock graph and against the model calls alone.

    COMFYUI_PATH=/path/to/ComfyUI python benchmarks/overhead.py
    COMFYUI_PATH=/path/to/ComfyUI python benchmarks/overhead.py --size flux --dynamic-vram off      # needs a GPU

One real ComfyUI server runs whole prompts in turn: Search KSampler (automatic batches, and one candidate at a time);
the stock graph that does the same (Noise Candidates -> KSampler -> VAEDecode -> Verifier Score -> Best-of-N Select);
and a node that calls the denoiser as often, on the same batches and sigmas, and does nothing else. Loaders are cached
before, and every repeat has seeds of its own, so that nothing else comes from the cache. Ratios are of neighbouring
prompts: the median of all repeats, and their range.

(a) the search, from the start of its prompt to the end, by the stock graph. (b) its sampling (noise, sampler,
progress bar, the trial and the winner's second render included) by the denoiser calls of the same runs; and, for
information, the whole search by the denoiser calls of its candidates alone. The phases say where the time goes.
Verifier Score shows every image, which the stock graph pays for and the search does not.

--size demo is the embedded model on the CPU. --size flux builds FLUX.1-dev's architecture, its VAE and a ViT-H/14
verifier with random weights on a GPU, in bf16 or fp8, 1024x1024, and compares peak VRAM too; that full size has not
been run yet. --size tiny runs the same code with a tiny transformer and verifier on any machine, where the ratios mean
nothing. Automatic batches begin at 34 candidates: with fewer, both ways sample one at a time.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import _pack
from _server import comfy_server, finish, wall_seconds
from graphs import PROMPT, base, node

AUTOMATIC, ALONE, STOCK = "automatic batches", "one at a time", "stock graph"
BATCHES = {AUTOMATIC: 0, ALONE: 1}  # batch_size of the node
TO_STOCK, TO_DENOISER = "whole search / stock graph", "sampling / denoiser calls"
STOCK_LIMIT, DENOISER_LIMIT = 0.9, 1.1
SAMPLING = ("sampler", "around the sampler", "progress bar")
SEEDS_APART = 10_000
VERIFIER = "benchmark"  # folder of the verifier with random weights


@dataclass(frozen=True)
class Settings:
    """What a size is measured with by default."""

    pixels: int
    steps: int
    cfg: float
    candidates: int
    weights: str = "fp32"


SIZES = {
    "demo": Settings(128, 16, 3.0, 32),
    "tiny": Settings(128, 16, 1.0, 8),
    "flux": Settings(1024, 20, 1.0, 16, "bf16"),
}


@dataclass
class Measured:
    """One prompt: its wall time, the time of each (reason, phase), the sampler's runs, and the picture it saved."""

    wall: float
    seconds: dict[tuple[str, str], float]
    runs: list[tuple[str, int, int]]
    vram: int
    picture: bytes
    denoiser: list[float] = field(default_factory=list)

    def of(self, *phases: str, why: str | None = None) -> float:
        return sum(
            value for (reason, phase), value in self.seconds.items() if phase in phases and why in (None, reason)
        )

    def raw(self) -> dict[str, Any]:
        seconds = {f"{why}: {phase}": value for (why, phase), value in self.seconds.items()}
        return {"wall": self.wall, "seconds": seconds, "runs": self.runs, "denoiser": self.denoiser}

    def denoising(self, why: str | None = None) -> float:
        """The denoiser calls alone, of all runs or of those for one reason."""
        runs = zip(self.denoiser, self.runs, strict=True)
        return sum(seconds for seconds, (reason, _, _) in runs if why in (None, reason))

    def phases(self) -> dict[str, float]:
        """Seconds of the whole prompt, each counted once."""
        parts = {
            **{phase: self.of(phase, why="candidates") for phase in SAMPLING},
            "probe of batches": self.of(*SAMPLING, why="probe"),
            "winner rendered again": sum(value for (why, _), value in self.seconds.items() if why == "winner"),
            "decode": self.of("decode", why="candidates"),
            "score": self.of("score", why="candidates"),
            "previews and text": self.of("previews and text", why="candidates"),
            "log and order": self.of("log and order", why="candidates"),
        }
        return parts | {"rest of the prompt": self.wall - sum(parts.values())}


class Bench:
    """The graphs of one size, and the server that runs them."""

    def __init__(self, server, options: argparse.Namespace):
        self.server, self.options = server, options
        self.repeat = 0

    def base(self) -> dict[str, Any]:
        pixels = self.options.pixels
        if self.options.size == "demo":
            return base(size=pixels)
        return {
            "models": node("NoiseSearchBenchmarkModels", size=self.options.size, weights=self.options.weights),
            "verifier": node("NoiseSearchCLIPScore", model_name=VERIFIER, precision="auto", architecture=""),
            "latent": node("EmptySD3LatentImage", width=pixels, height=pixels, batch_size=1),
        }

    def sockets(self) -> dict[str, list]:
        if self.options.size == "demo":
            return {"model": ["demo", 0], "positive": ["positive", 0], "negative": ["negative", 0]}
        return {"model": ["models", 0], "positive": ["models", 1], "negative": ["models", 1]}

    def judging(self) -> tuple[list, list]:
        """The sockets of the VAE and of the verifier."""
        return (["demo", 2], ["demo", 3]) if self.options.size == "demo" else (["models", 2], ["verifier", 0])

    def sampling(self, seed: Any) -> dict[str, Any]:
        options = self.options
        sampler = {"steps": options.steps, "cfg": options.cfg, "sampler_name": "euler", "scheduler": options.scheduler}
        return {**self.sockets(), "seed": seed, **sampler, "latent_image": ["latent", 0], "denoise": 1.0}

    def fused(self, seed: int, candidates: int, batch_size: int) -> dict[str, Any]:
        vae, verifier = self.judging()
        search = node(
            "NoiseSearchKSampler",
            **self.sampling(seed),
            vae=vae,
            verifier=verifier,
            candidates=candidates,
            prompt=PROMPT,
            top_k=1,
            batch_size=batch_size,
        )
        return self.base() | {"search": search, "save": save(["search", 1])}

    def stock(self, seed: int, candidates: int) -> dict[str, Any]:
        vae, verifier = self.judging()
        return self.base() | {
            "noises": node("NoiseSearchCandidates", seed=seed, count=candidates, angle=18.0),
            "sample": node("KSampler", **self.sampling(["noises", 1])),
            "decode": node("VAEDecode", samples=["sample", 0], vae=vae),
            "score": node("NoiseSearchVerifierScore", image=["decode", 0], verifier=verifier, prompt=PROMPT),
            "best": node("NoiseSearchBestOfN", scores=["score", 0], k=1, image=["decode", 0]),
            "save": save(["best", 0]),
        }

    def denoiser(self, runs: list[tuple[str, int, int]]) -> list[float]:
        """Seconds of the denoiser calls of each of these runs."""
        self.repeat += 1
        settings = self.sampling(0)
        for name in ("seed", "sampler_name", "denoise"):
            del settings[name]
        wanted = json.dumps([[rows, steps] for _, rows, steps in runs])
        alone = node("NoiseSearchBenchmarkDenoiser", **settings, runs=wanted, repeat=self.repeat)
        run = finish(self.server, self.base() | {"alone": alone})
        return json.loads(run.outputs["alone"]["seconds"][0])

    def measure(self, graph: dict[str, Any]) -> Measured:
        self.measured()
        run = finish(self.server, graph)
        answer = self.measured()
        [picture] = self.server.images(run, "save")
        return Measured(
            answer["all"] if self.options.processor_time else wall_seconds(run),
            {(why, phase): value for why, phase, value in answer["seconds"]},
            [tuple(one) for one in answer["runs"]],
            answer["vram"],
            picture.tobytes(),
        )

    def measured(self) -> dict[str, Any]:
        kind = "processor" if self.options.processor_time else "wall"
        return self.server.get(f"/noise_search_benchmark/measured?kind={kind}")


def save(source: list) -> dict[str, Any]:
    return node("SaveImage", images=source, filename_prefix="benchmark")


def prepare_verifier(home: Path, size: str) -> None:
    """Writes a CLIP with random weights where CLIP Score finds it: ViT-H/14, or a tiny one."""
    import open_clip
    import torch
    from safetensors.torch import save_file
    from tiny_clips import OPEN_CLIP_CONFIG

    config = open_clip.get_model_config("ViT-H-14") if size == "flux" else OPEN_CLIP_CONFIG
    folder = home / "models" / "verifiers" / VERIFIER
    folder.mkdir(parents=True)
    model = open_clip.CLIP(**config)
    kind = torch.float16 if size == "flux" else torch.float32
    weights = {name: tensor.to("cpu", kind) for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every repeat in turn: [Measured] for each of the batches and for the stock graph, and what they ran on."""
    arguments = ["--disable-dynamic-vram"] if options.dynamic_vram == "off" else []
    prepare = None if options.size == "demo" else functools.partial(prepare_verifier, size=options.size)
    results: dict[str, Any] = {name: [] for name in (*BATCHES, STOCK)}
    with comfy_server(*arguments, threads=options.threads, gpu=options.size == "flux", prepare=prepare) as server:
        bench = Bench(server, options)
        few = min(options.candidates, 9)  # enough for batches
        for graph in (bench.fused(1, few, 0), bench.stock(1, 2), bench.fused(2, 2, 1)):
            bench.denoiser(bench.measure(graph).runs[:2])
        results["device"] = bench.measured()["device"]
        results["comfyui"] = server.get("/system_stats")["system"]["comfyui_version"]
        for repeat in range(options.repeats):
            seed = SEEDS_APART * (repeat + 1)
            for name, batch_size in BATCHES.items():
                results[name].append(bench.measure(bench.fused(seed, options.candidates, batch_size)))
                results[name][-1].denoiser = bench.denoiser(results[name][-1].runs)
                if name == AUTOMATIC:
                    results[STOCK].append(bench.measure(bench.stock(seed, options.candidates)))
            print(f"repeat {repeat + 1} of {options.repeats}", file=sys.stderr, flush=True)
    return results


def tables(results: dict[str, Any]) -> dict[str, Any]:
    """ratios: {batches: {ratio: spread}}; phases: {column: {phase: its share of the search}}, and the like."""
    stock = results[STOCK]
    ratios = {name: compare(results[name], stock) for name in BATCHES}
    phases = {name: shares(results[name], results[name]) for name in BATCHES}
    phases[STOCK] = shares(stock, results[AUTOMATIC])
    return {
        "ratios": ratios,
        "phases": phases,
        "denoiser": {
            name: statistics.median(one.denoising("candidates") / one.wall for one in results[name]) for name in BATCHES
        },
        "stock sampling": spread(
            [one.of(*SAMPLING) / other.denoising() for one, other in zip(stock, results[ALONE], strict=True)]
        ),
        "same picture": {
            name: sum(one.picture == other.picture for one, other in zip(results[name], stock, strict=True))
            for name in BATCHES
        },
        "vram": {name: max(one.vram for one in results[name]) for name in (*BATCHES, STOCK)},
        "batches": [[rows for why, rows, _ in one.runs if why == "candidates"] for one in results[AUTOMATIC]],
    }


def compare(searches: list[Measured], stock: list[Measured]) -> dict[str, dict[str, float]]:
    return {
        TO_STOCK: spread([one.wall / other.wall for one, other in zip(searches, stock, strict=True)]),
        TO_DENOISER: spread([one.of(*SAMPLING) / one.denoising() for one in searches]),
        "its candidates' sampling alone": spread(
            [one.of(*SAMPLING, why="candidates") / one.denoising("candidates") for one in searches]
        ),
        "whole search / denoiser calls": spread([one.wall / one.denoising("candidates") for one in searches]),
    }


def spread(ratios: list[float]) -> dict[str, float]:
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def shares(measured: list[Measured], searches: list[Measured]) -> dict[str, float]:
    """The median share of each phase in the time of the search."""
    each = [
        {phase: seconds / search.wall for phase, seconds in one.phases().items()}
        for one, search in zip(measured, searches, strict=True)
    ]
    return {phase: statistics.median(one[phase] for one in each) for phase in each[0]}


def show(table: dict[str, Any], options: argparse.Namespace) -> None:
    def row(name: str, cells: list[str]) -> None:
        print(f"{name:<34}" + "".join(f"{cell:>28}" for cell in cells))

    columns = list(table["ratios"])
    row("median [lowest, highest]", columns)
    for ratio in table["ratios"][columns[0]]:
        found = [table["ratios"][name][ratio] for name in columns]
        row(ratio, [f"{one['median']:.3f} [{one['low']:.3f}, {one['high']:.3f}]" for one in found])
    print()
    columns = list(table["phases"])
    row("% of the search's time", [*columns[:-1], f"{columns[-1]} *"])
    for phase in table["phases"][columns[-1]]:
        row(phase, [f"{100 * table['phases'][name][phase]:.1f}" for name in columns])
    row("sum", [f"{100 * sum(value for value in table['phases'][name].values()):.1f}" for name in columns])
    row("denoiser calls of the candidates", [f"{100 * value:.1f}" for value in table["denoiser"].values()])
    print("* of the time of the search with automatic batches")
    print()
    own = table["stock sampling"]
    print(f"the stock graph's own sampling / denoiser calls: {own['median']:.3f} [{own['low']:.3f}, {own['high']:.3f}]")
    print(f"automatic batches, one repeat after another: {table['batches']}")
    print(f"repeats with the stock graph's very picture: {table['same picture']} of {options.repeats}")
    if any(table["vram"].values()):
        peaks = ", ".join(f"{name} {peak / table['vram']['stock graph']:.3f}" for name, peak in table["vram"].items())
        print(f"peak VRAM by the stock graph's: {peaks}")


def check(table: dict[str, Any]) -> list[tuple[str, bool]]:
    """What the search promises, and whether it holds."""
    promises = []
    for name, ratios in table["ratios"].items():
        for ratio, limit in ((TO_STOCK, STOCK_LIMIT), (TO_DENOISER, DENOISER_LIMIT)):
            median = ratios[ratio]["median"]
            if name == AUTOMATIC or ratio == TO_DENOISER:  # one at a time, the model calls are those of the stock graph
                promises.append((f"{ratio}, {name}: {median:.3f}, at most {limit:.2f}", median <= limit))
    return promises


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), help="demo, or flux where there is a GPU")
    parser.add_argument("--flux", dest="size", action="store_const", const="flux", help="the same as --size flux")
    parser.add_argument("--candidates", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--cfg", type=float)
    parser.add_argument("--scheduler", default="simple")
    parser.add_argument("--pixels", type=int, help="of the pictures' sides")
    parser.add_argument("--weights", choices=["fp32", "bf16", "fp8"], help="of the random model")
    parser.add_argument("--dynamic-vram", choices=["on", "off"], default="on", help="on: where ComfyUI has it")
    parser.add_argument("--threads", type=int, help="OMP_NUM_THREADS of the server: 1, or all with flux")
    parser.add_argument(
        "--processor-time", action="store_true", help="instead of wall time: for a busy machine, with --threads 1"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, default=_pack.ROOT / ".cache" / "overhead.json", help="figures")
    options = parser.parse_args()
    if options.size is None:
        import torch

        options.size = "flux" if torch.cuda.is_available() else "demo"
    if options.threads is None:  # small models gain little, and lose much where other programs run
        options.threads = os.cpu_count() if options.size == "flux" else 1
    for name, value in asdict(SIZES[options.size]).items():
        if getattr(options, name) is None:
            setattr(options, name, value)

    results = measure(options)
    table = tables(results)
    promises = check(table) if options.size != "tiny" else []
    settings = {name: value for name, value in vars(options).items() if name != "json"}
    print(f"{results['device']}, ComfyUI {results['comfyui']}, {settings}")
    show(table, options)
    for text, kept in promises:
        print(f"{'PASS' if kept else 'FAIL'}  {text}")
    raw = {name: [one.raw() for one in results[name]] for name in (*BATCHES, STOCK)}
    record = {"settings": settings, **table, "promises": dict(promises), "prompts": raw}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(record) + "\n")
    return 0 if all(kept for _, kept in promises) else 1


if __name__ == "__main__":
    sys.exit(main())
