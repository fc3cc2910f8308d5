"""Candidates in batches and in phases: nothing but the time may change."""

import importlib.util
import logging
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("comfy")

import comfy.model_management as mm
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import latent_preview
import tiny_models
from any_model import AnyVae, FineContrast, HintVae, setup_of
from comfy_extras import nodes_easycache, nodes_mahiro, nodes_perpneg, nodes_slg, nodes_video_model
from noise_search.host.graph import finish
from noise_search.host.graph.graph import Graph
from noise_search.host.judging.hosted import load_demo_verifier
from noise_search.host.sampling import batching
from noise_search.host.sampling import engine as engines
from noise_search.host.sampling.batching import Batches
from noise_search.host.sampling.engine import Options
from noise_search.host.sampling.noise import initial_noise
from noise_search.host.sampling.stock import Sampling
from noise_search.host.search import run_node as search
from noise_search.search.algorithms.draft_and_final import DraftAndFinal
from noise_search.search.algorithms.paths import SearchOverPaths
from noise_search.search.algorithms.random_search import RandomSearch
from noise_search.search.algorithms.zero_order import ZeroOrderSearch
from noise_search.search.ledger import BATCH_TRIAL, RENDERED_AGAIN, SAMPLER_TRIAL
from noise_search.search.recipe import Recipe

import nodes as comfy_nodes

SAMPLERS = comfy.samplers.KSampler.SAMPLERS
STEPS, CFG, SEED = 4, 3.0, 3
BOUND = 0.01  # of the latent's largest value; 0.002 is the largest that `benchmarks/batching.py` finds


def load_benchmark(name: str):
    """A program of benchmarks/ as a module."""
    folder = Path(__file__).resolve().parents[3] / "benchmarks"
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module


benchmark, mixing_benchmark, patches = map(load_benchmark, ("batching", "mixing", "patches"))


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


@pytest.fixture
def fast(monkeypatch):
    """Batches pay, however busy the machine is."""
    monkeypatch.setattr(batching, "MAX_PACE_SHARE", float("inf"))


@pytest.fixture
def warnings(caplog):
    """What the pack logs as a warning."""
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records if "Noise Search" in record.getMessage()]


def empty(batch: int = 1) -> dict:
    return {"samples": torch.zeros(batch, 16, 8, 8)}


def with_image(batch: int = 1, **more) -> dict:
    return {"samples": torch.randn(batch, 16, 8, 8, generator=torch.Generator().manual_seed(7)), **more}


def masks(rows: int) -> torch.Tensor:
    mask = torch.zeros(rows, 64, 64)
    for row in range(rows):
        mask[row, 16 : 48 + 8 * row, 16:48] = 1
    return mask


def sampling_of(demo, sampler="euler", latent=None, steps=STEPS, denoise=1.0, model=None, positive=None) -> Sampling:
    return Sampling.ksampler(
        model or demo.model,
        steps,
        CFG,
        sampler,
        "simple",
        positive or demo.positive,
        demo.negative,
        latent or empty(),
        denoise,
    )


def tiny_sampling(name: str, sampler="euler", positive=None, **latent) -> Sampling:
    setup = setup_of(getattr(tiny_models, name)())
    return Sampling.ksampler(
        setup.model, 4, setup.cfg, sampler, "simple", positive or setup.positive, setup.negative,
        {**setup.latent, **latent},
    )  # fmt: skip


def stock(demo, seed, sampler="euler", latent=None, model=None) -> torch.Tensor:
    return comfy_nodes.common_ksampler(
        model or demo.model, seed, STEPS, CFG, sampler, "simple", demo.positive, demo.negative, latent or empty()
    )[0]["samples"]


def run(sampling, verifier=None, candidates=7, batch_size=3, algorithm=None, seed=SEED, top_k=1, vae=None):
    return search(
        lambda: sampling, vae or AnyVae(), verifier or FineContrast(), seed, candidates, "", top_k, Graph(), "positive",
        algorithm, options=Options(batch_size),
    )  # fmt: skip


def sizes(sampling: Sampling) -> list[int]:
    """A list that gets the rows of every call of the model."""
    found, predict = [], sampling.guider.predict_noise

    def predict_noise(x, *args, **kwargs):
        found.append(x.shape[0])
        return predict(x, *args, **kwargs)

    sampling.guider.predict_noise = predict_noise
    return found


def same(first, second) -> bool:
    parts = lambda samples: samples.unbind() if samples.is_nested else [samples]  # noqa: E731
    return all(torch.equal(a, b) for a, b in zip(parts(first), parts(second), strict=True))


