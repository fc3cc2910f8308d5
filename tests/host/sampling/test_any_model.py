"""Whatever ComfyUI can sample, a search of one candidate is the stock sampler, bit for bit."""

from __future__ import annotations

import dataclasses

import pytest
import torch

pytest.importorskip("comfy")

import comfy.hooks
import comfy.samplers
import comfy.utils
import tiny_models
from any_model import (
    BATCH_OF_2,
    GUIDERS,
    NOTHING_ADDED,
    ONE_TENSOR,
    SAMPLER,
    SCHEDULER,
    SEED,
    SIDE,
    STEPS,
    Feature,
    Likes,
    advanced_sampling,
    assert_same_latent,
    cfg_guider,
    decoded,
    equal,
    made,
    parts,
    sampling_of,
    searched,
    sigmas_of,
    stock,
    stock_advanced,
    stock_ksampler,
    with_every_feature,
    with_every_model,
)
from comfy.cli_args import LatentPreviewMethod, args
from comfy_extras import nodes_custom_sampler

import nodes as comfy_nodes


@with_every_model
def test_search_ksampler_is_the_ksampler_with_its_picture_and_its_score(brightness, name):
    ours = searched(sampling_of(made(name)), brightness)
    image = decoded(stock(name)["samples"])
    assert_same_latent(ours.latent, stock(name))
    assert torch.equal(ours.image, image.flatten(0, 1))
    assert ours.log.best().values[0][0] == pytest.approx(image[..., 0].mean().item(), abs=1e-6)


@with_every_feature
def test_each_candidate_of_search_ksampler_is_the_ksampler_with_its_seed_and_with(name, feature):
    first, second = (stock(name, feature, seed)["samples"] for seed in (SEED, SEED + 1))
    likes = Likes(decoded(second))
    ours = searched(sampling_of(made(name, feature)), likes, candidates=2)
    assert_same_latent(ours.latent, stock(name, feature, SEED + 1))
    shown = torch.stack(likes.seen).reshape(2, *decoded(first).shape)
    assert torch.equal(shown, torch.stack([decoded(first), decoded(second)]))


@pytest.mark.parametrize("guider", GUIDERS)
@with_every_model
def test_search_sampler_advanced_is_sampler_custom_advanced(brightness, name, guider):
    setup = made(name)
    sigmas = sigmas_of(setup)
    ours = searched(advanced_sampling(GUIDERS[guider](setup), sigmas, setup.latent), brightness)
    latent, denoised = stock_advanced(GUIDERS[guider](made(name)), sigmas, setup.latent)
    assert_same_latent(ours.latent, latent)
    assert_same_latent(ours.denoised, denoised)


@with_every_feature
def test_search_sampler_advanced_is_sampler_custom_advanced_with(brightness, name, feature):
    setup = made(name, feature)
    sigmas = sigmas_of(setup)
    ours = searched(advanced_sampling(cfg_guider(setup), sigmas, setup.latent), brightness)
    latent, denoised = stock_advanced(cfg_guider(made(name, feature)), sigmas, setup.latent)
    assert_same_latent(ours.latent, latent)
    assert_same_latent(ours.denoised, denoised)


@with_every_model
def test_start_and_end_steps_are_those_of_the_stock_advanced_ksampler(brightness, name):
    setup = made(name)
    with torch.inference_mode():
        expected = comfy_nodes.KSamplerAdvanced().sample(
            setup.model, "enable", SEED, STEPS + 2, setup.cfg, SAMPLER, SCHEDULER,
            setup.positive, setup.negative, dict(setup.latent), 1, 4, "enable",
        )[0]  # fmt: skip
    sigmas = comfy.samplers.KSampler(setup.model, STEPS + 2, "cpu", SAMPLER, SCHEDULER).sigmas
    high = nodes_custom_sampler.SplitSigmas.execute(sigmas, 4).args[0]
    low = nodes_custom_sampler.SplitSigmas.execute(high, 1).args[1]
    ours = searched(advanced_sampling(cfg_guider(setup), low, setup.latent), brightness)
    assert_same_latent(ours.latent, expected)


@with_every_model
def test_a_later_candidate_is_the_ksampler_with_a_later_seed_and_tells_it(name):
    second = stock(name, seed=SEED + 1)["samples"]
    result = searched(sampling_of(made(name)), Likes(decoded(second)), candidates=3)
    assert equal(result.latent["samples"], second)
    assert result.seed == SEED + 1


@with_every_model
def test_the_noise_of_the_winner_makes_it_again(brightness, name):
    setup = made(name)
    sigmas = sigmas_of(setup)
    result = searched(advanced_sampling(cfg_guider(setup), sigmas, setup.latent), brightness, candidates=3)
    again = stock_advanced(cfg_guider(setup), sigmas, setup.latent, result.noise)
    assert equal(result.latent["samples"], again[0]["samples"])


