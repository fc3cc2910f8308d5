"""What the searches must know of each of ComfyUI's samplers: whether it draws noise of its own, and what it costs."""

import random
import re

import numpy as np
import pytest
import torch

pytest.importorskip("comfy")

import comfy.latent_formats
import comfy.model_management as mm
import comfy.samplers
from any_model import AnyVae, Contrast, setup_of
from comfy.nested_tensor import NestedTensor
from comfy_extras import nodes_custom_sampler
from conformance import SEED, search
from noise_search.host.graph.graph import Graph
from noise_search.host.sampling import batching
from noise_search.host.sampling.engine import ComfyEngine, Options
from noise_search.host.sampling.rehearsal import Rehearsal, alike
from noise_search.host.sampling.stock import LAST_SEED, Sampling, check_pictures
from noise_search.host.search import run_node as whole_search
from noise_search.search.algorithms.draft_and_final import DraftAndFinal
from noise_search.search.algorithms.paths import SearchOverPaths
from noise_search.search.algorithms.random_search import RandomSearch
from noise_search.search.algorithms.zero_order import STUCK, ZeroOrderSearch
from noise_search.search.budget import Budget
from noise_search.search.recipe import Recipe
from tiny_models import ltxav, sd3

import nodes as comfy_nodes

SAMPLERS = comfy.samplers.KSampler.SAMPLERS
STEPS = 8
NOISY = ("ancestral", "sde", "lcm", "ddpm", "seeds", "sa_solver")  # parts of their names
NOISE_FREE = [name for name in SAMPLERS if not any(part in name for part in NOISY)]


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


def adds_noise(sampler, steps=4) -> bool:
    """What the search finds out about it, without a single evaluation."""
    sampling = sampling_of("euler", steps)
    sampling.sampler = sampler
    answer = not sampling.deterministic
    assert sampling.evaluations.rows == 0
    return answer


@pytest.mark.parametrize("name", SAMPLERS)
def test_which_samplers_draw_noise_of_their_own_is_found_out(name):
    sampler = comfy.samplers.sampler_object(name)
    assert adds_noise(sampler) == seed_matters(sampler) == (name not in NOISE_FREE)


@pytest.mark.parametrize("name", SAMPLERS)
def test_only_the_adaptive_sampler_mixes_the_items_of_a_batch(name):
    if name not in NOISE_FREE:
        return
    for steps in (2, 3, 8):
        assert sampling_of(name, steps).mixes_rows == (name == "dpm_adaptive")


def added_by_a_pack(model, x, sigmas, extra_args=None, callback=None, disable=None, eta=0.5, only=lambda step: True):
    """An Euler that draws noise though neither its name nor its options as they are stored say so."""
    generator = torch.Generator().manual_seed(extra_args["seed"])
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * x.new_ones([x.shape[0]]), **extra_args)
        callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        x = denoised + (x - denoised) * (sigmas[i + 1] / sigmas[i])
        if only(i):
            x = x + eta * sigmas[i + 1] * torch.randn(x.shape, generator=generator)
    return x


def wrapped(model, x, sigmas, inner=None, **more):
    """A sampler that is another one's wrapper, as detail daemons are."""
    return inner.sampler_function(model, x, sigmas, **more, **inner.extra_options)


