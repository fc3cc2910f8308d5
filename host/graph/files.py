"""The files that a graph names: models, pictures and other inputs, embeddings in prompts, and what is in them.

A name counts as a file where ComfyUI finds one: in a model folder, in the input, output or temp folder, or at a full
path. That needs no list of loaders, so it holds for those of other packs too.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, lru_cache, partial
from pathlib import PurePath
from typing import Any

import folder_paths

from .classes import declared
from .links import is_link, upstream

LONGEST_NAME = 1024
MAX_WHOLE_BYTES = 64 * 2**20  # bytes: a larger file is read in samples
BLOCKS, BLOCK = 64, 256 * 2**10  # how many samples, and the bytes of each; from the first byte to the last
MAX_FILES, MAX_FOLDER_DEPTH = 1000, 4  # of a folder, and how far down
FOLDER_BYTES = 512 * 2**20  # read of all files of a folder together, at most
ENDING = re.compile(r"\.\w{1,16}$")
EMBEDDING = re.compile(r"embedding:((?:\\[()]|[^\s()\[\]<>])+)")
LORA = re.compile(r"<lora:([^:>]+)")  # in the prompts of some packs
# At a full path only these are looked into: a workflow may come from anybody.
FULL_PATH = re.compile(
    r"\.(png|jpe?g|webp|gif|bmp|tiff?|avif|exr|mp4|mov|mkv|webm|avi|m4v|wav|mp3|flac|ogg|latent|safetensors|sft|ckpt|pt2?"
    r"|pth|bin|gguf|onnx|pkl|npy|npz)$",
    re.IGNORECASE,
)
Choices = Callable[[], frozenset[str]]


def model_files(name: str, but: Sequence[str] = ("custom_nodes",)) -> dict[str, str]:
    """Folder -> file, of the model folders that have a file of this name; in ComfyUI's order."""
    if not PurePath(name).suffix or "\n" in name or "\0" in name:
        return {}
    found = {}
    for folder in list(folder_paths.folder_names_and_paths):
        with suppress(ValueError):  # on Windows, of ComfyUI, for what begins like a path on another drive
            path = None if folder in but else folder_paths.get_full_path(folder, name)
            if path is not None and os.path.isfile(path):
                found[folder] = path
    return found


def contents(prompt: Mapping[str, Any] | None, node_id: str | None) -> dict[str, str]:
    """Name in the graph, with forward slashes -> a hash of the content, of all files that a node and those before it
    name. Neither place nor date of a file is in it. What cannot be read is left out, as what is not there."""
    found: dict[str, str] = {}
    inputs_of = cache(declared)
    for node in upstream(prompt or {}, str(node_id)).values():
        class_type = str(node.get("class_type"))
        for name, value in node.get("inputs", {}).items():
            choices = partial(_choices, inputs_of, class_type, str(name))
            for text in _texts(value):
                for file, paths in _named(text, choices):
                    with suppress(OSError, ValueError):
                        found[file.replace("\\", "/")] = _content(sorted(set(paths)), file)
    return found


