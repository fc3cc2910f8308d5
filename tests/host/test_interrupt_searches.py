"""Cancel during every kind of work: drafts and finals, segments of paths, their x0 predictions and ends, replays."""

import pytest
import torch

pytest.importorskip("comfy")

import comfy.model_management as mm
from any_model import AnyVae, setup_of
from cancelling import CancellingVerifier, cancel_at_call
from conformance import search
from noise_search.host.sampling.engine import ComfyEngine
from noise_search.host.sampling.stock import Sampling
from noise_search.search.algorithms.draft_and_final import DraftAndFinal
from noise_search.search.algorithms.paths import SearchOverPaths
from noise_search.search.algorithms.replay import ReplayRecipe
from noise_search.search.algorithms.zero_order import ZeroOrderSearch
from noise_search.search.budget import Budget
from noise_search.search.recipe import Jump, Recipe
from tiny_models import sd3

NEVER = -1
SEARCHES = {
    "zero-order": ZeroOrderSearch(),
    "paths": SearchOverPaths(paths=1, branches=2, sigma=0.3, forward=0.5, backward=0.7),
    "drafts": DraftAndFinal(draft_steps=2),
    "replay": ReplayRecipe((Recipe(3, jumps=(Jump(1, 0.3, 0.8),)),)),
}
with_every_search = pytest.mark.parametrize("name", SEARCHES)


@pytest.fixture(autouse=True)
def released():
    with torch.inference_mode():
        yield
    mm.interrupt_current_processing(False)


def run(name, call=NEVER, scoring=NEVER):
    """A search that is cancelled within that model call or while that candidate is scored: (log, calls, sampling).

    The log is None where it was cancelled.
    """
    setup = setup_of(sd3())
    sampling = Sampling.ksampler(
        setup.model, 4, setup.cfg, "euler", "simple", setup.positive, setup.negative, setup.latent
    )
    calls = cancel_at_call(sampling, call)
    engine = ComfyEngine(sampling, AnyVae(), CancellingVerifier(scoring), "")
    try:
        log = search(SEARCHES[name], engine, budget=Budget(6)).log
    except mm.InterruptProcessingException:
        log = None
    finally:
        mm.interrupt_current_processing(False)
    return log, len(calls), sampling


@with_every_search
def test_cancel_within_any_model_call_stops_before_the_next(name):
    _, total, _ = run(name)
    for call in range(1, total):
        log, calls, _ = run(name, call)
        assert (log, calls) == (None, call)


@with_every_search
def test_cancel_leaves_nothing_of_the_run_on_the_guider(name):
    _, total, _ = run(name)
    for call in (1, total // 2, total - 1):
        assert not {"conds", "inner_model", "loaded_models"} & set(run(name, call)[2].guider.__dict__)


@with_every_search
def test_cancel_while_scoring_stops_before_the_next_model_call(name):
    log, _, _ = run(name)
    nfe = [candidate.nfe for candidate in log.candidates]
    for index in range(len(nfe) - 1):
        cancelled, calls, _ = run(name, scoring=index)
        assert (cancelled, calls) == (None, sum(nfe[: index + 1]))


@with_every_search
def test_the_next_search_after_a_cancel_is_whole(name):
    before, total, _ = run(name)
    run(name, total // 2)
    assert run(name)[0].values().tolist() == before.values().tolist()
