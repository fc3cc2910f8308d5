"""Patches of a MODEL that mix the rows of a batch, each in a way of its own, and patches that do not.

For `benchmarks/mixing.py` and the tests. Every patch is a function of a MODEL; those in `UNET` want a UNet, the others
are made for a transformer. ComfyUI's own nodes are run as they are; where they are known by name, so that they never
get batches, also as a function that nobody knows ("unknown").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comfy_extras import (
    nodes_apg,
    nodes_attention_multiply,
    nodes_cfg,
    nodes_easycache,
    nodes_eps,
    nodes_freelunch,
    nodes_fresca,
    nodes_hypertile,
    nodes_lumina2,
    nodes_mahiro,
    nodes_model_advanced,
    nodes_pag,
    nodes_sag,
    nodes_slg,
    nodes_tcfg,
    nodes_tomesd,
    nodes_video_model,
)

Patch = Callable[[Any], Any]


def node(execute: Callable, *values: Any) -> Patch:
    """A node of ComfyUI that takes a MODEL first."""

    def patch(model: Any) -> Any:
        made = execute(model, *values)
        return made[0] if isinstance(made, tuple) else getattr(made, "args", made)[0]

    return patch


def after_cfg(change: Callable[[torch.Tensor, dict], torch.Tensor]) -> Patch:
    """Changes the guided prediction."""

    def patch(model: Any) -> Any:
        patched = model.clone()
        patched.set_model_sampler_post_cfg_function(lambda args: change(args["denoised"], args))
        return patched

    return patch


def around_model(change: Callable[[Callable, dict], torch.Tensor]) -> Patch:
    """A `model_function_wrapper`. It is called with the prompts of all rows, one prompt after the other."""

    def patch(model: Any) -> Any:
        patched = model.clone()
        patched.set_model_unet_function_wrapper(change)
        return patched

    return patch


def call(apply: Callable, args: dict) -> torch.Tensor:
    return apply(args["input"], args["timestep"], **args["c"])


def in_attention(change: Callable[..., tuple]) -> Patch:
    """Changes queries, keys and values of the self-attention of a UNet."""

    def patch(model: Any) -> Any:
        patched = model.clone()
        patched.set_model_attn1_patch(change)
        return patched

    return patch


def unknown(patch: Patch) -> Patch:
    """The same, where its guidance cannot be told by the module that it comes from."""

    def wrapped(model: Any) -> Any:
        functions = patch(model).model_options["sampler_post_cfg_function"]
        patched = model.clone()
        for function in functions:
            patched.set_model_sampler_post_cfg_function(lambda args, function=function: function(args))
        return patched

    return wrapped


# Patches that mix


def whole_batch(number: Callable[[torch.Tensor], torch.Tensor], size: float = 1.0) -> Patch:
    """Scales the prediction by a number of the whole batch, towards `size`."""
    return after_cfg(lambda x0, args: x0 * (size / number(x0).clamp(min=1e-6)).clamp(0.5, 1.5))


def threshold(x0: torch.Tensor, args: dict) -> torch.Tensor:
    """Dynamic thresholding by a quantile of the whole batch."""
    limit = torch.quantile(x0.abs().flatten(), 0.95)
    return x0.clamp(-limit, limit)


def drop_channels(x0: torch.Tensor, args: dict) -> torch.Tensor:
    """Weakens half of the channels, others each time."""
    scale = torch.ones(x0.shape[1])
    scale[torch.randperm(x0.shape[1])[: x0.shape[1] // 2]] = 0.9
    return x0 * scale.reshape(-1, *[1] * (x0.ndim - 2))


def roll(x0: torch.Tensor, args: dict) -> torch.Tensor:
    """Random shift of the picture."""
    return 0.9 * x0 + 0.1 * torch.roll(x0, int(torch.randint(1, x0.shape[-1], (1,))), dims=-1)


def grain(x0: torch.Tensor, args: dict) -> torch.Tensor:
    return x0 + 0.1 * torch.randn_like(x0)


def own_grain(x0: torch.Tensor, args: dict) -> torch.Tensor:
    """Noise from a generator of its own: the first row gets what it gets alone."""
    return x0 + 0.1 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))


def drop_prompt(apply: Callable, args: dict) -> torch.Tensor:
    out = call(apply, args)
    return out * (0.9 + 0.2 * torch.rand(1))


def towards(rows: Callable[[torch.Tensor], torch.Tensor], share: float = 0.1, below: float = 10.0) -> Patch:
    """Brings every row nearer to some other, below a noise level (0 to 1)."""

    def change(x0: torch.Tensor, args: dict) -> torch.Tensor:
        sampling = args["model"].model_sampling
        level = sampling.timestep(args["sigma"][:1]).float() / sampling.timestep(torch.as_tensor(sampling.sigma_max))
        return x0 if float(level) >= below else (1 - share) * x0 + share * rows(x0)

    return after_cfg(change)


def late_cache(start: int, threshold: float, measure: Callable[[torch.Tensor], torch.Tensor]) -> Patch:
    """Skips steps from step `start` on, as long as what came in has changed little, by a number of the whole batch."""

    def patch(model: Any) -> Any:
        state: dict[str, Any] = {}

        def wrapper(apply: Callable, args: dict) -> torch.Tensor:
            x, level = args["input"], float(args["timestep"].flatten()[0])
            if level >= state.get("level", 0.0):  # another run
                state.clear()
                state.update(step=0, level=level, change=0.0)
            state["step"] += level != state["level"]
            state["level"] = level
            if "out" in state and state["before"].shape == x.shape:
                state["change"] += float(measure(x - state["before"]) / measure(state["before"]))
                state["before"] = x
                if state["step"] >= start and state["change"] < threshold:
                    return state["out"]
            state.update(out=call(apply, args), before=x, change=0.0)
            return state["out"]

        return around_model(wrapper)(model)

    return patch


def momentum(model: Any) -> Any:
    """Keeps a part of the first row's last prediction."""
    state: dict[str, Any] = {"level": 0.0}

    def change(x0: torch.Tensor, args: dict) -> torch.Tensor:
        level = float(args["sigma"].flatten()[0])
        before = state["x0"] if level < state["level"] else x0
        state.update(x0=x0, level=level)
        return 0.9 * x0 + 0.1 * before[:1]

    return after_cfg(change)(model)


