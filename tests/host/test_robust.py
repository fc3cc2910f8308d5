"""What goes wrong while a search runs: no memory, Cancel, hooks that raise, NaN. Nothing of it may stay behind."""

import gc
import logging
import random
import threading
from types import GeneratorType

import psutil
import pytest
import torch
import tqdm

pytest.importorskip("comfy")

import comfy.model_management as mm
import comfy.patcher_extension
import comfy.samplers
from any_model import AnyVae, FineContrast, setup_of
from cancelling import cancel_at_call
from noise_search.host.graph.graph import Graph
from noise_search.host.sampling.batching import TRIAL_ROWS
from noise_search.host.sampling.engine import Options
from noise_search.host.sampling.noise import initial_noise
from noise_search.host.sampling.oom import is_oom
from noise_search.host.sampling.stock import Sampling
from noise_search.host.search import run_node as search
from noise_search.search.algorithms.draft_and_final import DraftAndFinal
from noise_search.search.algorithms.paths import SearchOverPaths
from noise_search.search.algorithms.random_search import RandomSearch
from noise_search.search.algorithms.zero_order import STUCK, ZeroOrderSearch
from noise_search.search.recipe import Recipe
from tiny_models import sd3

STEPS, SEED, CANDIDATES, BATCH = 4, 3, 7, 3
LEFT_BY_THE_HOST = {"conds", "inner_model", "loaded_models"}
ALGORITHMS = {
    "random": RandomSearch(),
    **{f"zero-order, {stuck}": ZeroOrderSearch(neighbours=3, stuck=stuck) for stuck in STUCK},
    "paths": SearchOverPaths(paths=1, branches=2, sigma=0.3, forward=0.5, backward=0.7),
    "drafts": DraftAndFinal(draft_steps=2),
    "drafts, zero-order": DraftAndFinal(ZeroOrderSearch(neighbours=3), draft_steps=2),
}


class Failing:
    """A function that raises `error` in these calls of it, counted from 1."""

    def __init__(self, function, error, *at):
        self.function, self.error, self.at, self.calls = function, error, at, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls in self.at:
            raise self.error
        return self.function(*args, **kwargs)


@pytest.fixture(autouse=True)
def released():
    with torch.inference_mode():
        yield
    mm.interrupt_current_processing(False)


def make(model=None, sampler="euler") -> Sampling:
    setup = setup_of(sd3())
    return Sampling.ksampler(
        model or setup.model, STEPS, setup.cfg, sampler, "simple", setup.positive, setup.negative, setup.latent
    )


def run(sampling=None, batch_size=1, algorithm=None, vae=None, verifier=None, drop_bad=False, candidates=CANDIDATES):
    sampling = sampling or make()
    return search(
        lambda: sampling, vae or AnyVae(), verifier or FineContrast(), SEED, candidates, "", 1, Graph(), "positive",
        algorithm, options=Options(batch_size), drop_bad=drop_bad,
    )  # fmt: skip


def assert_equal(first, second) -> None:
    """Two searches found the same, bit for bit, at the same cost."""
    assert torch.equal(first.latent["samples"], second.latent["samples"])
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.log.values(), second.log.values())
    assert [one.nfe for one in first.log.candidates] == [one.nfe for one in second.log.candidates]
    assert first.recipe == second.recipe


def rows_of(sampling) -> list[int]:
    """A list that gets the rows of every call of the model."""
    found, predict = [], sampling.guider.predict_noise
    sampling.guider.predict_noise = lambda x, *args, **more: found.append(x.shape[0]) or predict(x, *args, **more)
    return found


# Memory runs out


def no_memory() -> Exception:
    return torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def short_of_memory(*at) -> Sampling:
    """A sampling whose model runs out of memory in these calls."""
    sampling = make()
    sampling.guider.predict_noise = Failing(sampling.guider.predict_noise, no_memory(), *at)
    return sampling


@pytest.fixture
def unloads(monkeypatch):
    """A list that grows whenever ComfyUI is asked to unload all that it can."""
    asked, free = [], mm.free_memory

    def free_memory(memory, *args, **kwargs):
        if memory >= 1e30:
            asked.append(memory)
        return free(memory, *args, **kwargs)

    monkeypatch.setattr(mm, "free_memory", free_memory)
    return asked


