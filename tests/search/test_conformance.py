"""The conformance suite of the searches on engines without ComfyUI."""

import torch
from conformance import UNTESTED, cases, replay_benchmark
from conformance_suite import *  # noqa: F403
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
        "a tilted landscape, 25 steps": lambda: SyntheticEngine(tilted, steps=25),
        "white noise, batch of 3": lambda: SyntheticEngine(white, rows=3, steps=12),
        "an ensemble": lambda: SyntheticEngine(smooth, tilted),
        "an ensemble, batch of 3, 7 steps": lambda: SyntheticEngine(smooth, tilted, rows=3, steps=7),
        "an ensemble, batch of 2, three at once": in_threes,
        "a judge that compares": lambda: SyntheticEngine(Nearness()),
        "one that sees finished images only": lambda: SyntheticEngine(shy, smooth),
        "one that compares and one that scores, batch of 2": lambda: SyntheticEngine(Nearness(), smooth, rows=2),
    }
) + cases({"recorded rewards": recorded, "recorded orders": lambda: recorded(["first"])}, only=("random",))


def test_every_search_in_the_list_is_tested():
    assert {kind.__name__ for kind in UNTESTED} == set()
