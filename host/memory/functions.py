"""Functions, classes and modules by what they do, for the key of the evaluation store: their code, and what is set on
them."""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import sys
import types
from pathlib import Path
from typing import Any

import torch


def class_settings(kind: type) -> dict[str, Any]:
    """What is set on a class and those that it is made from; not on PyTorch's own."""
    settings: dict[str, Any] = {}
    for one in reversed(kind.__mro__):
        if not one.__module__.startswith("torch."):
            settings |= vars(one)
    return settings


def is_setting(name: str, value: Any) -> bool:
    """Whether an attribute of a module or a class may be something that a node set."""
    return not name.startswith("__") and isinstance(value, (bool, int, float, str, torch.Tensor))


def assigned_around(function: types.FunctionType) -> set[str]:
    """The names around a function that it or its neighbours assign (`nonlocal`): what they remember of a run, as
    SelfAttentionGuidance, APG and ToMe do, and no setting."""
    outermost: Any = sys.modules.get(function.__module__)
    for name in function.__qualname__.partition(".<locals>")[0].split("."):
        outermost = getattr(outermost, name, None)
    code = getattr(inspect.unwrap(getattr(outermost, "__func__", outermost)), "__code__", None)
    return _assigned(function.__code__) | (_assigned(code) if code is not None else set())


def _assigned(code: types.CodeType) -> set[str]:
    """The names of outer functions that a function assigns, and those inside it."""
    stores = (step.argval for step in dis.get_instructions(code) if step.opname == "STORE_DEREF")
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return {name for name in stores if name in code.co_freevars}.union(*map(_assigned, inner))


def names_in(code: types.CodeType) -> set[str]:
    """The names that a function uses, and those inside it."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(names_in, inner))


def contents_of(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return None


@functools.lru_cache(maxsize=1024)
def source_hash(module: str) -> str:
    """A hash of a module's file: an updated node pack or ComfyUI may sample in another way under the same version."""
    path = file_of(module)
    if not inspect.getmodulename(str(path)) or not path.is_file():
        return ""
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError:
        return ""


def file_of(module: str) -> Path:
    """The file of an imported module, "." without one. By name: checkers of node packs look `module.__file__` up among
    the names that the module's file defines, and call the pack broken."""
    return Path(getattr(sys.modules.get(module), "__file__", None) or "")