@pytest.mark.parametrize("call", [1, 3, STEPS + 1, CANDIDATES * STEPS])
def test_without_memory_a_candidate_is_sampled_once_more(unloads, call):
    sampling = short_of_memory(call)
    result, undisturbed = run(sampling), run()
    assert_equal(result, undisturbed)
    assert len(unloads) == 1
    assert result.log.stopped == undisturbed.log.stopped


def test_what_a_failed_try_spent_is_extra():
    sampling = short_of_memory(STEPS + 3)
    log = run(sampling).log
    assert log.extra_nfe == 3
    assert log.nfe == CANDIDATES * STEPS + 3 == sampling.evaluations.rows


def test_a_failed_try_of_stock_does_not_enlarge_the_budget():
    assert len(run(short_of_memory(STEPS)).log.candidates) == CANDIDATES


@pytest.mark.parametrize("first", [1, STEPS + 2])
def test_without_memory_twice_the_error_is_comfyuis_to_handle(first):
    sampling = short_of_memory(first, first + 1)
    with pytest.raises(torch.cuda.OutOfMemoryError) as raised:
        run(sampling)
    assert raised.value is sampling.guider.predict_noise.error
    assert_equal(run(), run())


@pytest.mark.parametrize("call", [2 * STEPS + 1, 2 * STEPS + 5])
def test_without_memory_a_batch_is_halved_for_the_rest_of_the_search(call):
    sampling = short_of_memory(call)  # the first and the second batch of 3; stock and the trial come before
    rows = rows_of(sampling)
    result, undisturbed = run(sampling, BATCH), run(batch_size=BATCH)
    assert result.recipe == undisturbed.recipe
    assert torch.equal(result.latent["samples"], undisturbed.latent["samples"])
    assert torch.allclose(result.log.values(), undisturbed.log.values(), atol=1e-5)
    assert [one.nfe for one in result.log.candidates] == [STEPS] * CANDIDATES
    assert result.log.nfe == sampling.evaluations.rows == sum(rows)
    assert set(rows[call:]) == {1}


def test_without_memory_for_the_trial_there_are_no_batches():
    sampling = short_of_memory(STEPS + 3)
    rows = rows_of(sampling)
    result = run(sampling, batch_size=6)
    assert rows[STEPS : STEPS + 3] == [3] * 3
    assert set(rows[STEPS + 3 :]) == {1}
    assert result.log.nfe == sampling.evaluations.rows


@pytest.mark.parametrize("name", ["paths", "drafts"])
def test_without_memory_every_kind_of_sampling_is_done_once_more(name):
    undisturbed = run(algorithm=ALGORITHMS[name])
    calls = undisturbed.log.nfe
    for call in range(1, calls + 1, 5):
        sampling = short_of_memory(call)
        result = run(sampling, algorithm=ALGORITHMS[name])
        assert_equal(result, undisturbed)
        assert result.log.nfe == sampling.evaluations.rows


def test_without_memory_decoding_is_done_once_more(unloads):
    vae = AnyVae()
    vae.decode = Failing(vae.decode, no_memory(), 2)
    assert_equal(run(vae=vae), run())
    assert len(unloads) == 1


def test_without_memory_scoring_is_done_once_more(unloads):
    verifier = FineContrast()
    verifier.score = Failing(verifier.score, no_memory(), 2)
    assert_equal(run(verifier=verifier), run())
    assert len(unloads) == 1


@pytest.mark.parametrize("part", ["decode", "score"])
def test_without_memory_twice_decoding_and_scoring_raise(part):
    vae, verifier = AnyVae(), FineContrast()
    of = {"decode": vae, "score": verifier}[part]
    setattr(of, part, Failing(getattr(of, part), no_memory(), 2, 3))
    with pytest.raises(torch.cuda.OutOfMemoryError) as raised:
        run(vae=vae, verifier=verifier)
    assert raised.value is getattr(of, part).error
    assert_equal(run(vae=vae, verifier=verifier), run())


