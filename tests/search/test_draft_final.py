"""Draft and Final."""

import math
from dataclasses import replace

import pytest
from conformance import search
from hypothesis import given
from hypothesis import strategies as st
from noise_search.search.algorithms.draft_and_final import DraftAndFinal
from noise_search.search.algorithms.paths import SearchOverPaths
from noise_search.search.algorithms.random_search import RandomSearch
from noise_search.search.algorithms.replay import ReplayRecipe
from noise_search.search.algorithms.zero_order import ZeroOrderSearch
from noise_search.search.budget import Budget
from noise_search.search.engine import coarser
from noise_search.search.log import DRAFT, FINAL, Pool, SearchLog
from noise_search.search.recipe import Recipe
from noise_search.search.run import search as run_search
from synthetic import SyntheticEngine, smooth, tilted, white

SEED = 100
INNER = [RandomSearch(), ZeroOrderSearch(), SearchOverPaths(branches=2)]


def draft(candidates=32, engine=None, inner=None, budget=None, **settings):
    algorithm = DraftAndFinal(inner or RandomSearch(), **settings)
    return search(algorithm, engine or SyntheticEngine(smooth, steps=20), SEED, budget or Budget(candidates)).log


def plain(log):
    """The finals in the order of their making, stock left out."""
    return [final.recipes for final in log.of_stage(FINAL)][1:]


# The schedule of the drafts


@given(st.integers(1, 200), st.integers(1, 200))
def test_a_coarser_schedule_is_part_of_the_full_one_with_both_ends(steps, wanted):
    indices = coarser(steps, wanted)
    assert indices == sorted(set(indices)) and set(indices) <= set(range(steps + 1))
    assert (indices[0], indices[-1]) == (0, steps)
    assert len(indices) == min(wanted, steps) + 1


@pytest.mark.parametrize(
    ("full", "steps"), [(4, 3), (8, 3), (11, 3), (12, 6), (20, 6), (24, 6), (28, 7), (50, 12), (100, 25)]
)
def test_a_draft_takes_a_quarter_of_the_steps_but_not_too_few(full, steps):
    assert DraftAndFinal().steps(full) == steps


@pytest.mark.parametrize(("wanted", "full"), [(20, 20), (25, 20), (0, 3), (0, 1), (1, 1), (0, 0)])
def test_a_draft_that_saves_nothing_is_refused_before_anything_is_rendered(wanted, full):
    engine = SyntheticEngine(steps=full)
    with pytest.raises(ValueError, match=rf"is no cheaper than the sampler's {full}\. .* without Draft and Final\."):
        draft(engine=engine, draft_steps=wanted)
    assert engine.rendered == []


def test_drafts_cost_their_steps_and_finals_all():
    log = draft(draft_steps=7)
    assert {one.nfe for one in log.of_stage(DRAFT)} == {7}
    assert {one.nfe for one in log.of_stage(FINAL)} == {20}


def test_a_sampler_that_adds_noise_is_refused_before_anything_is_rendered():
    engine = SyntheticEngine()
    engine.deterministic = False
    with pytest.raises(ValueError, match="needs a sampler that adds no noise of its own, such as euler, heun"):
        draft(engine=engine)
    assert engine.rendered == []


def test_drafts_of_drafts_are_refused():
    with pytest.raises(ValueError, match="cannot search by Draft and Final"):
        DraftAndFinal(DraftAndFinal())


@pytest.mark.parametrize("settings", [{"draft_steps": -1}, {"finals": -1}])
def test_negative_numbers_are_refused(settings):
    with pytest.raises(ValueError, match="must be 0 or more"):
        DraftAndFinal(**settings)


# Finals


