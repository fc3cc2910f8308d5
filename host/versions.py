"""Which ComfyUI, PyTorch and Noise Search this is."""

from __future__ import annotations

import torch

from ..version import __version__


def comfyui_version() -> str:
    """The host's version, or "unknown" where it does not say."""
    try:
        from comfyui_version import __version__ as version
    except ImportError:
        return "unknown"
    return version


def host_info() -> dict[str, str]:
    return {"comfyui": comfyui_version(), "noise_search": __version__, "torch": torch.__version__}