def assert_equal(first, second) -> None:
    """Two searches found the same, bit for bit, at the same cost."""
    assert same(first.latent["samples"], second.latent["samples"])
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.log.values(), second.log.values())
    assert [one.nfe for one in first.log.candidates] == [one.nfe for one in second.log.candidates]


# Rows


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_row_of_a_batch_is_its_run_alone_or_the_sampler_gets_no_batches(demo, sampler):
    sampling = sampling_of(demo, sampler, steps=6)
    if batching.obstacle(sampling) is None:
        assert benchmark.difference(sampling).latent < BOUND


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_trial_finds_nothing_against_a_sampler_that_gets_batches(demo, sampler):
    sampling = sampling_of(demo, sampler)
    if batching.obstacle(sampling) is None:
        batches = Batches(sampling, 4, 16)
        made = batches.sample(sampling, [(Recipe.from_seed(seed),) for seed in range(5)], None)
        assert [one.batched for one in made] == [False] + 4 * [True]
        assert batches.size == 4 and not batches.notes


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "uni_pc", "ddim"])
def test_common_samplers_without_noise_of_their_own_get_batches(demo, sampler):
    assert batching.obstacle(sampling_of(demo, sampler)) is None


@pytest.mark.parametrize("name", ["sd15", "sd15_v", "sdxl", "sd3", "flux", "wan"])
def test_a_row_of_a_batch_is_its_run_alone_with_every_architecture(name):
    assert benchmark.difference(tiny_sampling(name)).latent < BOUND


def test_a_row_of_a_masked_batch_is_its_run_alone(demo):
    sampling = sampling_of(demo, latent=with_image(noise_mask=masks(1)), denoise=0.7)
    assert batching.obstacle(sampling) is None
    assert benchmark.difference(sampling).latent < BOUND


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_noises_in_a_batch_are_those_alone_bit_for_bit(demo, dtype):
    sampling = sampling_of(demo, latent={"samples": torch.zeros(1, 16, 5, 5, dtype=dtype)})
    candidates = [(Recipe.from_seed(seed),) for seed in range(3)]
    noise, latent = batching._joined(sampling, candidates)
    alone = [initial_noise(recipes, sampling.latent) for recipes in candidates]
    assert torch.equal(noise, torch.cat(alone)) and noise.dtype == alone[0].dtype
    assert latent.shape[0] == 3 and latent.dtype == dtype


# Obstacles


def rows_of_conditioning(demo) -> list:
    tensor, values = demo.positive[0]
    return [[tensor.repeat(2, 1, 1), {**values, "pooled_output": values["pooled_output"].repeat(2, 1)}]]


def hinted(rows: int) -> list:
    setup = setup_of(tiny_models.sd15())
    hint = torch.rand(rows, 64, 64, 3, generator=torch.Generator().manual_seed(3))
    return comfy_nodes.ControlNetApplyAdvanced().apply_controlnet(
        setup.positive, setup.negative, tiny_models.controlnet("sd15"), hint, 1.0, 0.0, 1.0, vae=HintVae()
    )[0]


def lazy(demo):
    return nodes_easycache.LazyCacheNode.execute(demo.model, 0.2, 0.15, 0.95, False).args[0]


def mahiro(model):
    return nodes_mahiro.Mahiro.execute(model).args[0]


def skip_layers(model):
    return nodes_slg.SkipLayerGuidanceDiT.execute(model, 3.0, 0.0, 1.0, "0", "0", 0.7).args[0]


def perp_neg(demo):
    empty_prompt = demo.encode("a blue square")
    guider = nodes_perpneg.PerpNegGuider.execute(demo.model, demo.positive, demo.negative, empty_prompt, 3.0, 1.0).args[
        0
    ]
    sigmas = comfy.samplers.KSampler(demo.model, 4, "cpu", "euler", "simple").sigmas
    return Sampling.advanced(guider, comfy.samplers.sampler_object("euler"), sigmas, empty())


