"""Several candidates in one run of the sampler, where that changes nothing but the time.

A row of a batch differs from the same candidate alone by rounding only, if nothing in the model or the sampler looks
across rows. So batches are for samplers without noise of their own and with fixed steps, for conditioning without
rows; a draft of two steps compares one row with its solo run before the first batch; and the winner is rendered once
more alone. What fails in a batch is tried alone: batches must not break what works without them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import comfy.model_management as mm
import torch

from ..search.engine import Recipes
from ..verifiers.console import logger
from .memory import is_oom, with_memory
from .noise import initial_noise
from .sampling import Sampling

LARGEST = 8
WORTH = 0.85  # of the time alone that a row in a batch may take; more does not pay for rendering the winner again
PROBE_STEPS = 2
SAME = 0.03  # how far a row may be from its solo run after the probe, both as root mean squares
FREE_SHARE = 0.7  # of the free memory
EXTRA_SHARE = 0.15  # of the budget: what the probe and the winner's second render may take; batches must earn it back
MIXING = {  # by the module of ComfyUI: what mixes the rows of a batch, some by less than the probe sees
    "nodes_mahiro": "Mahiro",
    "nodes_perpneg": "Perp-Neg",
    "nodes_slg": "Skip Layer Guidance",
    "nodes_video_model": "a guidance for videos",
}
T = TypeVar("T")
log_to_console = logger(__name__)


@dataclass(frozen=True)
class Sampled:
    """What the sampler made of one candidate: LATENT, LATENT of the last x0 prediction, what it cost, and whether it
    shared its run with others."""

    latent: dict[str, Any]
    denoised: dict[str, Any]
    nfe: int
    seconds: float
    together: bool = False


class Batches:
    """How many candidates go through the sampler together. One for a whole search, its drafts included.

    wanted: so many (1 or more), or 0 to find out: as many as fit in memory, if that is faster. finish: whether somebody
    asked the search to end; then what is under way is the last.
    """

    def __init__(self, sampling: Sampling, wanted: int, candidates: int, finish: Callable[[], bool] = lambda: False):
        self.finish = finish
        self.automatic = wanted == 0
        self.size = min(wanted or LARGEST, candidates)
        self.probed = False
        self.extra_nfe, self.extra_seconds = 0, 0.0
        why = obstacle_around(sampling) if self.size > 1 else None
        if why is None and self.automatic and self.size > 1:
            self.size = min(self.size, fitting(sampling))
            if 2 + 2 * self.size + sampling.steps > EXTRA_SHARE * candidates * sampling.steps:
                why = "the search is too small for it to pay"
        if why is None and self.size > 1:
            started = time.perf_counter()
            why = obstacle_within(sampling)
            self.extra_seconds += time.perf_counter() - started
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
            if len(part) == 1:
                made.append(self.patiently(sampling, partial(alone, sampling, part[0], callback)))
            elif not self.probed:
                self._probe(sampling, part)
            else:
                made += self._attempt(sampling, part, partial(together, sampling, part, callback)) or []
        return made

    def patiently(self, sampling: Sampling, work: Callable[[], T]) -> T:
        """Some sampling of one candidate; if memory runs out, once more. What the first try spent is extra."""
        before, started = sampling.evaluations.rows, time.perf_counter()
        return with_memory(work, "sampling", lambda: self._extra(sampling, before, started))

    def _attempt(self, sampling: Sampling, part: Sequence[Recipes], work: Callable[[], T]) -> T | None:
        """Some sampling of several candidates at once. None where that does not work; from then on they are fewer.

        Attention patches and the like may not be made for batches, nor samplers for a short draft. An error that has
        another cause comes again when the candidates are sampled alone.
        """
        before, started = sampling.evaluations.rows, time.perf_counter()
        try:
            return work()
        except mm.InterruptProcessingException:  # an Exception on older hosts
            raise
        except Exception as error:
            oom, cause = is_oom(error), f"{type(error).__name__}: {error}"
        # Outside of the handler: the traceback would keep the tensors.
        self._extra(sampling, before, started)
        if oom:
            count, self.size = len(part), max(len(part) // 2, 1)
            mm.soft_empty_cache()
            log_to_console.warning("Noise Search: out of memory with %d candidates at once; now %d", count, self.size)
        else:
            self._give_up(f"trying {len(part)} at once failed with {cause}")
        return None

    def _probe(self, sampling: Sampling, part: Sequence[Recipes]) -> None:
        """A draft of two steps of one candidate alone and of all together: is a row the same, and is it faster?

        A draft, as the first steps of the full schedule hardly move a row. The last row, as a sampler that draws noise
        without our knowing gives the first one what it gets alone.
        """
        sampling = sampling.coarser(min(PROBE_STEPS, sampling.steps))
        before, started = sampling.evaluations.rows, time.perf_counter()
        solo = self._attempt(sampling, part, partial(with_memory, partial(_draft, sampling, part[-1:]), "sampling"))
        if solo is None:  # some samplers want more steps
            return
        self._extra(sampling, before, started)
        before, started = sampling.evaluations.rows, time.perf_counter()
        batch = self._attempt(sampling, part, partial(_draft, sampling, part))
        if batch is None:
            return  # with half as many, once more
        self._extra(sampling, before, started)
        self.probed = True
        apart = _difference(batch.samples[-1:], solo.samples)
        if not apart < SAME:
            self._give_up(f"in a batch they influence each other (a draft differs by {apart:.2g} from that alone)")
        elif self.automatic and batch.seconds / len(part) > WORTH * solo.seconds:
            self.size = 1

    def _give_up(self, why: str) -> None:
        self.size = 1
        log_to_console.warning("Noise Search: candidates are sampled one at a time: %s", why)

    def _extra(self, sampling: Sampling, before: int, started: float) -> None:
        """Counts what was spent since then as extra."""
        self.extra_nfe += sampling.evaluations.rows - before
        self.extra_seconds += time.perf_counter() - started


def alone(sampling: Sampling, recipes: Recipes, callback: Callable | None) -> Sampled:
    """One candidate, exactly as the stock node samples it."""
    before, started = sampling.evaluations.rows, time.perf_counter()
    latents = sampling.sample(recipes, callback)
    return Sampled(*latents, sampling.evaluations.rows - before, time.perf_counter() - started)


def together(sampling: Sampling, candidates: Sequence[Recipes], callback: Callable | None) -> list[Sampled]:
    """Several candidates of one item each in one run; the counts and the time are shared out evenly.

    callback: gets the first one only, as previewers may take a batch for the frames of a video.
    """
    before, started, count = sampling.evaluations.rows, time.perf_counter(), len(candidates)
    noise, latent = _joined(sampling, candidates)

    def on_step(step: int, x0: torch.Tensor, x: torch.Tensor, total_steps: int) -> None:
        if callback is not None:
            callback(step, x0[:1], x[:1], total_steps)

    samples, x0 = sampling.run(noise, latent, sampling.sigmas, candidates[0][0].seed, on_step)
    nfe, seconds = (sampling.evaluations.rows - before) // count, (time.perf_counter() - started) / count
    made = []
    for row in range(count):
        rows = slice(row, row + 1)
        latents = sampling.finished(samples[rows].clone(), None if x0 is None else x0[rows].clone())
        made.append(Sampled(*latents, nfe, seconds, together=True))
    return made


def obstacle(sampling: Sampling) -> str | None:
    """Why candidates of this sampling may not share a batch, or None."""
    return obstacle_around(sampling) or obstacle_within(sampling)


def obstacle_within(sampling: Sampling) -> str | None:
    """The same of the sampler, which is tried without its model for that: a moment's work."""
    if not sampling.deterministic:
        return "the sampler draws noise of its own, which would depend on the batch"
    if sampling.mixes_rows:
        return "the sampler mixes the items of a batch, as where it chooses its steps by the whole batch"
    return None


