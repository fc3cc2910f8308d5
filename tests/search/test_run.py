"""What a search says of itself when it is over."""

from dataclasses import replace

import pytest
from conformance import SEED
from noise_search.search.algorithms import ALGORITHMS, listed
from noise_search.search.algorithms.random_search import RandomSearch
from noise_search.search.algorithms.replay import ReplayRecipe
from noise_search.search.budget import Budget
from noise_search.search.log import Pool, SearchLog
from noise_search.search.recipe import Jump, Recipe, from_json
from noise_search.search.run import search
from synthetic import SyntheticEngine


class Broken(SyntheticEngine):
    """Candidates of these seeds have no score."""

    broken = (SEED + 2, SEED + 4)

    def score(self, state):
        seed = state.recipes[0].seed
        return replace(super().score(state), error=f"seed {seed} is NaN" if seed in self.broken else None)


def test_candidates_that_were_left_out_are_counted_and_the_last_is_named():
    engine = Broken()
    log = search(RandomSearch(), engine, Pool(SearchLog(engine.members)), SEED, Budget(6), drop=True).log
    assert [one.recipes[0].seed for one in log.candidates] == [SEED, SEED + 1, SEED + 3, SEED + 5]
    [warning] = log.warnings
    assert warning == f"2 candidates were dropped. The last: seed {SEED + 4} is NaN"


def test_unless_told_otherwise_one_without_a_score_is_an_error():
    engine = Broken()
    with pytest.raises(ValueError, match=f"candidate 2: seed {SEED + 2} is NaN"):
        search(RandomSearch(), engine, Pool(SearchLog(engine.members)), SEED, Budget(6))


def test_the_list_of_searches():
    """Names are in logs and ids in workflows."""
    assert [(one.title, one.node, one.searches) for one in ALGORITHMS] == [
        ("Random Search", "", True),
        ("Zero-Order Search", "NoiseSearchZeroOrder", True),
        ("Search over Paths", "NoiseSearchPaths", True),
        ("Draft and Final", "NoiseSearchDraftAndFinal", True),
        ("Replay Recipe", "NoiseSearchReplayRecipe", False),
    ]
    names = {one.title: one.kind().name for one in ALGORITHMS if one.searches}
    assert names == {
        "Random Search": "random search",
        "Zero-Order Search": "zero-order search",
        "Search over Paths": "search over paths",
        "Draft and Final": "draft and final (random search)",
    }
    assert listed(RandomSearch).title == "Random Search"
    with pytest.raises(LookupError, match="Broken is not in the list of searches"):
        listed(Broken)


def test_a_replay_says_what_it_makes_again():
    recipes = (Recipe(5, row=0, batch=2), Recipe(6, row=1, batch=2).jump(Jump(1, 0.25, 0.5)))
    assert from_json(ReplayRecipe(recipes).settings()["recipe"]) == list(recipes)


def test_a_replay_ends_by_itself_and_no_budget_is_blamed():
    engine = SyntheticEngine()
    log = search(ReplayRecipe((Recipe(5),)), engine, Pool(SearchLog(engine.members)), SEED, Budget(4)).log
    assert (log.stopped, len(log.candidates)) == ("", 1)