OBSTACLES = {
    "latent batch": (lambda demo: sampling_of(demo, latent=empty(2)), "a batch itself"),
    "batch_index": (lambda demo: sampling_of(demo, latent={**empty(), "batch_index": [2]}), "a batch itself"),
    "latent of several tensors": (lambda demo: tiny_sampling("ltxav"), "several tensors"),
    "ancestral": (lambda demo: sampling_of(demo, "euler_ancestral"), "noise of its own"),
    "sde": (lambda demo: sampling_of(demo, "dpmpp_2m_sde"), "noise of its own"),
    "adaptive": (lambda demo: sampling_of(demo, "dpm_adaptive"), "steps by the whole batch"),
    "ddim with a mask": (
        lambda demo: sampling_of(demo, "ddim", with_image(noise_mask=masks(1)), denoise=0.7),
        "outside of the mask",
    ),
    "one step": (lambda demo: sampling_of(demo, steps=1), "too few steps"),
    "conditioning with rows": (lambda demo: sampling_of(demo, positive=rows_of_conditioning(demo)), "a row for each"),
    "mask with rows": (
        lambda demo: sampling_of(demo, latent=with_image(noise_mask=masks(2)), denoise=0.7),
        "a row for each",
    ),
    "LazyCache": (lambda demo: sampling_of(demo, model=lazy(demo), steps=12), "which steps to skip"),
    "Mahiro": (lambda demo: sampling_of(demo, model=mahiro(demo.model)), "Mahiro computes one number"),
    "triangle CFG": (
        lambda demo: sampling_of(demo, model=nodes_video_model.VideoTriangleCFGGuidance().patch(demo.model, 1.0)[0]),
        "guidance for videos computes one number",
    ),
    "Skip Layer Guidance": (
        lambda demo: sampling_of(demo, model=skip_layers(demo.model)),
        "Skip Layer Guidance computes one number",
    ),
    "Perp-Neg": (lambda demo: perp_neg(demo), "Perp-Neg computes one number"),
    "ControlNet hint with rows": (lambda demo: tiny_sampling("sd15", positive=hinted(2)), "a row for each"),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_a_batch_would_change_is_sampled_alone(demo, warnings, name):
    make, why = OBSTACLES[name]
    sampling = make(demo)
    rows = sizes(sampling)
    batched, alone = run(sampling, candidates=3, batch_size=2), run(make(demo), candidates=3, batch_size=1)
    assert set(rows) == {sampling.rows}
    assert_equal(batched, alone)
    assert batched.log.nfe == alone.log.nfe
    assert any("batch_size 2 is not used" in text and why in text for text in warnings())


def test_one_hint_for_all_is_no_obstacle():
    sampling = tiny_sampling("sd15", positive=hinted(1))
    assert batching.obstacle(sampling) is None
    assert benchmark.difference(sampling).latent < BOUND


# The search


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "uni_pc"])
def test_the_winner_of_a_batched_search_is_the_stock_ksampler_with_its_seed(demo, sampler):
    result = run(sampling_of(demo, sampler), vae=demo.vae)
    assert result.log.best().batched  # otherwise this shows nothing: choose another seed
    assert torch.equal(result.latent["samples"], stock(demo, result.seed, sampler))
    assert torch.equal(result.image, demo.vae.decode(result.latent["samples"]))


ALGORITHMS = {
    "random": RandomSearch(),
    "zero-order": ZeroOrderSearch(neighbours=3, angle=40),
    "paths": SearchOverPaths(branches=2),
    "drafts, random": DraftAndFinal(draft_steps=2),
    "drafts, zero-order": DraftAndFinal(ZeroOrderSearch(neighbours=3), draft_steps=2),
}


@pytest.mark.parametrize("seed", [3, 50])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_batched_search_finds_what_the_search_without_batches_finds(demo, name, seed):
    batched, alone = (run(sampling_of(demo), batch_size=size, algorithm=ALGORITHMS[name], seed=seed) for size in (3, 1))
    assert batched.recipe == alone.recipe
    assert torch.equal(batched.latent["samples"], alone.latent["samples"])
    assert [one.recipes for one in batched.log.candidates] == [one.recipes for one in alone.log.candidates]
    assert torch.allclose(batched.log.values(), alone.log.values(), atol=1e-4)
    assert [one.nfe for one in batched.log.candidates] == [one.nfe for one in alone.log.candidates]
    assert batched.log.warnings == alone.log.warnings


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_evaluation_of_a_batched_search_is_counted(demo, name):
    sampling = sampling_of(demo)
    rows = sizes(sampling)
    log = run(sampling, algorithm=ALGORITHMS[name]).log
    assert log.nfe == sum(rows)


def compared(log) -> int:
    """How many of the two best are rendered again alone."""
    return sum(log.candidates[index].batched for index in log.order()[:2])


def test_the_trial_and_the_second_renders_are_extra(demo):
    log = run(sampling_of(demo)).log
    assert log.best().batched
    assert log.extra_nfe == 3 * STEPS + compared(log) * STEPS
    assert log.nfe == 7 * STEPS + log.extra_nfe
    assert log.ledger.extra.keys() == {SAMPLER_TRIAL, BATCH_TRIAL, RENDERED_AGAIN}
    assert all(cost.seconds > 0 for cost in log.ledger.extra.values())
    own = sum(one.cost.seconds for one in log.candidates)
    assert log.ledger.budgeted.seconds == pytest.approx(own), "the budget is charged for candidates alone"
    assert 0 <= log.findings["batch_difference"] < 1e-3


