"""Several candidates in one run of the sampler, where that changes nothing but the time.

A row of a batch differs from the same candidate alone by rounding only, if nothing in the model or the sampler looks
across rows. So batches are for samplers that add no noise and have fixed steps, for conditioning without
rows; before the first batch a candidate that is known alone is sampled once more between two noises unlike any other
(`_Trial`); and the winner and the next best are rendered once more alone, which shows what that missed: then the search
is made anew, one candidate at a time. What fails in a batch is tried alone: batches must not break what works without
them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import comfy.model_management as mm
import torch

from ...search.engine import Recipes
from ...search.ledger import BATCH_TRIAL, OUT_OF_MEMORY, SAMPLE, SAMPLER_TRIAL, Cost
from ...search.recipe import SEED_RANGE, Recipe
from ...search.winners import BatchesMix
from ...verifiers.console import logger
from ..errors import is_cancel
from ..known import CACHE, MIXING, home
from .noise import initial_noise
from .oom import is_oom, retry_on_oom
from .stock import Sampling

MAX_BATCH = 8
MAX_PACE_SHARE = 0.85  # of the time alone that a row in a batch may take: more does not pay for the second renders
STRANGER_SCALES = (3.0, 0.3)  # what the noises of the trial's other two rows are multiplied by
# How far a row may be from its solo run, as root mean squares, by the size of the latent; benchmarks/batching.py and
# benchmarks/mixing.py measure it. ROUNDING: in the trial, without asking further. MIXED: of the winner, whose trial
# found nothing.
ROUNDING, COARSE_ROUNDING = 1e-3, 1e-2  # of a model in float32, and of others
MIXED, COARSE_MIXED = 1e-2, 1e-1
MAX_ROUNDING = 1e-5  # how far a row may be from the same row among others, in a batch of the same shape
TRIAL_ROWS = len(STRANGER_SCALES) + 1
SECOND_RENDERS = 2  # the winner and the next best, alone
FREE_SHARE = 0.7  # of the free memory
EXTRA_SHARE = 0.15  # of the budget: what the trial and rendering the best again may take; batches must earn it back
MIN_STEPS = 2
KEPT_VALUES = 4096  # values of a latent, to compare it later
T = TypeVar("T")
log_to_console = logger(__name__)


@dataclass(frozen=True)
class Sampled:
    """What the sampler made of one candidate: LATENT, LATENT of the last x0 prediction, what it cost, whether it shared
    its run with others, and the seconds that it took after the first step, which may load the model."""

    latent: dict[str, Any]
    denoised: dict[str, Any]
    cost: Cost
    batched: bool = False
    pace: float = 0.0


class Batches:
    """How many candidates go through the sampler together. One for a whole search, its drafts included.

    wanted: this many (1 or more), or 0 to find out: as many as fit in memory, if that is faster. finish: whether
    somebody asked the search to end; then what is under way is the last. notes: what the user should know.
    """

    def __init__(self, sampling: Sampling, wanted: int, candidates: int, finish: Callable[[], bool] = lambda: False):
        self.finish = finish
        self.automatic = wanted == 0
        self.size = min(wanted or MAX_BATCH, candidates)
        self.known: _Known | None = None
        self.tried = 0  # steps of the longest schedule on which nothing was found to mix
        self.timed = not self.automatic
        self.coarse = not _is_float32(sampling)
        self.kept: dict[tuple[int, Recipes], torch.Tensor] = {}
        self.notes: list[str] = []
        why = obstacle_around(sampling) if self.size > 1 else None
        if why is None and self.automatic and self.size > 1:
            self.size = min(self.size, fitting(sampling))
            if EXTRA_SHARE * candidates < TRIAL_ROWS + SECOND_RENDERS:
                why = "the search is too small for it to pay"
        if why is None and self.size > 1:
            with sampling.ledger.as_extra(SAMPLER_TRIAL), sampling.ledger.clock(SAMPLE):
                why = obstacle_within(sampling)
        if why is not None and self.size > 1:
            if not self.automatic:
                log_to_console.warning("Noise Search: batch_size %d is not used: %s", wanted, why)
            self.size = 1

    def sample(self, sampling: Sampling, candidates: Sequence[Recipes], callback: Callable | None) -> list[Sampled]:
        """Every candidate, in order; asked to finish, those that are there, which is one or more. A batch that does not
        fit in memory is halved, for the rest of the search too."""
        made: list[Sampled] = []
        while len(made) < len(candidates) and not (made and self.finish()):
            part = candidates[len(made) : len(made) + self.size]
            if len(part) == 1 or self._needs_one_alone(sampling):
                made.append(self._alone(sampling, part[0], callback))
            elif sampling.steps > self.tried:
                with sampling.ledger.as_extra(BATCH_TRIAL), sampling.ledger.clock(SAMPLE):
                    self._probe(sampling)
            else:
                made += self._together(sampling, part, callback)
        return made

    def patiently(self, sampling: Sampling, work: Callable[[], T]) -> T:
        """Does some sampling of one candidate; if memory runs out, once more. What the first try spent is extra."""
        first = sampling.ledger.measure()
        return retry_on_oom(work, "sampling", lambda: sampling.ledger.set_apart(OUT_OF_MEMORY, first.cost))

    def differs(self, sampling: Sampling, recipes: Recipes, latent: dict[str, Any]) -> str | None:
        """What shows that a candidate, made again alone, is another than in its batch; None where nothing does."""
        kept = self.kept.get((sampling.steps, recipes))
        if kept is None:
            return None
        apart = _difference(kept, _values(latent))
        limit = COARSE_MIXED if self.coarse else MIXED
        return None if apart < limit else f"differs by {apart:.2g} of its size"

    def _alone(self, sampling: Sampling, recipes: Recipes, callback: Callable | None) -> Sampled:
        one = self.patiently(sampling, partial(sample_alone, sampling, recipes, callback))
        if self.size > 1 and not self._skips(sampling) and self._needs_one_alone(sampling):
            self.known = _Known(sampling.steps, recipes, one.latent["samples"], one.pace)
        return one

    def _together(self, sampling: Sampling, part: Sequence[Recipes], callback: Callable | None) -> list[Sampled]:
        spent = sampling.ledger.measure()
        batch = self._attempt(sampling, len(part), partial(sample_together, sampling, part, callback))
        if batch and self._skips(sampling):
            sampling.ledger.set_apart(BATCH_TRIAL, spent.cost)
            return []
        for recipes, one in zip(part, batch or (), strict=False):
            self.kept[sampling.steps, recipes] = _values(one.latent)
        if batch and not self.timed and self.known and self.known.steps == sampling.steps:
            self.timed = True
            if batch[0].pace > MAX_PACE_SHARE * self.known.pace:
                self.size = 1
        return batch or []

    def _skips(self, sampling: Sampling) -> bool:
        """Whether something answered in the model's place, as a cache does from some step on; then there are no more
        batches, as what it skips may depend on the whole batch. Raises BatchesMix where there were some already."""
        if not sampling.evaluations.skipped:
            return False
        why = "something skips steps of the model, as a cache does, and may decide by the whole batch which"
        if self.kept and not self.finish():
            raise BatchesMix(why[0].upper() + why[1:])
        self._give_up(why)
        return True

    def _needs_one_alone(self, sampling: Sampling) -> bool:
        """Whether no candidate is known alone to try batches with. A draft is known on its own schedule only; what was
        tried on a longer one holds for shorter ones too."""
        return sampling.steps > self.tried and (self.known is None or self.known.steps != sampling.steps)

    def _attempt(self, sampling: Sampling, count: int, work: Callable[[], T]) -> T | None:
        """Does some sampling of several candidates at once. None where that does not work; from then on they are fewer.

        Attention patches and the like may not be made for batches. An error that has another cause comes again when
        the candidates are sampled alone.
        """
        spent = sampling.ledger.measure()
        try:
            return work()
        except Exception as error:
            if is_cancel(error):
                raise
            oom, cause = is_oom(error), f"{type(error).__name__}: {error}"
        # Outside of the handler: the traceback would keep the tensors.
        sampling.ledger.set_apart(OUT_OF_MEMORY if oom else BATCH_TRIAL, spent.cost)
        if oom:
            self.size = max(min(self.size, count) // 2, 1)
            mm.soft_empty_cache()
            log_to_console.warning("Noise Search: out of memory with %d candidates at once; now %d", count, self.size)
        else:
            self._give_up(f"trying {count} at once failed with {cause}")
        return None

    def _probe(self, sampling: Sampling) -> None:
        """Whether the known candidate is the same between strangers."""
        assert self.known is not None
        trial = _Trial(sampling, self.known)
        apart = self._attempt(sampling, TRIAL_ROWS, trial.distance)
        if apart is None or self._skips(sampling):
            return  # out of memory, with half as many once more
        same: bool | None = apart <= (COARSE_ROUNDING if self.coarse else ROUNDING)
        if not same:
            same = self._attempt(sampling, TRIAL_ROWS, trial.is_rounding)
            self.coarse = True
            if same is None:
                return
        self.tried = sampling.steps
        if not same:
            self._give_up(f"in a batch they influence each other (one differs by {apart:.2g} from the same alone)")

    def _give_up(self, why: str) -> None:
        self.size = 1
        self.notes.append(f"Candidates are sampled one at a time, not in batches: {why}")


@dataclass(frozen=True)
class _Known:
    """A candidate that was sampled alone, on a schedule of this many steps."""

    steps: int
    recipes: Recipes
    samples: torch.Tensor
    pace: float


class _Trial:
    """The known candidate among strangers: does it stay what it is alone?

    Strangers are noises of another size than any candidate's, larger before it and smaller after it. So a number that
    is computed of the whole batch (a maximum, a mean) is another than that of the candidate; a cache decides otherwise
    which steps to skip; neither the first row nor the last, to which others may be likened, is the candidate; and the
    global generator, which stands where the last noise leaves it, is not where it stands for the candidate alone.
    """

    def __init__(self, sampling: Sampling, known: _Known):
        self.sampling, self.known = sampling, known
        seed = known.recipes[0].seed
        self.others = [(Recipe.from_seed((seed + number) % SEED_RANGE),) for number in (1, 2)]

    def distance(self) -> float:
        """How far the known candidate in the trial is from its solo run, relative to its size (see `_difference`)."""
        own = self._noise(self.known.recipes)  # before the others: the last noise leaves the global generator as it is
        large, small = (scale * self._noise(other) for scale, other in zip(STRANGER_SCALES, self.others, strict=True))
        self.row = self._run([large, own, small], self.others[0][0].seed)[1]
        return _difference(self.row[None], self.known.samples)

    def is_rounding(self) -> bool:
        """Whether the difference comes from the size of the batch alone: with copies of itself in the place of the
        strangers it is the same, to the last bits, and so is every copy."""
        own = self._noise(self.known.recipes)
        copies = self._run([own] * TRIAL_ROWS, self.known.recipes[0].seed)
        return (
            _difference(copies[1], self.row) < MAX_ROUNDING
            and _difference(copies[[0, -1]], copies[[1, 1]]) < MAX_ROUNDING
        )

    def _noise(self, recipes: Recipes) -> torch.Tensor:
        return initial_noise(recipes, self.sampling.latent)

    def _run(self, noises: Sequence[torch.Tensor], seed: int) -> torch.Tensor:
        sampling = self.sampling
        samples, _ = sampling.run(torch.cat(list(noises)), _repeated(sampling, len(noises)), sampling.sigmas, seed)
        return sampling.finished(samples)[0]["samples"]


def sample_alone(sampling: Sampling, recipes: Recipes, callback: Callable | None) -> Sampled:
    """One candidate, exactly as the stock node samples it."""
    spent, clock = sampling.ledger.measure(), _Clock(callback)
    with sampling.ledger.clock(SAMPLE):
        latents = sampling.sample(recipes, clock)
    return Sampled(*latents, spent.cost, pace=clock.pace())


def sample_together(sampling: Sampling, candidates: Sequence[Recipes], callback: Callable | None) -> list[Sampled]:
    """Several candidates of one item each in one run; the counts and the time are shared out evenly.

    callback: gets the first one only, as previewers may take a batch for the frames of a video.
    """
    spent, count = sampling.ledger.measure(), len(candidates)
    first = lambda step, x0, x, total_steps: callback and callback(step, x0[:1], x[:1], total_steps)  # noqa: E731
    clock = _Clock(first)
    with sampling.ledger.clock(SAMPLE):
        noise, latent = _joined(sampling, candidates)
        samples, x0 = sampling.run(noise, latent, sampling.sigmas, candidates[0][0].seed, clock)
    each, pace = spent.cost.shared(count), clock.pace() / count
    made = []
    for row in range(count):
        rows = slice(row, row + 1)
        latents = sampling.finished(samples[rows].clone(), None if x0 is None else x0[rows].clone())
        made.append(Sampled(*latents, each, batched=True, pace=pace))
    return made


class _Clock:
    """A sampler's callback that takes the time from the first step on."""

    def __init__(self, callback: Callable | None):
        self.callback = callback
        self.stepped = time.perf_counter()

    def __call__(self, step: int, x0: torch.Tensor, x: torch.Tensor, total_steps: int) -> None:
        if step == 0 and not x0.is_nested:
            float(x0.flatten()[0])  # waits for the GPU
            self.stepped = time.perf_counter()
        if self.callback is not None:
            self.callback(step, x0, x, total_steps)

    def pace(self) -> float:
        return time.perf_counter() - self.stepped


