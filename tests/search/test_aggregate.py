"""From raw values to an order."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from noise_search.search.aggregate import METHODS, Aggregator, check_values, mid_ranks, order, z_scores
from scipy.stats import rankdata

VALUES = st.integers(-1000, 1000).map(lambda n: n / 8) | st.integers(0, 3).map(float)


FEW, SOME = st.integers(1, 4), st.integers(1, 12)


@st.composite
def tables(draw, members=FEW, candidates=SOME):
    count, width = draw(candidates), draw(members)
    rows = draw(st.lists(st.lists(VALUES, min_size=width, max_size=width), min_size=count, max_size=count))
    return torch.tensor(rows, dtype=torch.float64)


def weights_for(table):
    one = st.integers(0, 5).map(float)
    return st.lists(one, min_size=table.shape[1], max_size=table.shape[1]).filter(any).map(tuple)


# The columns


@given(tables())
def test_mid_ranks_are_scipys_average_ranks(table):
    assert mid_ranks(table).tolist() == (rankdata(table.numpy(), method="average", axis=0) - 1).tolist()


def test_ties_share_the_mean_of_their_ranks():
    assert mid_ranks(torch.tensor([[5.0], [1.0], [5.0], [9.0]])).flatten().tolist() == [1.5, 0.0, 1.5, 3.0]


@given(tables(candidates=st.integers(2, 12)))
def test_z_scores_have_mean_0_and_deviation_1_or_are_0(table):
    for column, scaled in zip(table.T, z_scores(table).T, strict=True):
        constant = len(set(column.tolist())) == 1
        assert float(scaled.mean()) == pytest.approx(0, abs=1e-9)
        assert float(scaled.std(correction=0)) == pytest.approx(0 if constant else 1, abs=1e-9)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-30, 1e30])
def test_z_scores_of_a_constant_that_binary_cannot_write_are_0(value):
    assert z_scores(torch.full((7, 1), value, dtype=torch.float64)).tolist() == [[0.0]] * 7


# The scores


@given(tables(), st.sampled_from(METHODS), st.data())
def test_permuting_candidates_permutes_scores(table, method, data):
    permutation = data.draw(st.permutations(range(len(table))))
    aggregate = Aggregator(method, data.draw(weights_for(table)))
    expected = aggregate(table)[permutation]
    torch.testing.assert_close(aggregate(table[permutation]), expected, rtol=1e-9, atol=1e-9)


@given(tables(), st.sampled_from(METHODS), st.data())
def test_identical_candidates_get_identical_scores(table, method, data):
    weights = data.draw(st.lists(st.floats(0.01, 10), min_size=table.shape[1], max_size=table.shape[1]).map(tuple))
    twice = torch.cat([table, table])
    scores = Aggregator(method, weights)(twice).tolist()
    assert scores[: len(table)] == scores[len(table) :]


@given(tables(), st.data())
def test_mean_rank_ignores_increasing_maps_of_a_member(table, data):
    aggregate = Aggregator("mean_rank", data.draw(weights_for(table)))
    if sum(w > 0 for w in aggregate.weights) == 1:
        return  # then the raw value is the score
    assert aggregate(table**3 + 10 * table).tolist() == aggregate(table).tolist()


@given(tables(members=st.integers(2, 4)))
def test_equal_mean_ranks_are_equal_scores(table):
    exact = [sum(map(Fraction, ranks)) for ranks in mid_ranks(table).tolist()]
    scores = Aggregator("mean_rank")(table).tolist()
    groups = {}
    for rank, score in zip(exact, scores, strict=True):
        groups.setdefault(rank, set()).add(score)
    assert all(len(group) == 1 for group in groups.values())


def test_mean_rank_goes_from_0_for_the_worst_to_1_for_the_best():
    table = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    assert Aggregator("mean_rank")(table).tolist() == [0.0, 0.5, 1.0]


def test_mean_rank_of_a_single_candidate_is_the_middle():
    assert Aggregator("mean_rank")(torch.tensor([[4.0, 5.0]])).tolist() == [0.5]


@pytest.mark.parametrize("method", METHODS)
def test_constant_members_decide_nothing(method):
    table = torch.tensor([[0.1, 3.0], [0.1, 1.0], [0.1, 2.0], [0.1, 2.0]])
    assert order(Aggregator(method)(table)) == [0, 2, 3, 1]


@pytest.mark.parametrize("method", METHODS)
def test_when_all_is_constant_all_scores_are_equal(method):
    scores = Aggregator(method)(torch.full((5, 3), 0.1)).tolist()
    assert len(set(scores)) == 1


@given(tables(members=st.just(1)), st.sampled_from(METHODS))
def test_a_single_member_is_its_raw_value(table, method):
    assert Aggregator(method)(table).tolist() == table[:, 0].tolist()


@given(tables(members=st.just(3)), st.sampled_from(METHODS))
def test_a_member_of_weight_0_does_not_decide(table, method):
    with_it = Aggregator(method, (1.0, 0.0, 2.0))(table)
    assert with_it.tolist() == Aggregator(method, (1.0, 2.0))(table[:, [0, 2]]).tolist()


@given(tables(members=st.just(2)), st.sampled_from(METHODS))
def test_a_single_deciding_member_is_its_raw_value(table, method):
    assert Aggregator(method, (0.0, 3.0))(table).tolist() == table[:, 1].tolist()


def test_weighted_sum_adds_raw_values():
    assert Aggregator("weighted_sum", (2.0, 0.5))(torch.tensor([[1.0, 10.0], [3.0, 4.0]])).tolist() == [7.0, 8.0]


def test_weights_tip_the_balance():
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert order(Aggregator("mean_rank", (1.0, 3.0))(table)) == [1, 0]
    assert order(Aggregator("z_score", (3.0, 1.0))(table)) == [0, 1]


@pytest.mark.parametrize("method", METHODS)
def test_no_candidates_have_no_scores(method):
    assert Aggregator(method)(torch.zeros(0, 2)).tolist() == []


def test_4096_candidates_are_no_burden():
    table = torch.randn(4096, 3, generator=torch.Generator().manual_seed(0))
    assert Aggregator("mean_rank")(table).shape == (4096,)
    assert mid_ranks(table).sum(dim=0).tolist() == [4096 * 4095 / 2] * 3


# What cannot be combined


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match=r"'median'; known: mean_rank, z_score, weighted_sum"):
        Aggregator("median")


@pytest.mark.parametrize("weights", [(0.0, 0.0), (-1.0, 2.0), (math.nan, 1.0), (math.inf, 1.0), ()])
def test_impossible_weights_are_refused(weights):
    with pytest.raises(ValueError, match="weights must be finite, 0 or more, and not all 0"):
        Aggregator(weights=weights)


def test_a_weight_per_member_is_asked_for():
    with pytest.raises(ValueError, match="2 weights for 3 verifiers"):
        Aggregator(weights=(1.0, 1.0))(torch.zeros(4, 3))


# Order


@given(st.lists(st.integers(0, 4).map(float), min_size=1, max_size=40))
def test_order_is_best_first_and_earlier_first_among_equals(scores):
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    assert order(torch.tensor(scores, dtype=torch.float64)) == expected


def test_stock_wins_a_tie():
    assert order(torch.zeros(300))[0] == 0


# Values from verifiers


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300])
def test_a_value_that_is_no_number_names_verifier_candidate_and_image(bad):
    values = torch.tensor([[1.0, 2.0], [3.0, bad]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"verifier PickScore scored candidate 7 \(image 2 of 2\) as (nan|inf|-inf)"):
        check_values(values, ("ImageReward", "PickScore"), 2, 7)


@pytest.mark.parametrize("shape", [(2,), (2, 2), (1, 1), (3, 1), (2, 1, 1), ()])
def test_values_of_the_wrong_shape_name_verifier_candidate_and_both_shapes(shape):
    with pytest.raises(ValueError) as caught:
        check_values(torch.zeros(shape), ("PickScore",), 2, 7)
    said = str(caught.value)
    assert "candidate 7: verifier PickScore" in said
    assert f"shape {shape}, expected (2, 1)" in said


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_values_become_float32(dtype):
    assert check_values(torch.ones(2, 1, dtype=dtype), ("a",), 2, 0).dtype == torch.float32


def test_values_may_come_from_inference_and_training():
    with torch.inference_mode():
        inferred = torch.ones(1, 1) * 2
    learned = torch.ones(1, 1, requires_grad=True) * 2
    assert check_values(inferred, ("a",), 1, 0).tolist() == [[2.0]]
    assert not check_values(learned, ("a",), 1, 0).requires_grad


def test_weights_count_with_all_their_digits():
    raw = torch.tensor([[1.0, 1.0]])
    assert Aggregator("weighted_sum", (0.1, 0.2))(raw).tolist() == [0.1 + 0.2]


def test_without_a_member_the_others_count_as_before():
    raw = torch.tensor([[1.0, 5.0, 2.0], [3.0, 1.0, 0.5]])
    assert Aggregator("weighted_sum").without({1}, 3)(raw).tolist() == [3.0, 3.5]
