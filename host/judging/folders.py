"""Where the verifiers' files are: `models/verifiers`, registered with ComfyUI under the name "verifiers"."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import folder_paths

from ...verifiers.aesthetic import FILES as HEAD_FILES
from ...verifiers.base import VerifierError
from ...verifiers.clip import FILES as CLIP_FILES
from ...verifiers.clip_files import OPEN_CLIP_CONFIG, TRANSFORMERS_CONFIG, lacking
from ...verifiers.imagereward import FILES as REWARD_FILES
from ...verifiers.transformers_vlm import FILES as VLM_FILES
from ...verifiers.transformers_vlm import PROCESSORS
from ...verifiers.weights import WEIGHT_SUFFIXES, file_stamp, tensor_names

FOLDER = "verifiers"
HOST_FOLDERS = ("clip_vision", "text_encoders")  # where a whole CLIP may lie already; ComfyUI's "clip" is the latter
HEADS = "aesthetic"
HEAD_BYTES = 64 * 2**20  # the published heads have 4 MB at most; whole models lie in the same folders
LLM = "LLM"
REWARDS = "image_reward"
REWARD_FOLDERS = (REWARDS, "ImageReward")  # where other packs keep it
NONE_FOUND = "(none found)"  # as long as a node of the usual width shows; saved workflows may have it with more words


def register_folders() -> None:
    """Makes `models/verifiers`, `models/aesthetic` and `models/LLM` known to ComfyUI, beside what
    extra_model_paths.yaml says. Safe to repeat."""
    for folder in (FOLDER, HEADS, LLM):
        folder_paths.add_model_folder_path(folder, os.path.join(folder_paths.models_dir, folder))
    for folder in REWARD_FOLDERS:
        folder_paths.add_model_folder_path(REWARDS, os.path.join(folder_paths.models_dir, folder))


def checked(find: Callable[..., Path], name: str | None, *files: str) -> bool | str:
    """For a node's `validate_inputs`: True, or why `find` has no file of this name. ComfyUI's own answer to a name that
    is not in the list would not say where to put which file. name: None where another node gives it."""
    try:
        return name is None or bool(find(str(name), *files))
    except VerifierError as error:
        return str(error)


def stamped(files: Callable[[str], Sequence[Path]], name: str | None) -> str:
    """For a node's `fingerprint_inputs`: changes when one of the `files` of an entry is replaced, where ComfyUI's cache
    would go on with the old weights. name: as in `checked`; "" for None.

    Raises what `files` raises: ComfyUI then runs the loader, which tells the user. An answer that stays the same would
    have the cache serve what was loaded before."""
    return "" if name is None else str(file_stamp(files(name)))


def clip_choices(first: str = "") -> list[str]:
    """What CLIP Score, PickScore and HPS can be pointed at, by path below `models/verifiers` with forward slashes.

    Folders that hold a model's configuration, and single weight files elsewhere; also the .safetensors files with both
    towers of a CLIP in ComfyUI's own folders, as "clip_vision/..." and "text_encoders/...". First those with `first` in
    the name, whatever its case. Never empty: with nothing found, the one entry says so, and choosing it raises an error
    that says where to put which file.
    """
    return _listed(_found(), first)


def clip_model_path(name: str, files: str = CLIP_FILES) -> Path:
    """The file or folder of an entry of `clip_choices`. Raises VerifierError on any other name, `..` included.

    files: said when there is no model at all: the files to get, and their licence.
    """
    found = _found()
    if name not in found and name in (files_of_host := _files_of_host()):
        path = files_of_host[name]
        raise VerifierError(f"{path} cannot be used: {lacking(tensor_names(path))}. {files}")
    return _chosen(name, found, "CLIP model", (FOLDER, *HOST_FOLDERS), files)


def head_choices(first: str = "") -> list[str]:
    """The small weight files in `models/aesthetic` and `models/verifiers`, by path with forward slashes; first and
    empty as in `clip_choices`."""
    return _listed(_heads(), first)


def head_path(name: str, files: str = HEAD_FILES) -> Path:
    """The file of an entry of `head_choices`. Raises VerifierError on any other name, `..` included."""
    return _chosen(name, _heads(), "aesthetic head", (HEADS, FOLDER), files)


def reward_choices(first: str = "reward") -> list[str]:
    """The weight files in `models/image_reward`, `models/ImageReward` and `models/verifiers`, by path with forward
    slashes; first and empty as in `clip_choices`."""
    return _listed(_rewards(), first)


def reward_path(name: str, files: str = REWARD_FILES) -> Path:
    """The file of an entry of `reward_choices`. Raises VerifierError on any other name, `..` included."""
    return _chosen(name, _rewards(), "ImageReward model", (FOLDER, REWARDS), files)


def clip_vision_files() -> list[Path]:
    """The .safetensors files of ComfyUI's own `clip_vision` folders."""
    names = [name for name in folder_paths.get_filename_list("clip_vision") if name.endswith(".safetensors")]
    paths = [folder_paths.get_full_path("clip_vision", name) for name in sorted(names)]
    return [Path(path) for path in paths if path is not None]


