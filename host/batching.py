"""Several candidates in one run of the sampler, where that changes nothing but the time.

A row of a batch differs from the same candidate alone by rounding only, if nothing in the model or the sampler looks
across rows. So batches are for samplers without noise of their own and with fixed steps, for conditioning without
rows; a probe of two steps compares one row with its solo run before the first batch; and the winner is rendered once
more alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management as mm
import torch

from ..search.engine import Recipes
from .memory import is_oom, with_memory
from .noise import initial_noise
from .sampling import Sampling

LARGEST = 8
WORTH = 0.85  # of the time alone that a row in a batch may take; more does not pay for rendering the winner again
SAME = 0.01  # how far a row may be from its solo run, in its own size, after the probe
FREE_SHARE = 0.7  # of the free memory
FEWEST_CANDIDATES = 8  # with fewer, the probe and the winner's second render cost what batches save
ADAPTIVE_SAMPLERS = ("dpm_adaptive", "ode")  # choose their steps by the whole batch
log_to_console = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sampled:
    """What the sampler made of one candidate: LATENT, LATENT of the last x0 prediction, and what it cost."""

    latent: dict[str, Any]
    denoised: dict[str, Any]
    nfe: int
    seconds: float


class Batches:
    """How many candidates go through the sampler together. One for a whole search, its drafts included.

    wanted: so many (1 or more), or 0 to find out: as many as fit in memory, if that is faster.
    """

    def __init__(self, sampling: Sampling, wanted: int, candidates: int):
        self.automatic = wanted == 0
        self.size = min(wanted or LARGEST, candidates)
        self.probed = False
        self.extra_nfe, self.extra_seconds = 0, 0.0
        why = obstacle(sampling)
        if why is None and self.automatic:
            if candidates < FEWEST_CANDIDATES:
                why = "there are few candidates"
            else:
                self.size = min(self.size, fitting(sampling))
        if why is not None and self.size > 1:
            if not self.automatic:
                log_to_console.warning("Noise Search: batch_size %d is not used: %s", wanted, why)
            self.size = 1

    def sample(self, sampling: Sampling, candidates: Sequence[Recipes], callback: Callable | None) -> list[Sampled]:
        """Every candidate, in order. A batch that does not fit in memory is halved, for the rest of the search too."""
        made: list[Sampled] = []
        while len(made) < len(candidates):
            part = candidates[len(made) : len(made) + self.size]
            if len(part) > 1 and not self.probed:
                self._probe(sampling, part)
                continue
            try:
                made += together(sampling, part, callback) if len(part) > 1 else [alone(sampling, part[0], callback)]
                continue
            except Exception as error:
                if len(part) == 1 or not is_oom(error):
                    raise
            self._halve(len(part))
        return made

    def _probe(self, sampling: Sampling, part: Sequence[Recipes]) -> None:
        """Two steps of one candidate alone and of all together: is a row the same, and is it faster?"""
        self.probed = True
        before, started = sampling.evaluations.rows, time.perf_counter()
        try:
            solo, solo_time = _two_steps(sampling, part[:1])
            batch, batch_time = _two_steps(sampling, part)
        except Exception as error:
            if not is_oom(error):
                raise
            solo = None
        if solo is None:
            self._halve(len(part))
            self.probed = self.size == 1
        else:
            apart = float((batch[:1] - solo).abs().max() / solo.abs().max().clamp(min=1e-12))
            if not apart < SAME:
                self.size = 1
                log_to_console.warning(
                    "Noise Search: candidates are sampled one at a time: in a batch they influence each other "
                    "(they differ by %.2g from their solo run)",
                    apart,
                )
            elif self.automatic and batch_time / len(part) > WORTH * solo_time:
                self.size = 1
        self.extra_nfe += sampling.evaluations.rows - before
        self.extra_seconds += time.perf_counter() - started

    def _halve(self, size: int) -> None:
        self.size = max(size // 2, 1)
        mm.soft_empty_cache()
        log_to_console.warning("Noise Search: out of memory with %d candidates at once; now %d", size, self.size)


def alone(sampling: Sampling, recipes: Recipes, callback: Callable | None) -> Sampled:
    """One candidate, exactly as the stock node samples it."""
    before, started = sampling.evaluations.rows, time.perf_counter()
    latents = with_memory(lambda: sampling.sample(recipes, callback), "sampling")
    return Sampled(*latents, sampling.evaluations.rows - before, time.perf_counter() - started)


def together(sampling: Sampling, candidates: Sequence[Recipes], callback: Callable | None) -> list[Sampled]:
    """Several candidates of one item each in one run; the counts and the time are shared out evenly."""
    before, started, count = sampling.evaluations.rows, time.perf_counter(), len(candidates)
    noise, latent = _joined(sampling, candidates)
    samples, x0 = sampling.run(noise, latent, sampling.sigmas, candidates[0][0].seed, callback)
    nfe, seconds = (sampling.evaluations.rows - before) // count, (time.perf_counter() - started) / count
    made = []
    for row in range(count):
        rows = slice(row, row + 1)
        latents = sampling.finished(samples[rows].clone(), None if x0 is None else x0[rows].clone())
        made.append(Sampled(*latents, nfe, seconds))
    return made


def obstacle(sampling: Sampling) -> str | None:
    """Why candidates of this sampling may not share a batch, or None."""
    samples = sampling.latent["samples"]
    if samples.is_nested or sampling.rows > 1 or sampling.latent.get("batch_index") is not None:
        return "the latent is a batch itself, or made of several tensors"
    if not sampling.deterministic:
        return "the sampler draws noise of its own, which would depend on the batch"
    name = getattr(getattr(sampling.sampler, "sampler_function", None), "__name__", "")
    if any(part in name for part in ADAPTIVE_SAMPLERS):
        return "the sampler chooses its steps by the whole batch"
    if getattr(sampling.sampler, "inpaint_options", {}).get("random") and sampling.latent.get("noise_mask") is not None:
        return "the sampler draws the noise outside of the mask for the whole batch"
    if sampling.steps < 2:
        return "there are too few steps"
    if _has_rows(sampling.guider.original_conds) or _has_rows(sampling.latent.get("noise_mask")):
        return "the conditioning or the mask has a row for each item of a batch"
    return None


def fitting(sampling: Sampling) -> int:
    """How many candidates fit in the free memory at once, by ComfyUI's own estimate; a power of two."""
    shape = list(sampling.latent["samples"].shape)
    free = FREE_SHARE * mm.get_free_memory(sampling.model.load_device)
    size = LARGEST
    while size > 1 and sampling.model.model.memory_required([2 * size, *shape[1:]]) > free:
        size //= 2
    return size


def _two_steps(sampling: Sampling, candidates: Sequence[Recipes]) -> tuple[Any, float]:
    """The samples after two steps, and the seconds of the second (the first may wait for the model to load)."""
    ends: list[float] = []

    def stamp(step: int, x0: Any, x: Any, total_steps: int) -> None:
        float(x0.flatten()[0])  # waits for the GPU
        ends.append(time.perf_counter())

    noise, latent = _joined(sampling, candidates)
    samples, _ = sampling.run(noise, latent, sampling.sigmas[:3], candidates[0][0].seed, stamp)
    return samples, ends[-1] - ends[0]


def _joined(sampling: Sampling, candidates: Sequence[Recipes]) -> tuple[torch.Tensor, torch.Tensor]:
    """The noises as one batch, each drawn for itself, and the latent as often."""
    latent = sampling.latent["samples"]
    noise = torch.cat([initial_noise(recipes, sampling.latent) for recipes in candidates])
    return noise, latent.repeat(len(candidates), *[1] * (latent.ndim - 1))


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