@with_every_model
def test_every_row_of_a_batch_keeps_its_own_best(brightness, name):
    setup = made(name, BATCH_OF_2)
    result = searched(sampling_of(setup), brightness, candidates=3)
    batches = [parts(stock(name, BATCH_OF_2, SEED + j)["samples"]) for j in range(3)]
    winners = [result.log.best(row).index for row in range(2)]
    for index, ours in enumerate(parts(result.latent["samples"])):
        expected = [batches[winner][index][row : row + 1] for row, winner in enumerate(winners)]
        assert torch.equal(ours, torch.cat(expected))


@with_every_model
def test_evaluations_of_any_latent_are_counted_per_row(brightness, name):
    setup = made(name, BATCH_OF_2)
    log = searched(sampling_of(setup), brightness).log
    assert (log.candidates[0].nfe_per_row, log.nfe) == (STEPS, 2 * STEPS)


@pytest.mark.parametrize("name", ONE_TENSOR)
def test_an_empty_picture_of_stable_diffusion_is_shaped_for_the_model_as_the_ksampler_does(brightness, name):
    latent = comfy_nodes.EmptyLatentImage().generate(2 * SIDE, SIDE)[0]
    setup = dataclasses.replace(made(name), latent=latent)
    assert_same_latent(searched(sampling_of(setup), brightness).latent, stock_ksampler(setup))


@pytest.mark.parametrize("name", ONE_TENSOR)
def test_an_empty_picture_of_stable_diffusion_is_shaped_as_sampler_custom_advanced_does(brightness, name):
    empty = comfy_nodes.EmptyLatentImage().generate(2 * SIDE, SIDE)[0]
    setup = dataclasses.replace(made(name), latent=empty)
    sigmas = sigmas_of(setup)
    ours = searched(advanced_sampling(cfg_guider(setup), sigmas, empty), brightness)
    latent, denoised = stock_advanced(cfg_guider(setup), sigmas, empty)
    assert_same_latent(ours.latent, latent)
    assert equal(ours.denoised["samples"], denoised["samples"])  # stock forgets to take the empty latent's ratio out


@pytest.mark.parametrize("masked", ["video", "audio"])
def test_a_mask_for_one_of_several_tensors_is_kept(brightness, masked):
    from comfy.nested_tensor import NestedTensor

    setup = made("ltxav", Feature(lambda setup, tiny: setup, image=True))
    masks = [torch.ones(1, 1, *part.shape[2:]) for part in parts(setup.latent["samples"])]
    masks[masked == "audio"].zero_()
    latent = {**setup.latent, "noise_mask": NestedTensor(masks)}
    setup = dataclasses.replace(setup, latent=latent)
    assert_same_latent(searched(sampling_of(setup), brightness).latent, stock_ksampler(setup))


@with_every_model
def test_a_latent_in_half_precision_is_sampled_as_the_ksampler_does(brightness, name):
    setup = made(name)
    setup = dataclasses.replace(setup, latent={"samples": setup.latent["samples"].to(dtype=torch.bfloat16)})
    assert_same_latent(searched(sampling_of(setup), brightness).latent, stock_ksampler(setup))


@with_every_model
def test_previews_of_any_latent(brightness, name, monkeypatch):
    previews = []
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Latent2RGB)
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, preview, **node: previews.append(preview)
    )
    searched(sampling_of(made(name)), brightness)
    assert any(preview is not None for preview in previews)


# What follows is about the tests above: they would show nothing if the models ignored what is added.


@with_every_model
def test_the_models_give_finite_latents_that_the_seed_decides(name):
    first, second = (parts(stock(name, seed=seed)["samples"]) for seed in (SEED, SEED + 1))
    assert all(a.isfinite().all() and not torch.equal(a, b) for a, b in zip(first, second, strict=True))


@with_every_model
def test_the_models_listen_to_both_prompts(name):
    setup = dataclasses.replace(made(name), cfg=3.0)
    plain = stock_ksampler(setup)["samples"]
    other = tiny_models.BUILDERS[name]().conditioning(9)
    for changed in (dataclasses.replace(setup, positive=other), dataclasses.replace(setup, negative=other)):
        assert not any(
            torch.equal(a, b) for a, b in zip(parts(plain), parts(stock_ksampler(changed)["samples"]), strict=True)
        )


@with_every_feature
def test_the_stock_result_depends_on(name, feature):
    without = dataclasses.replace(NOTHING_ADDED, batch=feature.batch, image=feature.image)
    assert not equal(stock(name, feature)["samples"], stock(name, without)["samples"])


def test_flux_listens_to_its_guidance():
    setup = made("flux")
    text, values = setup.positive[0]
    changed = dataclasses.replace(setup, positive=[[text, {**values, "guidance": 8.0}]])
    assert not equal(stock_ksampler(changed)["samples"], stock_ksampler(setup)["samples"])
