"""Nothing is computed twice, and a search that goes on is the search that never stopped."""

from dataclasses import replace

import pytest
import torch
from noise_search.search.algorithms.draft_and_final import DraftAndFinal
from noise_search.search.algorithms.paths import SearchOverPaths
from noise_search.search.algorithms.random_search import RandomSearch
from noise_search.search.algorithms.zero_order import ZeroOrderSearch
from noise_search.search.budget import Budget
from noise_search.search.ledger import RESUMED_PATHS, SEEN_AGAIN, Cost
from noise_search.search.log import Pool, SearchLog
from noise_search.search.recipe import Recipe
from noise_search.search.remember import Notes, RememberingEngine
from noise_search.search.run import search
from noise_search.search.winners import StaleMemory
from synthetic import Nearness, SyntheticEngine

ALGORITHMS = {
    "random": RandomSearch(),
    "zero-order": ZeroOrderSearch(),
    "paths": SearchOverPaths(branches=2),
    "one pass of paths": SearchOverPaths(),
    "drafts": DraftAndFinal(draft_steps=3),
    "drafts of paths": DraftAndFinal(SearchOverPaths(branches=2, sigma=0.5, forward=0.3, backward=0.4), draft_steps=5),
}
every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
every_size = pytest.mark.parametrize("rows", [1, 3])


class Counting(SyntheticEngine):
    """Also counts what was scored, and fails where it is told to."""

    def __init__(self, rows=1, fail_at=None):
        super().__init__(rows=rows)
        self.scored, self.evaluated, self.fail_at = [], [0], fail_at

    def score(self, state):
        if self.fail_at == len(self.scored):
            raise KeyboardInterrupt
        made = super().score(state)
        self.scored.append((self.steps, made.recipes, state.level))
        return made

    def spend(self, steps):
        super().spend(steps)
        self.evaluated[0] += steps * self.rows


def run(algorithm, engine, budget=None, keep=1):
    log = SearchLog(engine.members, engine.rows)
    return search(algorithm, engine, Pool(log, keep), 5, budget or Budget(12))


def account(log):
    """Everything that a search found, and at what cost."""
    return [
        (one.recipes, one.values, one.nfe, one.stage, round(sum(one.seconds.values()), 6)) for one in log.candidates
    ]


@every_size
@every_algorithm
def test_the_same_search_again_computes_its_winners_alone(algorithm, rows):
    notes = Notes()
    first = run(algorithm, RememberingEngine(Counting(rows), notes)).log
    below = Counting(rows)
    again = run(algorithm, RememberingEngine(below, notes))
    winners = {again.log.best(row).index for row in range(rows)}
    assert len(below.scored) == len(winners)
    assert len(again.log.recalled) == len(again.log.candidates)
    assert account(again.log) == account(first)
    assert set(again.results) == {(again.log.best(row).index, row) for row in range(rows)}


@every_size
@every_algorithm
def test_a_memory_changes_nothing(algorithm, rows):
    plain = run(algorithm, Counting(rows)).log
    remembered = run(algorithm, RememberingEngine(Counting(rows), Notes())).log
    assert account(remembered) == account(plain)
    assert remembered.stopped == plain.stopped
    assert remembered.nfe == plain.nfe


@every_algorithm
@pytest.mark.parametrize("at", [1, 2, 5, 9])
def test_a_search_that_broke_off_goes_on_as_if_it_had_not(algorithm, at):
    whole, notes, broken = run(algorithm, Counting()).log, Notes(), Counting(fail_at=at)
    with pytest.raises(KeyboardInterrupt):
        run(algorithm, RememberingEngine(broken, notes))
    engine = Counting()
    resumed = run(algorithm, RememberingEngine(engine, notes)).log
    assert account(resumed) == account(whole)
    assert len(resumed.recalled) == at
    twice = [one for one in engine.scored if one in broken.scored]
    assert len(twice) <= 1  # the winner


@every_algorithm
def test_a_larger_budget_goes_on_from_the_smaller(algorithm):
    whole, notes = run(algorithm, Counting(), Budget(24)).log, Notes()
    run(algorithm, RememberingEngine(Counting(), notes), Budget(8))
    larger = run(algorithm, RememberingEngine(Counting(), notes), Budget(24)).log
    assert account(larger) == account(whole)
    assert len(larger.recalled) > 0


def test_states_that_are_made_again_count_as_extra():
    notes, broken = Notes(), Counting(fail_at=5)
    with pytest.raises(KeyboardInterrupt):
        run(ALGORITHMS["paths"], RememberingEngine(broken, notes))
    below = Counting()
    engine = RememberingEngine(below, notes)
    log = run(ALGORITHMS["paths"], engine).log
    assert log.ledger.extra.keys() == {RESUMED_PATHS}
    assert 0 < log.extra_nfe == below.evaluated[0] - (log.nfe - log.extra_nfe - broken.evaluated[0])


