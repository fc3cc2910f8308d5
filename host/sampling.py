"""The one way this pack samples: the stock KSampler's and SamplerCustomAdvanced's own steps, made repeatable.

Nothing here goes below `CFGGuider.sample`, so LoRA, ControlNet, hooks, masks and regional prompts work as there.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import torch

from ..search.engine import coarser
from ..search.recipe import Recipe
from .demo import check_latent
from .noise import initial_noise

RATIO_KEYS = ("downscale_ratio_spacial", "downscale_ratio_temporal")  # only newer hosts put these in a LATENT
WRAPPER_KEY = "noise_search"
NOISY_SAMPLERS = ("ancestral", "sde", "lcm", "ddpm", "seeds", "sa_solver")  # parts of their functions' names


class Evaluations:
    """Counts rows through the denoiser, where it is called. items: of the latent batch that make one row."""

    def __init__(self, items: int = 1) -> None:
        self.rows = 0
        self.items = items

    def __call__(self, executor: Callable, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.rows += x.shape[0] // self.items
        return executor(x, *args, **kwargs)


class Sampling:
    """One prepared trajectory sampler: everything but the noise. Calling `sample` again repeats nothing.

    guider, sampler, sigmas: as SamplerCustomAdvanced takes them; the guider is copied, the caller's is left alone.
    latent: a LATENT dict. Raises ValueError where the latent does not fit the model.
    settings: what the log should say of it.
    """

    def __init__(
        self,
        guider: comfy.samplers.CFGGuider,
        sampler: Any,
        sigmas: torch.Tensor,
        latent: Mapping[str, Any],
        settings: Mapping[str, Any],
        to_intermediate_dtype: bool = False,
    ):
        self.source = guider
        self.guider = copy.copy(guider)
        self.guider.model_options = comfy.model_patcher.create_model_options_clone(guider.model_options)
        self.model = guider.model_patcher
        self.ratios = {key: latent[key] for key in RATIO_KEYS if key in latent}
        self.latent = {key: value for key, value in latent.items() if key not in RATIO_KEYS}
        self.latent["samples"] = comfy.sample.fix_empty_latent_channels(self.model, latent["samples"], **self.ratios)
        check_latent(self.model, self.latent["samples"])
        self.evaluations = Evaluations(self.items // self.rows)
        comfy.patcher_extension.add_wrapper_with_key(
            comfy.patcher_extension.WrappersMP.PREDICT_NOISE,
            WRAPPER_KEY,
            self.evaluations,
            self.guider.model_options,
            is_model_options=True,
        )
        self.sampler = sampler
        self.sigmas = sigmas
        self.steps = max(len(sigmas) - 1, 0)
        self.settings = dict(settings)
        self.to_intermediate_dtype = to_intermediate_dtype

    @classmethod
    def ksampler(cls, model, steps, cfg, sampler_name, scheduler, positive, negative, latent, denoise=1.0) -> Sampling:
        """What `nodes.common_ksampler` does with these inputs, for any number of noises."""
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        stock = comfy.samplers.KSampler(
            model,
            steps=steps,
            device=model.load_device,
            sampler=sampler_name,
            scheduler=scheduler,
            denoise=denoise,
            model_options=model.model_options,
        )
        settings = {
            "sampler": sampler_name,
            "scheduler": scheduler,
            "steps": steps,
            "cfg": cfg,
            "denoise": denoise,
            "sigmas": stock.sigmas.tolist(),
        }
        sampler = comfy.samplers.sampler_object(sampler_name)
        return cls(guider, sampler, stock.sigmas, latent, settings, to_intermediate_dtype=True)

    @classmethod
    def advanced(cls, guider, sampler, sigmas, latent) -> Sampling:
        """What SamplerCustomAdvanced does with these inputs, for any number of noises."""
        name = getattr(getattr(sampler, "sampler_function", sampler), "__name__", type(sampler).__name__)
        settings = {
            "sampler": name.removeprefix("sample_"),
            "steps": max(len(sigmas) - 1, 0),
            "guider": type(guider).__name__,
            "sigmas": sigmas.tolist(),
        }
        cfg = getattr(guider, "cfg", None)
        if isinstance(cfg, (int, float)) and math.isfinite(cfg):
            settings["cfg"] = cfg
        return cls(guider, sampler, sigmas, latent, settings)

    @property
    def rows(self) -> int:
        """What is searched side by side: the items of the latent batch, or a single video whose frames they are."""
        return 1 if takes_frames(self.model) else self.items

    @property
    def items(self) -> int:
        """How many items the latent batch has."""
        samples = self.latent["samples"]
        return samples.unbind()[0].shape[0] if samples.is_nested else samples.shape[0]

    @property
    def leaves_noise(self) -> bool:
        """Whether the schedule ends before the image is finished, as that of the first of two models does."""
        return self.steps > 0 and float(self.sigmas[-1]) > 0

    @property
    def deterministic(self) -> bool:
        """Whether the sampler adds no noise of its own."""
        return not adds_noise(self.sampler)

    def complete(self, recipes: Sequence[Recipe]) -> tuple[Recipe, ...]:
        """One recipe per item, with the batch written down where it matters, so that each needs nothing else."""
        index = self.latent.get("batch_index")
        index = None if index is None else tuple(int(i) for i in index)
        if len(recipes) == 1:
            [recipe] = recipes
            drawn = recipe.batch, recipe.batch_index
            if recipe.row is None and drawn in ((None, None), (self.items, index)):
                if self.rows < self.items:
                    return (recipe.for_batch(self.items, index),)
                return recipe.for_items(self.rows, index)
            if self.items > 1 or recipe.row is None and recipe.batch not in (None, 1):
                raise ValueError(
                    f"the recipe is for {'one item' if recipe.row is not None else 'a batch'} of {recipe.batch or 1} "
                    f"drawn with batch_index {recipe.batch_index}, but the latent has {self.items} items with "
                    f"batch_index {index}. Connect the latent that the recipe was made with, or a list of one recipe "
                    "for each item."
                )
            return (recipe,)
        if len(recipes) != self.rows:
            raise ValueError(f"{len(recipes)} recipes for a latent of {self.rows} items; give one for each")
        return tuple(recipes)

    def coarser(self, steps: int) -> Sampling:
        """The same on `steps` steps of the schedule's own sigmas."""
        other = copy.copy(self)
        other.sigmas = self.sigmas[coarser(self.steps, steps)]
        other.steps = len(other.sigmas) - 1
        return other

    def sample(self, recipes: Sequence[Recipe], callback: Callable | None = None) -> tuple[dict, dict]:
        """Samples from the noise of the recipes: (LATENT, LATENT of the last x0 prediction), as the stock node would.

        recipes: one for the batch, or one per item; their jumps are not followed here (`Trajectories` does).
        """
        noise = initial_noise(recipes, self.latent)
        return self.finished(*self.run(noise, self.latent["samples"], self.sigmas, recipes[0].seed, callback))

    def run(
        self, noise: Any, samples: Any, sigmas: torch.Tensor, seed: int, callback: Callable | None = None, sampler=None
    ) -> tuple[Any, Any]:
        """One call of the sampler: (samples, last x0 prediction or None).

        callback(step, x0, x, total_steps) runs after every step. Cancel is honoured before every model call.
        """
        last: dict[str, Any] = {}

        def on_step(step: int, x0: Any, x: Any, total_steps: int) -> None:
            last["x0"] = x0
            comfy.model_management.throw_exception_if_processing_interrupted()
            if callback is not None:
                callback(step, x0, x, total_steps)

        try:
            samples = self.guider.sample(
                noise,
                samples,
                sampler or self.sampler,
                sigmas.clone(),  # some samplers write into them: the next candidate would have another schedule
                denoise_mask=self.latent.get("noise_mask"),
                callback=on_step,
                disable_pbar=True,  # the search has one bar of its own
                seed=seed,
            )
        finally:
            for name in ("conds", "inner_model", "loaded_models"):  # the host leaves these behind when interrupted
                self.guider.__dict__.pop(name, None)
        return samples, last.get("x0")

    def finished(self, samples: Any, x0: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the stock node hands out: (LATENT, LATENT of the last x0 prediction)."""
        where: dict[str, Any] = {"device": comfy.model_management.intermediate_device()}
        if self.to_intermediate_dtype and hasattr(comfy.model_management, "intermediate_dtype"):
            where["dtype"] = comfy.model_management.intermediate_dtype()
        out = {**self.latent, "samples": samples.to(**where)}
        return out, out if x0 is None else {**self.latent, "samples": self._denoised(x0, samples)}

    def _denoised(self, x0: Any, samples: Any) -> Any:
        if not samples.is_nested or x0.is_nested:
            return self.guider.model_patcher.model.process_latent_out(x0.cpu())
        import comfy.nested_tensor  # older hosts hand the callback one flat tensor for several
        import comfy.utils

        flat = self.guider.model_patcher.model.process_latent_out(x0.cpu())
        return comfy.nested_tensor.NestedTensor(comfy.utils.unpack_latents(flat, [t.shape for t in samples.unbind()]))


def takes_frames(model: Any) -> bool:
    """Whether the latent batch of a MODEL is one video: Stable Video Diffusion, and AnimateDiff by the name under which
    its pack keeps its motion models."""
    return isinstance(model.model, comfy.model_base.SVD_img2vid) or bool(model.additional_models.get("ADE"))


def adds_noise(sampler: Any) -> bool:
    """Whether a SAMPLER is known to draw noise of its own while it samples (ancestral, SDE, LCM, churn)."""
    options = getattr(sampler, "extra_options", {})
    if options.get("s_noise") == 0 and not options.get("s_noise_end"):
        return False
    if options.get("s_churn", 0) > 0 or options.get("eta", 0) > 0:
        return True
    name = getattr(getattr(sampler, "sampler_function", sampler), "__name__", "")
    return options.get("eta") != 0 and any(part in name for part in NOISY_SAMPLERS)