def obstacle(sampling: Sampling) -> str | None:
    """Why candidates of this sampling may not share a batch, or None."""
    return obstacle_around(sampling) or obstacle_within(sampling)


def obstacle_within(sampling: Sampling) -> str | None:
    """Why the sampler forbids batches, or None. It is tried without its model for that: a moment's work."""
    if not sampling.deterministic:
        return "the sampler draws noise of its own, which would depend on the batch"
    if sampling.mixes_rows:
        return "the sampler mixes the items of a batch, as where it chooses its steps by the whole batch"
    return None


def obstacle_around(sampling: Sampling) -> str | None:
    """Why anything but the sampler forbids batches, or None."""
    samples = sampling.latent["samples"]
    if samples.is_nested or sampling.items > 1 or sampling.latent.get("batch_index") is not None:
        return "the latent is a batch itself, or made of several tensors"
    if getattr(sampling.sampler, "inpaint_options", {}).get("random") and sampling.latent.get("noise_mask") is not None:
        return "the sampler draws the noise outside of the mask for the whole batch"
    if sampling.steps < MIN_STEPS:
        return "there are too few steps"
    if any(CACHE in str(key).lower() for key in sampling.guider.model_options.get("transformer_options", {})):
        return "a cache of the model (EasyCache, LazyCache, TeaCache) decides by the whole batch which steps to skip"
    mixing = {MIXING[module] for module in _guided_by(sampling.guider) if module in MIXING}
    if mixing:
        return f"{' and '.join(sorted(mixing))} computes one number for the whole batch"
    if _has_rows(getattr(sampling.guider, "original_conds", None)) or _has_rows(sampling.latent.get("noise_mask")):
        return "the conditioning or the mask has a row for each item of a batch"
    return None


