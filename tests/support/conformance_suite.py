"""What holds for every search algorithm on every engine. `conformance` says how another engine joins."""

import json

import torch
from conformance import SEED, STEADY, same
from noise_search.search.budget import Budget
from noise_search.search.log import FINAL
from noise_search.search.recipe import Recipe, from_json, to_json


def pytest_generate_tests(metafunc):
    """Every test runs on the CASES of the module that it is collected from."""
    found = metafunc.module.CASES
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", found, ids=str)
    if "steady" in metafunc.fixturenames:  # spends its budget candidate by candidate, without plans
        metafunc.parametrize("steady", [case for case in found if case.name in STEADY], ids=str)


def story(log):
    """All that a log says, but for how long it took."""
    data = log.to_dict()
    del data["seconds"]
    for candidate in data["candidates"]:
        del candidate["seconds"]
    return data


# The budget


def test_the_budget_in_candidates_holds(case):
    log = case.found.log
    assert log.nfe - log.extra_nfe <= case.candidates * case.found.stock_nfe


def test_the_budget_in_nfe_holds(case):
    limit = int(5.5 * case.found.stock_nfe)
    log = case.search(budget=Budget(1000, nfe=limit)).log
    assert case.found.stock_nfe < log.nfe - log.extra_nfe <= limit


def test_less_than_a_candidate_is_left_unspent(steady):
    log = steady.found.log
    assert log.nfe - log.extra_nfe > (steady.candidates - 1) * steady.found.stock_nfe


def test_the_log_says_why_the_search_ended(case):
    assert case.found.log.stopped.startswith(f"the budget of {case.candidates} candidates")


# The log


def test_every_candidate_is_logged_exactly_once(case):
    found, log = case.found, case.found.log
    made, again = found.engine.answered[: len(log.candidates)], found.engine.answered[len(log.candidates) :]
    assert [candidate.recipes for candidate in log.candidates] == made
    assert len(again) <= log.rows  # the best whose results had been let go
    assert bool(again) == bool(log.extra_nfe)


def test_stock_comes_first_and_may_win(case):
    first = case.found.log.candidates[0]
    assert first.stage == FINAL
    assert first.recipes == Recipe.from_seed(SEED).for_items(case.found.log.rows)


def test_only_finished_candidates_win(case):
    log = case.found.log
    assert all(log.best(row).stage == FINAL for row in range(log.rows))


def test_the_best_score_never_falls(case):
    log = case.found.log
    for row in range(log.rows):
        scores = [score for _, _, score in log.curve(row)]
        assert scores == sorted(scores)
        assert scores[-1] == log.scores(row)[log.best(row).index]


def test_the_curve_ends_within_what_was_spent(case):
    log = case.found.log
    nfe = [nfe for nfe, _, _ in log.curve()]
    assert nfe == sorted(nfe)
    assert nfe[-1] * log.rows <= log.nfe


def test_the_log_is_strict_json(case):
    assert json.loads(json.dumps(case.found.log.to_dict(), allow_nan=False))["rows"] == case.found.log.rows


def test_no_noise_is_rendered_twice(case):
    for row in range(case.found.log.rows):
        made = [(candidate.stage, candidate.recipes[row]) for candidate in case.found.log.candidates]
        assert len(made) == len(set(made))


# Reproduction


def test_the_same_seed_gives_the_same_search(case):
    assert story(case.search().log) == story(case.found.log)


def test_another_seed_gives_another_search(case):
    ours = {candidate.values for candidate in case.found.log.candidates}
    theirs = {candidate.values for candidate in case.search(seed=SEED + 10**6).log.candidates}
    assert not ours & theirs or case.engine == "recorded rewards"


def test_the_winning_candidate_is_made_again_bit_for_bit(case):
    found, log = case.found, case.found.log
    for row, result in enumerate(found.pool.top(0)):
        best = log.best(row)
        [again] = found.engine.engine.render([best.recipes])
        assert same(again.results[row], result)
        assert again.values[row].to(torch.float32).tolist() == list(best.values[row])


def test_the_winners_recipes_make_the_winning_batch_again_bit_for_bit(case):
    found, log = case.found, case.found.log
    winners = from_json(to_json(log.winners()))
    [again] = found.engine.engine.render([tuple(winners)])
    assert all(map(same, again.results, found.pool.top(0)))
    assert again.values.to(torch.float32).tolist() == [list(log.best(row).values[row]) for row in range(log.rows)]


def test_a_larger_budget_goes_on_from_a_smaller_one(steady):
    few = steady.search(budget=Budget(steady.candidates // 2)).log.candidates
    many = steady.found.log.candidates
    assert [(one.recipes, one.values) for one in few] == [(one.recipes, one.values) for one in many[: len(few)]]


def test_seeds_wrap_at_the_end_of_their_range(case):
    log = case.search(seed=2**64 - 2).log
    assert log.candidates[0].recipes[0].seed == 2**64 - 2
    assert len(log.candidates) > 3
    for candidate in log.candidates:
        assert from_json(to_json(list(candidate.recipes))) == list(candidate.recipes)
