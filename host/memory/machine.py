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

# Every option of ComfyUI's command line is in one of these two. One that is in neither, of a newer ComfyUI, may change
# numbers.
_CHANGES_NUMBERS = """
    cpu cpu_vae directml oneapi_device_selector
    force_fp32 force_fp16 fp16_intermediates
    fp32_unet fp64_unet bf16_unet fp16_unet fp8_e4m3fn_unet fp8_e5m2_unet fp8_e8m0fnu_unet
    fp16_vae fp32_vae bf16_vae
    fp8_e4m3fn_text_enc fp8_e5m2_text_enc fp16_text_enc fp32_text_enc bf16_text_enc
    use_split_cross_attention use_quad_cross_attention use_pytorch_cross_attention use_sage_attention
    use_flash_attention disable_xformers force_upcast_attention dont_upcast_attention
    fast deterministic force_channels_last supports_fp8_compute
    enable_triton_backend disable_triton_backend disable_ipex_optimize
    gpu_only highvram normalvram lowvram novram disable_dynamic_vram enable_dynamic_vram
"""  # the last line: whether LoRAs are added to the weights or while they are used, which rounds otherwise
_CHANGES_NO_NUMBERS = """
    help listen port tls_keyfile tls_certfile enable_cors_header max_upload_size
    base_directory extra_model_paths_config output_directory temp_directory input_directory user_directory
    models_directory auto_launch disable_auto_launch cuda_device default_device cuda_malloc disable_cuda_malloc
    preview_method preview_size cache_classic cache_lru cache_none cache_ram high_ram
    enable_manager disable_manager_ui enable_manager_legacy_ui
    reserve_vram vram_headroom disable_nvml_pressure async_offload disable_async_offload fast_disk force_non_blocking
    default_hashing_function disable_smart_memory debug_hang disable_pinned_memory mmap_torch_files disable_mmap
    dont_print_server quick_test_for_ci windows_standalone_build disable_metadata
    disable_all_custom_nodes whitelist_custom_nodes disable_api_nodes multi_user verbose log_stdout
    front_end_version front_end_root enable_compress_response_body comfy_api_base database_url
    disable_assets_autoscan enable_assets enable_asset_hashing feature_flag list_feature_flags
"""  # which device it is: by its name, further down
CHANGES_NUMBERS, CHANGES_NO_NUMBERS = frozenset(_CHANGES_NUMBERS.split()), frozenset(_CHANGES_NO_NUMBERS.split())

# What attention, samplers with noise of their own, quantised layers and verifiers (with their tokenisers, which read
# typographic quotes and CJK in another way without ftfy) compute with.
LIBRARIES = (
    *(
        "sageattention",
        "flash-attn",
        "xformers",
        "triton",
        "triton-windows",
        "comfy-kitchen",
        "torchsde",
        "torchvision",
    ),
    *("transformers", "tokenizers", "sentencepiece", "open_clip_torch", "ftfy", "timm", "numpy", "pillow", "gguf"),
)

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
    """All of it, as text that is the same in every process."""
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
    """Their versions; "" for what is not installed."""
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
    """The same text in every process: sets have no order."""
    return str(sorted(map(str, value))) if isinstance(value, (set, frozenset)) else str(value)