def fitting(sampling: Sampling) -> int:
    """How many candidates fit in the free memory at once, by ComfyUI's own estimate; a power of two."""
    shape = list(sampling.latent["samples"].shape)
    model = sampling.model
    unloaded = max(model.model_size() - model.loaded_size(), 0)  # what the weights will take before any batch
    free = FREE_SHARE * (mm.get_free_memory(model.load_device) - unloaded)
    size = MAX_BATCH
    while size > 1 and sampling.model.model.memory_required([2 * size, *shape[1:]]) > free:
        size //= 2
    return size


def _difference(row: torch.Tensor, solo: torch.Tensor) -> float:
    """The difference over the size, both as root mean squares. What is no number in both counts as 0: a broken
    candidate says nothing against batches."""
    broken = ~torch.isfinite(row) & ~torch.isfinite(solo)
    row, solo = row.float().masked_fill(broken, 0.0), solo.float().masked_fill(broken, 0.0)
    return float((row - solo).square().mean().sqrt() / solo.square().mean().sqrt().clamp(min=1e-12))


def _joined(sampling: Sampling, candidates: Sequence[Recipes]) -> tuple[torch.Tensor, torch.Tensor]:
    """The noises as one batch, each drawn for itself, and the latent as often."""
    noise = torch.cat([initial_noise(recipes, sampling.latent) for recipes in candidates])
    return noise, _repeated(sampling, len(candidates))


