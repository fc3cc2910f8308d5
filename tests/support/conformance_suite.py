"""What holds for every search algorithm on every engine. `conformance` says how another engine joins."""

import json
import math

import pytest
from conformance import LAST, OF_CASES, STEADY, plain, same, search
from noise_search.search.algorithms.replay import ReplayRecipe
from noise_search.search.budget import Budget
from noise_search.search.engine import LACKING, Drafts, Segments, drafts, segments
from noise_search.search.log import FINAL
from noise_search.search.recipe import Recipe, from_json, to_json


def pytest_generate_tests(metafunc):
    """Every test runs on the CASES of the module that it is collected from."""
    found = [pytest.param(case, marks=case.marks, id=str(case)) for case in metafunc.module.CASES]
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", found)
    if "steady" in metafunc.fixturenames:  # spends its budget candidate by candidate, without plans
        metafunc.parametrize("steady", [one for one in found if one.values[0].name in STEADY])


def story(log):
    """All that a log says, but for how long it took."""
    data = log.to_dict()
    del data["seconds"]
    for candidate in data["candidates"]:
        del candidate["seconds"]
    return data


def result(candidate):
    return repr((candidate.recipes, [plain(row) for row in candidate.values]))


# The engine


@pytest.mark.parametrize("part, ask", [(Segments, segments), (Drafts, drafts)], ids=["segments", "drafts"])
def test_an_engine_has_the_parts_that_it_names_and_refuses_the_others_in_a_sentence(case, part, ask):
    engine = case.make()
    if part in engine.parts:
        assert isinstance(ask(engine), part)
    else:
        with pytest.raises(ValueError, match=f"does not make {LACKING[part]}"):
            ask(engine)


def test_an_engine_has_no_part_that_nobody_knows(case):
    assert set(case.make().parts) <= set(LACKING)


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
    assert first.recipes == Recipe.from_seed(OF_CASES).for_items(case.found.log.rows)


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


def test_the_same_seed_gives_the_same_search_remembered_or_not(case):
    assert story(case.remembered[0].log) == story(case.found.log)


def test_another_seed_gives_another_search(case):
    ours = {result(candidate) for candidate in case.found.log.candidates}
    theirs = {result(candidate) for candidate in case.another.log.candidates}
    assert not ours & theirs or case.engine.startswith("recorded")


def test_everything_spent_is_booked_once(case):
    log = case.found.log
    assert case.found.engine.ledger is log.ledger and not log.ledger.pending
    assert log.nfe == sum(one.nfe for one in log.candidates) + sum(one.nfe for one in log.ledger.extra.values())


def test_the_winning_candidate_is_made_again_bit_for_bit(case):
    found, log = case.found, case.found.log
    for row, result in enumerate(found.pool.top(0)):
        best = log.best(row)
        [again] = found.engine.engine.render([best.recipes])
        assert same(again.results[row], result)
        assert plain(again.values[row].tolist()) == plain(best.values[row])


def test_the_winners_recipes_make_the_winning_batch_again_bit_for_bit(case):
    found, log = case.found, case.found.log
    winners = from_json(to_json(log.winners()))
    [again] = found.engine.engine.render([tuple(winners)])
    assert all(map(same, again.results, found.pool.top(0)))
    assert [plain(values) for values in again.values.tolist()] == [
        plain(log.best(row).values[row]) for row in range(log.rows)
    ]


