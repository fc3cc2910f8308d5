"""What the searches must know of each of ComfyUI's samplers: whether it draws noise of its own, and what it costs."""

import pytest
import torch

pytest.importorskip("comfy")

import comfy.samplers
from comfy_extras import nodes_custom_sampler
from conformance import SEED, search
from noise_search.host.engine import ComfyEngine
from noise_search.host.sampling import Sampling, adds_noise
from noise_search.search.budget import Budget
from noise_search.search.draft_and_final import DraftAndFinal
from noise_search.search.paths import SearchOverPaths
from noise_search.search.random_search import RandomSearch
from noise_search.search.zero_order import STUCK, ZeroOrderSearch
from test_any_model import AnyVae, setup_of
from test_host_conformance import Contrast
from tiny_models import sd3

SAMPLERS = comfy.samplers.KSampler.SAMPLERS
STEPS = 8
NOISE_FREE = [name for name in SAMPLERS if not adds_noise(comfy.samplers.sampler_object(name))]


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def sampling_of(sampler, steps=STEPS) -> Sampling:
    setup = setup_of(sd3())
    return Sampling.ksampler(
        setup.model, steps, setup.cfg, sampler, "simple", setup.positive, setup.negative, setup.latent
    )


def engine(sampler, steps=STEPS) -> ComfyEngine:
    return ComfyEngine(sampling_of(sampler, steps), AnyVae(), Contrast(), "")


# Noise of its own


def seed_matters(sampler) -> bool:
    """Whether another seed of the sampler gives another result from the same noise."""
    sampling = sampling_of("euler", steps=4)
    sampling.sampler = sampler
    latent = sampling.latent["samples"]
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
    first, second = (sampling.run(noise, latent, sampling.sigmas, seed)[0] for seed in (1, 2))
    return not torch.equal(first, second)


@pytest.mark.parametrize("name", SAMPLERS)
def test_which_samplers_draw_noise_of_their_own_is_known(name):
    sampler = comfy.samplers.sampler_object(name)
    assert adds_noise(sampler) == seed_matters(sampler)


def chosen(node, **inputs):
    """What a SAMPLER node gives out with these inputs, all others as they come."""
    widgets = node.define_schema().inputs
    defaults = {i.id: i.options[0] if getattr(i, "options", None) else getattr(i, "default", None) for i in widgets}
    return getattr(nodes_custom_sampler, node.__name__).execute(**{**defaults, **inputs}).args[0]


ETAS = [
    nodes_custom_sampler.SamplerEulerAncestral,
    nodes_custom_sampler.SamplerEulerAncestralCFGPP,
    nodes_custom_sampler.SamplerDPMPP_2S_Ancestral,
    nodes_custom_sampler.SamplerDPMPP_SDE,
    nodes_custom_sampler.SamplerDPMPP_2M_SDE,
    nodes_custom_sampler.SamplerDPMPP_3M_SDE,
    nodes_custom_sampler.SamplerSEEDS2,
    nodes_custom_sampler.SamplerER_SDE,
]


@pytest.mark.parametrize(("eta", "s_noise"), [(0.0, 1.0), (1.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("node", ETAS)
def test_eta_and_s_noise_say_whether_a_sampler_node_draws_noise(node, eta, s_noise):
    sampler = chosen(node, eta=eta, s_noise=s_noise)
    assert adds_noise(sampler) == seed_matters(sampler)


def test_an_adaptive_sampler_with_eta_draws_noise():
    sampler = chosen(nodes_custom_sampler.SamplerDPMAdaptative, eta=1.0, rtol=5.0, atol=5.0)
    assert adds_noise(sampler) == seed_matters(sampler) is True


@pytest.mark.parametrize("solver", ["ER-SDE", "Reverse-time SDE", "ODE"])
def test_which_solvers_of_er_sde_draw_noise_is_known(solver):
    sampler = chosen(nodes_custom_sampler.SamplerER_SDE, solver_type=solver)
    assert adds_noise(sampler) == seed_matters(sampler) == (solver != "ODE")


@pytest.mark.parametrize("churn", [0.0, 2.0])
@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2", "heunpp2"])
def test_churn_is_noise(name, churn):
    sampler = comfy.samplers.ksampler(name, {"s_churn": churn})
    assert adds_noise(sampler) == seed_matters(sampler) == bool(churn)


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_2m_sde", "lcm", "seeds_3"])
def test_draft_and_final_refuses_a_sampler_with_noise_of_its_own_by_name(name):
    made = engine(name)
    with pytest.raises(ValueError, match=rf"sampler that adds no noise .* With {name} "):
        search(DraftAndFinal(), made, settings=made.sampling.settings)
    assert made.sampling.evaluations.rows == 0


@pytest.mark.parametrize("name", [name for name in NOISE_FREE if name != "dpm_adaptive"])  # it takes many small steps
def test_draft_and_final_works_with_samplers_without_noise_of_their_own(name):
    log = search(DraftAndFinal(), engine(name), SEED, Budget(4)).log
    assert log.findings["drafts"] > 1
    assert len(log.of_stage()) > 1


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_2m_sde", "lcm"])
def test_neighbours_are_sampled_with_the_pivots_own_sampler_noise(name):
    made = engine(name)
    seeds, sample = [], made.sampling.guider.sample
    made.sampling.guider.sample = lambda *args, **named: seeds.append(named["seed"]) or sample(*args, **named)
    search(ZeroOrderSearch(stuck=STUCK[0]), made, SEED, Budget(5))
    assert seeds == [SEED] * 5


# Cost

EVALUATIONS = {"euler": 8, "heun": 15, "dpm_2": 15, "heunpp2": 21, "seeds_2": 15, "seeds_3": 22, "uni_pc": 8}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_the_budget_in_candidates_is_that_many_stock_runs(name):
    log = search(RandomSearch(), engine(name), SEED, Budget(4)).log
    assert [candidate.nfe for candidate in log.candidates] == [EVALUATIONS[name]] * 4


def test_a_sampler_that_chooses_its_own_steps_goes_over_by_less_than_a_candidate():
    made = engine("dpm_adaptive")
    made.sampling.sampler = comfy.samplers.ksampler("dpm_adaptive", {"rtol": 0.5, "atol": 0.5})
    log = search(RandomSearch(), made, SEED, Budget(4)).log
    spent = [candidate.nfe for candidate in log.candidates]
    assert len(spent) > 2
    assert sum(spent[:-1]) < 4 * spent[0]


@pytest.mark.parametrize("steps", [3, 8])
@pytest.mark.parametrize("name", ["heun", "heunpp2", "seeds_3"])
def test_paths_keep_to_the_budget_before_anything_is_measured(name, steps):
    log = search(SearchOverPaths(paths=1), engine(name, steps), SEED, Budget(7)).log
    assert any(candidate.recipes[0].jumps for candidate in log.candidates)
    assert log.nfe <= 7 * log.candidates[0].nfe
