"""Random Search on an analytic landscape, and what drives every search."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from noise_search.search.aggregate import Aggregator
from noise_search.search.algorithms.paths import SearchOverPaths
from noise_search.search.algorithms.random_search import RandomSearch
from noise_search.search.algorithms.replay import ReplayRecipe
from noise_search.search.budget import Budget
from noise_search.search.log import Pool, SearchLog
from noise_search.search.recipe import Recipe
from noise_search.search.run import search as run_search
from synthetic import SHAPE, SyntheticEngine, smooth, tilted, white

SEEDS = st.integers(0, 2**64 - 1)


def search(engine, seed=0, candidates=8, keep=1, method="mean_rank", on_candidate=None):
    pool = Pool(SearchLog(engine.members, engine.rows, Aggregator(method)), keep)
    return run_search(RandomSearch(), engine, pool, seed, Budget(candidates), on_candidate)


@given(SEEDS, st.integers(1, 6))
def test_candidate_j_is_the_stock_run_with_seed_plus_j(seed, candidates):
    pool = search(SyntheticEngine(), seed, candidates)
    assert [candidate.recipes for candidate in pool.log.candidates] == [
        (Recipe.from_seed(seed + j),) for j in range(candidates)
    ]


def test_seeds_wrap_at_the_end_of_the_range():
    pool = search(SyntheticEngine(), 2**64 - 2, 4)
    assert [candidate.recipes[0].seed for candidate in pool.log.candidates] == [2**64 - 2, 2**64 - 1, 0, 1]


@given(SEEDS, st.integers(1, 6))
def test_the_budget_is_spent_exactly(seed, candidates):
    engine = SyntheticEngine(rows=2, steps=7)
    pool = search(engine, seed, candidates)
    assert len(engine.rendered) == candidates
    assert pool.log.nfe == candidates * 2 * 7


@given(SEEDS)
def test_the_same_seed_gives_the_same_search(seed):
    first, second = (search(SyntheticEngine(smooth, tilted, rows=2), seed).log.to_dict() for _ in range(2))
    assert first == second


@given(SEEDS)
def test_a_longer_search_begins_with_the_shorter_one(seed):
    short, long = (search(SyntheticEngine(), seed, n).log.candidates for n in (3, 6))
    assert short == long[:3]


@given(SEEDS, st.integers(1, 3))
def test_the_winners_recipes_rebuild_the_winners(seed, rows):
    pool = search(SyntheticEngine(smooth, rows=rows), seed)
    for row, (winner, result) in enumerate(zip(pool.log.winners(), pool.top(0), strict=True)):
        [noise] = winner.noise((rows, *SHAPE))
        assert torch.equal(noise, result)
        assert smooth(noise) == pytest.approx(max(pool.log.scores(row).tolist()), abs=1e-6)


def test_a_batch_is_several_searches_at_once():
    pool = search(SyntheticEngine(smooth, rows=3), seed=1, candidates=12)
    winners = {pool.log.best(row).index for row in range(3)}
    assert len(winners) > 1
    for row in range(3):
        scores = [smooth(Recipe.from_seed(1 + j).noise((3, *SHAPE))[row]) for j in range(12)]
        assert pool.log.best(row).index == scores.index(max(scores))


@given(SEEDS, st.integers(1, 3))
def test_a_rank_based_search_ends_with_the_results_of_its_best(seed, keep):
    engine = SyntheticEngine(smooth, tilted, white, rows=2)
    pool = search(engine, seed, 10, keep)
    for rank in range(keep):
        for row, result in enumerate(pool.top(rank)):
            recipe = pool.log.candidates[pool.log.order(row)[rank]].recipes[row]
            assert torch.equal(recipe.noise((2, *SHAPE))[0], result)
    assert pool.log.nfe == len(engine.rendered) * 2 * engine.steps


def test_more_candidates_are_better():
    engine = SyntheticEngine(smooth)
    best = [best for _, _, best in search(engine, 0, 256).log.curve()]
    assert best[0] < best[15] < best[255]


def test_the_caller_sees_every_candidate_as_it_is_logged():
    seen = []
    search(SyntheticEngine(), 0, 3, on_candidate=lambda run, one: seen.append((one.index, len(run.log.candidates))))
    assert seen == [(0, 1), (1, 2), (2, 3)]


def test_a_search_is_stopped_by_an_exception_between_candidates_and_keeps_what_it_has():
    class Stop(Exception):
        pass

    def stop(run, candidate):
        if candidate.index == 2:
            raise Stop

    engine = SyntheticEngine()
    pool = Pool(SearchLog(engine.members))
    with pytest.raises(Stop):
        run_search(RandomSearch(), engine, pool, 0, Budget(100), stop)
    assert (len(engine.rendered), len(pool.log.candidates), len(pool.top(0))) == (3, 3, 1)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("algorithm", [RandomSearch(), SearchOverPaths()], ids=lambda algorithm: algorithm.name)
def test_a_recipe_makes_its_candidate_again_whatever_the_budget(algorithm, rows):
    engine = SyntheticEngine(smooth, rows=rows)
    found = run_search(algorithm, engine, Pool(SearchLog(engine.members, rows)), 0, Budget(24))
    for recipes in {candidate.recipes: None for candidate in found.log.of_stage()}:
        again = run_search(ReplayRecipe(recipes), engine, Pool(SearchLog(engine.members, rows)), 1, Budget(1, nfe=1))
        [candidate] = again.log.candidates
        original = next(one for one in found.log.of_stage() if one.recipes == recipes)
        assert (candidate.recipes, candidate.values) == (original.recipes, original.values)


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    search(SyntheticEngine(smooth, white, rows=2))
    assert torch.equal(torch.get_rng_state(), before)