def test_only_what_was_sampled_in_a_batch_is_rendered_again(demo):
    class LikesStock(FineContrast):
        """The first image that it sees, and what is like it."""

        first = None

        def score(self, images, prompts):
            self.first = images if self.first is None else self.first
            return -(images - self.first).abs().mean().reshape(1, 1)

    log = run(sampling_of(demo), LikesStock()).log
    assert log.best().index == 0
    assert log.extra_nfe == 3 * STEPS + STEPS  # the next best


# The size


def test_a_fixed_size_is_kept(demo):
    sampling = sampling_of(demo)
    rows = sizes(sampling)
    log = run(sampling, batch_size=2, candidates=6).log
    assert rows == [1] * STEPS + [3] * STEPS + [2] * 2 * STEPS + [1] * STEPS + [1] * STEPS * compared(log)
    assert [one.batched for one in log.candidates] == [False] + 4 * [True] + [False]


def test_what_does_not_fill_a_batch_is_sampled_all_the_same(demo):
    sampling = sampling_of(demo)
    rows = sizes(sampling)
    log = run(sampling, batch_size=3, candidates=6).log
    assert rows == [1] * STEPS + [3] * 2 * STEPS + [2] * STEPS + [1] * STEPS * compared(log)
    assert [one.batched for one in log.candidates] == [False] + 5 * [True]


def test_batch_size_1_is_one_at_a_time(demo, warnings):
    sampling = sampling_of(demo)
    rows = sizes(sampling)
    log = run(sampling, batch_size=1).log
    assert rows == [1] * 7 * STEPS
    assert log.extra_nfe == 0 and not warnings()


@pytest.fixture
def short(monkeypatch):
    """Batches also for searches that are too short for them to pay."""
    monkeypatch.setattr(batching, "EXTRA_SHARE", 10.0)


@pytest.mark.parametrize("steps", [4, 20])
def test_by_itself_a_search_has_batches_only_where_little_is_spent_beyond_its_budget(demo, warnings, steps):
    batched = []
    for candidates in range(1, 40):
        batches = Batches(sampling_of(demo, steps=steps), 0, candidates)
        extra = 3 + 2  # the trial, the two best again
        assert batches.size == 1 or extra <= batching.EXTRA_SHARE * candidates
        batched.append(batches.size > 1)
    assert batched == sorted(batched) and batched[-1]
    assert not warnings()


def test_by_itself_a_search_has_no_batches_that_are_not_faster(demo, short, monkeypatch):
    monkeypatch.setattr(batching, "MAX_PACE_SHARE", 0.0)
    sampling = sampling_of(demo)
    rows = sizes(sampling)
    log = run(sampling, batch_size=0, candidates=12).log
    assert rows == [1] * STEPS + [3] * STEPS + [8] * STEPS + [1] * (3 + compared(log)) * STEPS
    assert [one.batched for one in log.candidates] == [False] + 8 * [True] + 3 * [False]


def has_free(monkeypatch, memory: float) -> None:
    monkeypatch.setattr(
        mm, "get_free_memory", lambda *args, torch_free_too=False: (memory,) * 2 if torch_free_too else memory
    )


def still_to_load(model) -> int:
    return model.model_size() - model.loaded_size()


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_by_itself_a_batch_takes_as_many_as_fit_in_memory(demo, short, monkeypatch, size):
    sampling = sampling_of(demo)
    needed = sampling.model.model.memory_required([2 * size, 16, 8, 8])
    has_free(monkeypatch, 1.01 * needed / batching.FREE_SHARE + still_to_load(sampling.model))
    assert Batches(sampling, 0, 16).size == size


def test_what_the_weights_will_take_is_not_free_for_a_batch(demo, short, monkeypatch):
    sampling = sampling_of(demo)
    needed = sampling.model.model.memory_required([16, 16, 8, 8])
    monkeypatch.setattr(sampling.model, "loaded_size", lambda: 0)
    has_free(monkeypatch, 1.01 * needed / batching.FREE_SHARE)
    assert Batches(sampling, 0, 16).size < 8


def test_a_search_by_itself_has_batches_of_that_size(demo, fast, short, monkeypatch):
    monkeypatch.setattr(batching, "fitting", lambda sampling: 4)
    sampling = sampling_of(demo)
    rows = sizes(sampling)
    log = run(sampling, batch_size=0, candidates=8).log
    assert rows == [1] * STEPS + [3] * STEPS + [4] * STEPS + [3] * STEPS + [1] * STEPS * compared(log)


