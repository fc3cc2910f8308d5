"""ComfyUI's samplers that draw their noise from a seed, from any noise: of the seed's own the same, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.nested_tensor
import comfy.sample
import comfy.utils
import latent_preview

from ..known import RATIO_KEYS

Latent = Mapping[str, Any]


def ksampler(
    model, noise, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise=1.0
) -> tuple[Latent]:
    """What KSampler does, from the noise of a NOISE; its seed is the sampler's."""
    return _sample(model, noise, latent_image, steps, cfg, sampler_name, scheduler, positive, negative, denoise=denoise)


def ksampler_advanced(
    model, add_noise, noise, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, start_at_step,
    end_at_step, return_with_leftover_noise,
) -> tuple[Latent]:  # fmt: skip
    """What KSampler (Advanced) does where it adds noise, from the noise of a NOISE."""
    del add_noise  # a stage that adds none draws nothing, and nothing stands in for it
    return _sample(
        model, noise, latent_image, steps, cfg, sampler_name, scheduler, positive, negative, denoise=1.0,
        start_step=start_at_step, last_step=end_at_step, force_full_denoise=return_with_leftover_noise != "enable",
    )  # fmt: skip


def sampler_custom(
    model, add_noise, noise, cfg, positive, negative, sampler, sigmas, latent_image
) -> tuple[Latent, Latent]:
    """What SamplerCustom does where it adds noise, from the noise of a NOISE: (LATENT, denoised LATENT)."""
    del add_noise
    latent, ratios = _prepared(model, latent_image)
    last: dict[str, Any] = {}
    samples = comfy.sample.sample_custom(
        model, noise.generate_noise(latent), cfg, sampler, sigmas, positive, negative, latent["samples"],
        noise_mask=latent.get("noise_mask"), callback=latent_preview.prepare_callback(model, len(sigmas) - 1, last),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=noise.seed,
    )  # fmt: skip
    out = {**latent, "samples": samples}
    if "x0" not in last:
        return out, out
    x0 = last["x0"]
    if samples.is_nested and not x0.is_nested:  # older hosts hand out one flat tensor for several
        shapes = [part.shape for part in samples.unbind()]
        x0 = comfy.nested_tensor.NestedTensor(comfy.utils.unpack_latents(x0, shapes))
    return out, {**latent, **ratios, "samples": model.model.process_latent_out(x0.cpu())}


def _sample(
    model, noise, latent_image, steps, cfg, sampler_name, scheduler, positive, negative, **how
) -> tuple[Latent]:
    latent, _ = _prepared(model, latent_image)
    samples = comfy.sample.sample(
        model, noise.generate_noise(latent), steps, cfg, sampler_name, scheduler, positive, negative,
        latent["samples"], noise_mask=latent.get("noise_mask"), seed=noise.seed,
        callback=latent_preview.prepare_callback(model, steps), disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        **how,
    )  # fmt: skip
    return ({**latent, "samples": samples},)


def _prepared(model: Any, latent_image: Latent) -> tuple[dict[str, Any], dict[str, Any]]:
    """The LATENT with the channels that the model wants, and what it says of its ratios, which the result has not."""
    ratios = {key: latent_image[key] for key in RATIO_KEYS if key in latent_image}
    latent = {key: value for key, value in latent_image.items() if key not in RATIO_KEYS}
    latent["samples"] = comfy.sample.fix_empty_latent_channels(model, latent["samples"], **ratios)
    return latent, ratios
