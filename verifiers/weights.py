"""Weight files, read without ever running what is in them."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import re
import stat
import zipfile
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from .base import VerifierError

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
MAX_AXES = 16  # of a tensor; the weights of networks have 5 at most
MAX_ELEMENTS = 2**48  # product of a tensor's sizes, where one of 0 counts as 1


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file or of a torch.save file, by name, on the CPU.

    A torch.save file is read with `weights_only`: tensors and plain containers, no code. {"state_dict": ...} is
    unwrapped and a `module.` before every name removed. Raises VerifierError: which file, why, and what to do.
    """
    path = Path(path)
    kind = _kind(path)
    if path.suffix == ".safetensors" and kind != "safetensors":
        raise VerifierError(f"cannot read {path}: it is {kind}, not a safetensors file; {_REMEDIES[kind]}")
    if kind == "safetensors":
        state: Any = _read_safetensors(path)
    elif kind in (_ZIP, _PICKLE):
        state = _read_torch(path)
    else:
        raise VerifierError(f"cannot read {path}: it is {kind}; {_REMEDIES[kind]}")
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    items = state.items() if isinstance(state, Mapping) else ()
    tensors = {str(key): value for key, value in items if isinstance(value, torch.Tensor)}
    for name, value in tensors.items():
        if problem := _implausible(value):
            raise VerifierError(f"cannot read {path}: its tensor {name[:80]!r} {problem}; {_AGAIN}")
    if not tensors:
        raise VerifierError(f"{path} holds no weights (found: {_short(state)}); choose the model's weight file")
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def content_hash(files: Iterable[Path], settings: Mapping[str, Any]) -> str:
    """SHA-256 over the contents of `files`, whatever their names, and over `settings` (JSON values), as hex text."""
    digests = []
    for path in files:
        digest = hashlib.sha256()
        check_regular(path)
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        digests.append(digest.hexdigest())
    return hashlib.sha256(json.dumps([sorted(digests), settings], sort_keys=True).encode()).hexdigest()


