"""The verifiers by name. Nothing is imported before it is used, so a missing package removes nothing."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from .base import VerifierError, install_command

# name -> "module:Class" in this package. Adding a verifier is one file and one line here.
VERIFIERS = {
    "aesthetic": "aesthetic:Aesthetic",
    "clip_score": "clip:CLIPScore",
    "hps": "hps:HPS",
    "imagereward": "imagereward:ImageReward",
    "pickscore": "pickscore:PickScore",
    "vlm_grader": "vlm:VLMGrader",
    "vqa_score": "vlm:VQAScore",
}


def names() -> list[str]:
    return sorted(VERIFIERS)


def get(name: str) -> Any:
    """The class of a verifier. Raises VerifierError on an unknown name, with the closest known one."""
    if name not in VERIFIERS:
        close = difflib.get_close_matches(name, VERIFIERS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names())}"
        raise VerifierError(f"unknown verifier {name!r}; {hint}")
    module, _, attribute = VERIFIERS[name].partition(":")
    try:
        return getattr(importlib.import_module(f".{module}", __package__), attribute)
    except ImportError as error:
        package = error.name or str(error)
        raise VerifierError(
            f"verifier {name!r} needs the Python package {package}, which cannot be imported ({error}); "
            f"install it into ComfyUI's Python, in a terminal, and restart ComfyUI: `{install_command(package)}`"
        ) from error
