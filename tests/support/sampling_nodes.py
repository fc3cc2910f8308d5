"""Finds, in the source of a ComfyUI, the nodes that change how a model is sampled."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path

# Calls by which a node puts something of its own between a sampler and a model.
CALLS = re.compile(
    r"set_model_\w+|(add|create|set)_\w*wrapper\w*|add_callback\w*|add_object_patch|set_injections|set_attachments"
    r"|set_additional_models|add_hook_patches|register_all_hook_patches"
)
WORDS = {"transformer_options", "model_options"}  # that are written to by name
GUIDER = "CFGGuider"


@dataclass
class Found:
    """file: without its folder and ending; ways: how the node does it; assigns: whether a function of its assigns names
    around itself, which outlast a run."""

    file: str
    ways: set[str] = field(default_factory=set)
    assigns: bool = False


def sampling_nodes(root: Path) -> dict[str, Found]:
    """By node id, of `nodes.py` and `comfy_extras`. A node does what its class does, those that the class is made from,
    and the classes and functions that it names, in its file or another of them."""
    files = {path.stem: ast.parse(path.read_text("utf-8")) for path in [root / "nodes.py", *_extras(root)]}
    named = {stem: _named(source, files) for stem, source in files.items()}
    found = {}
    for stem, source in files.items():
        for class_name, node_id in _node_ids(source).items():
            one = Found(stem)
            for part in _reached(named, stem, class_name):
                one.ways |= _ways(part)
                one.assigns |= any(isinstance(item, ast.Nonlocal) for item in ast.walk(part))
            if one.ways:
                found[node_id] = one
    return found


def _extras(root: Path) -> list[Path]:
    return sorted((root / "comfy_extras").glob("*.py"))


Named = dict[str, tuple[str, ast.AST]]  # name in a file -> the file it is defined in, and its definition


def _definitions(source: ast.Module) -> dict[str, ast.AST]:
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return {item.name: item for item in source.body if isinstance(item, kinds)}


def _named(source: ast.Module, files: dict[str, ast.Module]) -> Named:
    """What a name means at the top of a file: its own, and what it imports from other files of nodes."""
    [stem] = [stem for stem, one in files.items() if one is source]
    found: Named = {name: (stem, item) for name, item in _definitions(source).items()}
    for item in source.body:
        if isinstance(item, ast.ImportFrom) and (other := (item.module or "").rpartition(".")[2]) in files:
            there = _definitions(files[other])
            found |= {
                one.asname or one.name: (other, there[one.name])
                for one in item.names
                if one.name in there and (one.asname or one.name) not in found
            }
    return found


def _reached(named: dict[str, Named], stem: str, name: str) -> list[ast.AST]:
    seen: dict[tuple[str, str], ast.AST] = {}
    waiting = [(stem, name)]
    while waiting:
        place, one = waiting.pop()
        if one not in named[place]:
            continue
        home, definition = named[place][one]
        if (home, one) not in seen:
            seen[home, one] = definition
            waiting += [(home, item.id) for item in ast.walk(definition) if isinstance(item, ast.Name)]
    return list(seen.values())


def _ways(definition: ast.AST) -> set[str]:
    ways = set()
    for item in ast.walk(definition):
        if isinstance(item, ast.Attribute) and (CALLS.fullmatch(item.attr) or item.attr in WORDS):
            ways.add(item.attr)
        elif isinstance(item, ast.Name) and CALLS.fullmatch(item.id):
            ways.add(item.id)
        elif isinstance(item, ast.Constant) and item.value in WORDS:
            ways.add(item.value)
        elif isinstance(item, ast.Attribute) and item.attr == GUIDER:
            ways.add(GUIDER)
    return ways


def _node_ids(source: ast.Module) -> dict[str, str]:
    """Class -> node id: what the class says in its schema, or what the file calls it in its table."""
    classes = {name: item for name, item in _definitions(source).items() if isinstance(item, ast.ClassDef)}
    ids = {}
    for item in ast.walk(source):
        if isinstance(item, ast.Dict):
            for key, value in zip(item.keys, item.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Name) and value.id in classes:
                    ids[value.id] = key.value
    for name, item in classes.items():
        schema = [one for one in item.body if isinstance(one, ast.FunctionDef) and one.name == "define_schema"]
        for inner in (one for function in schema for one in ast.walk(function)):
            if isinstance(inner, ast.keyword) and inner.arg == "node_id" and isinstance(inner.value, ast.Constant):
                ids[name] = inner.value.value
            targets = inner.targets if isinstance(inner, ast.Assign) else []
            if any(isinstance(one, ast.Attribute) and one.attr == "node_id" for one in targets):
                ids[name] = inner.value.value
    return ids