def _repeated(sampling: Sampling, count: int) -> torch.Tensor:
    latent = sampling.latent["samples"]
    return latent.repeat(count, *[1] * (latent.ndim - 1))


def _values(latent: dict[str, Any]) -> torch.Tensor:
    """Some values of a LATENT of one item, evenly spread."""
    flat = latent["samples"].flatten()
    return flat[:: max(len(flat) // KEPT_VALUES, 1)].float().cpu().clone()


def _is_float32(sampling: Sampling) -> bool:
    """Whether the model computes in float32, so that rounding is small."""
    cast = sampling.model.get_model_object("manual_cast_dtype")  # where a node changes it, that is on the patcher
    return sampling.model.model.get_dtype() == torch.float32 and cast in (None, torch.float32)


def _guided_by(guider: Any) -> list[str]:
    """The modules that the guider and the guidance functions on its model come from, without their packages."""
    options = guider.model_options
    functions = [type(guider), options.get("sampler_cfg_function")]
    functions += [*options.get("sampler_pre_cfg_function", ()), *options.get("sampler_post_cfg_function", ())]
    return list(map(home, functions))


def _has_rows(value: Any) -> bool:
    """Whether anything in a conditioning or mask has more than one row."""
    if value is None:
        return False
    if isinstance(value, torch.Tensor):
        return value.ndim > 0 and value.shape[0] > 1
    if isinstance(value, dict):
        return any(key != "transformer_options" and _has_rows(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return any(map(_has_rows, value))
    return _has_rows(getattr(value, "cond_hint_original", None)) or _has_rows(
        getattr(value, "previous_controlnet", None)
    )
