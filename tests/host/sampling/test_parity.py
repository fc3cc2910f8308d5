"""A search of one candidate is the stock sampler, bit for bit."""

import pytest
import torch

pytest.importorskip("comfy")

import comfy.k_diffusion.sampling as k_diffusion
import comfy.samplers
from comfy_extras import nodes_custom_sampler
from noise_search.host.graph.graph import Graph
from noise_search.host.sampling.engine import Options
from noise_search.host.sampling.stock import Sampling
from noise_search.host.search import run_node as search
from noise_search.search.recipe import Recipe

import nodes as comfy_nodes

SAMPLERS = comfy.samplers.KSampler.SAMPLERS
STEPS, CFG = 4, 3.0


def empty(batch: int = 1) -> dict:
    return {"samples": torch.zeros(batch, 16, 8, 8)}


def with_image(batch: int = 1) -> dict:
    return {"samples": torch.randn(batch, 16, 8, 8, generator=torch.Generator().manual_seed(7))}


def latents() -> dict[str, tuple[dict, float]]:
    mask = torch.zeros(1, 64, 64)
    mask[:, 16:48, 16:48] = 1
    return {
        "empty": (empty(), 1.0),
        "inpaint at denoise 0.6": ({**with_image(), "noise_mask": mask}, 0.6),
        "batch_index": ({**with_image(2), "batch_index": [1, 3]}, 1.0),
        "denoise 0.5": (with_image(), 0.5),
    }


def stock_ksampler(demo, seed, sampler, latent, denoise, scheduler="simple"):
    with torch.inference_mode():
        return comfy_nodes.common_ksampler(
            demo.model, seed, STEPS, CFG, sampler, scheduler, demo.positive, demo.negative, dict(latent), denoise
        )[0]


def sampling_of(demo, sampler, latent, denoise, scheduler="simple") -> Sampling:
    return Sampling.ksampler(
        demo.model, STEPS, CFG, sampler, scheduler, demo.positive, demo.negative, dict(latent), denoise
    )


def searched(demo, brightness, sampling, seed, candidates=1, top_k=1):
    with torch.inference_mode():
        return search(lambda: sampling, demo.vae, brightness, seed, candidates, "", top_k, Graph(), "positive")


@pytest.mark.parametrize("case", list(latents()))
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_search_ksampler_with_one_candidate_is_the_ksampler(demo, brightness, sampler, case):
    latent, denoise = latents()[case]
    stock = stock_ksampler(demo, 123, sampler, latent, denoise)
    ours = searched(demo, brightness, sampling_of(demo, sampler, latent, denoise), 123).latent
    assert torch.equal(ours["samples"], stock["samples"])
    assert ours["samples"].dtype == stock["samples"].dtype
    assert set(ours) == set(stock)


@pytest.mark.parametrize("case", list(latents()))
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_search_sampler_advanced_with_one_candidate_is_sampler_custom_advanced(demo, brightness, sampler, case):
    latent, denoise = latents()[case]
    guider = comfy.samplers.CFGGuider(demo.model)
    guider.set_conds(demo.positive, demo.negative)
    guider.set_cfg(CFG)
    stock_sampler = comfy.samplers.sampler_object(sampler)
    sigmas = comfy.samplers.KSampler(demo.model, STEPS, "cpu", sampler, "simple", denoise).sigmas
    noise = nodes_custom_sampler.Noise_RandomNoise(99)
    with torch.inference_mode():
        out = nodes_custom_sampler.SamplerCustomAdvanced.execute(noise, guider, stock_sampler, sigmas, dict(latent))
    ours = searched(demo, brightness, Sampling.advanced(guider, stock_sampler, sigmas, dict(latent)), 99)
    assert torch.equal(ours.latent["samples"], out.args[0]["samples"])
    assert torch.equal(ours.denoised["samples"], out.args[1]["samples"])
    assert set(ours.latent) == set(out.args[0])


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_2m_sde"])
def test_the_winner_is_the_stock_run_with_its_seed(demo, brightness, sampler):
    result = searched(demo, brightness, sampling_of(demo, sampler, empty(), 1.0), 10, candidates=3)
    stock = stock_ksampler(demo, result.seed, sampler, empty(), 1.0)
    assert torch.equal(result.latent["samples"], stock["samples"])


def test_a_sampler_that_writes_into_its_sigmas_changes_no_later_candidate(demo, brightness, monkeypatch):
    def shrinking(model, x, sigmas, **more):
        samples = k_diffusion.sample_euler(model, x, sigmas, **more)
        sigmas *= 0.9
        return samples

    monkeypatch.setattr(k_diffusion, "sample_shrinking", shrinking, raising=False)
    monkeypatch.setattr(comfy.samplers, "KSAMPLER_NAMES", [*comfy.samplers.KSAMPLER_NAMES, "shrinking"])
    sampling = sampling_of(demo, "shrinking", empty(), 1.0)
    second = searched(demo, brightness, sampling, 10, candidates=3, top_k=3).log.candidates[1]
    alone = searched(demo, brightness, sampling_of(demo, "shrinking", empty(), 1.0), 11)
    assert second.values == alone.log.candidates[0].values