def test_an_allocation_that_fails_on_the_cpu_is_known():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**52)
    assert is_oom(raised.value)


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 18.07 GB, other allocations: 160.00 KB)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:116] data. DefaultCPUAllocator: not enough memory"), True),
        (RuntimeError("The size of tensor a (8) must match the size of tensor b (2)"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_running_out_of_memory(error, known):
    assert is_oom(error) == known


# Cancel


PHASES = {  # of a search in batches: the number of a model call
    "stock": 2,
    "the last step of stock": STEPS,
    "the trial": STEPS + 1,
    "the end of the trial": 2 * STEPS,
    "the first batch": 2 * STEPS + 2,
    "the second batch": 3 * STEPS + 2,
    "the winner again": 4 * STEPS + 2,
}


@pytest.mark.parametrize("phase", PHASES)
def test_cancel_in_a_batched_search_stops_before_the_next_model_call(phase):
    sampling = make()
    calls = cancel_at_call(sampling, PHASES[phase])
    with pytest.raises(mm.InterruptProcessingException):
        run(sampling, BATCH)
    assert len(calls) == PHASES[phase]
    assert not LEFT_BY_THE_HOST & set(sampling.guider.__dict__)


class PressesCancel:
    """Calls a function, and presses Cancel in one of the calls."""

    def __init__(self, function, at):
        self.function, self.at, self.calls = function, at, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls == self.at:
            mm.interrupt_current_processing(True)
        return self.function(*args, **kwargs)


@pytest.mark.parametrize("part", ["decode", "score"])
@pytest.mark.parametrize("batch_size", [1, BATCH])
def test_cancel_while_decoding_or_scoring_stops_before_the_next_model_call(part, batch_size):
    vae, verifier, sampling = AnyVae(), FineContrast(), make()
    of = {"decode": vae, "score": verifier}[part]
    setattr(of, part, PressesCancel(getattr(of, part), at=3))
    rows = rows_of(sampling)
    with pytest.raises(mm.InterruptProcessingException):
        run(sampling, batch_size, vae=vae, verifier=verifier)
    assert sum(rows) == (3 * STEPS if batch_size == 1 else (1 + TRIAL_ROWS + BATCH) * STEPS)


def test_after_a_cancel_anywhere_the_next_search_is_whole():
    chance = random.Random(1)
    setup = setup_of(sd3())
    before, options = run(), repr(setup.model.model_options)
    for _ in range(30):
        batch_size, algorithm = chance.choice([1, BATCH]), chance.choice(list(ALGORITHMS.values()))
        sampling = make()
        calls = cancel_at_call(sampling, call := chance.randint(1, 12))
        with pytest.raises(mm.InterruptProcessingException):
            run(sampling, batch_size, algorithm)
        assert len(calls) == call
        assert not LEFT_BY_THE_HOST & set(sampling.guider.__dict__)
        del sampling.guider.predict_noise
        mm.throw_exception_if_processing_interrupted()  # the button is released
    assert_equal(run(sampling), before)
    assert_equal(run(), before)
    assert repr(setup.model.model_options) == options
    assert not tqdm.tqdm._instances


# Hooks of other nodes


class HookError(Exception):
    """The error of a node that is not ours."""


class Hook:
    """Raises in call number `at` and in all that follow."""

    def __init__(self, at):
        self.at, self.calls = at, 0

    def __call__(self):
        self.calls += 1
        if self.calls >= self.at:
            raise HookError("no face found in the picture")


def in_wrapper(kind):
    def add(model, hook):
        def wrapper(executor, *args, **kwargs):
            hook()
            return executor(*args, **kwargs)

        model.add_wrapper_with_key(kind, "another pack", wrapper)

    return add


def in_model_function(model, hook):
    def wrapper(apply, args):
        hook()
        return apply(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(wrapper)


def in_cfg_function(model, hook):
    model.set_model_sampler_post_cfg_function(lambda args: hook() or args["denoised"])


HOOKS = {
    "PREDICT_NOISE": in_wrapper(comfy.patcher_extension.WrappersMP.PREDICT_NOISE),
    "OUTER_SAMPLE": in_wrapper(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE),
    "SAMPLER_SAMPLE": in_wrapper(comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE),
    "model function": in_model_function,
    "post-CFG function": in_cfg_function,
}


@pytest.mark.parametrize("batch_size", [1, BATCH])
@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("name", HOOKS)
def test_the_error_of_a_hook_comes_out_as_it_is(name, at, batch_size):
    model = setup_of(sd3()).model.clone()
    HOOKS[name](model, Hook(at))
    sampling = make(model)
    with pytest.raises(HookError, match="no face found in the picture"):
        run(sampling, batch_size)
    assert not LEFT_BY_THE_HOST & set(sampling.guider.__dict__)
    assert_equal(run(), run())


def test_the_error_of_a_sampler_comes_out_as_it_is():
    def sample_until(model, x, sigmas, extra_args=None, callback=None, disable=None):
        x = model(x, sigmas[0] * x.new_ones([x.shape[0]]), **extra_args)
        raise HookError("no face found in the picture")

    sampling = make()
    sampling.sampler = comfy.samplers.KSAMPLER(sample_until)
    with pytest.raises(HookError, match="no face found in the picture"):
        run(sampling)


def test_the_error_of_a_previewer_comes_out_as_it_is(monkeypatch):
    import latent_preview

    class Previewer:
        def decode_latent_to_preview_image(self, kind, x0):
            raise HookError("no face found in the picture")

    monkeypatch.setattr(latent_preview, "get_previewer", lambda *args: Previewer())
    with pytest.raises(HookError, match="no face found in the picture"):
        run()


def test_a_search_can_be_repeated_with_a_sampling_that_failed():
    sampling = make()
    predict = sampling.guider.predict_noise
    for call in (2, STEPS + 3, 2 * STEPS + 5):
        sampling.guider.predict_noise = Failing(predict, HookError("no"), *range(call, 100))
        with pytest.raises(HookError):
            run(sampling, BATCH)
        sampling.guider.predict_noise = predict
        result = run(sampling, BATCH)
        assert_equal(result, run(batch_size=BATCH))
        assert result.log.nfe == run(batch_size=BATCH).log.nfe


# NaN


def noise_of(seed) -> torch.Tensor:
    return initial_noise((Recipe.from_seed(seed),), setup_of(sd3()).latent)[0]


def overflowing(broken) -> Sampling:
    """A sampling whose model gives NaN for rows that start from a noise for which `broken` says so."""
    model = setup_of(sd3()).model.clone()

    def wrapper(apply, args):
        out = apply(args["input"], args["timestep"], **args["c"])
        if float(args["timestep"].max()) > 0.999:  # the sigma of pure noise
            for row, noise in enumerate(args["input"]):
                if broken(noise):
                    out[row] = float("nan")
        return out

    model.set_model_unet_function_wrapper(wrapper)
    return make(model)


def only(*seeds):
    return lambda noise: any(torch.allclose(noise, noise_of(seed), atol=1e-3) for seed in seeds)


def all_but(*seeds):
    return lambda noise: not only(*seeds)(noise)


@pytest.mark.parametrize("batch_size", [1, BATCH])
def test_a_broken_candidate_is_an_error_that_names_it(batch_size):
    with pytest.raises(ValueError, match=rf"candidate 2: .*seed {SEED + 2} has pixels that are not numbers"):
        run(overflowing(only(SEED + 2)), batch_size)


@pytest.mark.parametrize("batch_size", [1, BATCH])
@pytest.mark.parametrize("seed", [SEED + 1, SEED + 3, SEED + 6])  # first, last and alone in a batch of 3
def test_a_broken_candidate_is_left_out_where_the_user_says_so(seed, batch_size):
    sampling = overflowing(only(seed))
    result, undisturbed = run(sampling, batch_size, drop_bad=True), run()
    expected = [one for one in undisturbed.log.candidates if one.recipes[0].seed != seed]
    assert [one.recipes for one in result.log.candidates] == [one.recipes for one in expected]
    values = torch.tensor([one.values for one in expected], dtype=torch.float64).reshape(-1, 1)
    assert torch.allclose(result.log.values(), values, atol=1e-5)
    assert result.log.nfe == sampling.evaluations.rows


@pytest.mark.parametrize("batch_size", [1, BATCH])
def test_a_candidate_that_was_left_out_is_in_the_report(batch_size):
    report = run(overflowing(only(SEED + 2)), batch_size, drop_bad=True).log.to_dict()
    assert len(report["candidates"]) == CANDIDATES - 1
    [dropped] = report["dropped"]
    assert f"seed {SEED + 2} has pixels that are not numbers" in dropped
    assert any("1 candidate" in text and dropped in text for text in report["warnings"])


def test_a_broken_candidate_costs_what_any_candidate_costs():
    log = run(overflowing(only(SEED + 2)), drop_bad=True).log
    assert log.extra_nfe == STEPS
    assert log.nfe == CANDIDATES * STEPS


@pytest.mark.parametrize("drop_bad", [False, True])
def test_a_broken_stock_image_is_always_an_error(drop_bad):
    with pytest.raises(ValueError, match=f"seed {SEED} has pixels that are not numbers"):
        run(overflowing(only(SEED)), drop_bad=drop_bad)


@pytest.mark.parametrize("batch_size", [1, BATCH])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_search_of_which_only_stock_is_whole_ends_with_stock(name, batch_size):
    sampling = overflowing(all_but(SEED))
    result = run(sampling, batch_size, ALGORITHMS[name], drop_bad=True)
    assert result.log.best().index == 0 or name == "paths"  # a path may begin at stock's noise
    assert torch.isfinite(result.latent["samples"]).all()
    assert result.log.dropped
    assert sampling.evaluations.rows <= 3 * CANDIDATES * STEPS


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_search_goes_on_after_a_broken_candidate(name):
    broken = 0

    def every_third(noise):
        nonlocal broken
        broken += not torch.allclose(noise, noise_of(SEED), atol=1e-3)
        return broken % 3 == 2

    sampling = overflowing(every_third)
    result = run(sampling, algorithm=ALGORITHMS[name], drop_bad=True)
    assert result.log.dropped and len(result.log.candidates) > 1
    assert torch.isfinite(result.latent["samples"]).all()
    assert result.log.nfe == sampling.evaluations.rows


def test_a_broken_candidate_says_nothing_against_batches(caplog):
    caplog.set_level(logging.WARNING)
    sampling = overflowing(only(SEED + BATCH))
    rows = rows_of(sampling)
    run(sampling, BATCH, drop_bad=True)
    assert rows.count(BATCH) == STEPS + 2 * STEPS  # the trial has as many
    assert "influence each other" not in caplog.text


def test_a_winner_that_is_broken_alone_is_an_error_that_says_so():
    model = setup_of(sd3()).model.clone()

    def wrapper(apply, args):
        out = apply(args["input"], args["timestep"], **args["c"])
        last = float(args["timestep"].max()) < 0.8
        return out * float("nan") if last and finished and len(args["input"]) <= 2 else out

    class Watching(FineContrast):
        def score(self, images, prompts):
            finished.extend([1] if scored else [])
            scored.append(1)
            return super().score(images, prompts) * len(scored)

    finished, scored = [], []
    model.set_model_unet_function_wrapper(wrapper)
    with pytest.raises(ValueError, match=r"candidate \d+, when it was rendered again: .*not numbers"):
        run(make(model), BATCH, verifier=Watching())


# What stays behind


def living() -> tuple[int, int, int]:
    """Tensors, their bytes, and generators that are alive."""
    gc.collect()
    objects = gc.get_objects()
    tensors = [one for one in objects if issubclass(type(one), torch.Tensor)]
    generators = sum(type(one) is GeneratorType for one in objects)
    return len(tensors), sum(one.numel() * one.element_size() for one in tensors), generators


def a_round() -> None:
    """A search, one that is cancelled, one that fails, one without memory, one with a broken candidate."""
    few = 3
    run(batch_size=2, candidates=few)
    sampling = make()
    predict = sampling.guider.predict_noise
    cancel_at_call(sampling, STEPS + 6)
    with pytest.raises(mm.InterruptProcessingException):
        run(sampling, 2, candidates=few)
    sampling.guider.predict_noise = Failing(predict, HookError("no"), *range(7, 100))
    with pytest.raises(HookError):
        run(sampling, 2, candidates=few)
    run(short_of_memory(6), candidates=few)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        run(short_of_memory(6, 7), candidates=few)
    run(overflowing(only(SEED + 1)), 2, drop_bad=True, candidates=few)


def test_nothing_stays_behind_whatever_happens(monkeypatch):
    process, setup = psutil.Process(), setup_of(sd3())
    for _ in range(3):
        a_round()
    before, resident, threads = living(), process.memory_info().rss, threading.active_count()
    attributes = set(setup.model.__dict__), set(setup.model.model.__dict__)
    for _ in range(20):
        a_round()
    after = living()
    assert after[0] <= before[0] and after[1] <= before[1]
    assert after[2] <= before[2] + 2
    assert process.memory_info().rss - resident < 32 * 2**20
    assert threading.active_count() == threads
    assert (set(setup.model.__dict__), set(setup.model.model.__dict__)) == attributes
    assert not tqdm.tqdm._instances
    assert len(mm.current_loaded_models) <= 8
