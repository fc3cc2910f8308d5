"""A whole search, from a node's inputs to its outputs."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import comfy.sd1_clip
import numpy as np
import torch

from ..search.aggregate import Aggregator
from ..search.budget import Budget
from ..search.log import Pool, SearchLog
from ..search.random_search import RandomSearch
from ..search.recipe import to_json
from ..search.replay import ReplayRecipe
from ..search.run import Algorithm
from ..search.run import search as run_search
from ..version import __version__
from .engine import ComfyEngine, Options, Result, join_rows
from .finish import ended_early, finishable
from .noise import RecipeNoise
from .progress import SearchProgress
from .prompt_text import all_nodes, find_prompt, host_input_types, host_output_names
from .sampling import Sampling
from .verifier import HostedVerifier

METADATA_KEY = "noise_search"
log_to_console = logging.getLogger(__name__)


@dataclass(frozen=True)
class Graph:
    """Where in the user's graph a node runs: what ComfyUI hands over as hidden inputs."""

    node_id: str | None = None
    prompt: Mapping[str, Any] | None = None
    extra_pnginfo: dict[str, Any] | None = None

    @classmethod
    def of(cls, hidden: Any) -> Graph:
        if hidden is None:  # outside an execution
            return cls()
        return cls(hidden.unique_id, all_nodes(hidden.dynprompt), getattr(hidden, "extra_pnginfo", None))


@dataclass(frozen=True)
class SearchResult:
    """latent, denoised: LATENT of the winners; image: [B, H, W, C]; noise: NOISE that makes the winners again;
    top_images: rank 1, 2, ... each [B, H, W, C]."""

    latent: dict[str, Any]
    denoised: dict[str, Any]
    image: torch.Tensor
    noise: RecipeNoise
    seed: int
    recipe: str
    log: SearchLog
    top_images: list[torch.Tensor]


def verifier_prompt(typed: str, verifier: HostedVerifier, graph: Graph, start: str) -> tuple[str, str]:
    """The text for the verifier and where it came from: what the user typed, or what stands behind `start`."""
    if typed.strip():
        return typed, "the prompt widget"
    if not verifier.needs_prompt:
        return "", "none needed"
    found = find_prompt(graph.prompt or {}, str(graph.node_id), start, host_output_names, host_input_types)
    return plain_text(found.text), found.source


def plain_text(text: str) -> str:
    """A ComfyUI prompt as a person reads it: without the weights in "(cat:1.2)" and without "embedding:name"."""
    parts = comfy.sd1_clip.token_weights(comfy.sd1_clip.escape_important(text), 1.0)
    text = comfy.sd1_clip.unescape_important("".join(part for part, _ in parts))
    return re.sub(r"\bembedding:\S+", "", text).strip()


def comfyui_version() -> str:
    """The host's version, or "unknown" where it does not say."""
    try:
        from comfyui_version import __version__ as version
    except ImportError:
        return "unknown"
    return version


def host_info() -> dict[str, str]:
    return {"comfyui": comfyui_version(), "noise_search": __version__, "torch": torch.__version__}