@pytest.mark.parametrize("batch_size", [1, 4])
def test_where_the_schedule_leaves_noise_the_prediction_is_shown_and_scored(demo, brightness, batch_size):
    guider = comfy.samplers.CFGGuider(demo.model)
    guider.set_conds(demo.positive, demo.negative)
    sampler = comfy.samplers.sampler_object("euler")
    sigmas = comfy.samplers.KSampler(demo.model, STEPS, "cpu", "euler", "simple").sigmas[:-1]
    sampling = Sampling.advanced(guider, sampler, sigmas, empty())
    with torch.inference_mode():
        found = search(
            lambda: sampling, demo.vae, brightness, 5, 5, "", 1, Graph(), "guider", options=Options(batch_size)
        )
        expected = demo.vae.decode(found.denoised["samples"])
        noise = nodes_custom_sampler.Noise_RandomNoise(found.seed)
        out = nodes_custom_sampler.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, empty())
    assert torch.equal(found.image, expected)
    assert torch.equal(found.latent["samples"], out.args[0]["samples"])
    assert found.log.best().values[0][0] == pytest.approx(expected[..., 0].mean().item(), abs=1e-5)


def test_seeds_wrap_around(demo, brightness):
    last = 2**64 - 1
    log = searched(demo, brightness, sampling_of(demo, "euler", empty(), 1.0), last, candidates=3).log
    assert [candidate.recipes[0].seed for candidate in log.candidates] == [last, 0, 1]


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral"])
def test_every_item_of_a_batch_keeps_its_own_best_of_the_stock_batches(demo, brightness, sampler):
    result = searched(demo, brightness, sampling_of(demo, sampler, empty(3), 1.0), 5, candidates=4)
    batches = [stock_ksampler(demo, 5 + j, sampler, empty(3), 1.0)["samples"] for j in range(4)]
    winners = [result.log.best(row).index for row in range(3)]
    expected = torch.cat([batches[j][row : row + 1] for row, j in enumerate(winners)])
    assert torch.equal(result.latent["samples"], expected)
    assert len(set(winners)) > 1  # otherwise this shows nothing: choose another seed


def test_a_winning_batch_is_made_again_from_its_recipe(demo, brightness):
    sampling = sampling_of(demo, "euler", empty(3), 1.0)
    result = searched(demo, brightness, sampling, 5, candidates=4)
    noise = result.noise.generate_noise(empty(3))
    for row in range(3):
        seed = result.log.winner(row).seed
        assert torch.equal(noise[row : row + 1], Recipe.from_seed(seed).noise((3, 16, 8, 8))[row : row + 1])
    guider = comfy.samplers.CFGGuider(demo.model)
    guider.set_conds(demo.positive, demo.negative)
    guider.set_cfg(CFG)
    sampler = comfy.samplers.sampler_object("euler")
    with torch.inference_mode():
        out = nodes_custom_sampler.SamplerCustomAdvanced.execute(
            result.noise, guider, sampler, sampling.sigmas, empty(3)
        )
    assert torch.equal(result.latent["samples"], out.args[0]["samples"])


def test_a_search_can_be_repeated_with_the_same_sampling(demo, brightness):
    sampling = sampling_of(demo, "dpmpp_2m", empty(), 1.0)
    first, second = (searched(demo, brightness, sampling, 3, candidates=2) for _ in range(2))
    assert torch.equal(first.latent["samples"], second.latent["samples"])
    assert first.log.values().tolist() == second.log.values().tolist()


@pytest.mark.parametrize(("sampler", "per_step"), [("euler", 4), ("dpmpp_2m", 4), ("heun", 7)])
def test_evaluations_are_counted_in_the_model_call(demo, brightness, sampler, per_step):
    log = searched(demo, brightness, sampling_of(demo, sampler, empty(2), 1.0), 1, candidates=2).log
    assert [candidate.nfe_per_row for candidate in log.candidates] == [per_step, per_step]
    assert log.nfe == 2 * 2 * per_step


def test_the_callers_guider_is_left_alone(demo, brightness):
    guider = comfy.samplers.CFGGuider(demo.model)
    guider.set_conds(demo.positive, demo.negative)
    before = dict(guider.__dict__)
    sampler = comfy.samplers.sampler_object("euler")
    sigmas = comfy.samplers.KSampler(demo.model, 2, "cpu", "euler", "simple", 1.0).sigmas
    searched(demo, brightness, Sampling.advanced(guider, sampler, sigmas, empty()), 1)
    assert guider.__dict__ == before


def test_denoise_0_gives_the_latent_back_as_the_ksampler_does(demo, brightness):
    latent = with_image()
    result = searched(demo, brightness, sampling_of(demo, "euler", latent, 0.0), 1, candidates=5)
    assert torch.equal(result.latent["samples"], stock_ksampler(demo, 1, "euler", latent, 0.0)["samples"])
    assert (len(result.log.candidates), result.log.nfe) == (1, 0)


@pytest.mark.parametrize("sigmas", [torch.tensor([]), torch.tensor([1.0])])
def test_too_few_sigmas_give_what_sampler_custom_advanced_gives(demo, brightness, sigmas):
    guider = comfy.samplers.CFGGuider(demo.model)
    guider.set_conds(demo.positive, demo.negative)
    sampler = comfy.samplers.sampler_object("euler")
    noise = nodes_custom_sampler.Noise_RandomNoise(4)
    latent = with_image()
    with torch.inference_mode():
        out = nodes_custom_sampler.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, dict(latent))
    ours = searched(demo, brightness, Sampling.advanced(guider, sampler, sigmas, dict(latent)), 4, candidates=3)
    assert torch.equal(ours.latent["samples"], out.args[0]["samples"])