def vlm_choices() -> list[str]:
    """The vision-language models in `models/LLM`, by path of their folder with forward slashes. Never empty, as
    `clip_choices`."""
    return sorted(_vlms()) or [NONE_FOUND]


def vlm_folder(name: str) -> Path:
    """The folder of an entry of `vlm_choices`. Raises VerifierError on any other name, `..` included."""
    return _chosen(name, _vlms(), "vision-language model", (LLM,), VLM_FILES)


@dataclass(frozen=True)
class Shelf:
    """What a widget lists, with the first of them in front, and the file or folder of what it lists."""

    choices: Callable[[str], list[str]]
    path: Callable[[str, str], Path]


# By the name that a verifier's descriptor has for it.
SHELVES = {
    "clip": Shelf(clip_choices, clip_model_path),
    "head": Shelf(head_choices, head_path),
    "reward": Shelf(reward_choices, reward_path),
}


def _listed(found: dict[str, Path], first: str) -> list[str]:
    return sorted(found, key=lambda name: (first not in name.lower(), name)) or [NONE_FOUND]


def _vlms() -> dict[str, Path]:
    """Entry -> folder. Those with a processor beside the configuration, at most two folders deep; a language model
    without eyes has none. The first of two with one name counts."""
    register_folders()
    found: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths(LLM)):
        for config in sorted([*root.glob(f"*/{TRANSFORMERS_CONFIG}"), *root.glob(f"*/*/{TRANSFORMERS_CONFIG}")]):
            folder = config.parent
            if config.is_file() and any((folder / name).is_file() for name in PROCESSORS):
                found.setdefault(folder.relative_to(root).as_posix(), folder)
    return found


def _chosen(name: str, found: dict[str, Path], kind: str, folders: Sequence[str], files: str) -> Path:
    """The file or folder of an entry; on any other name VerifierError: first what to do, then what there is and where.

    The front end cuts long messages, and the folders of a user's extra_model_paths.yaml are long.
    """
    if name in found:
        return found[name]
    where = " or ".join(path for folder in folders for path in folder_paths.get_folder_paths(folder))
    if close := difflib.get_close_matches(name, found, n=1):
        raise VerifierError(f"no {kind} {name!r} here; did you mean {close[0]!r}? Looked in {where}")
    refresh = f"{files}, then press R in ComfyUI and choose it"
    looked = f"Looked in {where}. Nothing is downloaded by itself"
    choose = f"Choose one of: {', '.join(sorted(found))}. For another: {refresh[0].lower()}{refresh[1:]}"
    if not name.startswith(NONE_FOUND.rstrip(")")):
        raise VerifierError(f"no {kind} {name!r} here. {choose if found else refresh}. {looked}")
    raise VerifierError(f"{choose}. {looked}" if found else f"{refresh}: no {kind} is here. {looked}")


def _heads() -> dict[str, Path]:
    return {name: path for name, path in _weight_files((FOLDER, HEADS)).items() if os.path.getsize(path) <= HEAD_BYTES}


def _rewards() -> dict[str, Path]:
    return _weight_files((FOLDER, REWARDS))


def _weight_files(folders: Sequence[str]) -> dict[str, Path]:
    """Entry -> file. Of two files of one name the one in the last folder counts."""
    register_folders()
    files = {}
    for folder in folders:
        for name in folder_paths.get_filename_list(folder):
            path = folder_paths.get_full_path(folder, name)
            if path and Path(name).suffix.lower() in WEIGHT_SUFFIXES:
                files[name.replace("\\", "/")] = Path(path)
    return files


def _found() -> dict[str, Path]:
    """Entry -> the weight file or the folder."""
    found = {name: path for name, path in _files_of_host().items() if not lacking(tensor_names(path))}
    for name, file in _found_by().items():
        path = folder_paths.get_full_path(FOLDER, file)
        if path is not None:
            found[name] = Path(path) if file == name else Path(path).parent
    return found


def _files_of_host() -> dict[str, Path]:
    """Entry -> file, of all .safetensors files in ComfyUI's own folders."""
    files = {}
    for folder in HOST_FOLDERS:
        for name in folder_paths.get_filename_list(folder):
            path = folder_paths.get_full_path(folder, name) if name.endswith(".safetensors") else None
            if path is not None:
                files[f"{folder}/{name}".replace("\\", "/")] = Path(path)
    return files


def _found_by() -> dict[str, str]:
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
