"""Orders that are kept up to date are those that come out where everything is computed anew."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noise_search.search import log as logs
from noise_search.search.aggregate import METHODS, Aggregator, order
from noise_search.search.engine import Rendered
from noise_search.search.log import DRAFT, FINAL, PREVIEW, REPLAY, Pool, SearchLog
from noise_search.search.ranking import SHORTLIST, ranking
from noise_search.search.recipe import Recipe

STAGES = (FINAL, DRAFT, PREVIEW)
VALUE = st.integers(-3, 3).map(float) | st.floats(-10, 10, width=32)  # many are equal


@st.composite
def aggregators(draw, members):
    weights = draw(st.none() | st.lists(st.sampled_from([0.0, 0.3, 1.0, 2.5]), min_size=members, max_size=members))
    gates = draw(st.none() | st.lists(st.none() | st.integers(-3, 3).map(float), min_size=members, max_size=members))
    return Aggregator(
        draw(st.sampled_from(METHODS)), tuple(weights) if weights and any(weights) else None, gates and tuple(gates)
    )


@st.composite
def stories(draw):
    """An aggregator, and the candidates of a search: (stage, values [rows][members])."""
    rows, members = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    row = st.lists(VALUE, min_size=members, max_size=members)
    candidate = st.tuples(st.sampled_from(STAGES), st.lists(row, min_size=rows, max_size=rows))
    return draw(aggregators(members)), draw(st.lists(candidate, min_size=1, max_size=40))


def plainly(aggregator, made, row):
    """Scores, vetoes and by stage the order, all computed anew."""
    values = torch.tensor([values[row] for _, values in made], dtype=torch.float32).to(torch.float64)
    scores, vetoes, orders = torch.zeros(len(made), dtype=torch.float64), aggregator.vetoes(values), {}
    for stage in STAGES:
        among = torch.tensor([index for index, (of, _) in enumerate(made) if of == stage], dtype=torch.int64)
        if len(among):
            scores[among] = aggregator(values[among])
            orders[stage] = among[order(scores[among], vetoes[among])].tolist()
    return scores.tolist(), vetoes.tolist(), orders


def rendered(index, values, pictures=False):
    rows = len(values)
    shown = torch.full((rows, 1, 1, 3), index % 256, dtype=torch.uint8) if pictures else None
    recipes = Recipe.from_seed(index).for_items(rows)
    return Rendered(recipes, torch.tensor(values), 10 * rows, 10, {}, [index] * rows, shown)


def new_log(aggregator, values, **more):
    return SearchLog(tuple(f"judge {m}" for m in range(len(values[0]))), len(values), aggregator, **more)


@settings(max_examples=60, deadline=None)
@given(stories(), st.integers(0, SHORTLIST + 2))
def test_scores_and_orders_are_those_computed_anew_after_every_candidate(story, keep):
    aggregator, made = story
    log = new_log(aggregator, made[0][1])
    for index, (stage, values) in enumerate(made):
        log.add(rendered(index, values), stage)
        for row in range(log.rows):
            scores, vetoes, orders = plainly(aggregator, made[: index + 1], row)
            assert log.scores(row).tolist() == scores
            assert log.merits(row) == [(-veto, score) for veto, score in zip(vetoes, scores, strict=True)]
            assert [log.merit(one, row) for one in range(index + 1)] == log.merits(row)
            for stage in STAGES:
                found = orders.get(stage, [])
                assert log.top(keep, row, stage) == found[:keep], "before the whole order is known"
                assert log.order(row, stage) == found and log.count(stage) == len(found)
                assert not found or log.best(row, stage).index == found[0]


@settings(max_examples=40, deadline=None)
@given(stories(), st.integers(1, 9))
def test_the_pictures_that_stay_are_those_of_the_best(story, room):
    """The lowest go first, of all stages and items, and stock stays: as if all were put in order each time."""
    aggregator, made = story
    log, kept, before = new_log(aggregator, made[0][1]), {}, logs.MAX_THUMBNAILS
    logs.MAX_THUMBNAILS = room
    try:
        for index, (stage, values) in enumerate(made):
            log.add(rendered(index, values, pictures=True), stage)
            kept.update({(index, row): index for row in range(log.rows)})
            ranks = {}
            for row in range(log.rows):
                for stage, found in plainly(aggregator, made[: index + 1], row)[2].items():
                    ranks |= {(one, row): (stage != FINAL, rank) for rank, one in enumerate(found)}
            excess = len(kept) - room
            if excess > 0:
                for key in sorted((key for key in kept if key[0] != 0), key=ranks.__getitem__)[-excess:]:
                    del kept[key]
            assert list(log.thumbnails) == list(kept)
    finally:
        logs.MAX_THUMBNAILS = before


@settings(max_examples=25, deadline=None)
@given(stories(), st.integers(0, 3))
def test_results_are_kept_as_if_all_were_put_in_order_each_time(story, keep):
    aggregator, made = story
    pool, kept = Pool(new_log(aggregator, made[0][1]), keep), set()
    for index, (stage, values) in enumerate(made):
        pool.add(rendered(index, values), stage)
        if stage == FINAL:
            best = {
                (o, r) for r in range(pool.log.rows) for o in plainly(aggregator, made[: index + 1], r)[2][FINAL][:keep]
            }
            kept = (kept | {(index, row) for row in range(pool.log.rows)}) & best
        assert set(pool.results) == kept


def test_a_member_that_is_dropped_changes_all_scores_at_once():
    log = new_log(Aggregator(), [[1.0, 2.0]])
    for index, values in enumerate([[1.0, 2.0], [2.0, 0.0], [3.0, 1.0]]):
        log.add(rendered(index, [values]))
    assert log.best().index == 2 and log.scores().tolist() == [0.5, 0.25, 0.75]
    log.drop_members({0: "broke"})
    assert log.best().index == 0 and log.scores().tolist() == [2.0, 0.0, 1.0]


def test_another_aggregator_ranks_what_is_there_already():
    log = new_log(Aggregator(weights=(1.0, 0.0)), [[1.0, 2.0]])
    for index, values in enumerate([[1.0, 2.0], [2.0, 0.0]]):
        log.add(rendered(index, [values]))
    assert log.best().index == 1
    log.aggregator = Aggregator(weights=(0.0, 1.0))
    assert log.best().index == 0


def test_recipes_that_are_made_again_stay_in_their_order_in_everything():
    log = new_log(Aggregator(), [[0.0]], algorithm=REPLAY)
    for index, value in enumerate([1.0, 3.0, 2.0]):
        log.add(rendered(index, [[value]]))
    assert log.order() == [0, 1, 2] and log.top(2) == [0, 1]
    assert log.scores().tolist() == [1.0, 3.0, 2.0]


class Counted(Aggregator):
    calls = 0

    def __call__(self, raw):
        Counted.calls += len(raw)
        return super().__call__(raw)


@pytest.mark.parametrize("method", ["mean_rank", "weighted_sum"])
def test_no_candidate_is_scored_again_for_one_more(method):
    """Else the work for one grows with the number of those before it."""
    Counted.calls = 0
    log = new_log(Counted(method), [[0.0, 0.0]])
    for index in range(100):
        log.add(rendered(index, [[math.sin(index), math.cos(3 * index)]]))
        log.best()
    assert Counted.calls <= 100


@pytest.mark.parametrize("method", METHODS)
def test_a_ranking_of_other_weights_than_members_is_refused(method):
    with pytest.raises(ValueError, match="2 weights for 3 verifiers"):
        ranking(Aggregator(method, weights=(1.0, 1.0)), 1, 3)


def test_pictures_go_by_the_order_of_the_members_that_are_left(monkeypatch):
    monkeypatch.setattr(logs, "MAX_THUMBNAILS", 3)
    log = new_log(Aggregator(), [[1.0, 2.0]])
    for index, values in enumerate([[0.0, 0.0], [1.0, 9.0], [2.0, 1.0]]):
        log.add(rendered(index, [values], pictures=True))
    log.drop_members({0: "broke"})
    log.add(rendered(3, [[0.0, 5.0]], pictures=True))
    assert [index for index, _ in log.thumbnails] == [0, 1, 3]