def chooses_steps(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Half a step wherever the batch as a whole is large."""
    for i in range(len(sigmas) - 1):
        middle = [sigmas[i] * 0.7] if float(x.abs().mean()) > 0.8 * float(sigmas[i]) else []
        for at, to in zip([sigmas[i], *middle], [*middle, sigmas[i + 1]], strict=True):
            denoised = model(x, at * x.new_ones([x.shape[0]]), **extra_args)
            x = denoised + (x - denoised) * (to / at)
    return x


def made(function, **options):
    return comfy.samplers.KSAMPLER(function, options)


@pytest.mark.parametrize(
    ("sampler", "noisy"),
    [
        (made(added_by_a_pack), True),
        (made(added_by_a_pack, eta=0.0), False),
        (made(added_by_a_pack, only=lambda step: step == 5), True),
        (made(added_by_a_pack, only=lambda step: step > 99), False),
        (made(wrapped, inner=comfy.samplers.sampler_object("euler_ancestral")), True),
        (made(wrapped, inner=comfy.samplers.sampler_object("euler")), False),
        (comfy.samplers.ksampler("euler", {"s_churn": 2.0, "s_tmin": 0.2, "s_tmax": 0.3}), True),
        (comfy.samplers.ksampler("euler", {"s_churn": 2.0, "s_tmin": 2.0}), False),
    ],
)
def test_noise_of_a_packs_sampler_is_found_whatever_it_is_called(sampler, noisy):
    sampling = sampling_of("euler", steps=8)
    sampling.sampler = sampler
    engine = ComfyEngine(sampling, AnyVae(), Contrast(), "", candidates=8, options=Options(2))
    assert engine.deterministic == (not noisy)
    assert engine.batches.size == (1 if noisy else 2)
    assert sampling.evaluations.rows == 0


def sample_anything_ode(model, x, sigmas, **more):
    return added_by_a_pack(model, x, sigmas, **more, eta=0.0)


@pytest.mark.parametrize(("function", "mixes"), [(sample_anything_ode, False), (chooses_steps, True)])
def test_who_chooses_steps_by_the_whole_batch_is_found_whatever_it_is_called(function, mixes):
    sampling = sampling_of("euler")
    sampling.sampler = made(function)
    assert sampling.mixes_rows == mixes
    assert (batching.obstacle(sampling) is not None) == mixes


def test_what_cannot_run_without_its_model_counts_as_noisy(caplog):
    def needs_the_model(model, x, sigmas, **more):
        raise KeyError("cached keys")

    sampling = sampling_of("euler")
    sampling.sampler = made(needs_the_model)
    assert not sampling.deterministic
    assert "tried without a model (KeyError: 'cached keys')" in caplog.text


def test_running_out_of_memory_in_a_trial_says_nothing_of_the_sampler():
    tries = []

    def sample_large(model, x, sigmas, extra_args=None, callback=None, disable=None, **options):
        tries.append(1)
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return added_by_a_pack(model, x, sigmas, extra_args, callback, eta=0.0)

    assert not adds_noise(made(sample_large))
    assert len(tries) == 3


class WithoutDoubles(torch.Tensor):
    """As on a device that has none, such as Apple's."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        assert function is not torch.Tensor.double and not any(value is torch.float64 for value in args)
        return super().__torch_function__(function, types, args, kwargs or {})


def test_what_a_trial_gives_is_compared_on_a_device_without_doubles_too():
    first, second = (torch.tensor(values).as_subclass(WithoutDoubles) for values in ([1.0, 2.0], [1.0, 2.5]))
    assert alike(first, first) and not alike(first, second)


def test_cancel_stops_the_trial_of_a_sampler():
    mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        _ = sampling_of("euler").deterministic
    mm.interrupt_current_processing(False)


def test_a_trial_leaves_every_generator_as_it_was_and_one_candidate_needs_none(monkeypatch):
    states = lambda: (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())  # noqa: E731
    before, sampling = states(), sampling_of("euler_ancestral")
    assert not sampling.deterministic and sampling.mixes_rows
    assert states() == before

    monkeypatch.setattr(Rehearsal, "play", None)
    searched = whole_search(lambda: sampling_of("euler"), AnyVae(), Contrast(), 1, 1, "", 1, Graph(), "positive")
    assert len(searched.log.candidates) == 1


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


# The last seed


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_seed_is_stocks_where_stock_has_one_and_works_everywhere(name):
    setup = setup_of(sd3())
    sampling = sampling_of(name, steps=3)
    latent = sampling.sample((Recipe.from_seed(LAST_SEED),))[0]["samples"]
    assert torch.isfinite(latent).all()
    inputs = (3, setup.cfg, name, "simple", setup.positive, setup.negative, setup.latent)
    try:
        [stock] = comfy_nodes.common_ksampler(setup.model, LAST_SEED, *inputs)
    except (ValueError, RuntimeError, OverflowError):  # it adds one
        return
    assert torch.equal(latent, stock["samples"])


def test_a_search_goes_past_the_last_seed_with_a_sampler_that_adds_one():
    log = search(RandomSearch(), engine("euler_ancestral", 3), LAST_SEED - 1, Budget(4)).log
    assert [candidate.recipes[0].seed for candidate in log.candidates] == [LAST_SEED - 1, LAST_SEED, 0, 1]
    assert len({candidate.values for candidate in log.candidates}) == 4


# Schedules


def with_sigmas(sigmas, sampler="euler") -> Sampling:
    setup = setup_of(sd3())
    guider = comfy.samplers.CFGGuider(setup.model)
    guider.set_conds(setup.positive, setup.negative)
    return Sampling.advanced(guider, comfy.samplers.sampler_object(sampler), torch.tensor(sigmas), setup.latent)


def test_a_scheduler_that_gives_no_numbers_is_named_before_anything_is_sampled():
    setup = setup_of(sd3())
    sampling = Sampling.ksampler(
        setup.model, 1, setup.cfg, "euler", "kl_optimal", setup.positive, setup.negative, setup.latent
    )
    text = r"scheduler kl_optimal with 1 step gives a schedule .*: nan, 0\. .* Take more steps or another scheduler"
    with pytest.raises(ValueError, match=text):
        whole_search(lambda: sampling, AnyVae(), Contrast(), 1, 4, "", 1, Graph(), "positive")
    assert sampling.evaluations.rows == 0


@pytest.mark.parametrize(
    "sigmas", [[float("nan"), 0.0], [float("inf"), 0.5, 0.0], [1.0, float("nan"), 0.5, 0.0], [0.0, 1.0]]
)
def test_sigmas_that_are_no_numbers_are_named(sigmas):
    with pytest.raises(ValueError, match=rf"'sigmas' gives a schedule .*: {sigmas[0]:.4g}, .* Take other sigmas"):
        with_sigmas(sigmas).check()


@pytest.mark.parametrize(
    ("sigmas", "sampler"),
    [
        ([0.01, 0.5, 0.9], "euler"),  # up, as to find the noise of an image
        ([0.5, 0.8, 0.5, 0.0], "euler"),
        ([], "euler"),
        ([0.9], "euler"),
        ([1.0, 0.5, -0.2], "euler"),
        ([1.0, float("nan"), 0.5, 0.0], "dpm_adaptive"),  # which looks at the ends only
    ],
)
def test_sigmas_that_stock_can_sample_are_not_refused(sigmas, sampler):
    sampling = with_sigmas(sigmas, sampler)
    sampling.check()
    assert torch.isfinite(sampling.sample((Recipe.from_seed(1),))[0]["samples"]).all()


# Latents


@pytest.mark.parametrize(
    ("latent", "what"),
    [
        ({"samples": torch.zeros(1, 64, 128), "type": "audio"}, r"\[1, 64, 128\], which is audio, and"),
        ({"samples": torch.zeros(1, 8, 16, 64), "type": "audio"}, "which is audio, and"),
        ({"samples": torch.zeros(1, 64, 3072), "type": "hunyuan3dv2"}, "which is a 3D shape, and"),
        ({"samples": torch.zeros(1, 64, 128)}, "audio or a 3D shape"),
    ],
)
def test_a_latent_that_is_no_picture_is_refused_before_sampling(latent, what):
    setup = setup_of(sd3())
    inputs = (8, setup.cfg, "euler", "simple", setup.positive, setup.negative, latent)
    with pytest.raises(ValueError, match=what):
        Sampling.ksampler(setup.model, *inputs)


@pytest.mark.parametrize(
    ("latent_format", "samples", "what"),
    [
        ("ACEAudio", torch.zeros(1, 8, 16, 64), "audio"),  # of VAE Encode Audio, which does not say so in the latent
        ("Hunyuan3Dv2", NestedTensor((torch.zeros(1, 8192, 16), torch.zeros(1, 1, 5))), "a 3D shape"),
    ],
)
def test_a_model_that_makes_no_pictures_is_refused_whatever_its_latent_says(monkeypatch, latent_format, samples, what):
    setup = setup_of(sd3())
    monkeypatch.setattr(setup.model.model, "latent_format", getattr(comfy.latent_formats, latent_format)())
    inputs = (8, setup.cfg, "euler", "simple", setup.positive, setup.negative, {"samples": samples})

    class Never:
        needs_prompt, members = True, ("never",)

        def score(self, images, prompts): ...

    with pytest.raises(ValueError, match=f"which is {what}, and a search scores images"):  # and not that it has no text
        whole_search(
            lambda: Sampling.ksampler(setup.model, *inputs), AnyVae(), Never(), 1, 4, "", 1, Graph(), "positive"
        )


def test_a_video_joined_with_its_sound_is_no_audio():
    from comfy_extras.nodes_lt import LTXVConcatAVLatent

    video, sound = torch.zeros(1, 128, 3, 8, 8), torch.zeros(1, 8, 16, 16)
    joined = LTXVConcatAVLatent.execute({"samples": video}, {"samples": sound, "type": "audio"}).args[0]
    check_pictures(joined)
    with pytest.raises(ValueError, match="which is audio"):
        check_pictures({"samples": sound, "type": "audio"})


class Decodes:
    """A VAE that gives something of this shape."""

    def __init__(self, *shape):
        self.shape = shape

    def decode(self, samples):
        return torch.rand(self.shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", [(1, 16384, 2), (1, 8, 8, 2), (0, 8, 8, 3)])
def test_a_vae_that_gives_no_images_is_named_at_the_first_candidate(shape):
    sampling = sampling_of("euler", steps=3)
    text = rf"decoded the latent to \{list(shape)}".replace("]", r"\]")
    with pytest.raises(ValueError, match=text):
        whole_search(lambda: sampling, Decodes(*shape), Contrast(), 1, 4, "", 1, Graph(), "positive")
    assert sampling.evaluations.rows == 3


def test_the_images_of_a_grey_vae_come_out_grey_in_colour():
    sampling = sampling_of("euler", steps=3)
    found = whole_search(lambda: sampling, Decodes(1, 8, 8, 1), Contrast(), 1, 2, "", 1, Graph(), "positive")
    grey = Decodes(1, 8, 8, 1).decode(None)
    assert torch.equal(found.image, grey.expand(-1, -1, -1, 3))
    assert all(picture.shape[-1] == 3 for picture in found.log.thumbnails.values())


# Samplers that do more than sample


def grows(model, x, sigmas, extra_args=None, callback=None, disable=None, at=0):
    """An Euler that goes on with a larger latent after a step."""
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * x.new_ones([x.shape[0]]), **extra_args)
        callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        x = denoised + (x - denoised) * (sigmas[i + 1] / sigmas[i])
        if i == at:
            x = torch.nn.functional.interpolate(x, scale_factor=2)
    return x


def by_a_pack(function, algorithm, candidates=6, steps=STEPS):
    """(the sampling, a whole search with a pack's sampler), the search not yet begun."""
    sampling = sampling_of("euler", steps)
    sampling.sampler = comfy.samplers.KSAMPLER(function)
    return sampling, lambda: whole_search(
        lambda: sampling, AnyVae(), Contrast(), 1, candidates, "", 1, Graph(), "positive", algorithm
    )


@pytest.mark.parametrize("algorithm", [SearchOverPaths(paths=1), DraftAndFinal(SearchOverPaths(paths=1), 3)])
def test_paths_refuse_a_sampler_that_changes_the_latents_size_before_anything_is_sampled(algorithm):
    sampling, run = by_a_pack(grows, algorithm, candidates=12)
    with pytest.raises(ValueError, match=r"changes the size .* from \[1, 16, 8, 8\] to \[1, 16, 16, 16\], so no path"):
        run()
    assert sampling.evaluations.rows == 0


def test_a_path_says_where_the_size_changes_on_its_way():
    def late(model, x, sigmas, **more):
        return grows(model, x, sigmas, at=0 if float(sigmas[0]) < 0.95 else 99, **more)

    sampling, run = by_a_pack(late, SearchOverPaths(paths=1, sigma=0.5, forward=0.3, backward=0.4), candidates=12)
    with pytest.raises(ValueError, match="changes the size of the latent on its way"):
        run()


@pytest.mark.parametrize("algorithm", [RandomSearch(), ZeroOrderSearch(), DraftAndFinal(draft_steps=3)])
def test_the_other_searches_take_a_sampler_that_changes_the_latents_size(algorithm):
    _, run = by_a_pack(grows, algorithm)
    assert run().latent["samples"].shape == (1, 16, 16, 16)


def from_the_seed(model, x, sigmas, extra_args=None, **more):
    """Starts from noise of its own, whatever it is given."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(extra_args["seed"]))
    return added_by_a_pack(model, noise * sigmas[0], sigmas, extra_args, eta=0.0, **more)


def always_the_same(model, x, sigmas, extra_args=None, **more):
    return from_the_seed(model, x, sigmas, {**extra_args, "seed": 5}, **more)


@pytest.mark.parametrize(
    ("function", "algorithm", "what"),
    [
        (
            from_the_seed,
            ZeroOrderSearch(),
            r"same picture \(candidates 0 and 1\): .* from the seed instead.* Random",
        ),
        (always_the_same, RandomSearch(), r"same picture \(candidates 0 and 1\): .* a seed of its own instead"),
        (from_the_seed, RandomSearch(), None),
        (always_the_same, SearchOverPaths(paths=1), "same picture"),
    ],
)
def test_noise_that_does_not_arrive_is_said(function, algorithm, what):
    _, run = by_a_pack(function, algorithm)
    warnings = [text for text in run().log.warnings if "same picture" in text or "hardly" in text]
    assert len(warnings) == (what is not None)
    assert what is None or re.search(what, warnings[0])


def test_zero_order_search_refuses_a_latent_of_several_tensors_before_sampling():
    setup = setup_of(ltxav())
    inputs = (setup.model, 3, setup.cfg, "euler", "simple", setup.positive, setup.negative, setup.latent)
    sampling = Sampling.ksampler(*inputs)
    with pytest.raises(ValueError, match="zero-order search turns noises, which cannot be done .* Use Random Search"):
        whole_search(lambda: sampling, AnyVae(), Contrast(), 1, 4, "", 1, Graph(), "positive", ZeroOrderSearch())
    assert sampling.evaluations.rows == 0


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
