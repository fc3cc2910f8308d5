"""Verifiers with a veto, and verifiers that fail in the middle of a search: what the log, the order and reports say."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from noise_search.report.charts import score_curve
from noise_search.report.contact_sheet import contact_sheet
from noise_search.report.table import table, to_csv
from noise_search.report.words import failed_gates, report_only
from noise_search.search.aggregate import METHODS, Aggregator, order
from noise_search.search.algorithms.paths import SearchOverPaths
from noise_search.search.algorithms.random_search import RandomSearch
from noise_search.search.algorithms.zero_order import ZeroOrderSearch
from noise_search.search.budget import Budget
from noise_search.search.engine import Rendered
from noise_search.search.log import DRAFT, Pool, SearchLog, told_apart
from noise_search.search.recipe import Recipe
from noise_search.search.remember import Notes, RememberingEngine
from noise_search.search.run import search

MEMBERS = ("pick", "look")


def rendered(*rows, failed=None, error=None, seed=0):
    """A candidate with these values, one row of them per item of the batch."""
    return Rendered(
        (Recipe.from_seed(seed),) * len(rows), torch.tensor(rows), 4, 4, {"sample": 1.0}, [None] * len(rows),
        torch.full((len(rows), 8, 8, 3), 100, dtype=torch.uint8), failed=failed or {}, error=error,
    )  # fmt: skip


def log_of(*candidates, gates=(None, 5.0), weights=(1.0, 0.0), rows=1, method="mean_rank", **settings):
    log = SearchLog(MEMBERS, rows, Aggregator(method, weights, gates), algorithm="random search", settings=settings)
    for seed, values in enumerate(candidates):
        log.add(rendered(*(values if rows > 1 else [values]), seed=seed))
    return log


# The order


@st.composite
def gated_tables(draw):
    members, count = draw(st.integers(1, 3)), draw(st.integers(1, 10))
    numbers = st.integers(-3, 3).map(float)
    rows = draw(st.lists(st.lists(numbers, min_size=members, max_size=members), min_size=count, max_size=count))
    gates = draw(st.lists(st.none() | numbers, min_size=members, max_size=members))
    weights = draw(st.lists(st.sampled_from([0.0, 1.0, 2.5]), min_size=members, max_size=members).filter(any))
    return torch.tensor(rows, dtype=torch.float64), Aggregator(
        draw(st.sampled_from(METHODS)), tuple(weights), tuple(gates)
    )


def order_of(raw, aggregator):
    return order(aggregator(raw), aggregator.vetoes(raw))


@given(gated_tables())
def test_who_passes_all_gates_is_before_who_fails_one(case):
    raw, aggregator = case
    passes = [
        all(gate is None or value >= gate for value, gate in zip(row, aggregator.gates, strict=True))
        for row in raw.tolist()
    ]
    found = [passes[index] for index in order_of(raw, aggregator)]
    assert found == sorted(found, reverse=True)


@given(gated_tables())
def test_fewer_failed_gates_come_first_then_higher_scores_then_earlier_ones(case):
    raw, aggregator = case
    scores = aggregator(raw).tolist()
    failing = [
        sum(gate is not None and value < gate for value, gate in zip(row, aggregator.gates, strict=True))
        for row in raw.tolist()
    ]
    expected = sorted(range(len(scores)), key=lambda index: (failing[index], -scores[index], index))
    assert order_of(raw, aggregator) == expected


@given(gated_tables())
def test_gates_leave_the_scores_as_they_are(case):
    raw, aggregator = case
    assert torch.equal(aggregator(raw), Aggregator(aggregator.method, aggregator.weights)(raw))


@given(gated_tables())
def test_a_gate_that_all_pass_changes_nothing(case):
    raw, aggregator = case
    low = tuple(-10.0 for _ in aggregator.gates)
    free = Aggregator(aggregator.method, aggregator.weights, low)
    assert order_of(raw, free) == order(aggregator(raw))


@given(gated_tables(), st.data())
def test_permuting_candidates_permutes_the_vetoes(case, data):
    raw, aggregator = case
    permutation = data.draw(st.permutations(range(len(raw))))
    assert torch.equal(aggregator.vetoes(raw[permutation]), aggregator.vetoes(raw)[permutation])


@given(gated_tables(), st.data())
def test_without_a_member_all_is_as_if_it_had_never_been(case, data):
    raw, aggregator = case
    member = data.draw(st.integers(0, raw.shape[1] - 1))
    kept = [other for other in range(raw.shape[1]) if other != member]
    if not any(aggregator.weights[other] for other in kept):
        with pytest.raises(ValueError, match="not all 0"):
            aggregator.without({member}, raw.shape[1])
        return
    alone = Aggregator(
        aggregator.method,
        tuple(aggregator.weights[other] for other in kept),
        tuple(aggregator.gates[other] for other in kept),
    )
    blank = raw.clone()
    blank[:, member] = math.nan
    dropped = aggregator.without({member}, raw.shape[1])
    assert dropped(blank).tolist() == alone(raw[:, kept]).tolist()
    assert order_of(blank, dropped) == order_of(raw[:, kept], alone)


def test_a_value_on_the_gate_passes_in_the_precision_of_verifiers():
    values = torch.tensor([[5.1], [5.0999]]).double()  # 5.1 in float32 is below 5.1 in float64
    assert Aggregator(gates=(5.1,)).vetoes(values).tolist() == [0, 1]


@pytest.mark.parametrize("gate", [math.nan, math.inf])
def test_a_gate_that_is_no_number_is_refused(gate):
    with pytest.raises(ValueError, match="gate must be a finite number"):
        Aggregator(gates=(gate,))


# The log


def test_the_winner_passes_the_gate_whatever_the_score():
    log = log_of([9.0, 4.0], [3.0, 6.0], [2.0, 7.0])
    assert log.order() == [1, 2, 0]
    assert log.scores().tolist() == [9.0, 3.0, 2.0]


def test_the_curve_follows_the_best_even_where_its_score_falls():
    assert [score for *_, score in log_of([9.0, 4.0], [3.0, 6.0], [8.0, 4.0], [5.0, 9.0]).curve()] == [9, 3, 3, 5]


def test_each_item_of_a_batch_has_its_own_vetoes():
    log = log_of([[9.0, 4.0], [9.0, 6.0]], [[3.0, 6.0], [3.0, 4.0]], rows=2)
    assert (log.order(0), log.order(1)) == ([1, 0], [0, 1])


def test_drafts_have_gates_too():
    log = log_of([5.0, 6.0])
    for values in ([9.0, 4.0], [3.0, 6.0]):
        log.add(rendered(values), DRAFT)
    assert log.order(stage=DRAFT) == [2, 1]


def test_where_all_pass_or_some_there_is_no_warning():
    assert log_of([9.0, 4.0], [3.0, 6.0]).gate_warnings() == []


def test_where_nothing_passes_the_log_says_how_far_it_is():
    [warning] = log_of([9.0, 4.0], [3.0, 4.5]).gate_warnings()
    assert "No candidate passes the gate: look must be at least 5 and was 4.5 at most" in warning


def test_a_value_hardly_below_the_gate_is_told_apart_from_it():
    log = log_of([9.0, 4.9996])
    assert "must be at least 5 and was 4.9996 at most" in log.gate_warnings()[0]
    assert failed_gates(log, 0, 0) == "look 4.9996 < 5"


@given(st.floats(-1e6, 1e6, width=32), st.sampled_from([0.7, 5.0, 5.1, 24.9999, 12345.678]), st.integers(-3, 3))
def test_the_digits_say_whether_a_value_passes(value, gate, apart):
    near = np.float32(gate)
    for _ in range(abs(apart)):
        near = np.nextafter(near, np.float32(math.copysign(math.inf, apart)))
    for shown in (value, float(near)):
        passes = Aggregator(gates=(gate,)).vetoes(torch.tensor([[shown]])).item() == 0
        below, least = map(float, told_apart(shown, gate))
        assert (below >= least) == passes


def test_in_a_batch_it_says_for_how_many_images():
    [warning] = log_of([[9.0, 4.0], [9.0, 6.0]], rows=2).gate_warnings()
    assert "for 1 of 2 images" in warning and "was 4 at most" in warning


def test_a_gated_verifier_that_tells_candidates_apart_is_something_to_find():
    log = log_of(*([1.0, float(i)] for i in range(6)))
    log.usual_ranges = ((0.0, 10.0), (0.0, 10.0))
    assert not log.hardly_varies()
    log.aggregator = Aggregator("mean_rank", (1.0, 0.0))
    assert log.hardly_varies()


def test_the_json_says_which_gates_each_fails():
    data = log_of([9.0, 4.0], [3.0, 6.0]).to_dict()
    assert data["aggregator"]["gates"] == [None, 5.0]
    assert [one["vetoed_by"] for one in data["candidates"]] == [[["look"]], [[]]]


# The searches


class Scripted:
    """An engine whose candidates have given values, and which drops a member at a given candidate."""

    members, rows, steps, deterministic, chunk = MEMBERS, 1, 4, True, 1

    def __init__(self, *values, drops=None):
        self.values, self.drops, self.made = list(values), drops or {}, 0

    def render(self, candidates):
        for recipes in candidates:
            number, self.made = self.made, self.made + 1
            failed = {m: cause for at, (m, cause) in self.drops.items() if number >= at}
            values = [math.nan if m in failed else v for m, v in enumerate(self.values[number % len(self.values)])]
            yield Rendered(recipes, torch.tensor([values]), 4, 4, {"all": 1.0}, [number], failed=failed)

    def remake(self, recipes):
        return next(self.render([recipes]))


def run(engine, algorithm=None, aggregator=None, **budget):
    aggregator = aggregator or Aggregator("mean_rank", (1.0, 0.0), (None, 5.0))
    pool = Pool(SearchLog(MEMBERS, aggregator=aggregator))
    return search(algorithm or RandomSearch(), engine, pool, 0, Budget(**{"candidates": 4, **budget}))


def test_a_target_is_reached_only_by_what_passes_the_gates():
    pool = run(Scripted([9.0, 4.0], [3.0, 6.0], [8.0, 6.0], [1.0, 6.0]), target=7.0)
    assert len(pool.log.candidates) == 3 and pool.log.best().index == 2


def test_the_result_that_is_kept_is_the_one_that_passes():
    pool = run(Scripted([9.0, 4.0], [3.0, 6.0], [8.0, 4.0], [1.0, 6.0]))
    assert pool.top(0) == [1]


def test_the_climb_goes_from_what_passes():
    pool = run(Scripted([9.0, 4.0], [3.0, 6.0], [8.0, 4.0], [1.0, 6.0]), ZeroOrderSearch(neighbours=1))
    assert len(pool.log.candidates[2].recipes[0].moves) == 2  # from candidate 1, not from stock


def test_the_branches_that_go_on_are_those_that_pass():
    log, branches = log_of([9.0, 4.0], [3.0, 6.0]), []
    for candidate in log.candidates:
        branches.append((candidate.index, candidate))

    class Joins:
        rows = 1

        def join(self, states):
            return states[0]

    run = Joins()
    run.log = log
    assert SearchOverPaths(paths=1)._best(run, branches) == [1]


def test_where_nothing_passes_the_search_warns():
    [warning] = run(Scripted([9.0, 4.0], [3.0, 1.0])).log.warnings
    assert "No candidate passes the gate" in warning


# Verifiers that are dropped

BOTH = Aggregator("mean_rank", (1.0, 1.0))
BOOM = {2: (1, "verifier look failed: boom.")}


def test_after_a_drop_the_ranks_of_all_candidates_are_those_of_the_others():
    pool = run(Scripted([1.0, 9.0], [2.0, 8.0], [3.0, 0.0], [2.5, 0.0], drops=BOOM), aggregator=BOTH)
    assert pool.log.order() == [2, 3, 1, 0]
    assert pool.log.scores().tolist() == [1.0, 2.0, 3.0, 2.5]


def test_three_members_less_one_are_ranked_by_two():
    log = SearchLog(("a", "b", "c"))
    values = [[1.0, 1.0, 9.0], [2.0, 2.0, 5.0], [3.0, 0.0, 1.0]]
    for row in values[:2]:
        log.add(rendered(row))
    log.add(rendered([3.0, 0.0, math.nan], failed={2: "boom."}))
    two = SearchLog(("a", "b"))
    for row in values:
        two.add(rendered(row[:2]))
    assert log.scores().tolist() == two.scores().tolist() and log.order() == two.order()


def test_a_drop_with_a_candidate_that_has_no_score_counts_at_once():
    log = SearchLog(MEMBERS)
    for values in ([1.0, 9.0], [2.0, 0.0], [3.0, 1.0]):
        log.add(rendered(values))
    assert log.order() == [2, 0, 1]
    log.drop(rendered([0.0, math.nan], failed={1: "boom."}, error="broken"))
    assert log.order() == [2, 1, 0]


def test_a_drop_is_a_warning_with_name_and_cause():
    log = run(Scripted([1.0, 9.0], drops=BOOM), aggregator=BOTH).log
    assert log.warnings[0].startswith("look was dropped for the whole search: verifier look failed: boom.")
    assert sum("was dropped" in warning for warning in log.warnings) == 1


def test_a_dropped_gate_no_longer_vetoes_and_the_warning_says_so():
    log = run(Scripted([9.0, 4.0], [3.0, 6.0], drops=BOOM)).log
    assert log.best().index == 0
    assert "its gate no longer vetoes" in log.warnings[0]


def test_the_last_one_that_decides_cannot_be_dropped():
    with pytest.raises(ValueError, match="not all 0"):
        run(Scripted([9.0, 9.0], drops={1: (0, "verifier pick failed: boom.")}))


def test_a_target_means_nothing_once_a_verifier_that_decides_is_gone():
    total = Aggregator("weighted_sum", (1.0, 1.0))
    kept = run(Scripted([1.0, 1.0], [5.0, 5.0]), aggregator=total, target=5.0)
    assert len(kept.log.candidates) == 2
    dropped = run(Scripted([1.0, -9.0], [9.0, -9.0], drops={1: (1, "boom.")}), aggregator=total, target=5.0)
    assert len(dropped.log.candidates) == 4


def test_a_report_only_verifier_that_is_gone_leaves_the_target():
    log = run(Scripted([1.0, 9.0], [6.0, 9.0], drops={1: (1, "boom.")}), target=5.0).log
    assert len(log.candidates) == 2


def test_values_that_are_not_there_are_null_in_json():
    data = run(Scripted([1.0, 9.0], drops=BOOM), aggregator=BOTH).log.to_dict()
    assert [one["values"][0][1] for one in data["candidates"]] == [9.0, 9.0, None, None]
    assert data["failed"] == {"look": "verifier look failed: boom."}
    json.dumps(data, allow_nan=False)


def test_a_value_that_is_no_number_is_an_error_where_nobody_was_dropped():
    with pytest.raises(ValueError, match="verifier look scored candidate 0"):
        run(Scripted([1.0, math.nan]), aggregator=BOTH)


def test_results_that_a_drop_brings_back_are_rendered_again():
    pool = run(Scripted([9.0, 0.0], [1.0, 9.0], [0.0, 8.0], drops=BOOM), aggregator=Aggregator("z_score", (1.0, 5.0)))
    assert pool.log.best().index == 0 and pool.top(0) is not None


def made_again(drops):
    """How many of four candidates a second search makes, the winner's render aside; in the first one a verifier failed
    at the third."""
    memory = Notes()
    run(RememberingEngine(Scripted([1.0, 9.0], drops=BOOM), memory), aggregator=BOTH)
    engine = Scripted([1.0, 9.0], drops=drops)
    pool = run(RememberingEngine(engine, memory), aggregator=BOTH)
    return engine.made - pool.log.best().recalled


def test_what_a_failing_verifier_left_out_is_remembered_while_it_fails():
    assert made_again({0: BOOM[2]}) == 1  # the one that shows that it still fails


def test_what_a_failing_verifier_left_out_is_made_again_once_it_works():
    assert made_again(None) == 2


# The reports


def text_of(log):
    return table(log), to_csv(log)


def test_the_table_says_which_gates_a_candidate_fails():
    said, _ = text_of(log_of([9.0, 4.25], [3.0, 6.0]))
    assert "look (at least 5)" in said
    assert "stock, fails look 4.25 < 5" in said
    assert said.count("fails") == 1


def test_the_spreadsheet_has_a_column_for_gates_where_there_are_any():
    _, lines = text_of(log_of([9.0, 4.25], [3.0, 6.0]))
    assert lines.splitlines()[0].endswith(",fails_gates")
    assert lines.splitlines()[1].endswith(",look 4.25 < 5")
    assert "fails_gates" not in to_csv(log_of([9.0, 4.25], gates=None))


def test_a_dropped_verifier_has_no_values_in_table_and_spreadsheet():
    log = run(Scripted([1.0, 9.0], drops=BOOM), aggregator=BOTH).log
    said, lines = text_of(log)
    assert "look (dropped)" in said and " – |" in said and "nan" not in said.lower()
    assert lines.splitlines()[3].split('}]}"')[-1].split(",")[1:3] != ["nan", "nan"] and "nan" not in lines


def test_a_gated_or_dropped_verifier_is_not_called_report_only():
    assert report_only(log_of([9.0, 4.0])) == []
    assert report_only(log_of([9.0, 4.0], gates=None)) == [1]
    log = log_of([9.0, 4.0], gates=None)
    log.drop_members({1: "boom."})
    assert report_only(log) == []


@pytest.mark.parametrize("rows", [1, 2])
def test_pictures_show_vetoes_and_drops(rows):
    values = [[9.0, 4.0], [3.0, 6.0], [5.0, 4.5], [4.0, 7.0]]
    plain = log_of(*([one] * rows if rows > 1 else one for one in values), gates=None, rows=rows)
    gated = log_of(*([one] * rows if rows > 1 else one for one in values), rows=rows)
    for picture in (score_curve, contact_sheet):
        assert picture(gated).tobytes() != picture(plain).tobytes()
    gated.drop_members({1: "boom."})
    for picture in (score_curve, contact_sheet):
        assert picture(gated)


@pytest.mark.parametrize(
    ("gates", "said"),
    [
        (
            (None, 5.0),
            "No candidate passes the gate: look must be at least 5 and was 4 at most. The winner is the best of those "
            "that fail. Lower the gate, or search longer.",
        ),
        (
            (2.0, 5.0),
            "No candidate passes all gates: pick must be at least 2 and was 1 at most; look must be at least 5 and was "
            "4 at most. The winner is the best of those that fail the fewest. Lower the gate, or search longer.",
        ),
        ((None, 4.0), None),
    ],
)
def test_a_search_in_which_none_passes_says_by_how_much(gates, said):
    assert log_of([1.0, 3.0], [0.5, 4.0], gates=gates).gate_warnings() == ([said] if said else [])
