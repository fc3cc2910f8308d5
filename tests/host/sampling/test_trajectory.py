"""Paths through the real host: back up in noise by the forward process, and on from there as in one run."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

pytest.importorskip("comfy")

import comfy.model_sampling
import comfy.samplers
import tiny_models
from any_model import FEATURES, NOTHING_ADDED, AnyVae, Feature, made
from noise_search.host.graph.graph import Graph
from noise_search.host.sampling.stock import Sampling
from noise_search.host.sampling.trajectory import Point, Trajectories
from noise_search.host.search import run_node as search
from noise_search.search.algorithms.paths import SearchOverPaths
from noise_search.search.engine import State
from noise_search.search.recipe import Jump, Recipe, draw

STEPS, SEED = 8, 5
FLOW, DISCRETE = ("sd3", "flux"), ("sd15", "sd15_v")
SIDE = 32  # of latents that make 1e5 numbers, the largest that the tiny SD3 takes
with_flow_and_discrete = pytest.mark.parametrize("name", ["sd3", "sd15", "sd15_v"])


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def sampling_of(setup, sampler="euler", steps=STEPS, scheduler="simple") -> Sampling:
    return Sampling.ksampler(
        setup.model, steps, setup.cfg, sampler, scheduler,
        setup.positive, setup.negative, dict(setup.latent), setup.denoise,
    )  # fmt: skip


def trajectories_of(name, feature=NOTHING_ADDED, **settings) -> Trajectories:
    return Trajectories(sampling_of(made(name, feature), **settings))


def level_of(trajectories: Trajectories, step: int) -> float:
    """The noise level of a sigma of the schedule."""
    sigma = trajectories.sampling.sigmas[step]
    known = getattr(trajectories.model_sampling, "sigmas", None)
    if trajectories.sigma(0.5) == 0.5:
        return float(sigma)
    return int((known - sigma).abs().argmin()) / 999


def one_run(trajectories: Trajectories, seed=SEED) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The finished samples of a plain run, and what the model predicts at every step."""
    predicted = []
    latent, _ = trajectories.sampling.sample(
        (Recipe.from_seed(seed),), lambda step, x0, x, total: predicted.append(x0.clone())
    )
    return latent["samples"], predicted


def begin(trajectories: Trajectories, seed=SEED) -> State:
    return trajectories.start(trajectories.sampling.complete((Recipe.from_seed(seed),)))


# The forward process, read where the sampler begins


class Seen:
    """A SAMPLER that does nothing but record what it is given."""

    def __init__(self):
        self.x = torch.empty(0)
        self.sampler = comfy.samplers.KSAMPLER(self.sample)

    def sample(self, model, x, sigmas, extra_args=None, callback=None, disable=None):
        self.x = x.clone()
        return x


def shares(name: str, sigma: float) -> tuple[float, float]:
    """The shares of image and noise in x at a sigma, as in the papers."""
    return (1 - sigma, sigma) if name in FLOW else (1.0, sigma)


def gone_up(name: str, low: float, high: float, image: torch.Tensor, x: torch.Tensor):
    """(paths, what the sampler is given at level `high`) from this x, in the model's own scale, at level `low`."""
    setup, seen = made(name), Seen()
    setup.latent["samples"] = torch.zeros_like(image)
    sampling = sampling_of(setup)
    sampling.sampler = seen.sampler
    paths = Trajectories(sampling)
    alpha, sigma = shares(name, paths.sigma(low))
    samples = sampling.model.model.process_latent_out((alpha * image + sigma * x) / alpha)
    state = State((Recipe.from_seed(SEED),), low, Point(samples, torch.zeros_like(samples), SEED, samples))
    paths.denoise(paths.renoise(state, high, [77]), 0.0)
    return paths, seen.x


