"""What each search is worth where nearby noises score alike and where they do not; and the items of a batch."""

import math
import statistics

import pytest
import torch
from conformance import ALGORITHMS, search
from noise_search.search.algorithms.draft_and_final import DraftAndFinal
from noise_search.search.algorithms.random_search import RandomSearch
from noise_search.search.algorithms.zero_order import STUCK, ZeroOrderSearch
from noise_search.search.budget import Budget
from noise_search.search.recipe import Recipe
from synthetic import SyntheticEngine, smooth, tilted, white

SEEDS = range(0, 16_000, 1000)


def best(algorithm, landscape, candidates=48):
    """The best score of a search from each of the seeds."""
    logs = [search(algorithm, SyntheticEngine(landscape), seed, Budget(candidates)).log for seed in SEEDS]
    return [float(log.scores()[log.best().index]) for log in logs]


def advantage(ours, theirs):
    """The difference of the means in standard errors."""
    error = math.sqrt((statistics.variance(ours) + statistics.variance(theirs)) / len(SEEDS))
    return (statistics.mean(ours) - statistics.mean(theirs)) / error


@pytest.fixture(scope="module")
def random_search():
    return {landscape: best(RandomSearch(), landscape) for landscape in (smooth, white)}


@pytest.mark.slow
@pytest.mark.parametrize("stuck", [STUCK[0], STUCK[2]])
@pytest.mark.parametrize("angle", [18.0, 30.0])
def test_climbing_beats_random_search_where_neighbours_score_alike(random_search, angle, stuck):
    assert advantage(best(ZeroOrderSearch(angle=angle, stuck=stuck), smooth), random_search[smooth]) > 4


@pytest.mark.slow
@pytest.mark.parametrize("stuck", STUCK)
def test_climbing_gains_nothing_where_neighbours_are_strangers(random_search, stuck):
    assert abs(advantage(best(ZeroOrderSearch(stuck=stuck), white), random_search[white])) < 3


@pytest.mark.slow
def test_drafts_beat_random_search_where_they_foretell_the_finals(random_search):
    assert advantage(best(DraftAndFinal(), smooth), random_search[smooth]) > 2


@pytest.mark.slow
def test_drafts_do_harm_where_they_foretell_nothing(random_search):
    assert advantage(best(DraftAndFinal(), white), random_search[white]) < -2


# The items of a batch


class Biased(SyntheticEngine):
    """Scores the first items of the batch by other lights; the last as ever."""

    def score(self, state):
        rendered = super().score(state)
        rendered.values[:-1] = -rendered.values[:-1]
        return rendered


# Not drafts of paths: which items share a run of the batch decides what is left for the rest.
ALONE = [name for name in ALGORITHMS if name != "drafts, paths"]


@pytest.mark.parametrize("name", ALONE)
def test_what_an_item_finds_does_not_depend_on_the_others(name):
    logs = [search(ALGORITHMS[name], make(smooth, tilted, rows=3)).log for make in (SyntheticEngine, Biased)]
    stories = [[(one.stage, one.recipes[-1], one.values[-1]) for one in log.candidates] for log in logs]
    assert stories[0] == stories[1]
    assert logs[0].winner(2) == logs[1].winner(2)
    assert logs[0].winner(0) != logs[1].winner(0)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_item_has_a_winner_of_its_own(name):
    log = search(ALGORITHMS[name], SyntheticEngine(smooth, rows=4), budget=Budget(24)).log
    assert len({log.best(row).index for row in range(4)}) > 1
    for row in range(4):
        assert log.winner(row).row == row
        finals = [candidate.values[row][0] for candidate in log.of_stage()]
        assert log.best(row).values[row][0] == max(finals)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_items_of_a_batch_have_noises_of_their_own(name):
    shape = (3, 4, 16, 16)
    for candidate in search(ALGORITHMS[name], SyntheticEngine(smooth, rows=3)).log.candidates[:12]:
        noises = torch.cat([recipe.noise(shape) for recipe in candidate.recipes]).flatten(1)
        assert (torch.corrcoef(noises) - torch.eye(3)).abs().max() < 0.15  # 5 standard errors


def test_global_random_state_is_left_alone_and_does_not_matter():
    for algorithm in ALGORITHMS.values():
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = search(algorithm, SyntheticEngine(smooth, white, rows=2)).log.to_dict()
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        assert search(algorithm, SyntheticEngine(smooth, white, rows=2)).log.to_dict() == first


def test_a_batch_starts_from_the_stock_batch():
    for algorithm in ALGORITHMS.values():
        [first, *_] = search(algorithm, SyntheticEngine(rows=3), 11).log.candidates
        assert first.recipes == Recipe.from_seed(11).for_items(3)