def search(
    make_sampling: Callable[[], Sampling],
    vae: Any,
    verifier: HostedVerifier,
    seed: int,
    candidates: int,
    typed_prompt: str,
    top_k: int,
    graph: Graph,
    prompt_behind: str,
    algorithm: Algorithm | None = None,
    budget: Budget | None = None,
    options: Options | None = None,
    drop_bad: bool = False,
) -> SearchResult:
    """A search worth `candidates` stock images, or less where `budget` says so.

    algorithm: Random Search if left out. drop_bad: leave out candidates without a score (NaN images). Raises ValueError
    on inputs that cannot be searched.
    """
    prompt, source = verifier_prompt(typed_prompt, verifier, graph, prompt_behind)
    log_to_console.info("Noise Search: the verifier reads %r (from %s)", prompt, source)
    sampling = make_sampling()
    algorithm = algorithm or RandomSearch()
    if isinstance(algorithm, ReplayRecipe):
        candidates = 1
    if sampling.steps == 0:
        if candidates > 1:
            log_to_console.warning("Noise Search: nothing to sample (no steps or denoise 0), so there is one candidate")
        candidates, algorithm = 1, algorithm if isinstance(algorithm, ReplayRecipe) else RandomSearch()
    budget = replace(budget or Budget(), candidates=candidates)
    progress = SearchProgress(sampling, candidates, graph.node_id)
    with finishable(graph.node_id) as finish:
        engine = ComfyEngine(sampling, vae, verifier, prompt, progress.step, candidates, options, finish)
        limits = {key: value for key, value in asdict(budget).items() if value is not None}
        settings = {**sampling.settings, "seed": seed, **limits, "prompt": prompt, "prompt_from": source}
        log = SearchLog(
            engine.members,
            engine.rows,
            getattr(verifier, "aggregator", None) or Aggregator(),
            algorithm=algorithm.name,
            settings={**settings, **algorithm.settings()},
            host=host_info(),
            usual_ranges=usual_ranges(verifier),
        )
        pool = Pool(log, keep=top_k)
        try:
            run_search(algorithm, engine, pool, seed, budget, progress.candidate, drop_bad, finish)
        finally:
            progress.close()
            engine.on_step = None  # it leads back to the engine: the models would wait for the garbage collector
    if log.early:
        ended_early(graph.node_id)
    log.extra_nfe += engine.batches.extra_nfe
    log.extra_seconds += engine.batches.extra_seconds
    for warning in log.warnings:
        log_to_console.warning("Noise Search: %s", warning)
    progress.end(pool)
    result = collect(pool, sampling)
    write_metadata(result, prompt, graph)
    return result


def usual_ranges(verifier: Any) -> tuple[tuple[float, float] | None, ...]:
    """What scores each member usually gives."""
    alike = (getattr(verifier, "usual_range", None),) * len(verifier.members)
    return getattr(verifier, "usual_ranges", alike)


def collect(pool: Pool, sampling: Sampling) -> SearchResult:
    """The winners of every row, put together as one batch."""
    log = pool.log
    ranks: list[list[Result]] = [list(pool.top(rank)) for rank in range(min(pool.keep, len(log.of_stage())))]
    best = ranks[0]
    recipes = log.winners()
    return SearchResult(
        latent={**sampling.latent, "samples": join_rows([result.samples for result in best])},
        denoised={**sampling.latent, **sampling.ratios, "samples": join_rows([result.denoised for result in best])},
        image=join_images([result.image for result in best]),
        noise=RecipeNoise(recipes),
        seed=recipes[0].seed,
        recipe=to_json(recipes),
        log=log,
        top_images=[join_images([result.image for result in rank]) for rank in ranks],
    )


def join_images(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """One batch; a single image is not copied."""
    return images[0] if len(images) == 1 else torch.cat(list(images))


def write_metadata(result: SearchResult, prompt: str, graph: Graph) -> None:
    """Puts the winner's recipe where ComfyUI's image savers find it: in the PNG's text, beside the workflow.

    ComfyUI writes it into every picture that is saved after the search, so `sha256` says which one is meant: that of
    the winner's 8-bit RGB pixels, one per image. A node that runs several times in one prompt adds an entry each time.
    """
    if graph.extra_pnginfo is None or graph.node_id is None:
        return
    entry = {
        "recipe": result.recipe,
        "seed": result.seed,
        "score": [winner["score"] for winner in result.log.to_dict()["winners"]],
        "prompt": prompt,
        "sha256": [pixels_sha256(image) for image in result.image],
    }
    searches = graph.extra_pnginfo.get(METADATA_KEY, {})
    graph.extra_pnginfo[METADATA_KEY] = {**searches, graph.node_id: [*searches.get(graph.node_id, []), entry]}


def pixels_sha256(image: torch.Tensor) -> str:
    """SHA-256 of an image [H, W, C] as ComfyUI's savers write it: 8 bits a channel, rounded down."""
    pixels = np.clip(255.0 * image.float().cpu().numpy(), 0, 255).astype(np.uint8)
    return hashlib.sha256(pixels.tobytes()).hexdigest()
