"""Cancel is honoured before the next model call, at every phase, and leaves nothing behind."""

import pytest
import torch

pytest.importorskip("comfy")

import comfy.model_management as mm
from cancelling import CancellingVerifier, cancel_at_call
from noise_search.host.sampling.engine import Options
from noise_search.host.sampling.stock import Sampling
from noise_search.host.search import Graph, search

STEPS = 6


@pytest.fixture(autouse=True)
def released():
    yield
    mm.interrupt_current_processing(False)


def make(demo) -> Sampling:
    latent = {"samples": torch.zeros(1, 16, 8, 8)}
    return Sampling.ksampler(demo.model, STEPS, 3.0, "euler", "simple", demo.positive, demo.negative, latent)


def run(demo, verifier, sampling):
    with torch.inference_mode():
        alone = Options(batch_size=1)
        return search(lambda: sampling, demo.vae, verifier, 0, 8, "", 1, Graph(), "positive", options=alone)


@pytest.mark.parametrize("call", [1, 4, STEPS, STEPS + 1, 3 * STEPS])
def test_cancel_within_a_model_call_stops_before_the_next(demo, brightness, call):
    sampling = make(demo)
    calls = cancel_at_call(sampling, call)
    with pytest.raises(mm.InterruptProcessingException):
        run(demo, brightness, sampling)
    assert len(calls) == call


def test_cancel_while_scoring_stops_before_the_next_model_call(demo):
    sampling = make(demo)
    with pytest.raises(mm.InterruptProcessingException):
        run(demo, CancellingVerifier(at=1), sampling)
    assert sampling.evaluations.rows == 2 * STEPS


def test_cancel_leaves_nothing_of_the_run_on_the_guider(demo, brightness):
    sampling = make(demo)
    cancel_at_call(sampling, 3)
    with pytest.raises(mm.InterruptProcessingException):
        run(demo, brightness, sampling)
    assert not {"conds", "inner_model", "loaded_models"} & set(sampling.guider.__dict__)


def test_the_next_search_after_a_cancel_is_whole(demo, brightness):
    before = run(demo, brightness, make(demo)).log.values().tolist()
    with pytest.raises(mm.InterruptProcessingException):
        run(demo, CancellingVerifier(at=0), make(demo))
    assert run(demo, brightness, make(demo)).log.values().tolist() == before
