"""A whole search, from a node's inputs to its outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any, TypeVar

from ..search.algorithm import Algorithm
from ..search.algorithms.random_search import RandomSearch
from ..search.algorithms.replay import ReplayRecipe
from ..search.budget import Budget
from ..search.judges import Judges, judges_of
from ..search.log import Pool
from ..verifiers.console import logger
from .attempts import Attempts
from .graph import metadata
from .graph.again import can_come_from, carried, made_again
from .graph.finish import ended_early, finishable
from .graph.graph import Graph
from .graph.travel import Winners
from .graph.verifier_prompt import prompt_notes, verifier_prompt
from .memory.key import files_behind, read_search
from .memory.remembered import Remembered
from .memory.store import Store
from .progress import SearchProgress, send_text
from .result import Found, SearchResult, collect
from .sampling.engine import ComfyEngine, Options
from .sampling.feasible import feasible
from .sampling.stock import Sampling
from .versions import host_info

log_to_console = logger(__name__)
F = TypeVar("F", bound=Found)


def run_node(
    make_sampling: Callable[[], Sampling],
    vae: Any,
    verifier: Any,
    seed: int,
    candidates: int,
    typed_prompt: str | None,
    top_k: int,
    graph: Graph,
    prompt_behind: str,
    algorithm: Algorithm | None = None,
    budget: Budget | None = None,
    options: Options | None = None,
    drop_bad: bool = False,
    store: Store | None = None,
) -> SearchResult:
    """A search worth `candidates` stock images, or less where `budget` says so.

    prompt_behind: the node's input behind which the prompt is looked for. algorithm: Random Search if left out.
    drop_bad: leave out candidates without a score (NaN images). store: where what is computed is kept, and looked up
    before it is computed. Raises ValueError on inputs that cannot be searched.
    """
    judges, options = judges_of(verifier), options or Options()
    sampling = make_sampling()
    sampling.check()
    told = verifier_prompt(typed_prompt, judges, graph, prompt_behind)
    log_to_console.info("Noise Search: the verifier reads %r (from %s)", told.text, told.source)
    algorithm, candidates = feasible(algorithm or RandomSearch(), candidates, sampling)
    budget = replace(budget or Budget(), candidates=candidates)
    notes = [*prompt_notes([told], judges, graph, prompt_behind), *judges.cuts([told.text])]
    files = cache(lambda: files_behind(graph.prompt, graph.node_id))
    remembered = Remembered(
        lambda before: read_search(sampling, vae, judges, told.text, options.frames, host_info(), files(), before),
        notes=notes,
    )
    with finishable(graph) as finish:
        attempts = Attempts(
            sampling, partial(make_engine, sampling, vae), judges, told.text,
            told.source, seed, top_k, graph.user_id, options, drop_bad, finish,
            remembered, notes,
        )  # fmt: skip
        try:
            with remembered.opened(store, told.text, algorithm.name):
                winners = None if isinstance(algorithm, ReplayRecipe) else carried(graph, seed, judges.scored, notes)
                if winners is None:
                    pool = attempts.run(algorithm, budget)
                else:
                    wanted = top_k if graph.uses("top_images") else 1
                    pool = made_again(
                        winners, wanted, partial(can_come_from, candidates, sampling), attempts.run, notes
                    )
        except BaseException as error:  # ComfyUI will say that the job failed
            send_text(remembered.what_is_left(error), graph.user_id)
            raise
    return handed_on(pool, lambda: collect(pool, sampling), attempts, winners, told.text, graph)


def handed_on(
    pool: Pool, collect: Callable[[], F], attempts: Attempts, winners: Winners | None, prompt: str, graph: Graph
) -> F:
    """What a search hands on once it is over: shown on the node, and left for the pictures that are saved after it.

    winners: what a saved picture found, if that was made again.
    """
    if pool.log.ended_early:
        ended_early(graph)
    pool.log.warnings += attempts.remembered.all_notes()
    for warning in pool.log.warnings:
        log_to_console.warning("Noise Search: %s", warning)
    result = collect()
    attempts.progress.end(result.images[0][0], result.text)
    if winners:  # not all of them need be made again
        result = replace(result, top_recipes=winners.recipes)
    write_metadata(result, prompt, graph)
    return result


def make_engine(
    sampling: Sampling,
    vae: Any,
    judges: Judges,
    prompt: str,
    progress: SearchProgress,
    candidates: int,
    options: Options,
    finish: Callable[[], bool],
) -> ComfyEngine:
    return ComfyEngine(sampling, vae, judges, prompt, progress.step, candidates, options, finish)


def write_metadata(result: Found, prompt: str, graph: Graph) -> None:
    """Leaves the winner's recipe for the pictures that are saved after this."""
    log = result.log
    metadata.write(
        graph,
        recipe=result.recipe,
        seed=result.seed,
        score=[log.merit(log.best(row).index, row)[1] for row in range(log.rows)],
        prompt=prompt,
        images=result.images,
        ranks=result.top_recipes,
        values=tuple(log.best(row).values[row] for row in range(log.rows)),
    )
