"""What a search says of itself when it is over."""

from dataclasses import replace

import pytest
import torch
from conformance import SEED
from noise_search.search.algorithms import ALGORITHMS, listed
from noise_search.search.algorithms.draft_and_final import DraftAndFinal
from noise_search.search.algorithms.random_search import RandomSearch
from noise_search.search.algorithms.replay import ReplayRecipe
from noise_search.search.budget import Budget
from noise_search.search.log import Pool, SearchLog
from noise_search.search.recipe import Jump, Recipe, from_json
from noise_search.search.run import search
from noise_search.search.winners import score_limits
from synthetic import SyntheticEngine, smooth, white


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


def test_scores_may_be_apart_by_a_share_of_their_own_spread_item_by_item():
    """Or of their size, where they are all alike; for each verifier and each item of the batch by itself."""
    engine = SyntheticEngine(smooth, white, rows=2)
    log = search(RandomSearch(), engine, Pool(SearchLog(engine.members, 2)), SEED, Budget(5)).log
    log.candidates = [
        replace(one, values=((index, 2.0), (100.0 * index, 8.0))) for index, one in enumerate(log.candidates)
    ]
    expected = torch.tensor([[0.05 * 4, 1e-4 * 2], [0.05 * 400, 1e-4 * 8]], dtype=torch.float64)
    assert torch.allclose(score_limits(log), expected)


class Copies(SyntheticEngine):
    """Every noise gives the same picture with something in it."""

    def score(self, state):
        made = super().score(state)
        picture = torch.arange(48, dtype=torch.uint8).reshape(1, 4, 4, 3)
        return replace(made, values=torch.ones_like(made.values), thumbnails=picture)


@pytest.mark.parametrize(
    ("algorithm", "advice"),
    [
        (RandomSearch(), "draws its own noise from a seed of its own instead"),
        (ALGORITHMS[1].kind(), "draws its own noise from the seed instead"),  # zero-order, which keeps the seed
    ],
)
def test_two_noises_with_one_picture_are_named_with_what_may_be_behind_it(algorithm, advice):
    engine = Copies()
    log = search(algorithm, engine, Pool(SearchLog(engine.members)), SEED, Budget(3)).log
    [warning] = [one for one in log.warnings if one.startswith("Another noise gave the same picture")]
    assert "(candidates 0 and 1)" in warning and advice in warning


def test_a_log_names_its_format_and_its_settings():
    """Programs read them."""
    engine = SyntheticEngine()
    algorithm = DraftAndFinal(draft_steps=4, finals=2)
    settings = dict(algorithm.settings())
    assert (settings["draft_steps"], settings["finals"]) == (4, 2)
    pool = Pool(SearchLog(engine.members, settings=settings))
    written = search(algorithm, engine, pool, SEED, Budget(6)).log.to_dict()
    assert written["format"] == "noise-search-log" and written["settings"]["draft_steps"] == 4