def test_with_no_memory_left_there_are_no_batches(demo, monkeypatch):
    has_free(monkeypatch, 0)
    assert Batches(sampling_of(demo), 0, 16).size == 1


def test_a_fixed_size_is_the_users_whatever_the_memory(demo, monkeypatch):
    has_free(monkeypatch, 0)
    assert Batches(sampling_of(demo), 4, 16).size == 4


def test_longer_videos_are_sampled_fewer_at_a_time(monkeypatch):
    def size(frames):
        sampling = tiny_sampling("wan", samples=torch.zeros(1, 16, frames, 8, 8))
        return batching.fitting(sampling)

    model = tiny_sampling("wan").model
    one = model.model.memory_required([2, 16, 1, 8, 8])
    has_free(monkeypatch, 8 * one / batching.FREE_SHARE + still_to_load(model))
    assert [size(frames) for frames in (1, 2, 4, 8, 16)] == [8, 4, 2, 1, 1]


# What mixes rows, or cannot take them


@pytest.fixture(scope="module")
def cases():
    """By the name of a patch: whether it mixes rows, and what makes a Sampling with it."""
    with torch.inference_mode():
        model, clip, _ = benchmark.load_generator()
        conditioning = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (benchmark.PROMPT, "")]
    return mixing_benchmark.cases((model, conditioning), steps=5)


# Of each kind one or two, from a few seeds; the others take too long.
EVERY_DAY = (
    "TomePatchModel",
    "HyperTile",
    "self-attention shared with the first row",
    "Mahiro, unknown",
    "Skip Layer Guidance, unknown",
    "LazyCache",
    "random channels",
    "maximum of the batch",
    "least deviation of a row",
    "towards the last",
    "late cache, by the mean",
    "momentum",
)


@pytest.mark.any_host
@pytest.mark.parametrize(
    ("name", "searches"),
    [
        *((name, 6) for name in EVERY_DAY),
        *(pytest.param(name, 20, marks=pytest.mark.sweep) for name in (*patches.UNET_MIXING, *patches.MIXING)),
    ],
)
def test_a_patch_that_mixes_rows_makes_no_other_win_unsaid(cases, name, searches):
    mixes, make = cases[name]
    counts = mixing_benchmark.count(make, searches, candidates=4, batch=3, unchecked=False)
    assert mixes and counts.silent == 0


@pytest.mark.any_host
def test_patches_that_mix_nothing_are_not_warned_about(cases):
    harmless = [name for name, (mixes, _) in cases.items() if not mixes]
    counts = {name: mixing_benchmark.count(cases[name][1], 1, 4, 3, unchecked=False) for name in harmless}
    assert len(harmless) >= 20 and not any(one.checked for one in counts.values())
    assert len([name for name, one in counts.items() if one.warned]) <= 1


def mixing(demo, below: float = float("inf")):
    """A MODEL whose predictions are those of the whole batch, averaged, from that sigma downwards."""
    model = demo.model.clone()

    def mean(args):
        guided = args["uncond"] + args["cond_scale"] * (args["cond"] - args["uncond"])
        if float(args["sigma"].max()) >= below:
            return guided
        return guided.mean(dim=0, keepdim=True).expand_as(guided)

    model.set_model_sampler_cfg_function(mean)
    return model


def test_a_patch_that_mixes_rows_is_found_before_the_first_batch(demo, warnings):
    sampling = sampling_of(demo, model=mixing(demo))
    rows = sizes(sampling)
    result, alone = (
        run(sampling),
        run(sampling_of(demo, model=mixing(demo)), batch_size=1),
    )
    assert rows == [1] * STEPS + [3] * 2 * STEPS + [1] * 6 * STEPS
    assert_equal(result, alone)
    assert result.log.extra_nfe == 3 * 2 * STEPS  # the trial, and whether it is rounding
    [warning] = result.log.warnings
    assert "in a batch they influence each other" in warning and warnings() == [f"Noise Search: {warning}"]


def test_noise_that_a_sampler_draws_without_saying_so_is_found_before_the_first_batch(demo, warnings):
    def sample_mystery(model, x, sigmas, extra_args=None, callback=None, disable=None):
        generator = torch.Generator().manual_seed(extra_args["seed"])
        for i in range(len(sigmas) - 1):
            denoised = model(x, sigmas[i] * x.new_ones([x.shape[0]]), **extra_args)
            x = denoised + sigmas[i + 1] * torch.randn(x.shape, generator=generator)
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        return x

    def make():
        sampling = sampling_of(demo)
        sampling.sampler = comfy.samplers.KSAMPLER(sample_mystery)
        return sampling

    assert_equal(run(make()), run(make(), batch_size=1))
    assert any("draws noise of its own" in text for text in warnings())