def _texts(value: Any) -> Iterator[str]:
    """The texts in an input: itself, or in what nodes such as Load 3D get from their widgets."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, (list, tuple)) and not is_link(value):
        for item in value:
            yield from _texts(item)


def _named(text: str, choices: Choices) -> Iterator[tuple[str, list[str]]]:
    """(what the text says, the files or folders of that name). choices: what the node lists for this input."""
    for said in EMBEDDING.findall(text):
        said = re.sub(r"\\([()])", r"\1", said)
        for word in dict.fromkeys((said, said.strip(","), re.sub(r":[-+.\d]*,*$", "", said))):  # as ComfyUI tries them
            if paths := _by_stem("embeddings", word):
                yield f"embedding:{word}", paths
                break
    for said in LORA.findall(text):
        if paths := _by_stem("loras", said):
            yield f"lora:{said}", paths
    if 0 < len(text.strip()) <= LONGEST_NAME and "\n" not in text and "\0" not in text:
        with suppress(OSError, ValueError):
            if paths := _paths(text, choices):
                yield text, paths


def _paths(text: str, choices: Choices) -> list[str]:
    models = model_files(text) if ENDING.search(text) else {}
    if len(models) > 1 and (all_of_them := choices()):  # the one that the node lists, where it can be told
        listed = [folder for folder in models if all_of_them >= set(folder_paths.get_filename_list(folder))]
        models = {folder: models[folder] for folder in listed or models}
    paths = list(models.values())
    given = _input_path(text)
    if given is not None and (
        _names_folders(text, choices()) if os.path.isdir(given) else PurePath(text).suffix or text in choices()
    ):
        paths.append(given)
    if not paths and os.path.isabs(text) and (os.path.isdir(text) or _is_known(text) and os.path.isfile(text)):
        return [text]
    return paths or (_chosen(text, choices()) if text in choices() else [])


def _chosen(text: str, choices: frozenset[str]) -> list[str]:
    """What a choice of a list stands for where no file has just this name: a folder, a file in a named folder, or the
    two files of a small autoencoder."""
    known = [folder for folder in list(folder_paths.folder_names_and_paths) if folder != "custom_nodes"]
    paths = _model_folders(text)
    paths = paths if paths and _names_folders(text, choices) else []
    folder, _, rest = text.replace("\\", "/").partition("/")
    if not paths and folder in known and rest:
        paths = [folder_paths.get_full_path(folder, rest)]
    if not paths:
        halves = (f"{text}_encoder.", f"{text}_decoder.")
        small = [file for file in folder_paths.get_filename_list("vae_approx") if file.startswith(halves)]
        paths = [folder_paths.get_full_path("vae_approx", file) for file in small]
    return [path for path in paths if path]


def _model_folders(name: str) -> list[str]:
    """The folders of this name in the model folders."""
    known = [folder for folder in list(folder_paths.folder_names_and_paths) if folder != "custom_nodes"]
    roots = dict.fromkeys(root for folder in known for root in folder_paths.get_folder_paths(folder))
    return [path for path in (_inside(root, name) for root in roots) if path and os.path.isdir(path)]


def _names_folders(text: str, choices: frozenset[str]) -> bool:
    """Whether a choice that is called like a folder means it: where most of the list is on disk. "flux" among types of
    text encoders is a type, also where somebody keeps LoRAs in a folder of that name."""
    if text not in choices:
        return False
    there = (bool(ENDING.search(one) or _model_folders(one) or _input_path(one)) for one in choices)
    return 2 * sum(there) > len(choices)


def _is_known(path: str) -> bool:
    return FULL_PATH.search(path) is not None


def _choices(inputs_of: Callable[[str], Mapping[str, Any]], class_type: str, name: str) -> frozenset[str]:
    """The texts that a node lists for an input; none where it has no list or is not known."""
    with suppress(Exception):  # of any pack
        kind, *options = inputs_of(class_type).get(name, ("",))
        listed = kind if isinstance(kind, (list, tuple)) else options[0].get("options", ()) if options else ()
        return frozenset(one for one in listed if isinstance(one, str))
    return frozenset()


def _by_stem(folder: str, said: str) -> list[str]:
    """The files of a folder and those below it with this name, with or without its ending."""
    wanted = said.replace("\\", "/").strip("/")
    paths = []
    for file in folder_paths.get_filename_list(folder) if wanted else ():
        whole = file.replace("\\", "/")
        if any(f"/{one}".endswith(f"/{wanted}") for one in (whole, os.path.splitext(whole)[0])):
            paths.append(folder_paths.get_full_path(folder, file))
    return [path for path in paths if path]


def _input_path(text: str) -> str | None:
    """Where a name such as "sub/picture.png" or "picture.png [output]" leads, if there is something."""
    name, root = folder_paths.annotated_filepath(text)
    path = _inside(root or folder_paths.get_input_directory(), name)
    return path if path and os.path.exists(path) else None


def _inside(root: str, name: str) -> str | None:
    """A path below a folder; None for one that leads out of it, and for the folder itself."""
    root = os.path.abspath(root)
    path = os.path.abspath(os.path.join(root, name))
    return path if path.startswith(root.rstrip(os.sep) + os.sep) else None


def _content(paths: Iterable[str], name: str) -> str:
    digest = hashlib.sha256()
    for path in paths:
        full = path == name
        files = _below(path, 0 if full else MAX_FOLDER_DEPTH) if os.path.isdir(path) else [path]
        files = [file for file in files if not full or _is_known(file)]
        for file in files:
            within = os.path.relpath(file, path).replace(os.sep, "/")
            digest.update(f"{within} {_digest(file, FOLDER_BYTES // max(len(files), 8))}\n".encode())
    return digest.hexdigest()[:16]


def _below(folder: str, deepest: int) -> list[str]:
    """The first files of a folder and those in it, in order, without hidden ones."""
    found: list[str] = []
    for place, folders, files in os.walk(folder):
        deep = place.count(os.sep) >= folder.rstrip(os.sep).count(os.sep) + deepest
        folders[:] = [] if deep else sorted(one for one in folders if not one.startswith("."))
        found += [os.path.join(place, file) for file in sorted(files) if not file.startswith(".")]
        if len(found) >= MAX_FILES:
            break
    return [file for file in found[:MAX_FILES] if os.path.isfile(file)]


def _digest(path: str, whole: int = MAX_WHOLE_BYTES) -> str:
    stat = os.stat(path)
    return _read(path, min(whole, MAX_WHOLE_BYTES), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


@lru_cache(maxsize=4096)
def _read(path: str, whole: int, size: int, *stamp: int) -> str:
    """A hash of a file, or of a large one of its size and samples from its first byte to its last. stamp: changes with
    the file, so that it is read once."""
    digest = hashlib.sha256(str(size).encode())
    block = max(min(whole // BLOCKS, BLOCK), 1)
    with open(path, "rb") as file:
        if size <= whole:
            while data := file.read(2**20):
                digest.update(data)
        else:
            for number in range(BLOCKS):
                file.seek((size - block) * number // (BLOCKS - 1))
                digest.update(file.read(block))
    return digest.hexdigest()
