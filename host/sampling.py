"""The one way this pack samples: the stock KSampler's and SamplerCustomAdvanced's own steps, made repeatable.

Nothing here goes below `CFGGuider.sample`, so LoRA, ControlNet, hooks, masks and regional prompts work as there.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import torch

from ..search.recipe import Recipe
from .demo import check_latent
from .noise import RecipeNoise

RATIO_KEYS = ("downscale_ratio_spacial", "downscale_ratio_temporal")  # only newer hosts put these in a LATENT
WRAPPER_KEY = "noise_search"


class Evaluations:
    """Counts rows through the denoiser, where it is called."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, executor: Callable, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.rows += x.shape[0]
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
        self.guider = copy.copy(guider)
        self.guider.model_options = comfy.model_patcher.create_model_options_clone(guider.model_options)
        self.evaluations = Evaluations()
        comfy.patcher_extension.add_wrapper_with_key(
            comfy.patcher_extension.WrappersMP.PREDICT_NOISE,
            WRAPPER_KEY,
            self.evaluations,
            self.guider.model_options,
            is_model_options=True,
        )
        self.model = guider.model_patcher
        self.sampler = sampler
        self.sigmas = sigmas.clone()  # some samplers write into them
        self.steps = max(len(sigmas) - 1, 0)
        self.ratios = {key: latent[key] for key in RATIO_KEYS if key in latent}
        self.latent = {key: value for key, value in latent.items() if key not in RATIO_KEYS}
        self.latent["samples"] = comfy.sample.fix_empty_latent_channels(self.model, latent["samples"], **self.ratios)
        check_latent(self.model, self.latent["samples"])
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
        """How many items the latent batch has."""
        samples = self.latent["samples"]
        return samples.unbind()[0].shape[0] if samples.is_nested else samples.shape[0]

    def complete(self, recipe: Recipe) -> Recipe:
        """The recipe with the batch written down where it matters, so that it needs nothing else to be followed."""
        index = self.latent.get("batch_index")
        if self.rows == 1 and index is None:
            return recipe
        return recipe.for_batch(self.rows, None if index is None else tuple(int(i) for i in index))

    def sample(self, recipe: Recipe, callback: Callable | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Samples from the noise of `recipe`: (LATENT, LATENT of the last x0 prediction), as the stock node would.

        callback(step, x0, x, total_steps) runs after every step. Cancel is honoured before every model call.
        """
        last: dict[str, Any] = {}

        def on_step(step: int, x0: Any, x: Any, total_steps: int) -> None:
            last["x0"] = x0
            comfy.model_management.throw_exception_if_processing_interrupted()
            if callback is not None:
                callback(step, x0, x, total_steps)

        noise = RecipeNoise([recipe])
        try:
            samples = self.guider.sample(
                noise.generate_noise(self.latent),
                self.latent["samples"],
                self.sampler,
                self.sigmas,
                denoise_mask=self.latent.get("noise_mask"),
                callback=on_step,
                disable_pbar=True,  # the search has one bar of its own
                seed=noise.seed,
            )
        finally:
            for name in ("conds", "inner_model", "loaded_models"):  # the host leaves these behind when interrupted
                self.guider.__dict__.pop(name, None)
        where: dict[str, Any] = {"device": comfy.model_management.intermediate_device()}
        if self.to_intermediate_dtype and hasattr(comfy.model_management, "intermediate_dtype"):
            where["dtype"] = comfy.model_management.intermediate_dtype()
        out = {**self.latent, "samples": samples.to(**where)}
        return out, {**self.latent, "samples": self._denoised(last, samples)} if "x0" in last else out

    def _denoised(self, last: dict[str, Any], samples: Any) -> Any:
        x0 = last["x0"]
        if not samples.is_nested or x0.is_nested:
            return self.guider.model_patcher.model.process_latent_out(x0.cpu())
        import comfy.nested_tensor  # older hosts hand the callback one flat tensor for several
        import comfy.utils

        flat = self.guider.model_patcher.model.process_latent_out(x0.cpu())
        return comfy.nested_tensor.NestedTensor(comfy.utils.unpack_latents(flat, [t.shape for t in samples.unbind()]))
