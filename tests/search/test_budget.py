"""Budgets: what ends a search, and that nothing is spent beyond them."""

import math
from contextlib import nullcontext
from itertools import accumulate

import pytest
import torch
from conformance import ALGORITHMS, search
from noise_search.search.aggregate import Aggregator
from noise_search.search.algorithms.draft_and_final import DraftAndFinal
from noise_search.search.algorithms.paths import SearchOverPaths
from noise_search.search.algorithms.random_search import RandomSearch
from noise_search.search.algorithms.zero_order import ZeroOrderSearch
from noise_search.search.budget import Budget, BudgetSpent, Spending
from noise_search.search.ledger import Cost
from noise_search.search.log import FINAL, PREVIEW, Pool, SearchLog
from noise_search.search.recipe import Jump, Recipe
from noise_search.search.run import Run
from synthetic import SyntheticEngine, flat, smooth, tilted, white

RANDOM = RandomSearch()  # a candidate takes 10 NFE and 0.75 seconds on a synthetic engine of 10 steps


def sampling(seconds):
    return Cost(0, {"sample": seconds})


def finals(log):
    return len(log.of_stage(FINAL))


# Limits


@pytest.mark.parametrize(
    ("budget", "made", "stopped"),
    [
        (Budget(5), 5, "the budget of 5 candidates (50 NFE) is spent"),
        (Budget(100, nfe=35), 3, "the budget of 35 NFE is spent"),
        (Budget(100, seconds=3.0), 4, "the budget of 3 seconds is spent"),
        (Budget(100, nfe=35, seconds=3.0), 3, "the budget of 35 NFE is spent"),
        (Budget(100, nfe=75, seconds=3.0), 4, "the budget of 3 seconds is spent"),
        (Budget(2, nfe=35, seconds=3.0), 2, "the budget of 2 candidates (20 NFE) is spent"),
        (Budget(100, target=-1.0), 1, "the target score of -1 is reached"),
        (Budget(3, target=2.0, patience=50), 3, "the budget of 3 candidates (30 NFE) is spent"),
    ],
)
def test_whichever_limit_is_reached_first_ends_the_search_and_is_named(budget, made, stopped):
    log = search(RANDOM, SyntheticEngine(), budget=budget).log
    assert (len(log.candidates), log.stopped) == (made, stopped)


def test_a_large_budget_is_written_with_separators():
    assert search(RANDOM, SyntheticEngine(rows=4, steps=50), budget=Budget(10)).log.stopped == (
        "the budget of 10 candidates (2,000 NFE) is spent"
    )


def test_a_batch_has_the_same_budget_per_item():
    one, three = (search(RANDOM, SyntheticEngine(rows=rows), budget=Budget(6)).log for rows in (1, 3))
    assert (one.nfe, three.nfe) == (60, 180)
    assert len(one.candidates) == len(three.candidates)


@pytest.mark.parametrize("rows", [1, 4])
def test_seconds_end_a_search_of_a_batch_like_that_of_one(rows):
    log = search(RANDOM, SyntheticEngine(rows=rows), budget=Budget(100, seconds=3.0)).log
    assert len(log.candidates) == 4