def obstacle_around(sampling: Sampling) -> str | None:
    """The same of all but the sampler."""
    samples = sampling.latent["samples"]
    if samples.is_nested or sampling.items > 1 or sampling.latent.get("batch_index") is not None:
        return "the latent is a batch itself, or made of several tensors"
    if getattr(sampling.sampler, "inpaint_options", {}).get("random") and sampling.latent.get("noise_mask") is not None:
        return "the sampler draws the noise outside of the mask for the whole batch"
    if sampling.steps < PROBE_STEPS:
        return "there are too few steps"
    if any("cache" in str(key).lower() for key in sampling.guider.model_options.get("transformer_options", {})):
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
    size = LARGEST
    while size > 1 and sampling.model.model.memory_required([2 * size, *shape[1:]]) > free:
        size //= 2
    return size


@dataclass(frozen=True)
class _Draft:
    """Samples, and the seconds of the second step: the first may load the model."""

    samples: torch.Tensor
    seconds: float


def _draft(sampling: Sampling, candidates: Sequence[Recipes]) -> _Draft:
    ends = [time.perf_counter()]

    def stamp(step: int, x0: Any, x: Any, total_steps: int) -> None:
        float(x0.flatten()[0])  # waits for the GPU
        ends.append(time.perf_counter())

    noise, latent = _joined(sampling, candidates)
    samples, _ = sampling.run(noise, latent, sampling.sigmas, candidates[0][0].seed, stamp)
    ends.append(time.perf_counter())
    return _Draft(samples, ends[2] - ends[1] if len(ends) > 3 else ends[-1] - ends[0])


def _difference(row: torch.Tensor, solo: torch.Tensor) -> float:
    """By the size, both as root mean squares. What is no number in both counts as 0: a broken candidate says nothing
    against batches."""
    broken = ~torch.isfinite(row) & ~torch.isfinite(solo)
    row, solo = row.float().masked_fill(broken, 0.0), solo.float().masked_fill(broken, 0.0)
    return float((row - solo).square().mean().sqrt() / solo.square().mean().sqrt().clamp(min=1e-12))


def _joined(sampling: Sampling, candidates: Sequence[Recipes]) -> tuple[torch.Tensor, torch.Tensor]:
    """The noises as one batch, each drawn for itself, and the latent as often."""
    latent = sampling.latent["samples"]
    noise = torch.cat([initial_noise(recipes, sampling.latent) for recipes in candidates])
    return noise, latent.repeat(len(candidates), *[1] * (latent.ndim - 1))


def _guided_by(guider: Any) -> list[str]:
    """The modules that the guider and the guidance functions on its model come from, without their packages."""
    options = guider.model_options
    functions = [type(guider), options.get("sampler_cfg_function")]
    functions += [*options.get("sampler_pre_cfg_function", ()), *options.get("sampler_post_cfg_function", ())]
    return [str(getattr(function, "__module__", "")).rpartition(".")[2] for function in functions]


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