def unseen(monkeypatch) -> None:
    """Nothing is found in the trial."""
    monkeypatch.setattr(batching._Trial, "distance", lambda self: 0.0)


@pytest.mark.parametrize("name", ["random", "zero-order", "drafts, random"])
def test_what_the_trial_missed_is_found_at_the_end_and_the_search_made_again(demo, monkeypatch, name):
    alone = run(sampling_of(demo, model=mixing(demo)), algorithm=ALGORITHMS[name], batch_size=1)
    unseen(monkeypatch)
    sampling = sampling_of(demo, model=mixing(demo))
    rows = sizes(sampling)
    result = run(sampling, algorithm=ALGORITHMS[name])
    assert_equal(result, alone)
    assert result.recipe == alone.recipe
    assert result.log.nfe == sum(rows) > alone.log.nfe
    assert max(rows) == 3 and not any(one.batched for one in result.log.candidates)
    [warning] = [text for text in result.log.to_dict()["warnings"] if "alone than in its batch" in text]
    assert "one candidate at a time" in warning


@pytest.mark.parametrize(("size", "found"), [(0.02, True), (0.004, False)])
def test_a_difference_that_no_verifier_sees_sends_the_search_back_too(demo, monkeypatch, size, found):
    class Indifferent(FineContrast):
        def score(self, images, prompts):
            return torch.zeros(1, 1)

    sampled = batching.sample_together

    def nudged(*args):
        made = sampled(*args)
        for one in made:
            one.latent["samples"] *= 1 + size
        return made

    monkeypatch.setattr(batching, "sample_together", nudged)
    log = run(sampling_of(demo), Indifferent()).log
    assert any("of its size alone than in its batch" in text for text in log.warnings) == found
    assert any(one.batched for one in log.candidates) != found


def test_asked_to_finish_the_search_is_not_made_again_but_warns(demo, monkeypatch):
    class Impatient(FineContrast):
        """Likes the latest most, and has seen enough after two batches."""

        seen = 0

        def score(self, images, prompts):
            self.seen += 1
            if self.seen == 7:
                finish.finish("7")
            return torch.tensor([[float(self.seen)]])

    unseen(monkeypatch)
    model = mixing(demo)
    result = search(
        lambda: sampling_of(demo, model=model), AnyVae(), Impatient(), SEED, 20, "", 1, Graph("7"), "positive",
        options=Options(3),
    )  # fmt: skip
    assert result.log.ended_early and result.log.best().batched
    [warning] = [text for text in result.log.warnings if "alone than in its batch" in text]
    assert "Set batch_size to 1" in warning
    assert torch.equal(result.latent["samples"], stock(demo, result.seed, model=model))


@pytest.mark.parametrize("late", [False, True])
def test_a_cache_that_skips_steps_gets_no_batches(demo, monkeypatch, late):
    """Also where it shows only once there were batches."""
    skip = patches.late_cache(2, 100.0, patches.root_mean_square)(demo.model)
    calls = []

    def sometimes(apply, args):
        calls.append(1)
        if late and len(calls) <= 4 * STEPS:  # stock, the trial and two batches
            return apply(args["input"], args["timestep"], **args["c"])
        return skip.model_options["model_function_wrapper"](apply, args)

    model = demo.model.clone()
    model.set_model_unet_function_wrapper(sometimes)
    result = run(sampling_of(demo, model=model), candidates=12)
    assert not any(one.batched for one in result.log.candidates)
    [warning] = [text for text in result.log.warnings if "skips steps" in text]
    assert ("made anew" in warning) == late


@pytest.mark.parametrize(("usual", "warned"), [((0.0, 1e-7), True), ((0.0, 100.0), False)])
def test_the_verifiers_usual_range_says_what_a_difference_is(demo, usual, warned):
    verifier = FineContrast()
    verifier.usual_range = usual
    log = run(sampling_of(demo), verifier).log
    assert bool([text for text in log.warnings if "alone than in its batch" in text]) == warned
    assert ("batch_difference" in log.findings) != warned  # then there were no batches in the end


