"""The winner that came with a saved picture, made again from its recipe instead of searched for."""

from __future__ import annotations

from collections.abc import Callable

from ...search.algorithm import Algorithm
from ...search.algorithms.replay import ReplayRecipe
from ...search.budget import Budget
from ...search.log import Pool
from ...search.recipe import Recipe
from ...search.winners import score_limits
from ..pictures import coarse
from ..sampling.stock import Sampling
from . import travel
from .graph import Graph
from .travel import Winners

NOT_MADE_AGAIN = "The winner that this picture's workflow carries cannot be made again"
SEARCH_AGAIN = "To search anew, change any input of this node, such as the seed."


def carried(graph: Graph, seed: int, scored: bool, notes: list[str]) -> Winners | None:
    """What a saved picture found, where this is its search. scored: whether the verifier gives scores. notes: get what
    the user should know otherwise. Raises ValueError where it cannot be used."""
    try:
        winners = graph.winners(seed, scored)
    except travel.Unusable as error:
        raise ValueError(f"{NOT_MADE_AGAIN}: {error}. {SEARCH_AGAIN}") from None
    if winners is None and (names := graph.replaced_files()):
        notes.append(f"{', '.join(names):.300} here is not what this workflow's picture was made with, so it searched.")
    return winners


def made_again(
    winners: Winners,
    wanted: int,
    possible: Callable[[Recipe], bool],
    run: Callable[[Algorithm, Budget], Pool],
    notes: list[str],
) -> Pool:
    """What a saved picture found, at the cost of its winners. Raises ValueError where they cannot be made here.

    wanted: of its ranks. possible: whether the search can have found such a recipe. run: a search within a budget.
    notes: get what the user should know.
    """
    recipes, *others = ranks = winners.recipes[:wanted]
    try:
        if not all(possible(recipe) for rank in ranks for recipe in rank):
            raise ValueError("no search of this workflow finds such a recipe")
        most = sum(1 + len(recipe.jumps) for rank in ranks for recipe in rank)  # stock runs; a jump adds up to one
        pool = run(ReplayRecipe(recipes, tuple(others)), Budget(2 * most))
    except ValueError as error:
        raise ValueError(f"{NOT_MADE_AGAIN}: {error}. {SEARCH_AGAIN}") from error
    pool.log.stopped = "the picture's own recipe was made again; change any input to search"
    if difference := _difference(winners, pool):
        notes.append(
            f"This is the winner in this workflow, but not the saved picture: {difference}. The model, another "
            f"file or its precision is not what it was. {SEARCH_AGAIN}"
        )
    return pool


def can_come_from(candidates: int, sampling: Sampling, recipe: Recipe) -> bool:
    """Guards against recipes from strangers, which may ask for thousands of draws: False for one with more moves or
    jumps than a search of this many candidates could have made."""
    evaluations = candidates * max(sampling.steps, 1)  # a move and a jump took one or more each
    return (
        max(len(recipe.moves), len(recipe.jumps)) <= evaluations
        and recipe.batch in (None, sampling.items)
        and len(recipe.batch_index or ()) <= sampling.items
    )


def _difference(winners: Winners, pool: Pool) -> str:
    """What tells the winner in the pool from the saved one, in words; "" for nothing."""
    pictures = coarse(result.image for result in pool.top(0))
    scores = pool.log.candidates[0].values
    limits = score_limits(pool.log, elsewhere=True)[0].tolist()
    return travel.difference(winners, scores, pictures, limits)