@pytest.mark.parametrize("budget", [Budget(1), Budget(nfe=1), Budget(seconds=0.001)], ids=["1", "nfe", "seconds"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_stock_is_rendered_whatever_the_budget(name, budget):
    log = search(ALGORITHMS[name], SyntheticEngine(rows=2), 5, budget).log
    assert [candidate.recipes for candidate in log.candidates] == [Recipe.from_seed(5).for_items(2)]
    assert log.stopped.endswith("is spent")


@pytest.mark.parametrize("name", ["candidates", "nfe", "seconds", "patience"])
@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_a_limit_that_is_none_is_refused(name, value):
    with pytest.raises(ValueError, match=f"a budget's {name} must be above 0, not {value}"):
        Budget(**{name: value})


@pytest.mark.parametrize("target", [math.nan, math.inf])
def test_a_target_that_cannot_be_reached_is_refused(target):
    with pytest.raises(ValueError, match=f"not {target}"):
        Budget(target=target)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_fraction_spent_rises_to_1(name):
    seen = []
    search(ALGORITHMS[name], SyntheticEngine(), on_candidate=lambda run, _: seen.append(run.spending.fraction()))
    assert seen == sorted(seen)
    assert seen[0] == pytest.approx(1 / 16)
    assert 0.8 < seen[-1] <= 1


# Target


def test_the_target_ends_the_search_at_the_first_that_reaches_it():
    log = search(RANDOM, SyntheticEngine(smooth), budget=Budget(200, target=0.2)).log
    scores = log.scores().tolist()
    assert scores[-1] >= 0.2 > max(scores[:-1])
    assert log.stopped == "the target score of 0.2 is reached"


def test_every_item_of_a_batch_has_to_reach_the_target():
    log = search(RANDOM, SyntheticEngine(smooth, rows=3), budget=Budget(200, target=0.15)).log
    best = [list(accumulate(log.scores(row).tolist(), max)) for row in range(3)]
    assert [all(item[index] >= 0.15 for item in best) for index in (-2, -1)] == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_search_ends_at_its_target(name):
    log = search(ALGORITHMS[name], SyntheticEngine(smooth), budget=Budget(80, target=0.15)).log
    assert log.stopped == "the target score of 0.15 is reached"
    assert [final.index for final in log.of_stage(FINAL) if final.values[0][0] >= 0.15] == [log.best().index]
    assert log.candidates[-1] is log.best()


@pytest.mark.parametrize(("method", "said"), [("mean_rank", "mean rank"), ("z_score", "z score")])
def test_a_target_is_refused_where_the_score_is_a_place_in_the_pool(method, said):
    engine = SyntheticEngine(smooth, tilted)
    with pytest.raises(ValueError, match=f"target score of 0.5 means nothing .* {said}"):
        search(RANDOM, engine, budget=Budget(8, target=0.5), method=method)
    assert engine.rendered == []


@pytest.mark.parametrize(
    ("landscapes", "aggregator"),
    [
        ((smooth,), Aggregator("mean_rank")),
        ((smooth,), Aggregator("z_score")),
        ((smooth, tilted), Aggregator("mean_rank", (1.0, 0.0))),
        ((smooth, tilted), Aggregator("weighted_sum")),
    ],
)
def test_a_target_is_taken_where_a_score_stands_for_itself(landscapes, aggregator):
    engine = SyntheticEngine(*landscapes)
    log = SearchLog(engine.members, 1, aggregator)
    Spending(Budget(target=0.5), log, engine)


# Patience


def test_patience_counts_candidates_that_are_no_better():
    log = search(RANDOM, SyntheticEngine(smooth), budget=Budget(500, patience=12)).log
    assert log.best().index == len(log.candidates) - 1 - 12
    assert log.stopped == "patience is at its end: 12 candidates in a row were no better"


def test_a_candidate_that_is_as_good_is_no_better():
    def alike(image):
        return 1.0

    assert len(search(RANDOM, SyntheticEngine(alike), budget=Budget(50, patience=4)).log.candidates) == 5


def test_patience_lasts_while_any_item_of_a_batch_gets_better():
    log = search(RANDOM, SyntheticEngine(smooth, rows=4), budget=Budget(500, patience=6)).log
    assert max(log.best(row).index for row in range(4)) == len(log.candidates) - 1 - 6
    assert min(log.best(row).index for row in range(4)) < len(log.candidates) - 1 - 6


def test_previews_do_not_try_the_patience():
    """Else a search over paths ends before it has finished anything."""
    log = search(SearchOverPaths(branches=4), SyntheticEngine(white), budget=Budget(200, patience=3)).log
    assert log.stopped.startswith("patience is at its end")
    assert len(log.of_stage(PREVIEW)) >= 24
    assert finals(log) >= 4


# Costs that are known only once they are spent


class Adaptive(SyntheticEngine):
    """Trajectories that take a fifth to twice as many evaluations as steps; the stock run takes as many."""

    def spend(self, steps):
        share = [1.0, 2.0, 0.2, 1.7, 0.5, 2.0][len(self.rendered) % 6] if len(self.rendered) > 1 else 1.0
        super().spend(max(round(steps * share), 1))


@pytest.mark.parametrize("candidates", range(2, 14))
@pytest.mark.parametrize("algorithm", [RANDOM, ZeroOrderSearch()], ids=lambda algorithm: algorithm.name)
def test_unforeseen_costs_overspend_by_less_than_a_candidate(algorithm, candidates):
    log = search(algorithm, Adaptive(), budget=Budget(candidates)).log
    assert log.nfe < candidates * 10 + log.candidates[-1].nfe
    assert log.nfe - log.candidates[-1].nfe <= candidates * 10


@pytest.mark.parametrize("seconds", [4.0, 10.0, 30.0])
def test_paths_that_take_longer_than_foreseen_end_soon_after_their_time(seconds):
    class SlowToScore(SyntheticEngine):
        def score(self, state):
            self.ledger.spend(sampling(1.0 if state.level > 0 else 0.0))
            return super().score(state)

    log = search(SearchOverPaths(), SlowToScore(), budget=Budget(500, seconds=seconds)).log
    assert log.seconds < seconds + 5
    assert log.stopped == f"the budget of {seconds:g} seconds is spent"


def test_a_first_run_that_had_to_load_the_models_says_little_about_the_rest():
    class Cold(SyntheticEngine):
        def render(self, candidates):
            self.ledger.spend(sampling(0.0 if self.rendered else 5.0))
            return super().render(candidates)

    log = search(RANDOM, Cold(), budget=Budget(100, seconds=20.0)).log
    assert log.seconds == pytest.approx(20, abs=0.75)


@pytest.mark.parametrize("rows", [1, 3])
def test_before_anything_is_measured_costs_go_by_the_steps_of_stock(rows):
    engine = SyntheticEngine(rows=rows, steps=20)
    spending = Spending(Budget(), SearchLog(engine.members, rows), engine)
    spending.learn("final", Cost(20 * rows, {"sample": 8.0}))
    assert spending.predict("draft", 5) == Cost(5 * rows)  # its seconds may be those of loading the models
    spending.learn("final", Cost(20 * rows, {"sample": 8.0}))
    assert spending.predict("draft", 5) == Cost(5 * rows, {"sample": 2.0})


def test_a_slow_first_run_does_not_end_the_search():
    class Cold(SyntheticEngine):
        def render(self, candidates):
            self.ledger.spend(sampling(0.0 if self.rendered else 35.0))
            return super().render(candidates)

    assert len(search(RANDOM, Cold(), budget=Budget(100, seconds=60.0)).log.candidates) > 20


def test_before_anything_is_measured_a_higher_order_sampler_is_foreseen_at_its_dearest():
    engine = SyntheticEngine(steps=20)
    spending = Spending(Budget(), SearchLog(engine.members), engine)
    spending.learn("final", Cost(39, {"sample": 8.0}))  # heun takes two evaluations a step and one in the last
    assert spending.predict("draft", 5).nfe == 10


def test_items_that_jump_at_other_levels_take_a_run_of_their_own():
    engine = SyntheticEngine(rows=2)
    first, second = Recipe.from_seed(3).for_items(2)
    mixed = (first, second.jump(Jump(1, 0.1, 0.9)))  # 10 steps, and 9 + 9
    for candidates, affordable in ((3, False), (4, True)):
        pool = Pool(SearchLog(engine.members, 2))
        run = Run(engine, pool, Spending(Budget(candidates), pool.log, engine))
        run.stock(3)
        with nullcontext() if affordable else pytest.raises(BudgetSpent):
            [candidate] = run.render([mixed])
            assert candidate.nfe == 2 * 28


def test_measured_costs_replace_foreseen_ones():
    engine = SyntheticEngine(steps=20)
    spending = Spending(Budget(), SearchLog(engine.members), engine)
    spending.learn("final", Cost(20, {"sample": 8.0}))
    for nfe, seconds in ((9, 4.0), (5, 1.0)):
        spending.learn("draft", Cost(nfe, {"sample": seconds}))
    cost = spending.predict("draft", 5)
    assert (cost.nfe, cost.seconds) == (7, 1.0)


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if not name.startswith("drafts")])
def test_a_schedule_without_steps_ends_by_the_number_of_candidates(name):
    log = search(ALGORITHMS[name], SyntheticEngine(steps=0), budget=Budget(4)).log
    assert (finals(log), log.nfe, log.stopped) == (4, 0, "the budget of 4 candidates is spent")