def tensors_hash(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the names, types, shapes and values of tensors on any device, as hex text."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_tensors(path: Path, prefix: str, others: Iterable[str] = ()) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file whose names start with `prefix` or are among `others`, and only those are read.

    Empty if the file has none with the prefix, or is no safetensors file.
    """
    from safetensors import safe_open

    others = set(others)
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if not any(name.startswith(prefix) for name in names):
                return {}
            found = {name: file.get_tensor(name) for name in names if name.startswith(prefix) or name in others}
    except Exception:  # what a header can say makes torch raise nearly anything
        return {}
    return {} if any(map(_implausible, found.values())) else found


def tensor_names(path: Path) -> frozenset[str]:
    """The names of the tensors in a safetensors file, from its header; empty for any other file, or a damaged one.

    Remembered until size or time of the file change: lists of files are made again and again.
    """
    try:
        found = path.stat()
    except OSError:
        return frozenset()
    return _tensor_names(path, found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else frozenset()


@lru_cache(maxsize=4096)
def _tensor_names(path: Path, size: int, changed: int) -> frozenset[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return frozenset(file.keys())
    except (SafetensorError, OSError):
        return frozenset()


def check_regular(path: Path) -> None:
    """Raises VerifierError for what is no file with content, or a link to one: to open a named pipe waits for ever, and
    a device never ends. Nothing is opened to see it."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise VerifierError(f"cannot read {path}: {error.strerror or error}; check the name and the folder") from error
    if not stat.S_ISREG(mode):
        kind = next((word for test, word in _KINDS if test(mode)), "something else")
        raise VerifierError(f"cannot read {path}: it is {kind}, not a file; put the file itself there")


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def file_stamp(files: Iterable[Path]) -> tuple[tuple[str, int, int], ...]:
    """(path, size, modification time) of each file: cheap to compare, changes when a file is replaced."""
    stamps = []
    for path in sorted(files):
        found = path.stat()
        stamps.append((str(path.resolve()), found.st_size, found.st_mtime_ns))
    return tuple(stamps)


def difference(expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> str:
    """How the names and shapes of `state` differ from the expected ones, "" if they do not."""
    missing = sorted(set(expected) - set(state))
    if missing:
        return f"it lacks {listed(missing)}"
    extra = sorted(set(state) - set(expected))
    if extra:
        return f"it also has {listed(extra)}"
    wrong = [key for key in expected if expected[key].shape != state[key].shape]
    if wrong:
        shapes = [f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}" for key in wrong]
        return f"it has {listed(shapes)}"
    return ""


def listed(names: list[str], limit: int = 8) -> str:
    """The first few of the names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


_ZIP = "a torch.save file"
_PICKLE = "a Python pickle"
_TORCHSCRIPT = "a TorchScript archive (a program with weights, the format of OpenAI's original downloads)"
_LFS = "a Git LFS pointer (a few lines of text that stand for the weights)"
_HTML = "a web page"
_EMPTY = "empty"
_UNKNOWN = "in no known weight format, or damaged"

_AGAIN = "download it again and compare its size with the one shown on the download page"
_SAFE = "pickles can run code when they are loaded; get the model's .safetensors file instead"
_REMEDIES = {
    "safetensors": _AGAIN,
    _ZIP: _SAFE,
    _PICKLE: _SAFE,
    _TORCHSCRIPT: "get the same model as .safetensors (for OpenAI's CLIP: model.safetensors with its config.json)",
    _LFS: "download the file itself, or run `git lfs pull` in its folder",
    _HTML: "download the file itself; a gated or moved link often saves its web page instead",
    _EMPTY: _AGAIN,
    _UNKNOWN: _AGAIN,
}


def _kind(path: Path) -> str:
    """What the first bytes say the file is."""
    check_regular(path)
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError as error:
        raise VerifierError(f"cannot read {path}: {error.strerror or error}; check the name and the folder") from error
    if not head:
        return _EMPTY
    if head[:4] == b"PK\x03\x04":
        try:
            with zipfile.ZipFile(path) as archive:
                return _TORCHSCRIPT if any("/code/" in name for name in archive.namelist()) else _ZIP
        except zipfile.BadZipFile:
            return _UNKNOWN
    if head[8:9] == b"{":
        return "safetensors"
    if head[:1] == b"\x80":
        return _PICKLE
    if head.startswith(b"version https://git-lfs"):
        return _LFS
    if head.lstrip()[:1] == b"<":
        return _HTML
    return _UNKNOWN


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # what a header can say makes torch raise nearly anything
        raise _unreadable(path, error) from error


def _read_torch(path: Path) -> Any:
    try:
        if zipfile.is_zipfile(path):
            _check_unpacked(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except VerifierError:
        raise
    except pickle.UnpicklingError as error:
        # not torch's own text, which advises to load it all the same
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        more = f" ({found[1]})" if found else ""
        raise VerifierError(
            f"{path} is refused: it is a Python pickle that holds more than weights{more}; {_SAFE}"
        ) from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise _unreadable(path, error) from error


def _check_unpacked(path: Path) -> None:
    """Raises VerifierError where a small archive would become gigabytes: torch.save stores its parts as they are."""
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > path.stat().st_size:
        raise VerifierError(
            f"cannot read {path} ({path.stat().st_size:,} bytes): it is packed and claims to hold {unpacked:,} bytes, "
            f"which PyTorch's own files are not; {_AGAIN}"
        )


def _unreadable(path: Path, error: Exception) -> VerifierError:
    lines = str(error).splitlines() or [type(error).__name__]  # torch adds where in its own code it happened
    said = lines[0] if len(lines[0]) <= 200 else lines[0][:197] + "..."
    return VerifierError(f"cannot read {path} ({path.stat().st_size:,} bytes): {said}; {_AGAIN}")


def _implausible(value: torch.Tensor) -> str:
    """What is wrong with a tensor that no network's weights can be, "" for nothing. What is made of a file's few bytes
    could else take all memory once it is converted."""
    if value.layout is not torch.strided or value.is_nested or value.is_quantized or value.device.type != "cpu":
        return "has no plain values (it is sparse, quantised or empty)"
    if value.ndim > MAX_AXES:
        return f"has {value.ndim} axes"
    if math.prod(max(size, 1) for size in value.shape) > MAX_ELEMENTS:
        return f"claims the sizes {tuple(value.shape)}"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"claims the sizes {tuple(value.shape)}, of which the file does not hold the values"
    return ""


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
    return text if len(text) <= 200 else text[:197] + "..."