@pytest.mark.parametrize("inner", INNER, ids=lambda inner: inner.name)
def test_stock_is_a_final_and_rendered_in_full_once(inner):
    log = draft(64, inner=inner)
    stock = [one.index for one in log.of_stage(FINAL) if one.recipes == (Recipe.from_seed(SEED),)]
    assert stock == [0]


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("inner", INNER, ids=lambda inner: inner.name)
def test_the_best_drafts_of_each_item_become_finals(inner, rows):
    log = draft(64, SyntheticEngine(smooth, rows=rows, steps=20), inner)
    stock = log.candidates[0].recipes
    for row in range(rows):
        ranked = [log.candidates[index] for index in log.order(row, DRAFT)]
        ranked = [one.recipes[row] for one in ranked if one.recipes != stock]
        finals = [recipes[row] for recipes in plain(log)]
        assert len(finals) >= 2
        assert finals == ranked[: len(finals)]


def test_there_are_about_as_many_finals_as_the_square_root_of_the_drafts():
    for candidates in (8, 16, 64, 128):
        log = draft(candidates)
        root = math.sqrt(len(log.of_stage(DRAFT)))
        assert root <= len(plain(log)) <= root + 1.5


@pytest.mark.parametrize("finals", [1, 3, 8])
def test_there_are_as_many_finals_as_asked_for(finals):
    assert len(plain(draft(32, finals=finals))) == finals


def test_more_finals_than_drafts_are_not_waited_for():
    log = draft(12, finals=100)
    assert len(plain(log)) >= len(log.of_stage(DRAFT)) - 1 > 2


@pytest.mark.parametrize("candidates", range(1, 24))
@pytest.mark.parametrize("inner", INNER, ids=lambda inner: inner.name)
def test_a_draft_is_made_only_if_a_final_can_follow(inner, candidates):
    log = draft(candidates, inner=inner)
    assert log.nfe <= candidates * 20
    assert len(log.of_stage(FINAL)) >= min(candidates, 2)


def test_too_little_for_drafts_goes_into_plain_noises():
    log = draft(2)
    assert [one.stage for one in log.candidates] == [FINAL, FINAL]


def test_what_is_left_once_all_drafts_are_finals_goes_into_new_noises():
    log = draft(8, inner=SearchOverPaths(), finals=1)
    seeds = [one.recipes for one in log.candidates]
    assert len(set(zip((one.stage for one in log.candidates), seeds, strict=True))) == len(seeds)
    assert log.nfe > 7 * 20


class Flattered(SyntheticEngine):
    """Drafts score far above any final."""

    def score(self, state):
        rendered = super().score(state)
        rendered.values.add_(10 if self.error else 0)
        return rendered


@pytest.mark.parametrize("rows", [1, 3])
def test_a_draft_never_wins_nor_reaches_the_target(rows):
    log = draft(engine=Flattered(smooth, rows=rows, steps=20), budget=Budget(32, target=5.0))
    for row in range(rows):
        finals = {one.index: one.values[row][0] for one in log.of_stage(FINAL)}
        assert log.best(row).index == max(finals, key=finals.__getitem__)
    assert log.stopped == "the budget of 32 candidates (" + f"{640 * rows:,} NFE) is spent"


def test_the_target_is_reached_by_a_final():
    log = draft(budget=Budget(64, target=0.2))
    assert log.candidates[-1] is log.best()
    assert log.best().values[0][0] >= 0.2 > max(one.values[0][0] for one in log.of_stage(FINAL)[:-1])
    assert log.stopped == "the target score of 0.2 is reached"


# Patience


def test_patience_with_the_drafts_leads_to_the_finals():
    log = draft(budget=Budget(500, patience=15))
    drafts = log.of_stage(DRAFT)
    assert log.best(stage=DRAFT) is drafts[-1 - 15]
    assert len(plain(log)) == math.ceil(math.sqrt(len(drafts)))
    assert log.candidates[-1].stage == FINAL
    assert log.stopped == "patience is at its end: 15 candidates in a row were no better"


