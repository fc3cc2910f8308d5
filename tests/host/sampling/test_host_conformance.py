"""The conformance suite of the searches on a real ComfyUI, and what holds there alone."""

import pytest
import torch

pytest.importorskip("comfy")

from any_model import AnyVae, Contrast, Setup, setup_of
from comparing import NearPictures
from conformance import OF_CASES, cases, plain, same, search
from conformance_suite import *  # noqa: F403
from noise_search.host.sampling.engine import ComfyEngine
from noise_search.host.sampling.stock import Sampling
from noise_search.search.algorithms.replay import ReplayRecipe
from noise_search.search.budget import Budget
from noise_search.search.judges import combined
from tiny_models import sd3

import nodes as comfy_nodes

STEPS = 8


def setup(rows: int) -> Setup:
    return setup_of(sd3(), rows)


def sampling_of(setup: Setup, sampler: str, steps: int = STEPS) -> Sampling:
    return Sampling.ksampler(
        setup.model, steps, setup.cfg, sampler, "simple", setup.positive, setup.negative, dict(setup.latent)
    )


def engine(sampler: str, rows: int, steps: int = STEPS, verifier=Contrast):
    return lambda: ComfyEngine(sampling_of(setup(rows), sampler, steps), AnyVae(), verifier(), "")


def both():
    return combined([(NearPictures(), 2.0), (Contrast(), 1.0)])


ZERO_ORDER = "zero-order, keep the pivot"
CASES = cases(
    {"ComfyUI, euler": engine("euler", 1)},
    candidates=9,
    only=("random", ZERO_ORDER, "paths, 2 branches", "paths", "drafts, random", "drafts, paths"),
) + cases(
    {"ComfyUI, heun, batch of 2": engine("heun", 2, STEPS // 2)},
    candidates=9,
    only=("random", ZERO_ORDER, "paths", "drafts, random"),
)
# What a judge says of finished pictures is the same on every ComfyUI.
CASES += cases(
    {"ComfyUI, a judge that compares": engine("euler", 1, verifier=NearPictures)},
    candidates=9,
    only=("random", "paths"),
    marks=(pytest.mark.any_host,),
) + cases(
    {"ComfyUI, one that compares and one that scores, batch of 2": engine("heun", 2, STEPS // 2, verifier=both)},
    candidates=9,
    only=("drafts, random",),
    marks=(pytest.mark.any_host,),
)


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def test_stock_is_the_stock_ksampler_bit_for_bit(case):
    rows = case.found.log.rows
    made = setup(rows)
    sampler, steps = ("heun", STEPS // 2) if rows > 1 else ("euler", STEPS)
    stock = comfy_nodes.common_ksampler(
        made.model, OF_CASES, steps, made.cfg, sampler, "simple", made.positive, made.negative, dict(made.latent)
    )[0]["samples"]
    [rendered] = case.make().render([case.found.log.candidates[0].recipes])
    assert torch.equal(torch.cat([result.samples for result in rendered.results]), stock)
    told = case.found.log.candidates[0].values
    assert [plain(row) for row in rendered.values.tolist()] == [plain(row) for row in told]


def test_every_evaluation_of_the_model_is_booked(case):
    made = case.make()
    calls, predict = [], made.sampling.guider.predict_noise
    made.sampling.guider.predict_noise = lambda x, *args, **named: calls.append(len(x)) or predict(x, *args, **named)
    log = search(case.algorithm, made, OF_CASES, Budget(case.candidates)).log
    assert log.nfe == sum(calls) == made.sampling.evaluations.rows


def test_a_replay_of_the_winners_is_the_winning_batch_bit_for_bit(case):
    found = case.found
    replayed = search(ReplayRecipe(tuple(found.log.winners())), case.make()).pool
    assert all(map(same, replayed.top(0), found.pool.top(0)))
    assert len(replayed.log.candidates) == 1


def test_the_searches_differ_from_random_search(case):
    recipes = [recipe for candidate in case.found.log.candidates for recipe in candidate.recipes]
    assert any(recipe.jumps for recipe in recipes) == ("paths" in case.name)
    assert any(recipe.moves for recipe in recipes) == ("zero-order" in case.name)
    assert any(one.stage == "draft" for one in case.found.log.candidates) == ("drafts" in case.name)
