"""Where the verifiers' files are: `models/verifiers`, registered with ComfyUI under the name "verifiers"."""

from __future__ import annotations

import difflib
import os
from pathlib import Path, PurePosixPath

import folder_paths

from ..verifiers.base import VerifierError
from ..verifiers.clip_files import OPEN_CLIP_CONFIG, TRANSFORMERS_CONFIG
from ..verifiers.weights import WEIGHT_SUFFIXES

FOLDER = "verifiers"
NO_MODEL = "(none found: put a CLIP model into models/verifiers)"
A_CLIP = (
    "Make a folder there, such as ViT-B-32, and put open_clip_config.json and open_clip_model.safetensors of "
    "huggingface.co/laion/CLIP-ViT-B-32-laion2B-s34B-b79K (MIT licence, 605 MB) into it"
)


def register_folders() -> None:
    """Makes `models/verifiers` known to ComfyUI, beside what extra_model_paths.yaml says. Safe to repeat."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))


def clip_choices(first: str = "") -> list[str]:
    """What CLIP Score, PickScore and HPS can be pointed at, by path below `models/verifiers` with forward slashes.

    Folders that hold a model's configuration, and single weight files elsewhere; first those with `first` in the name,
    whatever its case. Never empty: with nothing found, the one entry says so, and choosing it raises an error that says
    where to put which file.
    """
    return sorted(_found(), key=lambda name: (first not in name.lower(), name)) or [NO_MODEL]


def clip_model_path(name: str, files: str = A_CLIP) -> Path:
    """The file or folder of an entry of `clip_choices`. Raises VerifierError on any other name, `..` included.

    files: said when there is no model at all: the files to get, and their licence.
    """
    found = _found()
    if name in found:
        path = folder_paths.get_full_path(FOLDER, found[name])
        if path is not None:
            return Path(path) if found[name] == name else Path(path).parent
    where = " or ".join(folder_paths.get_folder_paths(FOLDER))
    close = difflib.get_close_matches(name, found, n=1)
    if close:
        raise VerifierError(f"no CLIP model {name!r} in {where}; did you mean {close[0]!r}?")
    if found:
        raise VerifierError(f"no CLIP model {name!r} in {where}; found: {', '.join(sorted(found))}")
    raise VerifierError(f"no CLIP model found in {where}. {files}. Nothing is downloaded by itself")


def _found() -> dict[str, str]:
    """Entry -> a file by which ComfyUI finds it: the weight file itself, or the configuration in the folder."""
    register_folders()
    files = [PurePosixPath(name.replace("\\", "/")) for name in folder_paths.get_filename_list(FOLDER)]
    configured = {}
    for config in (TRANSFORMERS_CONFIG, OPEN_CLIP_CONFIG):
        configured.update({str(file.parent): str(file) for file in files if file.name == config})
    configured.pop(".", None)  # models/verifiers itself: its files are listed one by one
    single = {
        str(file): str(file)
        for file in files
        if file.suffix.lower() in WEIGHT_SUFFIXES and str(file.parent) not in configured
    }
    return {**single, **configured}