def mean_keys(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict) -> tuple:
    return q, 0.7 * k + 0.3 * k.mean(dim=0, keepdim=True), v


def shared_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict) -> tuple:
    """All rows look at the first one too, as for pictures of one style."""
    return q, torch.cat([k, k[:1].expand_as(k)], dim=1), torch.cat([v, v[:1].expand_as(v)], dim=1)


def root_mean_square(x: torch.Tensor) -> torch.Tensor:
    return x.square().mean().sqrt()


UNET_MIXING: dict[str, Patch] = {
    "TomePatchModel": node(nodes_tomesd.TomePatchModel.execute, 0.5),
    "HyperTile": node(nodes_hypertile.HyperTile.execute, 32, 3, 0, False),
    "self-attention with the mean of all keys": in_attention(mean_keys),
    "self-attention shared with the first row": in_attention(shared_attention),
}
MIXING: dict[str, Patch] = {
    "Mahiro": node(nodes_mahiro.Mahiro.execute),
    "Mahiro, unknown": unknown(node(nodes_mahiro.Mahiro.execute)),
    "Skip Layer Guidance": node(nodes_slg.SkipLayerGuidanceDiT.execute, 3.0, 0.0, 1.0, "0", "0", 0.7),
    "Skip Layer Guidance, unknown": unknown(node(nodes_slg.SkipLayerGuidanceDiT.execute, 3.0, 0.0, 1.0, "0", "0", 0.7)),
    "VideoTriangleCFGGuidance": node(nodes_video_model.VideoTriangleCFGGuidance().patch, 1.0),
    "EasyCache": node(nodes_easycache.EasyCacheNode.execute, 0.2, 0.15, 0.95, False),
    "LazyCache": node(nodes_easycache.LazyCacheNode.execute, 0.2, 0.15, 0.95, False),
    "RenormCFG": node(nodes_lumina2.RenormCFG.execute, 100.0, 1.0),
    "Temporal Score Rescaling": node(nodes_eps.TemporalScoreRescaling.execute, 0.95, 1.0),
    "random channels": after_cfg(drop_channels),
    "random shift": after_cfg(roll),
    "random strength": around_model(drop_prompt),
    "grain": after_cfg(grain),
    "grain, own generator": after_cfg(own_grain),
    "maximum of the batch": whole_batch(lambda x0: x0.abs().max(), 3.0),
    "quantile of the batch": after_cfg(threshold),
    "deviation of the batch": whole_batch(lambda x0: x0.std()),
    "least deviation of a row": whole_batch(lambda x0: x0.flatten(1).std(dim=1).min()),
    "largest deviation of a row": whole_batch(lambda x0: x0.flatten(1).std(dim=1).max()),
    "towards the mean": towards(lambda x0: x0.mean(dim=0, keepdim=True)),
    "towards the mean, a little": towards(lambda x0: x0.mean(dim=0, keepdim=True), share=0.01),
    "towards the mean, late": towards(lambda x0: x0.mean(dim=0, keepdim=True), below=0.4),
    "towards the first": towards(lambda x0: x0[:1]),
    "towards the last": towards(lambda x0: x0[-1:]),
    "towards the one before": towards(lambda x0: x0.roll(1, dims=0)),
    "late cache, by the mean": late_cache(3, 0.3, lambda x: x.abs().mean()),
    "late cache, by the maximum": late_cache(3, 0.35, lambda x: x.abs().max()),
    "late cache, by the deviation": late_cache(3, 0.25, root_mean_square),
    "momentum": momentum,
}