def test_a_look_at_a_known_path_leaves_alone_what_others_took():
    """An engine that samples several candidates ahead is asked for it between their answers."""
    notes = Notes()
    for engine in (RememberingEngine(SyntheticEngine(Nearness()), notes) for _ in range(2)):
        seen = engine.score(engine.denoise(engine.start((Recipe.from_seed(1),)), 0.5))
    assert seen.recalled
    engine.ledger.spend(Cost(30, {"sample": 1.5}))
    seen.looks()
    assert {kind: cost.nfe for kind, cost in engine.ledger.extra.items()} == {RESUMED_PATHS: 5, SEEN_AGAIN: 1}
    assert engine.ledger.pending.nfe == 30 and engine.ledger.pending.seconds == pytest.approx(1.5)


def test_candidates_that_failed_are_tried_again():
    class Failing(Counting):
        def score(self, state):
            return replace(super().score(state), error="NaN")

    notes, below = Notes(), Failing()
    for _ in range(2):
        with pytest.raises(ValueError, match="NaN"):
            run(RandomSearch(), RememberingEngine(below, notes))
    assert len(below.scored) == 2


def test_other_scores_than_remembered_are_noticed():
    class Changed(Counting):
        def score(self, state):
            made = super().score(state)
            return replace(made, values=made.values + 1)

    notes = Notes()
    run(RandomSearch(), RememberingEngine(Counting(), notes))
    with pytest.raises(StaleMemory, match="candidate"):
        run(RandomSearch(), RememberingEngine(Changed(), notes))


def test_scores_that_differ_by_rounding_are_the_same():
    class Rounded(Counting):
        def score(self, state):
            made = super().score(state)
            return replace(made, values=made.values * (1 + 1e-6))

    notes = Notes()
    first = run(RandomSearch(), RememberingEngine(Counting(), notes)).log
    assert account(run(RandomSearch(), RememberingEngine(Rounded(), notes)).log) == account(first)


@pytest.mark.parametrize("shade, stale", [(103, False), (106, True)])
def test_where_scores_are_others_each_time_the_picture_says_whether_it_is_the_same(shade, stale):
    """The small pictures were all of shade 100; up to 4 of 255 apart they are the same."""

    class Moody(Counting):
        shade, mood = 100, 0

        def score(self, state):
            self.mood += 1
            made = super().score(state)
            pictures = torch.full((self.rows, 4, 4, 3), self.shade, dtype=torch.uint8)
            return replace(made, values=made.values + 5 * self.mood, thumbnails=pictures)

    def search_once(engine):
        log = SearchLog(engine.members, engine.rows, noisy=tuple(range(len(engine.members))))
        return search(RandomSearch(), RememberingEngine(engine, notes), Pool(log, 1), 5, Budget(12)).log

    notes, other = Notes(), Moody()
    first, other.shade = search_once(Moody()), shade
    if stale:
        with pytest.raises(StaleMemory, match="candidate"):
            search_once(other)
    else:
        assert account(search_once(other)) == account(first)


def test_results_of_the_best_are_made_again():
    notes = Notes()
    run(RandomSearch(), RememberingEngine(Counting(), notes), keep=0)
    pool = run(RandomSearch(), RememberingEngine(Counting(), notes), keep=3)
    assert {index for index, _ in pool.results} == set(pool.log.order()[:3])


def test_drafts_and_finals_of_one_noise_are_told_apart():
    notes = Notes()
    run(ALGORITHMS["drafts"], RememberingEngine(Counting(), notes))
    plain = run(RandomSearch(), Counting()).log
    assert account(run(RandomSearch(), RememberingEngine(Counting(), notes)).log) == account(plain)


def test_what_has_other_columns_than_the_verifier_is_computed():
    notes = Notes()
    first = run(RandomSearch(), RememberingEngine(Counting(), notes)).log
    for work, one in notes.candidates.items():
        notes.candidates[work] = replace(one, values=one.values.repeat(1, 2))
    again = run(RandomSearch(), RememberingEngine(Counting(), notes)).log
    assert again.recalled == []
    assert account(again) == account(first)


def test_what_a_winner_of_a_batch_scores_alone_is_compared_with_what_it_scored_alone():
    class Batched(Counting):
        def render(self, candidates):
            return (replace(one, batched=True, values=one.values + 0.001) for one in super().render(candidates))

        def remake(self, recipes):
            return next(super().render([recipes]))

    notes = Notes()
    recipes = (Recipe.from_seed(5),)
    for known in (False, True):
        engine = RememberingEngine(Batched(), notes)
        [in_batch] = engine.render([recipes])
        alone = engine.remake(recipes)
        assert in_batch.recalled == known and not torch.equal(alone.values, in_batch.values)
        assert torch.equal(alone.solo_values, alone.values) if known else alone.solo_values is None
    assert RememberingEngine(Counting(), notes).remake((Recipe.from_seed(6),)).solo_values is None  # not from a batch
