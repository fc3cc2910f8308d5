"""Trajectories in segments: sampled part-way, taken back up in noise, sampled on. For what follows paths.

Every segment is a whole run of the sampler through `CFGGuider.sample`, so multistep samplers begin anew in each. A
state between segments is what the host hands out when it stops at a noise level: x over the share of the image in it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import torch

from ...search.engine import State
from ...search.kernels import fresh_noise
from ...search.recipe import Jump, Recipe
from .noise import initial_noise
from .stock import Sampling

MIN_SIGMA_RATIO = 1.02  # to the ends of a segment: a sigma closer than this is left out, as its step would be wasted


@dataclass(frozen=True)
class Point:
    """samples: as the host hands them out; noise: what the next segment starts with; seed: of the sampler's own noise;
    begun: whether anything is sampled yet; x0: the last prediction, once at the end."""

    samples: Any
    noise: Any
    seed: int
    begun: bool = False
    x0: Any = None


class Trajectories:
    """The segments of one `Sampling`."""

    def __init__(self, sampling: Sampling):
        if sampling.latent["samples"].is_nested:
            raise ValueError(
                "a latent made of several tensors (audio with video) cannot go back up in noise part-way; "
                "use Random Search"
            )
        self.sampling = sampling
        self.model_sampling = sampling.guider.model_patcher.get_model_object("model_sampling")

    def check(self, level: float) -> None:
        """Raises ValueError, before anything is sampled, where no path can be paused at this level."""
        try:
            sigmas = self.between(1.0, level)
        except ValueError:  # which the search says where it gets there
            return
        end = self.sampling.rehearsed(lambda rehearsal: rehearsal.ends(sigmas))
        if end is not None:
            self._keeps(self.sampling.latent["samples"].shape, end.shape)

    def _keeps(self, before: torch.Size, after: torch.Size) -> None:
        if before != after:
            raise ValueError(
                f"the sampler {self.sampling.settings.get('sampler', '')} changes the size of the latent on its way, "
                f"from {list(before)} to {list(after)}, so no path can go back up in noise from there. Use another "
                "sampler, or another search."
            )

    def start(self, recipes: Sequence[Recipe]) -> State:
        """The initial noise of these recipes, one per item."""
        sampling = self.sampling
        point = Point(sampling.latent["samples"], initial_noise(recipes, sampling.latent), recipes[0].seed)
        return State(tuple(recipes), 1.0, point)

    def denoise(self, state: State, level: float, callback: Callable | None = None) -> State:
        """Samples down to a noise level; 0 is the end of the schedule."""
        sigmas = self.between(state.level, level)
        noise, samples, sampler = self._begin(state, self.sampling.sampler)
        size = samples.shape
        samples, x0 = self.sampling.run(noise, samples, sigmas, state.latent.seed, callback, sampler)
        if level > 0:
            self._keeps(size, samples.shape)
        nothing = samples.new_zeros(()).expand_as(samples)  # takes no memory: there may be many branches
        x0 = x0.cpu() if x0 is not None and level <= 0 else None
        return State(state.recipes, level, Point(samples, nothing, state.latent.seed, True, x0))

    def renoise(self, state: State, level: float, seeds: Sequence[int]) -> State:
        """The forward process up to a noise level, every item with fresh noise from its seed."""
        target = self.sigma(level)
        scales = self._scales(target)
        share = fresh_noise(*self._scales(self.sigma(state.level)), *scales)
        share *= scales[1] / self._scales(target, first=True)[1]
        plain = [recipe.with_seed(seed) for recipe, seed in zip(state.recipes, seeds, strict=True)]
        jumps = [Jump(seed, state.level, level) for seed in seeds]
        recipes = tuple(recipe.jump(jump) for recipe, jump in zip(state.recipes, jumps, strict=True))
        noise = share * initial_noise(plain, self.sampling.latent)
        return State(recipes, level, replace(state.latent, noise=noise, seed=seeds[0]))

    def predict(self, state: State) -> tuple[dict[str, Any], dict[str, Any]]:
        """(LATENT, the same) of the x0 prediction: one Euler step to 0, which is one evaluation per item."""
        sigma = torch.tensor([self.sigma(state.level), 0.0])
        noise, samples, euler = self._begin(state, comfy.samplers.sampler_object("euler"))
        samples, _ = self.sampling.run(noise, samples, sigma, state.latent.seed, sampler=euler)
        return self.sampling.finished(samples)

    def follow(self, recipes: Sequence[Recipe], callback: Callable | None = None) -> State:
        """A whole trajectory with its jumps, from the noise to the end.

        Items whose jumps are at other levels are sampled in separate runs, always as part of the whole batch.
        """
        kinds = list(dict.fromkeys(map(_levels, recipes)))
        ends = []
        for kind in kinds:
            like = next(recipe for recipe in recipes if _levels(recipe) == kind)
            ends.append(
                self._follow([r if _levels(r) == kind else replace(r, jumps=like.jumps) for r in recipes], callback)
            )
        return self.join([ends[kinds.index(_levels(recipe))] for recipe in recipes]) if len(kinds) > 1 else ends[0]

    def _follow(self, recipes: Sequence[Recipe], callback: Callable | None) -> State:
        state = self.start([replace(recipe, jumps=()) for recipe in recipes])
        for jumps in zip(*(recipe.jumps for recipe in recipes), strict=True):
            state = self.denoise(state, jumps[0].start, callback)
            state = self.renoise(state, jumps[0].to, [jump.seed for jump in jumps])
        return self.denoise(state, 0.0, callback)

    def join(self, states: Sequence[State]) -> State:
        """Item r of the batch from states[r]."""
        points = [state.latent for state in states]
        x0s = [point.x0[row : row + 1] for row, point in enumerate(points) if point.x0 is not None]
        return State(
            tuple(state.recipes[row] for row, state in enumerate(states)),
            states[0].level,
            Point(
                torch.cat([point.samples[row : row + 1] for row, point in enumerate(points)]),
                torch.cat([point.noise[row : row + 1] for row, point in enumerate(points)]),
                points[0].seed,
                points[0].begun,
                torch.cat(x0s) if len(x0s) == len(points) else None,
            ),
        )

    def between(self, start: float, end: float) -> torch.Tensor:
        """The sigmas from one noise level to another, with those of the schedule that lie between."""
        full = self.sampling.sigmas
        if start >= 1.0 and end <= 0.0:
            return full
        first, last = self.sigma(start), self.sigma(end)
        if first <= last and end <= 0:
            raise ValueError(
                f"the schedule ends at sigma {last:.4g}, which is not below noise level {start:g} of the search. "
                "Give the search higher levels, or a schedule that goes on to 0."
            )
        if first <= last:
            raise ValueError(
                f"noise level {end:g} (sigma {last:.4g}) is not below where the sampling starts (sigma {first:.4g}). "
                "Raise denoise, or lower the levels of the search."
            )
        inner = [sigma for sigma in full.tolist() if last * MIN_SIGMA_RATIO < sigma < first / MIN_SIGMA_RATIO]
        return torch.tensor([first, *inner, last], dtype=full.dtype)

    def sigma(self, level: float) -> float:
        """The sigma of a noise level, 0 to 1: itself for a flow, that of the timestep (as a share) for others.

        Never above where the schedule starts nor below where it ends.
        """
        full = self.sampling.sigmas
        if level >= 1.0:
            return float(full[0])
        sigma = level if self._is_flow() else float(self.model_sampling.percent_to_sigma(1.0 - level))
        return min(max(sigma, float(full[-1])), float(full[0]))

    def _is_flow(self) -> bool:
        return self._scales(0.5)[0] == 0.5

    def _scales(self, sigma: float, first: bool = False) -> tuple[float, float]:
        """The shares of image and noise in x at a sigma, as the model's own noise scaling has them.

        first: where sampling begins. There, from sigma_max on, ComfyUI scales the noise of models that predict noise by
        sqrt(1 + sigma^2) (`max_denoise`).
        """
        top = first and sigma >= float(self.model_sampling.sigma_max) * (1 - 1e-5)
        at, one, zero = torch.tensor([sigma], dtype=torch.float64), torch.ones(1).double(), torch.zeros(1).double()
        image = float(self.model_sampling.noise_scaling(at, zero.clone(), one.clone(), top))
        noise = float(self.model_sampling.noise_scaling(at, one.clone(), zero.clone(), top))
        if not noise > 0:
            raise ValueError(
                f"{type(self.sampling.model.model).__name__} does not start from noise: no path can go back up to it"
            )
        return image, noise

    def _begin(self, state: State, sampler: Any) -> tuple[Any, Any, Any]:
        """(noise, samples, sampler) to go on from. With an inpainting mask noise and samples are those of the start,
        which the host shows the model outside of it, step by step, and the sampler begins at the state itself."""
        point, latent = state.latent, self.sampling.latent
        mask = latent.get("noise_mask")
        if mask is None or not point.begun:
            return point.noise, point.samples, sampler
        start = initial_noise([replace(recipe, jumps=()) for recipe in state.recipes], latent)
        if isinstance(sampler, comfy.samplers.KSAMPLER):
            other = copy.copy(sampler)
            other.sampler_function = partial(_from, point, sampler)
            return start, latent["samples"], other
        mask = comfy.sampler_helpers.prepare_mask(mask, point.samples.shape, point.samples.device).to(point.samples)
        noise = point.noise.to(mask) * mask + start.to(mask) * (1 - mask)
        return noise, point.samples * mask + latent["samples"].to(point.samples) * (1 - mask), sampler


def _from(point: Point, sampler: Any, model: Any, x: torch.Tensor, sigmas: torch.Tensor, **more: Any) -> torch.Tensor:
    """The sampler's function, begun at a point and not at what the host has prepared."""
    inner = model.inner_model.inner_model
    samples = inner.process_latent_in(point.samples.to(x))
    first = sampler.max_denoise(model.inner_model, sigmas)
    x = inner.model_sampling.noise_scaling(sigmas[0], point.noise.to(x), samples, first)
    return sampler.sampler_function(model, x, sigmas, **more)


def _levels(recipe: Recipe) -> tuple[tuple[float, float], ...]:
    return tuple((jump.start, jump.to) for jump in recipe.jumps)
