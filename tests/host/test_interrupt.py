"""Cancel is honoured before the next model call, at every phase, and leaves nothing behind."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("comfy")

import comfy.model_management as mm
import comfy.samplers
from cancelling import CancellingVerifier, cancel_at_call
from noise_search.host.graph.graph import Graph
from noise_search.host.sampling import noise
from noise_search.host.sampling.engine import Options
from noise_search.host.sampling.stock import Sampling
from noise_search.host.search import run_node as search
from noise_search.search.algorithms.zero_order import ZeroOrderSearch

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


class Around(comfy.samplers.CFGGuider):
    """A guider that has another one do the work, as some packs have."""

    def __init__(self, inner):
        super().__init__(inner.model_patcher)
        self.inner, self.again = inner, inner
        inner.loaded_models = ("set by the pack",)

    def sample(self, *args, **kwargs):
        return self.inner.sample(*args, **kwargs)


def test_cancel_leaves_nothing_of_the_run_on_a_guider_inside_the_guider(demo, brightness):
    """And takes nothing that was there before."""
    inner, stock = make(demo).guider, make(demo)
    sampling = Sampling.advanced(Around(inner), stock.sampler, stock.sigmas, stock.latent)
    calls = cancel_at_call(SimpleNamespace(guider=inner), 3)
    with pytest.raises(mm.InterruptProcessingException):
        run(demo, brightness, sampling)
    assert len(calls) == 3
    assert {"conds", "inner_model", "loaded_models"} & set(vars(inner)) == {"loaded_models"}


def test_the_noises_of_a_search_do_not_outlast_it(demo, brightness):
    for search_ends in (None, CancellingVerifier(at=3)):
        with pytest.raises(mm.InterruptProcessingException) if search_ends else nullcontext():
            latent = {"samples": torch.zeros(1, 16, 8, 8)}
            sampling = Sampling.ksampler(demo.model, 2, 1.0, "euler", "simple", demo.positive, demo.negative, latent)
            kept = []

            def looks(*_, kept=kept):
                kept.append(noise.KEPT_NOISES.bytes)

            sampling.guider.model_options["sampler_post_cfg_function"] = [lambda args: (looks(), args["denoised"])[1]]
            with torch.inference_mode():
                search(
                    lambda sampling=sampling: sampling, demo.vae, search_ends or brightness, 0, 8, "", 1, Graph(),
                    "positive", ZeroOrderSearch(neighbours=2), options=Options(batch_size=1),
                )  # fmt: skip
        assert max(kept) > 0 == noise.KEPT_NOISES.bytes == len(noise.KEPT_NOISES.noises)


def test_the_next_search_after_a_cancel_is_whole(demo, brightness):
    before = run(demo, brightness, make(demo)).log.values().tolist()
    with pytest.raises(mm.InterruptProcessingException):
        run(demo, CancellingVerifier(at=0), make(demo))
    assert run(demo, brightness, make(demo)).log.values().tolist() == before
