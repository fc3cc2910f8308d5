"""The one way this pack samples: the stock KSampler's and SamplerCustomAdvanced's own steps, made repeatable.

Nothing here goes below `CFGGuider.sample`, so LoRA, ControlNet, hooks, masks and regional prompts work as there.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar

import comfy.model_management
import comfy.model_patcher
import comfy.nested_tensor
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import comfy.utils
import torch

from ...search.engine import coarser
from ...search.ledger import Cost, Ledger
from ...search.recipe import SEED_RANGE, Recipe
from ...verifiers.console import logger
from ..demo import check_latent
from ..errors import is_cancel
from ..known import GUIDER, MOTION_MODELS, NO_PICTURE_FORMATS, NO_PICTURES, PASSING, RATIO_KEYS, VIDEO_MODELS, kinds
from .noise import initial_noise
from .oom import retry_on_oom
from .rehearsal import Rehearsal

WRAPPER_KEY = "noise_search"
LAST_SEED = SEED_RANGE - 1
T = TypeVar("T")
log_to_console = logger(__name__)


class Evaluations:
    """Counts rows through the denoiser, where it is called. items: of the latent batch that make one row. network: how
    often the model behind it was called. ledger: where they are booked as well, as they are made."""

    def __init__(self, items: int = 1) -> None:
        self.rows = 0
        self.ledger = Ledger()
        self.items = items
        self.network = 0
        self.idle = 0

    def __call__(self, executor: Callable, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.count(x.shape[0] // self.items)
        before = self.network
        out = executor(x, *args, **kwargs)
        self.idle += self.network == before
        return out

    def count(self, rows: int) -> None:
        self.rows += rows
        self.ledger.spend(Cost(rows))

    def count_network(self, executor: Callable, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.network += 1
        return executor(*args, **kwargs)

    @property
    def skipped(self) -> int:
        """How many times something answered in the model's place, as a cache does that skips steps."""
        return self.idle if self.network else 0


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
        check_pictures(latent, guider.model_patcher)
        self.source, self.source_options = guider, guider.model_options  # a guider around another shares them with it
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
        comfy.patcher_extension.add_wrapper_with_key(
            comfy.patcher_extension.WrappersMP.APPLY_MODEL,
            WRAPPER_KEY,
            self.evaluations.count_network,
            self.guider.model_options,
            is_model_options=True,
        )
        self.sampler = sampler
        self.sigmas = sigmas
        self.steps = max(len(sigmas) - 1, 0)
        self.settings = dict(settings)
        self.to_intermediate_dtype = to_intermediate_dtype

    @property
    def ledger(self) -> Ledger:
        """Where evaluations are booked. It is shared with `coarser` ones."""
        return self.evaluations.ledger

    @classmethod
    def ksampler(
        cls, model, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise=1.0
    ) -> Sampling:
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
        return cls(guider, sampler, stock.sigmas, latent_image, settings, to_intermediate_dtype=True)

    @classmethod
    def advanced(cls, guider, sampler, sigmas, latent_image) -> Sampling:
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
        return cls(guider, sampler, sigmas, latent_image, settings)

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

    @cached_property
    def deterministic(self) -> bool:
        """Whether the sampler adds no noise. One that cannot be rehearsed may add some."""
        return self.steps == 0 or self.rehearsed(Rehearsal.adds_noise) is False

    @cached_property
    def mixes_rows(self) -> bool:
        """Whether the sampler, with no model, lets the items of a batch influence each other. For a single item."""
        return self.rehearsed(Rehearsal.mixes_rows) is not False

    @cached_property
    def _last_seed(self) -> int:
        """What the sampler is given for the seed 2**64 - 1. Many of ComfyUI's add one to the seed, where nothing comes
        after it; they get -1, so that they draw from 0. Where the seed works, it stays: it is stock's."""
        rehearsal = Rehearsal(self)
        return -1 if not rehearsal.takes(LAST_SEED) and rehearsal.takes(-1) else LAST_SEED

    def rehearsed(self, question: Callable[[Rehearsal], T]) -> T | None:
        """The answer, or None where the sampler cannot be tried without its model."""
        try:
            return retry_on_oom(lambda: question(Rehearsal(self)), "trying the sampler")
        except Exception as error:  # samplers come from any pack
            if is_cancel(error):
                raise
            name = self.settings.get("sampler", "the sampler")
            cause = f"{type(error).__name__}: {error}"
            log_to_console.warning("Noise Search: %s could not be tried without a model (%s)", name, cause)
            return None

    def check(self) -> None:
        """Raises ValueError for a schedule of which nothing but NaN can come, such as one with sigmas that are none."""
        sigmas = self.sigmas.tolist()
        broken = not all(map(math.isfinite, sigmas))
        falls = all(high > low >= 0 for high, low in pairwise(sigmas))
        if not self.steps or not broken and falls:
            return
        end = self.rehearsed(Rehearsal.ends)  # for some samplers it may rise, and some look at its ends only
        if end is None and not broken:
            return
        parts = [] if end is None else end.unbind() if end.is_nested else [end]
        if parts and all(torch.isfinite(part).all() for part in parts):
            return
        shown = ", ".join(f"{sigma:.4g}" for sigma in sigmas[:8])
        shown += ", ..." if self.steps > 7 else ""
        scheduler = self.settings.get("scheduler")
        steps = self.settings["steps"]
        made = f"the scheduler {scheduler} with {steps} step{'' if steps == 1 else 's'}" if scheduler else "'sigmas'"
        if scheduler and self.settings["denoise"] < 1:
            made += f" and denoise {self.settings['denoise']:g}"
        advice = "more steps or another scheduler" if scheduler else "other sigmas"
        raise ValueError(
            f"{made} gives a schedule that cannot be sampled: {shown}. Every image would be NaN: sigmas must be "
            f"numbers, and 0 may only be the last. Take {advice}."
        )

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
        """This sampling on `steps` steps of the schedule's own sigmas."""
        other = copy.copy(self)
        other.sigmas = self.sigmas[coarser(self.steps, steps)]
        other.steps = len(other.sigmas) - 1
        for name in ("deterministic", "mixes_rows"):  # were found on the whole schedule
            other.__dict__.pop(name, None)
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

        before = [(guider, set(vars(guider))) for guider in guiders_in(self.guider)]
        try:
            samples = self.guider.sample(
                noise,
                samples,
                sampler or self.sampler,
                sigmas.clone(),  # some samplers write into them: the next candidate would have another schedule
                denoise_mask=self.latent.get("noise_mask"),
                callback=on_step,
                disable_pbar=True,  # the search has its own bar
                seed=self._last_seed if seed == LAST_SEED else seed,
            )
        finally:
            for guider, had in before:  # the host leaves these behind when interrupted
                for name in PASSING[GUIDER] - had:
                    guider.__dict__.pop(name, None)
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
        # older hosts hand the callback one flat tensor for several
        flat = self.guider.model_patcher.model.process_latent_out(x0.cpu())
        return comfy.nested_tensor.NestedTensor(comfy.utils.unpack_latents(flat, [t.shape for t in samples.unbind()]))


