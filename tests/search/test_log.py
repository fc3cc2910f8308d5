"""The log of a search, and the pool that keeps the best results."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from noise_search.search.aggregate import METHODS, Aggregator
from noise_search.search.engine import Rendered
from noise_search.search.log import MAX_THUMBNAILS, REPLAY, Pool, SearchLog
from noise_search.search.recipe import Jump, Recipe, Rotate

VALUE = st.integers(-20, 20).map(lambda n: n / 4)


@st.composite
def searches(draw, methods=METHODS, least=1):
    """A log and the values it was made from: [candidates][rows][members]."""
    count, rows, members = draw(st.integers(least, 12)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    values = [[[draw(VALUE) for _ in range(members)] for _ in range(rows)] for _ in range(count)]
    return new_log(rows, members, draw(st.sampled_from(methods))), values


def new_log(rows=1, members=1, method="mean_rank"):
    return SearchLog(tuple(f"verifier {m}" for m in range(members)), rows, Aggregator(method))


def rendered(index, values, picture=None, size=4):
    """A candidate [rows][members] whose result per row says what it is."""
    rows = len(values)
    return Rendered(
        recipes=Recipe.from_seed(100 + index).for_items(rows),
        values=torch.tensor(values, dtype=torch.float64),
        nfe=10 * rows,
        nfe_per_row=10,
        seconds={"sample": 1.0, "decode": 0.5},
        results=[f"result {index}/{row}" for row in range(rows)],
        thumbnails=torch.zeros(rows, size, size, 3, dtype=torch.uint8) if picture else None,
    )


def fill(log, values, **options):
    for index, value in enumerate(values):
        log.add(rendered(index, value, **options))
    return log


def no_constants(name):
    raise AssertionError(f"{name} is not JSON")


# The log


@given(searches())
def test_every_candidate_is_logged_once_in_order(search):
    log, values = search
    fill(log, values)
    assert [candidate.index for candidate in log.candidates] == list(range(len(values)))
    assert [candidate.recipes for candidate in log.candidates] == [
        Recipe.from_seed(100 + i).for_items(log.rows) for i in range(len(values))
    ]
    assert [[list(row) for row in candidate.values] for candidate in log.candidates] == values


@given(searches())
def test_every_row_has_its_own_order(search):
    log, values = search
    fill(log, values)
    for row in range(log.rows):
        alone = fill(SearchLog(log.members, 1, log.aggregator), [[candidate[row]] for candidate in values])
        assert log.order(row) == alone.order()
        assert log.scores(row).tolist() == alone.scores().tolist()


@given(searches())
def test_the_best_has_the_highest_score_and_is_the_earliest_of_those(search):
    log, values = search
    fill(log, values)
    for row in range(log.rows):
        scores = log.scores(row).tolist()
        assert log.best(row).index == scores.index(max(scores))


@given(searches())
def test_scores_follow_the_pool_as_it_grows(search):
    log, values = search
    for index, value in enumerate(values):
        log.add(rendered(index, value))
        for row in range(log.rows):
            assert log.scores(row).tolist() == log.aggregator(log.values(row)).tolist()


def test_changing_a_returned_order_or_score_changes_nothing():
    log = fill(new_log(), [[[1.0]], [[2.0]]])
    log.order().clear()
    log.scores().zero_()
    assert (log.order(), log.scores().tolist()) == ([1, 0], [1.0, 2.0])


@given(searches())
def test_the_curve_never_falls_and_ends_at_the_best(search):
    log, values = search
    fill(log, values)
    for row in range(log.rows):
        nfe, seconds, best = zip(*log.curve(row), strict=True)
        assert list(best) == sorted(best)
        assert best[-1] == max(log.scores(row).tolist())
        assert best[0] == log.scores(row).tolist()[0]
        assert nfe == tuple(10 * (i + 1) for i in range(len(values)))
        assert seconds == tuple(1.5 * (i + 1) for i in range(len(values)))


def test_nfe_counts_all_rows_and_the_curve_one():
    log = fill(new_log(rows=3), [[[0.0]] * 3] * 2)
    assert log.nfe == 60
    assert log.curve(0)[-1][0] == 20


def test_winners_make_the_winning_batch_again():
    log = fill(new_log(rows=2), [[[1.0], [0.0]], [[0.0], [1.0]]])
    noise = torch.cat([winner.noise((2, 4, 2, 2)) for winner in log.winners()])
    first, second = (Recipe.from_seed(100 + i).noise((2, 4, 2, 2)) for i in range(2))
    assert torch.equal(noise, torch.stack([first[0], second[1]]))


def test_the_winner_of_one_image_is_its_plain_recipe():
    assert fill(new_log(), [[[1.0]], [[3.0]]]).winners() == [Recipe.from_seed(101)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_cannot_rank_is_an_error_and_is_not_logged(bad):
    log = fill(new_log(members=2), [[[1.0, 2.0]]])
    with pytest.raises(ValueError, match="verifier verifier 1 scored candidate 1 "):
        log.add(rendered(1, [[1.0, bad]]))
    assert len(log.candidates) == 1


def test_the_best_of_nothing_is_an_index_error():
    with pytest.raises(IndexError):
        new_log().best()


# The report


@given(searches())
def test_the_report_is_strict_json(search):
    log, values = search
    fill(log, values)
    text = json.dumps(log.to_dict(), allow_nan=False)
    assert json.loads(text, parse_constant=no_constants) == json.loads(text)


@given(searches())
def test_the_report_has_every_candidate_with_its_scores(search):
    log, values = search
    report = fill(log, values).to_dict()
    assert [candidate["values"] for candidate in report["candidates"]] == values
    for row in range(log.rows):
        assert [candidate["scores"][row] for candidate in report["candidates"]] == log.scores(row).tolist()


@given(searches())
def test_the_report_names_the_winners(search):
    log, values = search
    report = fill(log, values).to_dict()
    assert [winner["candidate"] for winner in report["winners"]] == [log.best(row).index for row in range(log.rows)]
    recipes = [Recipe.from_dict(winner["recipe"]) for winner in report["winners"]]
    assert recipes == log.winners()
    for winner in report["winners"]:
        assert winner["score"] == max(log.scores(winner["row"]).tolist())


def test_a_browser_reads_every_digit_of_the_report():
    log = SearchLog(("red",), settings={"seed": 2**64 - 1})
    recipe = Recipe(2**64 - 1, moves=(Rotate(2**63 + 3, 9.0),), jumps=(Jump(2**62 + 1, 0.2, 0.8),))
    log.add(Rendered((recipe,), torch.tensor([[0.5]]), 10, 10))
    read = json.loads(json.dumps(log.to_dict()), parse_int=lambda digits: int(float(digits)))  # as JSON.parse
    assert Recipe.from_dict(read["winners"][0]["recipe"]) == recipe
    assert Recipe.from_dict(read["candidates"][0]["recipes"][0]) == recipe
    assert int(read["winners"][0]["seed"]) == int(read["settings"]["seed"]) == 2**64 - 1


def test_recipes_that_are_made_again_stay_in_their_order():
    log = fill(SearchLog(("red",), algorithm=REPLAY), [[[1.0]], [[3.0]], [[2.0]]])
    assert (log.order(), log.best().index) == ([0, 1, 2], 0)


def test_the_report_of_no_candidates_is_empty():
    report = new_log(rows=2).to_dict()
    assert (report["winners"], report["candidates"], report["nfe"]) == ([], [], 0)


# Thumbnails


@pytest.mark.parametrize("rows", [1, 3])
def test_thumbnails_are_bounded_and_keep_the_best_and_stock(rows):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(MAX_THUMBNAILS + 40, rows, 1, generator=generator) + 1
    values[0] = 0  # stock is the worst
    log = fill(new_log(rows=rows), values.tolist(), picture=True)
    assert len(log.thumbnails) == MAX_THUMBNAILS
    for row in range(rows):
        assert (0, row) in log.thumbnails
        kept = {index for index, of in log.thumbnails if of == row} - {0}
        assert kept == set(log.order(row)[: len(kept)])


def test_a_kept_thumbnail_does_not_keep_its_batch_in_memory():
    log = fill(new_log(rows=8), [[[0.0]] * 8], picture=True, size=16)
    assert log.thumbnails[0, 3].untyped_storage().nbytes() == 16 * 16 * 3


class Pictures(dict):
    """Small pictures, and how often one was looked up."""

    looks = 0

    def get(self, *key):
        self.looks += 1
        return super().get(*key)


def test_many_candidates_of_one_score_are_not_compared_pair_by_pair():
    """A verifier with few values gives thousands of candidates the same one."""
    log = fill(new_log(), [[[1.0]]] * 200)
    log.thumbnails = Pictures(
        {(index, 0): torch.tensor([[[index, 255, 0]]], dtype=torch.uint8) for index in range(200)}
    )
    assert log.same_picture() is None
    assert log.thumbnails.looks <= 200
    log.thumbnails[199, 0] = log.thumbnails[7, 0]
    assert [one.index for one in log.same_picture()] == [7, 199]


# The pool


@given(searches(), st.integers(0, 4))
def test_the_pool_keeps_at_most_k_results_per_row(search, keep):
    log, values = search
    pool = Pool(log, keep)
    for index, value in enumerate(values):
        pool.add(rendered(index, value))
        for row in range(log.rows):
            assert sum(of == row for _, of in pool.results) <= keep


@given(searches(methods=["weighted_sum"]), st.integers(1, 4))
def test_the_pool_has_the_results_of_the_best(search, keep):
    log, values = search
    pool = fill(Pool(log, keep), values)
    assert pool.missing() == []
    for rank in range(min(keep, len(values))):
        assert pool.top(rank) == [f"result {log.order(row)[rank]}/{row}" for row in range(log.rows)]


@given(searches(), st.integers(1, 4))
def test_restoring_what_is_missing_completes_the_best(search, keep):
    log, values = search
    pool = fill(Pool(log, keep), values)
    for index in pool.missing():
        pool.restore(index, rendered(index, values[index]))
    assert pool.missing() == []
    for rank in range(min(keep, len(values))):
        assert pool.top(rank) == [f"result {log.order(row)[rank]}/{row}" for row in range(log.rows)]


# By mean rank, 0 is the best of the first two, 1 of the first three, and 0 again of all four.
RETURNS = [[[2.0, 1.0]], [[1.0, 2.0]], [[0.0, 1.5]], [[1.5, 0.0]]]


def test_a_rank_based_order_may_return_to_an_earlier_candidate():
    pool = Pool(new_log(members=2), 1)
    best = []
    for index, value in enumerate(RETURNS):
        pool.add(rendered(index, value))
        best.append(pool.log.best().index)
    assert best == [0, 0, 1, 0]
    assert pool.missing() == [0]


def test_what_is_rendered_again_is_logged_once():
    pool = fill(Pool(new_log(members=2), 1), RETURNS)
    pool.restore(0, rendered(0, RETURNS[0]))
    assert pool.top(0) == ["result 0/0"]
    assert len(pool.log.candidates) == len(RETURNS)
    assert pool.log.to_dict()["nfe"] == pool.log.nfe
