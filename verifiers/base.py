"""The contract every verifier keeps."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Protocol, runtime_checkable

import torch


class VerifierError(ValueError):
    """A verifier that cannot be loaded or cannot score. The message repeats the input and says what to do."""


@runtime_checkable
class Verifier(Protocol):
    """Scores images, with their prompts; higher is better.

    members: one name per column of the values ("CLIP Score (ViT-B-32)").
    needs_prompt: whether an empty prompt is an error.
    usual_range: (low, high) of typical values, for axes and tooltips.
    prompt_tokens: how many tokens of a prompt it reads, start and end marks included; None if there is no limit.
    cut(prompt): a sentence on where a prompt that is too long is cut, None if all of it is read (left out: it always
    is).
    repeatable: False where the same image need not get the same value twice (left out: it does).
    module: the torch module that holds the weights (None if there are none); the host moves it between devices, and may
    replace its parameters when it does, so none may be kept elsewhere.
    """

    members: tuple[str, ...]
    needs_prompt: bool
    usual_range: tuple[float, float]
    prompt_tokens: int | None
    module: torch.nn.Module | None

    def identity(self) -> str:
        """What determines the values: a hash of the weights and the settings."""
        ...

    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Raw values, float32 [B, members], on any device.

        images: float [B, H, W, 3] in 0..1 on any device (the verifier moves what it needs, one image at a time if it
        can, so that a large batch does not fill the GPU); prompts: B texts. What else is in the batch has no influence
        on an image's value.
        """
        ...


def install_command(*packages: str) -> str:
    """The command that installs packages into the Python that runs this, for the terminal of its system.

    ComfyUI's Python is seldom the one that `python` means: the portable version has python_embeded, the desktop version
    an environment made by uv, in which there is no pip.
    """
    python = sys.executable or "python"
    if sys.platform == "win32":
        python = f'"{python}"' if re.search(r"[^\w\\/:.-]", python) else python  # for cmd.exe
    else:
        python = shlex.quote(python)
    if importlib.util.find_spec("pip"):
        return f"{python} -m pip install {' '.join(packages)}"
    return f"uv pip install --python {python} {' '.join(packages)}"


def require(module: str, package: str, purpose: str) -> ModuleType:
    """Imports an optional package, or raises VerifierError that says what to install."""
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # RuntimeError: a compiled part made for another torch
        raise VerifierError(
            f"{purpose} needs the Python package {package}, which cannot be imported ({error}); "
            f"install it into ComfyUI's Python, in a terminal, and restart ComfyUI: `{install_command(package)}`"
        ) from error