def test_a_larger_budget_goes_on_from_a_smaller_one(steady):
    few = steady.search(budget=Budget(steady.candidates // 2)).log.candidates
    many = steady.found.log.candidates
    assert list(map(result, few)) == list(map(result, many[: len(few)]))


def test_seeds_wrap_at_the_end_of_their_range(case):
    log = case.another.log
    assert log.candidates[0].recipes[0].seed == LAST - 1
    assert len(log.candidates) > 3
    for candidate in log.candidates:
        assert from_json(to_json(list(candidate.recipes))) == list(candidate.recipes)


# Judges that give values, and judges that compare


def test_every_value_is_of_its_kind(case):
    """One number per picture and member, which can be stored; of a judge that compares none, in log and JSON."""
    log = case.found.log
    for candidate, told in zip(log.candidates, log.to_dict()["candidates"], strict=True):
        for values, written in zip(candidate.values, told["values"], strict=True):
            for column, value in enumerate(values):
                unasked = column in log.finals_only and candidate.stage != FINAL
                assert math.isnan(value) == (column in log.comparative or unasked) == (written[column] is None)


def test_a_judge_that_compares_ranks_by_what_it_said_alone(case):
    log, pool = case.found.log, case.found.pool
    engine = case.found.engine.engine
    for column in log.comparative:
        for (of, row, stage), ladder in log.ladders.items():
            if of != column:
                continue
            ranks = ladder.ranks()
            assert sorted(ranks) == [candidate.index for candidate in log.of_stage(stage)]
            for first in ranks:
                for second in ranks:
                    answer = engine.compare(column, row, pool.sights[first], pool.sights[second])
                    assert (answer > 0.5) == (ranks[first] > ranks[second])
                    assert (answer == 0.5) == (ranks[first] == ranks[second])


def test_its_order_is_the_searchs_where_it_decides_alone(case):
    log = case.found.log
    if log.comparative != tuple(range(len(log.members))):
        return
    for (_, row, stage), ladder in log.ladders.items():
        ranks = ladder.ranks()
        order = log.order(row, stage)
        assert order == sorted(ranks, key=lambda index: (-ranks[index], index))
        scores, others = log.scores(row), max(len(ranks) - 1, 1)
        if len(ranks) > 1:
            assert [float(scores[index]) for index in order] == [ranks[index] / others for index in order]


def test_it_is_asked_only_about_candidates_of_one_stage_and_about_few_of_them(case):
    log, asked = case.found.log, case.found.engine.asked
    pairs = [(column, row, id(first), id(second)) for column, row, first, second in asked]
    assert len(pairs) == len(set(pairs))
    stages = {id(sight): log.candidates[index].stage for index, sight in case.found.pool.sights.items()}
    assert all(stages[id(first)] == stages[id(second)] for _, _, first, second in asked)
    most = sum(
        math.ceil(math.log2(place + 1))
        for stage in {one.stage for one in log.candidates}
        for place in range(len(log.of_stage(stage)))
    )
    assert len(asked) <= most * len(log.comparative) * log.rows


def test_a_resumed_search_asks_nothing_twice(case):
    """And computes nothing twice: a value is stored as a value, an answer as an answer."""
    first, notes = case.remembered
    again = case.search(memory=notes)
    assert [result(one) for one in again.log.candidates] == [result(one) for one in first.log.candidates]
    assert [again.log.order(row) for row in range(again.log.rows)] == [
        first.log.order(row) for row in range(first.log.rows)
    ]
    assert all(one.recalled for one in again.log.candidates)
    assert again.engine.asked == [] and bool(first.engine.asked) == bool(first.log.comparative)
    assert len(again.engine.answered) <= again.log.rows  # the winners
    more = case.search(memory=notes, budget=Budget(case.candidates + 2))
    alone = case.search(budget=Budget(case.candidates + 2))
    assert [result(one) for one in more.log.candidates] == [result(one) for one in alone.log.candidates]
    assert [more.log.order(row) for row in range(more.log.rows)] == [
        alone.log.order(row) for row in range(alone.log.rows)
    ]
    assert len(more.engine.asked) < len(alone.engine.asked) or not alone.log.comparative


def test_a_target_needs_a_judge_that_gives_values(case):
    if not case.found.log.comparative:
        return
    with pytest.raises(
        ValueError, match="target score of 1 means nothing with .*, which compares images and gives none"
    ):
        case.search(budget=Budget(case.candidates, target=1.0))


def test_a_replay_asks_nothing_and_keeps_its_order(case):
    found = case.found
    if case.engine.startswith("recorded"):
        return
    replayed = search(ReplayRecipe(tuple(found.log.winners()), (found.log.candidates[0].recipes,)), case.make())
    assert all(map(same, replayed.pool.top(0), found.pool.top(0)))
    assert replayed.log.order() == [0, 1] and replayed.engine.asked == []
