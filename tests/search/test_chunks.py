"""How many candidates an engine takes at once changes nothing that a search finds."""

import pytest
from conformance import ALGORITHMS, SEED
from noise_search.search.budget import Budget
from noise_search.search.log import Pool, SearchLog
from noise_search.search.run import search
from synthetic import SyntheticEngine, smooth, white

BUDGETS = {
    "candidates": Budget(20),
    "patience": Budget(40, patience=5),
    "a target": Budget(40, target=0.15),
    "evaluations": Budget(40, nfe=333),
}


def found(algorithm, budget, chunk, landscape=smooth):
    engine = SyntheticEngine(landscape, steps=12)
    engine.chunk = chunk
    return search(ALGORITHMS[algorithm], engine, Pool(SearchLog(engine.members)), SEED, BUDGETS[budget]).log


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_candidates_are_found_however_many_are_taken_at_once(algorithm, budget):
    alone, together = (found(algorithm, budget, chunk) for chunk in (1, 8))
    assert [one.recipes for one in together.candidates] == [one.recipes for one in alone.candidates]
    assert (together.best().index, together.stopped) == (alone.best().index, alone.stopped)


def test_what_came_too_late_counts_as_extra():
    alone, together = (found("random", "patience", chunk, white) for chunk in (1, 8))
    assert together.nfe - together.extra_nfe == alone.nfe
    assert 0 < together.extra_nfe < 8 * 12


def test_what_came_too_late_takes_nothing_from_the_finals():
    alone, together = (found("drafts, random", "patience", chunk, white) for chunk in (1, 7))
    assert together.extra_nfe > 0
    assert len(together.of_stage()) == len(alone.of_stage())


@pytest.mark.parametrize("asked_after", [2, 5])
def test_asked_to_finish_it_keeps_what_the_engine_had_made_already(asked_after):
    """Stock comes alone, then eight at once; what is there is no waste."""
    engine = SyntheticEngine(steps=12)
    engine.chunk = 8
    pool = Pool(SearchLog(engine.members))
    finish = lambda: len(pool.log.candidates) >= asked_after  # noqa: E731
    log = search(ALGORITHMS["random"], engine, pool, SEED, Budget(40), finish=finish).log
    assert [one.recipes[0].seed for one in log.candidates] == [SEED + index for index in range(9)]
    assert (log.ended_early, log.extra_nfe, log.stopped) == (True, 0, "it was asked to finish")