# Patches that do not


def row_quantile(x0: torch.Tensor, args: dict) -> torch.Tensor:
    limit = torch.quantile(x0.abs().flatten(1), 0.95, dim=1).reshape(-1, *[1] * (x0.ndim - 1))
    return x0.clamp(-limit, limit)


def row_momentum(model: Any) -> Any:
    """Keeps a part of the last prediction of the same run."""
    state: dict[str, Any] = {"level": 0.0}

    def change(x0: torch.Tensor, args: dict) -> torch.Tensor:
        level = float(args["sigma"].flatten()[0])
        before = state["x0"] if level < state["level"] else x0
        state.update(x0=x0, level=level)
        return 0.9 * x0 + 0.1 * before

    return after_cfg(change)(model)


def every_other_step(model: Any) -> Any:
    """Skips every second step from the third on, whatever comes in."""
    state: dict[str, Any] = {"level": 0.0, "step": 0}

    def wrapper(apply: Callable, args: dict) -> torch.Tensor:
        level = float(args["timestep"].flatten()[0])
        state["step"] = 0 if level > state["level"] else state["step"] + (level < state["level"])
        state["level"] = level
        if state["step"] < 3 or state["step"] % 2 == 0 or state["out"].shape[0] != args["input"].shape[0]:
            state["out"] = call(apply, args)
        return state["out"]

    return around_model(wrapper)(model)


def pre_cfg(model: Any) -> Any:
    patched = model.clone()
    patched.set_model_sampler_pre_cfg_function(
        lambda args: [args["conds_out"][0], 0.9 * args["conds_out"][1] + 0.1 * args["conds_out"][0]]
    )
    return patched


def cfg_function(model: Any) -> Any:
    patched = model.clone()
    patched.set_model_sampler_cfg_function(
        lambda args: args["uncond"] + 0.8 * args["cond_scale"] * (args["cond"] - args["uncond"])
    )
    return patched


def half_precision(model: Any) -> Any:
    """The model's output in bfloat16: coarse, but of each row alone."""
    return around_model(lambda apply, args: call(apply, args).bfloat16().float())(model)


def seeded_shuffle(x0: torch.Tensor, args: dict) -> torch.Tensor:
    """Random channels from a generator of its own: the same for all."""
    scale = torch.ones(x0.shape[1])
    scale[torch.randperm(x0.shape[1], generator=torch.Generator().manual_seed(1))[: x0.shape[1] // 2]] = 0.9
    return x0 * scale.reshape(-1, *[1] * (x0.ndim - 2))


def nothing(model: Any) -> Any:
    return model


UNET_HARMLESS: dict[str, Patch] = {
    "FreeU": node(nodes_freelunch.FreeU.execute, 1.1, 1.2, 0.9, 0.2),
    "FreeU V2": node(nodes_freelunch.FreeU_V2.execute, 1.3, 1.4, 0.9, 0.2),
    "RescaleCFG": node(nodes_model_advanced.RescaleCFG().patch, 0.7),
    "SelfAttentionGuidance": node(nodes_sag.SelfAttentionGuidance.execute, 0.5, 2.0),
    "PerturbedAttentionGuidance": node(nodes_pag.PerturbedAttentionGuidance.execute, 3.0),
    "UNetSelfAttentionMultiply": node(nodes_attention_multiply.UNetSelfAttentionMultiply.execute, 1.1, 1.0, 0.9, 1.0),
    "keys of the self-attention": in_attention(lambda q, k, v, extra: (q, 1.1 * k, v)),
}
HARMLESS: dict[str, Patch] = {
    "no patch": nothing,
    "APG": node(nodes_apg.APG.execute, 0.5, 5.0, 0.0),
    "APG with momentum": node(nodes_apg.APG.execute, 0.5, 5.0, -0.5),
    "CFGZeroStar": node(nodes_cfg.CFGZeroStar.execute),
    "CFGNorm": node(nodes_cfg.CFGNorm.execute, 0.9),
    "TCFG": node(nodes_tcfg.TCFG.execute),
    "FreSca": node(nodes_fresca.FreSca.execute, 1.0, 1.25, 2),
    "Epsilon Scaling": node(nodes_eps.EpsilonScaling.execute, 1.005),
    "ModelSamplingSD3": node(nodes_model_advanced.ModelSamplingSD3().patch, 5.0),
    "quantile of each row": after_cfg(row_quantile),
    "momentum within a run": row_momentum,
    "every other step": every_other_step,
    "before the guidance": pre_cfg,
    "another guidance": cfg_function,
    "bfloat16 output": half_precision,
    "ModelComputeDtype, bfloat16": node(nodes_model_advanced.ModelComputeDtype().patch, "bf16"),
    "ModelComputeDtype, float16": node(nodes_model_advanced.ModelComputeDtype().patch, "fp16"),
    "seeded channels": after_cfg(seeded_shuffle),
}