def test_patience_that_ends_before_there_are_enough_drafts_ends_the_search():
    def alike(image):
        return 1.0

    log = draft(engine=SyntheticEngine(alike, steps=20), budget=Budget(500, patience=2), finals=9)
    assert [one.stage for one in log.candidates] == [FINAL, DRAFT, DRAFT, DRAFT, FINAL, FINAL]


# Findings


def test_the_correlation_of_drafts_and_finals_is_reported():
    log = draft(64)
    assert log.findings["drafts"] == len(log.of_stage(DRAFT))
    assert log.findings["draft_steps"] == 6
    assert log.findings["draft_final_rank_correlation"] > 0.8
    assert log.warnings == []


@pytest.mark.parametrize("rows", [1, 3])
def test_drafts_that_foretell_nothing_are_warned_of(rows):
    log = draft(64, SyntheticEngine(white, rows=rows, steps=20), finals=25)
    assert abs(log.findings["draft_final_rank_correlation"]) < 0.3
    [warning] = log.warnings
    assert "a draft of 6 steps says little about the finished image here. Raise draft_steps" in warning


def test_the_correlation_is_the_mean_over_the_batch():
    class OneItemIsNoise(SyntheticEngine):
        def score(self, state):
            rendered = super().score(state)
            rendered.values[1] = white(rendered.results[1])
            return rendered

    both, noisy = (
        draft(64, make(smooth, rows=2, steps=20), finals=20).findings["draft_final_rank_correlation"]
        for make in (SyntheticEngine, OneItemIsNoise)
    )
    assert both > 0.8
    assert both / 2 - 0.25 < noisy < both / 2 + 0.25


def test_a_few_finals_have_no_correlation():
    log = draft(4)
    assert "draft_final_rank_correlation" not in log.findings
    assert log.warnings == []


def test_an_ensemble_ranks_drafts_among_drafts():
    log = draft(48, SyntheticEngine(smooth, tilted, steps=20))
    drafts = [one.index for one in log.of_stage(DRAFT)]
    alone = log.aggregator(log.values()[drafts])
    assert log.scores()[drafts].tolist() == alone.tolist()
    assert log.findings["draft_final_rank_correlation"] > 0.3


def test_the_log_names_the_inner_search():
    assert DraftAndFinal(ZeroOrderSearch()).name == "draft and final (zero-order search)"
    assert DraftAndFinal(ZeroOrderSearch(angle=9.0)).settings()["angle"] == 9.0


@pytest.mark.parametrize("seconds", [5.0, 8.0, 20.0])
@pytest.mark.parametrize("inner", INNER, ids=lambda inner: inner.name)
def test_seconds_are_kept_for_the_finals(inner, seconds):
    """A run of 20 steps takes 1.25 seconds here."""
    log = draft(inner=inner, budget=Budget(1000, seconds=seconds))
    assert log.seconds <= seconds + 1.25
    assert log.candidates[-1].stage == FINAL
    assert log.stopped == f"the budget of {seconds:g} seconds is spent"


def test_a_recipe_is_nothing_to_draft():
    with pytest.raises(ValueError, match="has nothing to draft; connect it to the search node"):
        DraftAndFinal(ReplayRecipe((Recipe.from_seed(1),)))


class SomeDraftsBreak(SyntheticEngine):
    """Every third image of a draft is broken, but not the first."""

    def score(self, state):
        rendered = super().score(state)
        broken = self.error and len(self.rendered) % 3 == 0
        return replace(rendered, error="NaN") if broken else rendered


def test_no_noise_is_rendered_in_full_twice_where_drafts_were_left_out():
    engine = SomeDraftsBreak(smooth, steps=20)
    log = SearchLog(engine.members)
    run_search(DraftAndFinal(finals=3), engine, Pool(log), SEED, Budget(4), drop=True)
    assert [draft.recipes[0].seed for draft in log.of_stage(DRAFT)] == [SEED, SEED + 2] and len(log.dropped) == 1
    assert [final.recipes[0].seed for final in log.of_stage(FINAL)] == [SEED, SEED + 2, SEED + 3]
