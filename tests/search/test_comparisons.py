"""Orders that are made from comparisons."""

import math

import pytest
import torch
from conformance import search
from noise_search.search.aggregate import Aggregator
from noise_search.search.algorithms.draft_and_final import DraftAndFinal
from noise_search.search.algorithms.paths import SearchOverPaths
from noise_search.search.budget import Budget
from noise_search.search.comparisons import Comparison, Ladder, NoAnswer, Sight
from noise_search.search.engine import Rendered
from noise_search.search.log import DRAFT, FINAL, Pool, SearchLog
from noise_search.search.recipe import Recipe
from noise_search.search.remember import Notes, RememberingEngine
from synthetic import Nearness, SyntheticEngine, smooth, tilted


def climbed(values):
    """A ladder of candidates with these values, and how many answers each took."""
    ladder, asked = Ladder(), []

    def ask(first, second):
        asked[-1] += 1
        return 0.5 if values[first] == values[second] else float(values[first] > values[second])

    for index in range(len(values)):
        asked.append(0)
        ladder.put(index, ladder.find(index, ask))
    return ladder, asked


def test_each_finds_its_place_by_halving():
    values = torch.randperm(65, generator=torch.Generator().manual_seed(2)).tolist()
    ladder, asked = climbed(values)
    assert ladder.ranks() == {index: float(value) for index, value in enumerate(values)}
    assert all(count <= math.ceil(math.log2(index + 1)) for index, count in enumerate(asked))
    assert max(asked) <= 7


def test_equal_ones_share_a_rank_as_values_do():
    ladder, _ = climbed([3, 1, 3, 2, 1])
    assert ladder.rungs == [[0, 2], [3], [1, 4]]
    assert ladder.ranks() == {0: 3.5, 2: 3.5, 3: 2.0, 1: 0.5, 4: 0.5}


@pytest.mark.parametrize("method", ["mean_rank", "z_score", "weighted_sum"])
def test_ranks_count_as_the_share_of_the_others(method):
    ranks = torch.tensor([[3.0], [0.0], [1.5], [1.5]])
    alone = Aggregator(method, comparative=(0,))
    assert alone(ranks).tolist() == [1.0, 0.0, 0.5, 0.5]
    assert alone(ranks * 1000 - 7).tolist() == alone(ranks).tolist()  # only their order counts
    assert alone(ranks[:1]).tolist() == [0.5] and alone(ranks[:0]).tolist() == []
    values = torch.tensor([[10.0], [30.0], [20.0], [40.0]])
    both = Aggregator(method, weights=(1.0, 2.0), comparative=(0,))
    assert both(torch.cat([ranks, values], dim=1)).tolist() == both(torch.cat([ranks**3, values], dim=1)).tolist()
    one = Aggregator("weighted_sum", weights=(1.0, 2.0), comparative=(0,))
    assert one(torch.cat([ranks, values], dim=1)).tolist() == [21.0, 60.0, 40.5, 80.5]


def test_such_scores_are_places_in_the_pool():
    assert Aggregator("weighted_sum", comparative=(0,)).relative(1)
    assert Aggregator("weighted_sum", weights=(1.0, 1.0), comparative=(0,)).relative(2)
    assert not Aggregator("weighted_sum", weights=(0.0, 1.0), comparative=(0,)).relative(2)
    assert not Aggregator(weights=(0.0, 1.0), comparative=(0,)).relative(2)
    assert Aggregator(weights=(1.0, 1.0), comparative=(0,)).without([1], 2).comparative == (0,)


def test_a_target_goes_with_one_that_only_reports():
    Budget(target=0.5).check(Aggregator(weights=(0.0, 1.0), comparative=(0,)), ("people", "score"))
    with pytest.raises(ValueError, match="target score of 0.5 means nothing with people, which compares"):
        Budget(target=0.5).check(Aggregator(weights=(1.0, 1.0), comparative=(0,)), ("people", "score"))


def rendered(seed, look):
    looks = {} if look is None else {0: [look]}
    return Rendered((Recipe.from_seed(seed),), torch.tensor([[math.nan, float(seed)]]), 1, 1, looks=lambda: looks)


class Judges:
    """The part of an engine that compares: the larger look is better."""

    comparative, fails_at = (0,), math.inf

    def __init__(self):
        self.shown = []

    def compare(self, column, row, first, second):
        self.shown.append((first.look(column, row), second.look(column, row)))
        if len(self.shown) > self.fails_at:
            raise NoAnswer(column, "it has left.")
        return 0.5 + 0.5 * math.copysign(1, self.shown[-1][0] - self.shown[-1][1])


