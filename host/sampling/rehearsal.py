"""What a sampler does, found out without the model.

It runs its whole schedule as in the search, through `CFGGuider.sample`, but a formula answers in the denoiser's place:
that costs no evaluation, takes milliseconds, and sees every step at which the sampler would draw noise. Names say
little: packs add their own samplers to ComfyUI's list, and wrap one sampler in another's options.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sample
import numpy as np
import torch

from ..errors import is_cancel

KEY = "noise_search_rehearsal"
ROUNDING_SHARE = 1e-3  # of the largest value: what rounding makes of the same, and noise of the sampler never
MAX_CALLS = 400  # and as many as this for every step: a sampler that chooses its steps may never come to an end
CALLS_PER_STEP = 30
Post = Callable[[dict[str, Any]], torch.Tensor]


@dataclass
class StandIn:
    """Answers for the denoiser: a formula that works on every value for itself, so that no row knows of another.

    known: the guider's own post-CFG functions, which may call the model; those that a sampler adds get an answer, as
    it is how CFG++ samplers look at the unconditional prediction. sigmas, shapes: of every call.
    """

    known: Sequence[Post]
    most: int
    sigmas: list[float] = field(default_factory=list)
    shapes: set[tuple[int, ...]] = field(default_factory=set)

    def __call__(
        self, executor: Callable, x: torch.Tensor, timestep: torch.Tensor, model_options: Any = None, seed: Any = None
    ) -> torch.Tensor:
        mm.throw_exception_if_processing_interrupted()
        self.sigmas.append(float(timestep.flatten()[0]))
        self.shapes.add(tuple(x.shape))
        if len(self.sigmas) > self.most:
            raise RuntimeError(f"the sampler asked for more than {self.most} evaluations")
        sigma = timestep.to(x).abs().reshape(-1, *[1] * (x.ndim - 1))
        # smooth in x, so that rounding does not grow; rough in sigma, so that what chooses its steps has a choice
        answer = 4 * torch.tanh(2 * x / (1 + sigma)) * torch.sin(20 * torch.log(sigma + 1e-3))
        options = model_options or {}
        for post in options.get("sampler_post_cfg_function", ()):
            if not any(post is one for one in self.known):
                same = {"denoised": answer, "cond_denoised": answer, "uncond_denoised": 0.9 * answer}
                answer = post({**same, "sigma": timestep, "input": x, "model_options": options, "cond_scale": 1.0})
        return answer


@dataclass(frozen=True)
class Played:
    """samples: what came out; sigmas: at which the sampler asked for a prediction; shapes: of x when it did."""

    samples: Any
    sigmas: tuple[float, ...]
    shapes: set[tuple[int, ...]]


class Rehearsal:
    """The sampler of one `Sampling` on its schedule. Raises whatever the sampler raises; an interrupt passes too."""

    def __init__(self, sampling: Any):
        self.sampling = sampling
        self.samples = sampling.latent["samples"]

    def adds_noise(self) -> bool:
        """Whether another seed of the sampler makes something else of the same noise."""
        with untouched_generators(self.sampling.model.load_device):
            noise = self.noise()
            first, second = (self.play(noise, self.samples, seed) for seed in (1, 2))
        return not (alike(first.samples, second.samples) and first.shapes == second.shapes)

    def mixes_rows(self) -> bool:
        """Whether what becomes of one item depends on the others in its batch, as where a sampler chooses its steps by
        them all. For a latent of one item."""
        mask = self.sampling.latent.get("noise_mask")
        with untouched_generators(self.sampling.model.load_device):
            noise = self.noise()
            noises = [noise, 0.3 * noise.flip(-1)]  # as little alike as may be
            alone = [self.play(one, self.samples, 1, mask=mask) for one in noises]
            both = self.play(torch.cat(noises), torch.cat([self.samples] * 2), 1, mask=mask)
        rows = both.samples.split(1)
        return not all(
            alike(row, one.samples) and alike(torch.tensor(both.sigmas), torch.tensor(one.sigmas))
            for row, one in zip(rows, alone, strict=True)
        )

    def takes(self, seed: int) -> bool:
        """Whether the sampler runs with this seed."""
        with untouched_generators(self.sampling.model.load_device):
            try:
                self.play(self.noise(), self.samples, seed)
            except Exception as error:
                if is_cancel(error):
                    raise
                return False
        return True

    def ends(self, sigmas: torch.Tensor | None = None) -> Any:
        """What comes out at the end of the schedule, or of these sigmas."""
        with untouched_generators(self.sampling.model.load_device):
            return self.play(self.noise(), self.samples, 1, sigmas).samples

    def play(self, noise: Any, samples: Any, seed: int, sigmas: torch.Tensor | None = None, mask: Any = None) -> Played:
        """One run of the sampler, from this noise."""
        sampling = self.sampling
        sigmas = sampling.sigmas if sigmas is None else sigmas
        guider = copy.copy(sampling.source)
        options = guider.model_options
        guider.model_options = comfy.model_patcher.create_model_options_clone(sampling.source_options)
        known = guider.model_options.get("sampler_post_cfg_function", ())
        stand_in = StandIn(known, MAX_CALLS + CALLS_PER_STEP * len(sigmas))
        where = comfy.patcher_extension.WrappersMP.PREDICT_NOISE
        comfy.patcher_extension.add_wrapper_with_key(where, KEY, stand_in, guider.model_options, is_model_options=True)
        torch.manual_seed(seed)  # as the stock nodes do when they draw the noise; samplers may use that generator
        try:
            out = guider.sample(
                noise,
                samples,
                sampling.sampler,
                sigmas.clone(),
                denoise_mask=mask,
                callback=lambda *_: None,  # older hosts hand the sampler none where there is none
                disable_pbar=True,
                seed=seed,
            )
        finally:
            guider.model_options = options  # a guider around another hands them on to that
        return Played(out, tuple(stand_in.sigmas), stand_in.shapes)

    def noise(self) -> Any:
        return comfy.sample.prepare_noise(self.samples, 0)


@contextmanager
def untouched_generators(device: torch.device) -> Iterator[None]:
    """Every global generator is afterwards where it was: what comes next must not know of a rehearsal."""
    python, numpy = random.getstate(), np.random.get_state()
    on_device = {"devices": [device], "device_type": device.type} if device.type in ("cuda", "xpu") else {"devices": []}
    try:
        with torch.random.fork_rng(**on_device):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def alike(first: Any, second: Any) -> bool:
    """Whether two results are the same but for rounding. What is no number in both is the same."""
    if first.is_nested:
        return all(alike(*parts) for parts in zip(first.unbind(), second.unbind(), strict=True))
    if first.shape != second.shape or not torch.equal(torch.isfinite(first), torch.isfinite(second)):
        return False
    # on the CPU: some devices (Apple's, some of Intel's) have no doubles
    first, second = (torch.nan_to_num(part.cpu().double(), 0.0, 0.0, 0.0) for part in (first, second))
    if not first.numel():
        return True
    largest = torch.maximum(first.abs().max(), second.abs().max())
    return bool((first - second).abs().max() <= ROUNDING_SHARE * largest)
