"""What decides the last bits of a candidate besides its content: options, libraries and the device."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import comfy.model_management as mm
import torch
from comfy.cli_args import args

from ..known import CHANGES_NO_NUMBERS, LIBRARIES

TORCH: dict[str, Callable[[], Any]] = {
    "default dtype": torch.get_default_dtype,
    "matmul precision": torch.get_float32_matmul_precision,
    "matmul TF32": lambda: torch.backends.cuda.matmul.allow_tf32,
    "cuDNN TF32": lambda: torch.backends.cudnn.allow_tf32,
    "cuDNN": lambda: torch.backends.cudnn.enabled,
    "cuDNN benchmark": lambda: torch.backends.cudnn.benchmark,
    "cuDNN deterministic": lambda: torch.backends.cudnn.deterministic,
    "fp16 reduction": lambda: torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
    "bf16 reduction": lambda: torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
    "fp16 accumulation": lambda: torch.backends.cuda.matmul.allow_fp16_accumulation,
    "fp16 reduction in attention": torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed,
    "flash attention": torch.backends.cuda.flash_sdp_enabled,
    "memory-efficient attention": torch.backends.cuda.mem_efficient_sdp_enabled,
    "plain attention": torch.backends.cuda.math_sdp_enabled,
    "cuDNN attention": torch.backends.cuda.cudnn_sdp_enabled,
    "deterministic": torch.are_deterministic_algorithms_enabled,
    "oneDNN": lambda: torch.backends.mkldnn.enabled,
    "CUDA": lambda: torch.version.cuda,
    "cuDNN version": torch.backends.cudnn.version,
}
ON_THE_CPU: dict[str, Callable[[], Any]] = {
    "threads": torch.get_num_threads,  # sums are split among them
    "instructions": torch.backends.cpu.get_cpu_capability,
}


def machine() -> dict[str, str]:
    """All that decides the last bits, as text that is the same in every process."""
    device = mm.get_torch_device()
    options = {name: value for name, value in vars(args).items() if name not in CHANGES_NO_NUMBERS}
    settings = {**TORCH, **(ON_THE_CPU if device.type == "cpu" or args.cpu_vae else {})}
    return {
        "device": device_name(device),
        **{f"option {name}": written(value) for name, value in options.items()},
        **{f"torch {name}": _asked(setting) for name, setting in settings.items()},
        **libraries(),
    }


def device_name(device: torch.device) -> str:
    """What the hardware is called, not which of several alike it is."""
    with suppress(Exception):  # not every kind of device has names
        return f"{device.type} {getattr(torch, device.type).get_device_name(device)}"
    return device.type


@functools.cache
def libraries() -> dict[str, str]:
    """The versions of the libraries; "" for what is not installed."""
    return {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _asked(setting: Callable[[], Any]) -> str:
    try:
        return written(setting())
    except Exception as error:  # PyTorch refuses to tell where a pack has set it in another way
        return type(error).__name__


def written(value: Any) -> str:
    """The value as text, the same in every process: sets have no order."""
    return str(sorted(map(str, value))) if isinstance(value, (set, frozenset)) else str(value)