def test_a_search_may_be_ended_by_whoever_watches_it_and_keeps_what_it_has():
    class Cancelled(Exception):
        pass

    def cancel(run, candidate):
        if candidate.index == 5:
            raise Cancelled

    for algorithm in ALGORITHMS.values():
        engine = SyntheticEngine(smooth)
        with pytest.raises(Cancelled):
            search(algorithm, engine, on_candidate=cancel)
        assert len(engine.rendered) <= 6


# Scores that hardly vary

USUAL = ((0.0, 100.0),)


def warnings(*landscapes, candidates=8, algorithm=RANDOM, **log):
    return search(algorithm, SyntheticEngine(*landscapes), budget=Budget(candidates), **log).log.warnings


def test_a_search_warns_where_scores_hardly_vary():
    [warning] = warnings(flat, usual_ranges=USUAL)
    assert "hardly vary" in warning


def test_a_search_of_drafts_warns_where_scores_hardly_vary():
    def flat_but_for_drafts(image):
        return flat(image) + (0 if any(torch.equal(image, noise) for noise in noises) else 30)

    noises = [Recipe.from_seed(7 + j).noise((1, 4, 4, 4))[0] for j in range(40)]
    said = warnings(flat_but_for_drafts, candidates=16, algorithm=DraftAndFinal(), usual_ranges=USUAL)
    assert any("hardly vary" in warning for warning in said)


@pytest.mark.parametrize(
    ("landscapes", "candidates", "log"),
    [
        ((flat,), 8, {}),
        ((flat,), 8, {"usual_ranges": (None,)}),
        ((flat,), 3, {"usual_ranges": USUAL}),
        ((flat,), 8, {"usual_ranges": ((0.0, 0.01),)}),
        ((smooth,), 8, {"usual_ranges": ((-1.0, 1.0),)}),
        ((flat, smooth), 8, {"usual_ranges": (*USUAL, (-1.0, 1.0))}),
    ],
    ids=["no ranges", "unknown range", "too few", "small range", "varied", "one of two varied"],
)
def test_a_search_does_not_warn_where_scores_vary_or_nobody_knows(landscapes, candidates, log):
    assert warnings(*landscapes, candidates=candidates, **log) == []