def pool_of():
    return Pool(SearchLog(("people", "score"), aggregator=Aggregator(weights=(1.0, 1e-6), comparative=(0,))), keep=1)


def test_the_earlier_candidate_is_shown_first():
    pool, judges = pool_of(), Judges()
    for seed, look in enumerate([5.0, 9.0, 7.0]):
        pool.add(rendered(seed, look), engine=judges)
    assert judges.shown == [(5.0, 9.0), (5.0, 7.0), (9.0, 7.0)]
    assert pool.log.order() == [1, 2, 0]


def test_who_looks_in_while_it_is_asked_sees_the_candidates_before():
    pool, seen = pool_of(), []

    class Looking(Judges):
        def compare(self, column, row, first, second):
            seen.append((pool.log.order(), len(pool.again())))
            return super().compare(column, row, first, second)

    judges = Looking()
    for seed, look in enumerate([5.0, 9.0, 7.0]):
        pool.add(rendered(seed, look), engine=judges)
    assert seen[0] == ([0], 1) and seen[-1][0] == [1, 0]
    assert pool.log.order() == [1, 2, 0]


def test_one_that_fails_is_dropped_and_its_order_with_it():
    pool, judges = pool_of(), Judges()
    judges.fails_at = 2
    for seed, look in enumerate([5.0, 9.0, 7.0, 8.0]):
        pool.add(rendered(seed, look), engine=judges)
    assert pool.log.order() == [3, 2, 1, 0]  # by score
    assert "people was dropped for the whole search: it has left." in pool.log.warnings[0]
    assert len(judges.shown) == 3


def test_a_look_is_made_once_and_only_when_asked_for():
    made = []
    sight = Sight("work", lambda: made.append(1) or {2: ["look"]})
    assert made == []
    assert [sight.look(2, 0), sight.look(2, 0)] == ["look"] * 2 and made == [1]


def test_an_answer_holds_the_other_way_round():
    judge, notes = Nearness(), Notes()
    engine = RememberingEngine(SyntheticEngine(judge), notes)
    one, other = (
        Sight(name, lambda value=value: {0: [torch.full((64,), value)]}) for name, value in (("a", 0.0), ("b", 9.0))
    )
    answer = engine.compare(0, 0, one, other)
    assert answer in (0.0, 1.0) and len(judge.asked) == 1
    assert engine.compare(0, 0, other, one) == 1 - answer and engine.compare(0, 0, one, other) == answer
    assert len(judge.asked) == 1
    notes.keep_comparison(Comparison("a", "b", judge.question, 1 - answer, "nearness"))  # the last one stands
    assert engine.compare(0, 0, one, other) == 1 - answer
    third = Sight("c", lambda: {0: [torch.full((64,), 9.0)]})
    assert engine.compare(0, 0, one, third) == answer and len(judge.asked) == 2


def test_each_item_of_a_batch_has_answers_of_its_own():
    notes = Notes()
    engine = RememberingEngine(SyntheticEngine(Nearness(), rows=2), notes)
    near, far = torch.zeros(64), torch.full((64,), 9.0)
    one, other = Sight("a", lambda: {0: [near, far]}), Sight("b", lambda: {0: [far, near]})
    assert engine.compare(0, 0, one, other) == 1 - engine.compare(0, 1, one, other)
    assert len({comparison.question for comparison in notes.compared}) == 2


@pytest.mark.parametrize("algorithm", [SearchOverPaths(branches=2), DraftAndFinal()], ids=["paths", "drafts"])
def test_one_that_sees_finished_images_only_is_shown_no_others(algorithm):
    seen = []

    def shy(image):
        seen.append(image)
        return smooth(image)

    shy.previews = False
    log = search(algorithm, SyntheticEngine(shy, tilted)).log
    unfinished = [one for one in log.candidates if one.stage != FINAL]
    assert len(unfinished) > 2 and len(seen) == len(log.of_stage()) >= 2
    assert all(math.isnan(one.values[0][0]) and math.isfinite(one.values[0][1]) for one in unfinished)
    scores = log.scores()
    assert [float(scores[one.index]) for one in unfinished] == [one.values[0][1] for one in unfinished]
    with pytest.raises(ValueError, match="shy is shown finished images only, and this search .* use Random Search or"):
        search(algorithm, SyntheticEngine(shy))


def test_a_judge_that_compares_may_see_finished_images_only():
    judge = Nearness()
    judge.previews = False
    found = search(DraftAndFinal(), SyntheticEngine(judge, smooth))
    assert {stage for _, _, stage in found.log.ladders} == {FINAL}
    assert len(found.log.of_stage(DRAFT)) > 2
