"""A whole search, from a node's inputs to its outputs."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.sd1_clip
import numpy as np
import torch

from ..search.log import Candidate, Pool, SearchLog
from ..search.random_search import random_search, run
from ..search.recipe import to_json
from ..version import __version__
from .engine import ComfyEngine, Result, join_rows
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
) -> SearchResult:
    """Random Search over `candidates` noises. Raises ValueError on inputs that cannot be searched."""
    prompt, source = verifier_prompt(typed_prompt, verifier, graph, prompt_behind)
    log_to_console.info("Noise Search: the verifier reads %r (from %s)", prompt, source)
    sampling = make_sampling()
    if sampling.steps == 0 and candidates > 1:
        log_to_console.warning("Noise Search: nothing to sample (no steps or denoise 0), so there is one candidate")
        candidates = 1
    progress = SearchProgress(sampling.model, candidates, sampling.steps, graph.node_id)
    engine = ComfyEngine(sampling, vae, verifier, prompt, progress.step)
    settings = {**sampling.settings, "seed": seed, "candidates": candidates, "prompt": prompt, "prompt_from": source}
    log = SearchLog(engine.members, engine.rows, algorithm="random search", settings=settings, host=host_info())
    pool = Pool(log, keep=min(top_k, candidates))
    try:
        run(random_search(engine, seed, candidates), engine, pool, lambda *seen: progress.candidate(*tell(*seen)))
    finally:
        progress.close()
    result = collect(pool, sampling)
    write_metadata(result, prompt, graph)
    return result


def tell(pool: Pool, candidate: Candidate) -> tuple[str, torch.Tensor | None]:
    """One line about the search so far, and the best image [H, W, C] if this candidate is it."""
    log = pool.log
    best = log.best()
    scores = log.scores()
    text = (
        f"{candidate.index + 1} of {log.settings.get('candidates', '?')} · "
        f"best {scores[best.index]:.4g} (candidate {best.index}) · stock {scores[0]:.4g}"
    )
    return text, pool.top(0)[0].image[0] if best.index == candidate.index else None


def collect(pool: Pool, sampling: Sampling) -> SearchResult:
    """The winners of every row, put together as one batch."""
    log = pool.log
    ranks: list[list[Result]] = [list(pool.top(rank)) for rank in range(min(pool.keep, len(log.candidates)))]
    best = ranks[0]
    recipes = log.winners()
    return SearchResult(
        latent={**sampling.latent, "samples": join_rows([result.samples for result in best])},
        denoised={**sampling.latent, "samples": join_rows([result.denoised for result in best])},
        image=torch.cat([result.image for result in best]),
        noise=RecipeNoise(recipes),
        seed=recipes[0].seed,
        recipe=to_json(recipes),
        log=log,
        top_images=[torch.cat([result.image for result in rank]) for rank in ranks],
    )


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
