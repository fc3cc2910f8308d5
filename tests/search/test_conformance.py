"""The conformance suite of the searches on engines without ComfyUI."""

import pytest
import torch
from conformance import ALGORITHMS, UNTESTED, cases, replay_benchmark
from conformance_suite import *  # noqa: F403
from noise_search.search.log import Pool, SearchLog
from noise_search.search.remember import Notes, RememberingEngine
from noise_search.search.run import search
from synthetic import Nearness, SyntheticEngine, shy, smooth, tilted, white


def in_threes():
    """An engine that likes to get three candidates at once."""
    engine = SyntheticEngine(smooth, tilted, rows=2)
    engine.chunk = 3
    return engine


def recorded(orders=()):
    rewards = torch.randn(50, 6, 2, generator=torch.Generator().manual_seed(0))
    return replay_benchmark().ReplayEngine(rewards, ["first", "second"], orders)


CASES = cases(
    {
        "a smooth landscape": lambda: SyntheticEngine(smooth),
        "an ensemble, batch of 2, three at once": in_threes,
        "a judge that compares": lambda: SyntheticEngine(Nearness()),
        "one that compares and one that scores, batch of 2": lambda: SyntheticEngine(Nearness(), smooth, rows=2),
        "one that sees finished images only": lambda: SyntheticEngine(shy, smooth),
        "an ensemble": lambda: SyntheticEngine(smooth, tilted),
    }
) + cases({"recorded rewards": recorded, "recorded orders": lambda: recorded(["first"])}, only=("random",))
CASES += cases(
    {
        "a tilted landscape, 25 steps": lambda: SyntheticEngine(tilted, steps=25),
        "white noise, batch of 3": lambda: SyntheticEngine(white, rows=3, steps=12),
        "an ensemble, batch of 3, 7 steps": lambda: SyntheticEngine(smooth, tilted, rows=3, steps=7),
    },
    marks=(pytest.mark.slow,),
)


@pytest.mark.parametrize("name, lacking", [("paths", "segments"), ("drafts, random", "drafts")])
@pytest.mark.parametrize("remembered", [False, True])
def test_a_search_that_needs_a_part_says_so_before_anything_is_made(name, lacking, remembered):
    engine = RememberingEngine(recorded(), Notes()) if remembered else recorded()
    log = SearchLog(engine.members)
    with pytest.raises(ValueError, match=f"Engine does not make .*{lacking}.* use another search"):
        search(ALGORITHMS[name], engine, Pool(log), 7)
    assert log.candidates == []


@pytest.mark.complete
def test_every_search_in_the_list_is_tested():
    lacking = {kind.__name__ for kind in UNTESTED}
    assert lacking == set(), "add a case of each to ALGORITHMS in tests/support/conformance.py"