def image_and_noise(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    channels = tiny_models.BUILDERS[name]().shapes[0][0]
    shape = (112 // channels, channels, SIDE, SIDE)
    image = torch.linspace(-2, 3, math.prod(shape)).reshape(shape)
    return image, torch.randn(shape, generator=torch.Generator().manual_seed(3))


with_levels = pytest.mark.parametrize(("low", "high"), [(0.11, 0.89), (0.5, 0.6), (0.2, 1.0)])


@with_levels
@pytest.mark.parametrize("name", FLOW + DISCRETE)
def test_going_up_gives_the_mean_and_the_variance_of_the_level(name, low, high):
    image, noise = image_and_noise(name)
    paths, x = gone_up(name, low, high, image, noise)
    alpha, sigma = shares(name, paths.sigma(high))
    rest = (x - alpha * image).double().flatten()
    error = 5 / math.sqrt(rest.numel())
    assert rest.numel() >= 1e5
    assert abs(float(rest.mean())) < error * sigma
    assert abs(float(rest.var()) / sigma**2 - 1) < error * math.sqrt(2)
    assert abs(float(torch.corrcoef(torch.stack([rest, image.double().flatten()]))[0, 1])) < error


@with_levels
@pytest.mark.parametrize("name", FLOW + DISCRETE)
def test_going_up_adds_the_noise_of_the_seed(name, low, high):
    image, noise = image_and_noise(name)
    paths, x = gone_up(name, low, high, image, noise)
    (alpha, sigma), (alpha_to, sigma_to) = shares(name, paths.sigma(low)), shares(name, paths.sigma(high))
    kept = alpha_to / alpha * sigma
    fresh = math.sqrt(sigma_to**2 - kept**2) * draw(tuple(image.shape), 77)
    assert torch.allclose(x, alpha_to * image + kept * noise + fresh, rtol=1e-4, atol=1e-4)


@with_flow_and_discrete
def test_going_up_by_nothing_changes_nothing(name):
    paths = trajectories_of(name)
    state = paths.denoise(begin(paths), 0.4)
    paused = paths.renoise(state, 0.4, [1])
    assert torch.equal(paused.latent.samples, state.latent.samples)
    assert not paused.latent.noise.any()


def test_the_fresh_noise_is_that_of_the_seed():
    paths = trajectories_of("sd3")
    state = paths.denoise(begin(paths), 0.4)
    first, again, other = (paths.renoise(state, 0.9, [seed]).latent.noise for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# Going on


def with_soft_mask(setup, tiny):
    mask = torch.linspace(0, 1, 64).expand(1, 64, 64)
    return dataclasses.replace(setup, latent={**setup.latent, "noise_mask": mask})


@with_flow_and_discrete
def test_with_a_soft_mask_a_run_in_two_parts_is_the_whole_run(name):
    paths = trajectories_of(name, Feature(with_soft_mask, image=True))
    whole, _ = one_run(paths)
    half = paths.denoise(begin(paths), level_of(paths, 4))
    assert torch.allclose(paths.denoise(half, 0.0).latent.samples, whole, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("feature", ["nothing", "inpaint mask", "denoise", "LoRA"])
@with_flow_and_discrete
def test_a_run_in_two_parts_is_the_whole_run(name, feature):
    paths = trajectories_of(name, FEATURES.get(feature, NOTHING_ADDED))
    whole, _ = one_run(paths)
    for step in (1, 4, STEPS - 1):
        half = paths.denoise(begin(paths), level_of(paths, step))
        assert torch.allclose(paths.denoise(half, 0.0).latent.samples, whole, rtol=1e-3, atol=2e-3)


@with_flow_and_discrete
def test_a_path_that_takes_no_detour_is_the_plain_run(name):
    paths = trajectories_of(name)
    whole, _ = one_run(paths)
    assert torch.equal(paths.denoise(begin(paths), 0.0).latent.samples, whole)


@pytest.mark.parametrize("feature", ["nothing", "inpaint mask"])
@with_flow_and_discrete
def test_the_prediction_is_what_the_model_predicts_there(name, feature):
    paths = trajectories_of(name, FEATURES.get(feature, NOTHING_ADDED))
    _, predicted = one_run(paths)
    process = paths.sampling.model.model.process_latent_out
    for step in (1, 4, STEPS - 1):
        latent, denoised = paths.predict(paths.denoise(begin(paths), level_of(paths, step)))
        assert torch.allclose(latent["samples"], process(predicted[step]), rtol=1e-3, atol=2e-3)
        assert torch.equal(denoised["samples"], latent["samples"])


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_a_prediction_costs_one_evaluation_per_row(sampler):
    paths = trajectories_of("sd3", dataclasses.replace(NOTHING_ADDED, batch=3), sampler=sampler)
    state = paths.denoise(begin(paths), 0.4)
    before = paths.sampling.evaluations.rows
    paths.predict(state)
    assert paths.sampling.evaluations.rows - before == 3


def test_a_prediction_leaves_the_path_as_it_is():
    paths = trajectories_of("sd3")
    state = paths.denoise(begin(paths), 0.4)
    ends = []
    for look in (False, True):
        if look:
            paths.predict(state)
        ends.append(paths.denoise(paths.renoise(state, 0.9, [3]), 0.0).latent.samples)
    assert torch.equal(*ends)


@pytest.mark.parametrize("name", ["sd3", "sd15"])
def test_outside_of_an_inpainting_mask_a_path_leaves_the_image_alone(brightness, name):
    setup = made(name, FEATURES["inpaint mask"])
    result = searched(sampling_of(setup), brightness)
    assert any(candidate.recipes[0].jumps for candidate in result.log.candidates)
    recipes = next(one.recipes for one in result.log.candidates if one.stage == "final" and one.recipes[0].jumps)
    made_again = trajectories_of(name, FEATURES["inpaint mask"]).follow(recipes).latent.samples
    original = setup.latent["samples"]
    changed = (made_again - original).abs().amax(dim=1)[0]
    assert changed[2:6, 2:6].min() > 1e-2
    changed[2:6, 2:6] = 0
    assert changed.max() < 1e-4


# Levels


def test_a_flows_levels_are_its_sigmas():
    paths = trajectories_of("sd3")
    assert [paths.sigma(level) for level in (0.9, 0.5, 0.11)] == [0.9, 0.5, 0.11]


@pytest.mark.parametrize("name", DISCRETE)
def test_the_levels_of_other_models_are_shares_of_their_timesteps(name):
    paths = trajectories_of(name)
    for timestep in (888, 500, 111, 1):
        assert paths.sigma(timestep / 999) == pytest.approx(float(paths.model_sampling.sigmas[timestep]), rel=1e-4)


@with_flow_and_discrete
def test_no_level_is_above_where_the_schedule_starts(name):
    paths = trajectories_of(name, FEATURES["denoise"])
    start = float(paths.sampling.sigmas[0])
    assert start < trajectories_of(name).sigma(0.9)
    assert paths.sigma(0.9) == paths.sigma(1.0) == start


@with_flow_and_discrete
def test_no_level_is_below_where_the_schedule_ends(name):
    setup = made(name)
    sampling = sampling_of(setup)
    sampling.sigmas = sampling.sigmas[:5]  # the first part of SplitSigmas
    assert Trajectories(sampling).sigma(0.0) == float(sampling.sigmas[-1]) > 0


@pytest.mark.parametrize("scheduler", ["simple", "karras", "beta"])
@with_flow_and_discrete
def test_between_two_levels_lie_the_sigmas_of_the_schedule(name, scheduler):
    paths = trajectories_of(name, scheduler=scheduler)
    full = paths.sampling.sigmas.tolist()
    for start, end in ((1.0, 0.11), (0.89, 0.08), (0.5, 0.3), (0.08, 0.0)):
        first, *inner, last = paths.between(start, end).tolist()
        assert (first, last) == pytest.approx((paths.sigma(start), paths.sigma(end)))
        assert inner == [sigma for sigma in full if last * 1.02 < sigma < first / 1.02]


def test_a_whole_way_is_the_schedule_itself():
    paths = trajectories_of("sd15", scheduler="karras")
    assert torch.equal(paths.between(1.0, 0.0), paths.sampling.sigmas)


# Batches


def jumping(seed, *jumps, row, rows=3):
    return dataclasses.replace(
        Recipe.from_seed(seed).for_batch(rows).for_row(row), jumps=tuple(Jump(*jump) for jump in jumps)
    )


ROWS = {
    "other seeds": [((1, 0.2, 0.9),), ((2, 0.2, 0.9),), ((3, 0.2, 0.9),)],
    "other levels": [((1, 0.2, 0.9),), ((1, 0.3, 0.8),), ((1, 0.2, 0.9),)],
    "other numbers of jumps": [(), ((1, 0.3, 0.8),), ((1, 0.3, 0.8), (2, 0.1, 0.5))],
}


@pytest.mark.parametrize("case", ROWS)
def test_every_row_of_a_batch_follows_its_own_path_as_if_all_took_it(case):
    paths = trajectories_of("sd3", dataclasses.replace(NOTHING_ADDED, batch=3), steps=4)
    recipes = [jumping(SEED + row, *jumps, row=row) for row, jumps in enumerate(ROWS[case])]
    together = paths.follow(recipes).latent
    for row, recipe in enumerate(recipes):
        alone = paths.follow([dataclasses.replace(other, jumps=recipe.jumps) for other in recipes]).latent
        assert torch.equal(together.samples[row], alone.samples[row])
        assert torch.equal(together.x0[row], alone.x0[row])


def test_rows_are_joined_from_different_states():
    paths = trajectories_of("sd3", dataclasses.replace(NOTHING_ADDED, batch=2), steps=4)
    states = [paths.denoise(begin(paths, seed), 0.4) for seed in (1, 2)]
    joined = paths.join(states)
    for row, state in enumerate(states):
        assert joined.recipes[row] == state.recipes[row]
        assert torch.equal(joined.latent.samples[row], state.latent.samples[row])


# What the host adds to the sampling


def searched(sampling, verifier, candidates=4, **settings):
    algorithm = SearchOverPaths(paths=1, branches=2, sigma=0.2, forward=0.5, backward=0.6, **settings)
    return search(lambda: sampling, AnyVae(), verifier, SEED, candidates, "", 1, Graph(), "positive", algorithm)


def path_of(name, feature=NOTHING_ADDED):
    jumps = (Jump(1, 0.2, 0.7), Jump(2, 0.1, 0.6))
    paths = trajectories_of(name, feature, steps=4)
    recipes = [
        dataclasses.replace(recipe, jumps=jumps) for recipe in paths.sampling.complete((Recipe.from_seed(SEED),))
    ]
    return paths.follow(recipes).latent.samples


@pytest.mark.parametrize(
    ("name", "feature"),
    [pytest.param(name, label, id=f"{name}-{label}") for label in FEATURES for name in ("sd15", "sd3", "wan")
     if name in FEATURES[label].models],
)  # fmt: skip
def test_a_path_is_sampled_with_whatever_the_workflow_adds(name, feature):
    feature = FEATURES[feature]
    without = dataclasses.replace(NOTHING_ADDED, batch=feature.batch, image=feature.image)
    samples = path_of(name, feature)
    assert samples.isfinite().all()
    assert not torch.equal(samples, path_of(name, without))


@pytest.mark.parametrize("sampler", comfy.samplers.KSampler.SAMPLERS)
def test_every_sampler_can_follow_a_path(sampler):
    paths = trajectories_of("sd3", sampler=sampler, steps=6)
    recipe = dataclasses.replace(Recipe.from_seed(SEED), jumps=(Jump(1, 0.1, 0.9), Jump(2, 0.05, 0.8)))
    ends = [paths.follow([recipe]).latent.samples for _ in range(2)]
    assert ends[0].isfinite().all()
    assert torch.equal(*ends)


# Refusals


def test_a_level_that_is_not_below_the_start_is_refused():
    paths = trajectories_of("sd3", FEATURES["denoise"])
    with pytest.raises(ValueError, match=r"noise level 0.9 .* is not below where the sampling starts .*Raise denoise"):
        paths.denoise(begin(paths), 0.9)


def test_a_schedule_that_ends_too_early_is_refused():
    sampling = sampling_of(made("sd3"))
    sampling.sigmas = sampling.sigmas[:5]
    with pytest.raises(ValueError, match=r"the schedule ends at sigma 0\.75.* not below noise level 0\.08"):
        Trajectories(sampling).between(0.08, 0.0)


def test_a_latent_of_several_tensors_is_refused():
    with pytest.raises(ValueError, match="several tensors .* use Random Search"):
        trajectories_of("ltxav")


def test_a_model_that_does_not_start_from_noise_is_refused():
    class FromImage(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.IMG_TO_IMG_FLOW):
        pass

    setup = made("sd15")
    setup = dataclasses.replace(made("sd3"), model=made("sd3").model.clone())
    setup.model.add_object_patch("model_sampling", FromImage(setup.model.model.model_config))
    paths = Trajectories(sampling_of(setup))
    with pytest.raises(ValueError, match="does not start from noise"):
        paths.denoise(begin(paths), 0.4)
