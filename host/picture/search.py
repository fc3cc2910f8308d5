"""A search of a picture, from a node's inputs to its outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch

from ...search.algorithm import Algorithm
from ...search.algorithms.random_search import RandomSearch
from ...search.algorithms.replay import ReplayRecipe
from ...search.algorithms.zero_order import ZeroOrderSearch
from ...search.budget import Budget
from ...search.engine import Recipes
from ...search.judges import judges_of
from ...search.log import Pool
from ...search.recipe import Recipe, to_json
from ...search.remember import work_name
from ...verifiers.console import logger
from ..attempts import Attempts
from ..graph.again import carried, made_again
from ..graph.finish import finishable
from ..graph.graph import Graph
from ..graph.verifier_prompt import prompt_notes, verifier_prompts
from ..memory.key import files_behind, read_picture
from ..memory.remembered import Remembered
from ..memory.store import Store, StoredMemory
from ..progress import SearchProgress, outcome, send_text
from ..result import Found, ranked_recipes
from ..sampling.engine import Options
from ..search import handed_on
from ..versions import host_info
from .engine import PictureEngine, PictureResult
from .workflow import Workflow

log_to_console = logger(__name__)


@dataclass(frozen=True)
class PictureFound(Found):
    """images: one batch for each picture of a list. extras: what else was asked for, each a list like the pictures."""

    extras: list[list[Any]]


def search_picture(
    workflow: Workflow,
    verifier: Any,
    candidates: int,
    typed_prompts: Sequence[str | None],
    top_k: int,
    graph: Graph,
    algorithm: Algorithm | None = None,
    budget: Budget | None = None,
    options: Options | None = None,
    drop_bad: bool = False,
    store: Store | None = None,
    notes: Sequence[str] = (),
) -> PictureFound:
    """A search worth `candidates` pictures of the workflow, or less where `budget` says so.

    typed_prompts: what stands at the node's prompt, one or a list. notes: what the user should know. Raises
    ValueError on what cannot be searched.
    """
    judges, options = judges_of(verifier), options or Options()
    told = verifier_prompts(typed_prompts, judges, graph, "image")
    prompts = [one.text for one in told]
    log_to_console.info("Noise Search: the verifier reads %r (from %s)", told[0].text, told[0].source)
    algorithm = algorithm or RandomSearch()
    check(algorithm, workflow)
    seed, first = workflow.seed, first_of(algorithm, workflow.seed)
    candidates = 1 if isinstance(algorithm, ReplayRecipe) else candidates
    notes = [*notes, *prompt_notes(told, judges, graph, "image"), *judges.cuts(prompts)]
    files = cache(lambda: files_behind(graph.prompt, graph.node_id))
    remembered = Remembered(
        lambda before: read_picture(
            workflow.content(), workflow.models(), judges, prompts, options.frames, host_info(), files(), before
        ),
        notes=notes,
    )
    with finishable(graph) as finish:
        attempts = Attempts(
            workflow, partial(make_engine, workflow, prompts, first), judges, "\n".join(prompts), told[0].source, seed,
            top_k, graph.user_id, options, drop_bad, finish, remembered, notes,
        )  # fmt: skip
        try:
            with remembered.opened(store, prompts[0], algorithm.name):
                winners = None if isinstance(algorithm, ReplayRecipe) else carried(graph, seed, judges.scored, notes)
                if winners is None:
                    workflow.learn_layout(known_recipes(remembered.memory, workflow.steps, first))
                    pool = attempts.run(algorithm, replace(budget or Budget(), candidates=candidates))
                else:
                    workflow.learn_layout(winners.recipes[0])
                    wanted = top_k if graph.uses("top_images") else 1
                    pool = made_again(winners, wanted, partial(can_come_from, candidates), attempts.run, notes)
        except BaseException as error:  # ComfyUI will say that the job failed
            send_text(remembered.what_is_left(error), graph.user_id)
            raise
    return handed_on(pool, lambda: collect(pool, workflow), attempts, winners, prompts[0], graph)


def make_engine(
    workflow: Workflow,
    prompts: Sequence[str],
    first: Recipes,
    judges: Any,
    prompt: str,
    progress: SearchProgress,
    candidates: int,
    options: Options,
    finish: Callable[[], bool],
) -> PictureEngine:
    return PictureEngine(workflow, prompts, first, judges, progress.evaluation, options, finish)


def check(algorithm: Algorithm, workflow: Workflow) -> None:
    """Raises ValueError where an algorithm cannot do anything with a whole workflow, before anything is sampled."""
    if not isinstance(algorithm, (RandomSearch, ZeroOrderSearch, ReplayRecipe)):
        raise ValueError(
            f"{algorithm.name} goes into the sampler's steps, and Search Picture runs a workflow as a whole. Use "
            "Random Search (leave 'search' open) or Zero-Order Search here, or Search KSampler in the sampler's place."
        )
    recipes = algorithm.recipes if isinstance(algorithm, ReplayRecipe) else ()
    if any(recipe.jumps for recipe in recipes):
        raise ValueError(
            "the recipe goes back up in noise while it is sampled (Search over Paths), and Search Picture runs a "
            "workflow as a whole. Replay it with Search KSampler in the sampler's place."
        )
    turned = isinstance(algorithm, ZeroOrderSearch) or any(recipe.moves for recipe in recipes)
    if turned and (why := workflow.turns()):
        raise ValueError(f"{algorithm.name} turns noises, and {why}. Use Random Search (leave 'search' open).")


def first_of(algorithm: Algorithm, seed: int) -> Recipes:
    """The recipes that a search begins with."""
    return algorithm.recipes if isinstance(algorithm, ReplayRecipe) else (Recipe.from_seed(seed),)


def known_recipes(memory: StoredMemory | None, steps: int, first: Recipes) -> Recipes | None:
    """The complete recipes of the first candidate, where it is known or complete."""
    if len(first) > 1:
        return first
    known = memory.candidate(work_name(steps, "whole", first)) if memory is not None else None
    return None if known is None else known.recipes


def can_come_from(candidates: int, recipe: Recipe) -> bool:
    """Guards against recipes from strangers: False for one with more moves than a search of this many candidates can
    have made, or with jumps."""
    return len(recipe.moves) <= candidates and not recipe.jumps


def collect(pool: Pool, workflow: Workflow) -> PictureFound:
    """The winners of every row, put together as the workflow gives them; its output nodes are run for them."""
    layout, log = workflow.layout, pool.log
    assert layout is not None
    ranks: list[list[PictureResult]] = [list(pool.top(rank)) for rank in range(min(pool.keep, len(log.of_stage())))]
    extras = [one.extras for one in ranks[0]]
    workflow.save(extras)
    columns = list(zip(*extras, strict=True))[: len(workflow.part.targets) - 1]
    recipes = log.winners()
    return PictureFound(
        images=pictures(workflow, ranks[0]),
        seed=recipes[0].seed,
        recipe=to_json(recipes),
        log=log,
        top_images=[image for rank in ranks for image in pictures(workflow, rank)],
        top_recipes=ranked_recipes(log, len(ranks)),
        text=outcome(log),
        extras=[layout.join(column) for column in columns],
    )


def pictures(workflow: Workflow, results: Sequence[PictureResult]) -> list[torch.Tensor]:
    assert workflow.layout is not None
    images = [result.image for result in results]
    return images if workflow.layout.together else workflow.layout.join(images)