def test_what_fails_in_a_batch_is_sampled_alone(demo, warnings):
    """Many attention patches are made for the batch that they were tried with."""
    model = demo.model.clone()

    def one_at_a_time(apply, args):
        if args["input"].shape[0] > 2:  # the prompts of one candidate
            raise RuntimeError("The size of tensor a (8) must match the size of tensor b (2)")
        return apply(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(one_at_a_time)
    sampling = sampling_of(demo, model=model)
    result = run(sampling)
    assert torch.equal(result.log.values(), run(sampling_of(demo), batch_size=1).log.values())
    assert result.log.nfe == sampling.evaluations.rows
    assert any("The size of tensor a (8)" in text for text in warnings())


def test_a_sampler_that_never_calls_back_can_be_batched(demo):
    def sample_silently(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for i in range(len(sigmas) - 1):
            denoised = model(x, sigmas[i] * x.new_ones([x.shape[0]]), **extra_args)
            x = denoised + sigmas[i + 1] / sigmas[i] * (x - denoised)
        return x

    sampling = sampling_of(demo)
    sampling.sampler = comfy.samplers.KSAMPLER(sample_silently)
    rows = sizes(sampling)
    result = run(sampling)
    assert max(rows) == 3
    assert torch.allclose(result.latent["samples"], stock(demo, result.seed), atol=1e-3)


def test_a_guider_without_conditioning_of_its_own_can_be_batched(demo):
    class Guider:
        def __init__(self, guider):
            self.guider, self.model_patcher = guider, guider.model_patcher

        @property
        def model_options(self):
            return self.guider.model_options

        @model_options.setter
        def model_options(self, options):
            self.guider.model_options = options

        def sample(self, *args, **kwargs):
            return self.guider.sample(*args, **kwargs)

    inner = sampling_of(demo)
    sampling = Sampling.advanced(Guider(inner.guider), inner.sampler, inner.sigmas, empty())
    assert torch.equal(run(sampling).latent["samples"], run(inner).latent["samples"])


# What the user sees


def test_a_batch_shows_its_first_row(demo):
    shapes = []
    callback = lambda step, x0, x, total: shapes.append((step, tuple(x0.shape), tuple(x.shape), total))  # noqa: E731
    candidates = [(Recipe.from_seed(seed),) for seed in range(3)]
    batching.sample_together(sampling_of(demo), candidates, callback)
    assert shapes == [(step, (1, 16, 8, 8), (1, 16, 8, 8), STEPS) for step in range(STEPS)]


def test_the_progress_bar_of_a_batched_search_only_ever_grows_to_its_end(demo, monkeypatch):
    shown = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, preview, *args, **more: shown.append((value, total))
    )
    run(sampling_of(demo))
    values = [value for value, _ in shown]
    assert values == sorted(values)
    assert {total for _, total in shown} == {7 * STEPS}
    assert values[-1] == 7 * STEPS


def test_previews_of_the_running_latent_are_prepared_once_and_get_one_row(demo, monkeypatch):
    made, shapes = [], []

    class Previewer:
        def decode_latent_to_preview_image(self, kind, x0):
            shapes.append(x0.shape[0])
            return None

    monkeypatch.setattr(latent_preview, "get_previewer", lambda *args: made.append(1) or Previewer())
    run(sampling_of(demo))
    assert len(made) == 1
    assert set(shapes) == {1}


def test_every_candidate_of_a_batch_has_a_thumbnail_of_its_own(demo):
    log = run(sampling_of(demo)).log
    pictures = [log.thumbnails[index, 0] for index in range(7)]
    assert all(picture.dtype == torch.uint8 for picture in pictures)
    assert all(not torch.equal(a, b) for a in pictures for b in pictures if a is not b)


def test_the_best_images_of_a_batched_search_are_those_of_the_search_without(demo):
    batched, alone = (run(sampling_of(demo), batch_size=size, top_k=3) for size in (3, 1))
    assert torch.equal(batched.top_images[0], alone.top_images[0])
    for ours, theirs in zip(batched.top_images, alone.top_images, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-3)


def test_videos_are_batched_and_the_winner_is_stock():
    sampling = tiny_sampling("wan")
    rows = sizes(sampling)
    result = run(sampling, candidates=5, batch_size=2)
    setup = setup_of(tiny_models.wan())
    expected = comfy_nodes.common_ksampler(
        setup.model, result.seed, 4, setup.cfg, "euler", "simple", setup.positive, setup.negative, setup.latent
    )[0]["samples"]
    assert set(rows[12:]) == {1, 2} and result.log.best().batched  # after stock and the trial
    assert torch.equal(result.latent["samples"], expected)


# No work twice


def test_conditioning_and_sigmas_are_prepared_once(demo, monkeypatch):
    calls = []
    convert = comfy.sampler_helpers.convert_cond
    monkeypatch.setattr(
        comfy.sampler_helpers, "convert_cond", lambda cond: calls.append("conditioning") or convert(cond)
    )
    calculate = comfy.samplers.calculate_sigmas
    monkeypatch.setattr(comfy.samplers, "calculate_sigmas", lambda *args: calls.append("sigmas") or calculate(*args))
    search(
        lambda: sampling_of(demo), AnyVae(), FineContrast(), SEED, 7, "", 1, Graph(), "positive", options=Options(4)
    )  # fmt: skip
    assert sorted(calls) == ["conditioning", "conditioning", "sigmas"]  # positive and negative


def test_the_verifier_reads_the_prompt_once(demo, monkeypatch):
    hosted = load_demo_verifier()
    read, encoder = [], hosted.verifier.encoder
    counting = replace(encoder, encode_text=lambda ids: read.append(1) or encoder.encode_text(ids))
    monkeypatch.setattr(hosted.verifier, "encoder", counting)
    search(
        lambda: sampling_of(demo), AnyVae(), hosted, SEED, 7, "a green cross left of a red ring", 1, Graph(),
        "positive", options=Options(4),
    )  # fmt: skip
    assert len(read) == 1
    assert all(features.device.type == "cpu" for features in hosted.verifier._prompts.values())


# Phases


NETWORKS = ("model", "vae", "verifier")
FAKE = torch.device("cpu", 0)  # another device than "cpu" for ComfyUI, the same for PyTorch


@pytest.fixture
def small_card(demo, monkeypatch):
    """A card that holds any one of the three networks. Gives the list of the networks that it loaded, in order."""
    verifier = load_demo_verifier()
    patchers = dict(zip(NETWORKS, (demo.model, demo.vae.patcher, verifier.patcher), strict=True))
    mm.unload_all_models()
    # CLIP Score wants to be on the card as a whole, and ComfyUI a tenth more room than a network takes.
    reserved = mm.minimum_inference_memory()
    total = reserved + 1.2 * max(patcher.model_size() for patcher in patchers.values())
    loads = []

    def free(device=None, torch_free_too=False):
        used = sum(one.model_loaded_memory() for one in mm.current_loaded_models if one.device == FAKE)
        return (total - used,) * 2 if torch_free_too else total - used

    load = mm.LoadedModel.model_load

    def model_load(self, *args, **kwargs):
        if self.model.loaded_size() == 0:
            loads.append(next(name for name, patcher in patchers.items() if patcher.is_clone(self.model)))
        return load(self, *args, **kwargs)

    for patcher in patchers.values():
        monkeypatch.setattr(patcher, "load_device", FAKE)
        monkeypatch.setattr(patcher, "model_size", lambda size=total - reserved: int(size / 1.2))
    monkeypatch.setattr(demo.vae, "device", FAKE)
    monkeypatch.setattr(mm, "is_device_cpu", lambda device: device == torch.device("cpu"))
    monkeypatch.setattr(mm, "vram_state", mm.VRAMState.NORMAL_VRAM)
    monkeypatch.setattr(mm, "get_free_memory", free)
    monkeypatch.setattr(mm, "get_total_memory", lambda *args, **kwargs: total)
    monkeypatch.setattr(mm, "soft_empty_cache", lambda *args, **kwargs: None)
    monkeypatch.setattr(mm.LoadedModel, "model_load", model_load)
    yield SimpleNamespace(loads=loads, verifier=verifier)
    mm.unload_all_models()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_on_a_small_card_every_network_is_loaded_once_per_chunk(demo, small_card, batch_size):
    sampling = sampling_of(demo)
    log = search(
        lambda: sampling, demo.vae, small_card.verifier, SEED, 17, "a red circle", 1, Graph(), "positive",
        options=Options(batch_size),
    ).log  # fmt: skip
    chunks = 3 + compared(log)  # stock, 8, 8, and the best again
    assert small_card.loads == list(NETWORKS) * chunks


def test_on_a_small_card_the_chunks_give_what_a_large_one_gives(demo, small_card, monkeypatch):
    make = lambda: search(  # noqa: E731
        lambda: sampling_of(demo), demo.vae, small_card.verifier, SEED, 9, "a red circle", 1, Graph(), "positive",
        options=Options(1),
    )  # fmt: skip
    small = make()
    monkeypatch.setattr(engines, "must_swap", lambda *networks: False)
    assert_equal(small, make())


def test_networks_that_fit_together_are_not_swapped(demo, small_card, monkeypatch):
    networks = (demo.model, small_card.verifier)
    assert engines.must_swap(*networks)
    monkeypatch.setattr(mm, "get_total_memory", lambda *args, **kwargs: 2**40)
    assert not engines.must_swap(*networks)
    assert not engines.must_swap(demo.model, object(), FineContrast())
