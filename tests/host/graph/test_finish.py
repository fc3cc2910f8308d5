"""Finish now: every search ends after the candidate under way, with the best so far."""

import pytest
from noise_search.search.algorithms.draft_and_final import DraftAndFinal
from noise_search.search.algorithms.paths import SearchOverPaths
from noise_search.search.algorithms.random_search import RandomSearch
from noise_search.search.algorithms.zero_order import ZeroOrderSearch
from noise_search.search.budget import Budget
from noise_search.search.log import DRAFT, PREVIEW, Pool, SearchLog
from noise_search.search.run import search
from synthetic import SyntheticEngine

CANDIDATES = 40


def finished_after(algorithm, count, engine=None, rows=1):
    """The log of a search that somebody asked to finish while candidate `count` was being made."""
    engine = engine or SyntheticEngine(rows=rows)
    log = SearchLog(engine.members, engine.rows)
    pool = search(algorithm, engine, Pool(log), 5, Budget(CANDIDATES), finish=lambda: len(log.candidates) >= count)
    assert all((log.best(row).index, row) in pool.results for row in range(log.rows))
    return log


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("algorithm", [RandomSearch(), ZeroOrderSearch()])
def test_the_candidate_under_way_is_the_last(algorithm, count):
    log = finished_after(algorithm, count)
    assert len(log.candidates) == count
    assert log.ended_early
    assert log.stopped == "it was asked to finish"


def test_a_search_that_nobody_asked_did_not_end_early():
    log = finished_after(RandomSearch(), CANDIDATES + 1)
    assert len(log.candidates) == CANDIDATES
    assert not log.ended_early


def test_the_candidates_up_to_then_are_those_of_the_whole_search():
    whole, early = finished_after(ZeroOrderSearch(), CANDIDATES + 1), finished_after(ZeroOrderSearch(), 9)
    assert early.candidates == whole.candidates[:9]


def test_while_drafting_the_best_draft_alone_is_made_in_full():
    log = finished_after(DraftAndFinal(draft_steps=3), 9)
    drafts = [one for one in log.of_stage(DRAFT) if one.recipes != log.candidates[0].recipes]
    best = max(drafts, key=lambda draft: draft.values[0][0])
    assert [final.recipes for final in log.of_stage()] == [log.candidates[0].recipes, best.recipes]


def test_while_the_finals_are_made_no_other_follows():
    whole = finished_after(DraftAndFinal(draft_steps=3), 1000)
    drafts = len(whole.of_stage(DRAFT))
    assert len(finished_after(DraftAndFinal(draft_steps=3), drafts + 2).of_stage()) == 2


@pytest.mark.parametrize("rows", [1, 3])
def test_on_paths_the_best_one_so_far_is_brought_to_its_end(rows):
    log = finished_after(SearchOverPaths(branches=3), 6, rows=rows)
    previews = log.of_stage(PREVIEW)
    assert len(log.of_stage()) == 2  # stock and the best path
    for row in range(rows):
        best = max(previews, key=lambda preview: preview.values[row][0]).recipes[row]
        assert log.of_stage()[1].recipes[row].jumps[:-1] == best.jumps


def test_stock_comes_even_if_it_was_asked_to_finish_before():
    log = finished_after(RandomSearch(), 0)
    assert len(log.candidates) == 1