def guiders_in(guider: Any) -> list[Any]:
    """A guider, and those that it keeps in its attributes and works with."""
    inner = lambda one: [part for part in vars(one).values() if GUIDER in kinds(part)]  # noqa: E731
    found = [guider]
    for one in found:
        found += [part for part in inner(one) if all(part is not known for known in found)]
    return found


def takes_frames(model: Any) -> bool:
    """Whether the latent batch of a MODEL is one video: Stable Video Diffusion, and AnimateDiff by the name under which
    its pack keeps its motion models."""
    return not VIDEO_MODELS.isdisjoint(kinds(model.model)) or bool(model.additional_models.get(MOTION_MODELS))


def check_pictures(latent: Mapping[str, Any], model: Any = None) -> None:
    """Raises ValueError where a LATENT, or the model that samples it, is not of pictures: nothing here could score what
    comes of it."""
    samples = latent["samples"]
    first = samples.unbind()[0] if samples.is_nested else samples  # of a video with its sound the video
    kind = "" if samples.is_nested else str(latent.get("type", ""))  # joined, a latent may keep that of its sound
    latent_format = getattr(getattr(model, "model", None), "latent_format", None)
    made = NO_PICTURE_FORMATS.get(type(latent_format).__name__)
    if first.ndim > 3 and kind not in NO_PICTURES and made is None:
        return
    what = made or NO_PICTURES.get(kind, "audio or a 3D shape")
    raise ValueError(
        f"the latent is {list(first.shape)}, which is {what}, and a search scores images: it wants a latent "
        "[batch, channels, height, width], or [batch, channels, frames, height, width] for a video. Sample this one "
        "with ComfyUI's own KSampler."
    )
