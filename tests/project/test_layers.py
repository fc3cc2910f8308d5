"""The layers of docs/architecture.md, and what a pack must never do, read from the source."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Each layer's own part of the pack that it may import; the version and the embedded world are leaves.
BELOW = {
    "search": {"search"},
    "verifiers": {"verifiers", "search"},
    "report": {"report", "search"},
    "host": {"host", "verifiers", "search", "version", "demo"},
    "nodes": {"nodes", "host", "report", "verifiers", "search", "version"},
}
# Modules of ComfyUI itself, by the first part of their name.
COMFYUI = {
    "app",
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "comfyui_version",
    "execution",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "nodes",
    "server",
}
OUTSIDE = {  # what a layer may import at module level beside the standard library
    "search": {"torch"},
    "verifiers": {"torch", "numpy", "PIL", "safetensors"},
    "report": {"torch", "numpy", "PIL"},
    "host": {"torch", "numpy", "PIL", "tqdm"} | COMFYUI,
    "nodes": {"torch", "numpy", "PIL"} | COMFYUI,
}
PURE = ("search", "verifiers", "report")
SHIPPED = [*BELOW, "__init__.py", "version.py"]


@dataclass(frozen=True)
class Import:
    """One import. `module` is a name in the pack ("search.log") where `inside`, else an absolute one."""

    where: str
    module: str
    inside: bool
    at_top: bool


def sources(*parts: str) -> list[Path]:
    found = []
    for part in parts:
        path = ROOT / part
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return found


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports_of(path: Path, source: ast.Module | None = None) -> Iterator[Import]:
    package = path.relative_to(ROOT).parent.parts

    def visit(node: ast.AST, at_top: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            where = f"{path.relative_to(ROOT).as_posix()}:{getattr(child, 'lineno', 0)}"
            if isinstance(child, ast.Import):
                yield from (Import(where, alias.name, False, at_top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.level == 0:
                yield Import(where, child.module or "", False, at_top)
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1]
                names = [child.module] if child.module else [alias.name for alias in child.names]
                yield from (Import(where, ".".join((*base, name)), True, at_top) for name in names)
            typing_only = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
            inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or typing_only
            yield from visit(child, at_top and not inner)

    yield from visit(source or tree(path), True)


def first(module: str) -> str:
    return module.split(".")[0]


def wrong_imports(layer: str, found: Iterator[Import]) -> list[str]:
    wrong = []
    for item in found:
        name = first(item.module)
        if item.inside:
            if name not in BELOW[layer]:
                wrong.append(f"{item.where}: {layer}/ may not import {item.module} of the pack")
        elif layer in PURE and name in COMFYUI:
            wrong.append(f"{item.where}: {layer}/ knows no ComfyUI, but imports {item.module}")
        elif item.at_top and name not in OUTSIDE[layer] | sys.stdlib_module_names:
            wrong.append(f"{item.where}: {layer}/ may import {item.module} inside a function only")
        elif layer == "search" and name not in OUTSIDE[layer] | sys.stdlib_module_names:
            wrong.append(f"{item.where}: search/ needs torch and the standard library only, not {item.module}")
    return wrong


@pytest.mark.parametrize("layer", BELOW)
def test_imports_point_downwards(layer):
    files = sources(layer)
    assert files, f"{layer}/ is gone; mend this test"
    assert [line for path in files for line in wrong_imports(layer, imports_of(path))] == []


@pytest.mark.parametrize(
    ("layer", "code", "complaint"),
    [
        ("search", "import numpy", "inside a function only"),
        ("search", "def f():\n    import numpy", "standard library only"),
        ("search", "import comfy.utils", "knows no ComfyUI"),
        ("search", "from ..verifiers import base", "may not import verifiers"),
        ("search", "from .. import host", "may not import host"),
        ("verifiers", "def f():\n    import folder_paths", "knows no ComfyUI"),
        ("verifiers", "import open_clip", "inside a function only"),
        ("report", "from ..verifiers.base import Verifier", "may not import verifiers"),
        ("host", "from ..nodes import types", "may not import nodes"),
        ("host", "from ..report import table", "may not import report"),
        ("nodes", "from ..demo import train", "may not import demo"),
    ],
)
def test_a_wrong_import_is_found(layer, code, complaint):
    """The rules above bite."""
    [line] = wrong_imports(layer, imports_of(ROOT / layer / "example.py", ast.parse(code)))
    assert complaint in line


def test_relative_imports_only_inside_the_pack():
    """ComfyUI loads the pack by path under a name of its own, so `import search` would find nothing, or another's."""
    own = {*BELOW, "demo", "version"} - COMFYUI
    wrong = [
        item.where
        for path in sources(*SHIPPED, "demo/__init__.py", "demo/world.py", "demo/oracle.py")
        for item in imports_of(path)
        if not item.inside and first(item.module) in own
    ]
    assert wrong == []


def test_importing_the_pack_imports_nothing():
    assert [item.module for item in imports_of(ROOT / "__init__.py") if item.at_top] == []


def attributes_of_comfyui_modules(source: ast.Module) -> list[str]:
    """Such as `comfy.samplers.__file__`: what every module has, and no source file of ComfyUI defines."""
    chains = (ast.unparse(item) for item in ast.walk(source) if isinstance(item, ast.Attribute))
    return [chain for chain in chains if re.fullmatch(r"comfy(_\w+)?(\.\w+)*\.__\w+__", chain)]


def test_a_checker_of_node_packs_finds_every_name_in_comfyui():
    """comfy-import-guard reads names off ComfyUI's sources; one that is not there is "WILL BREAK" to its users."""
    files = [
        path for path in sources(*SHIPPED, "demo", "tests", "benchmarks") if "import comfy" in path.read_text("utf-8")
    ]
    assert len(files) > 10 and attributes_of_comfyui_modules(ast.parse("x = comfy.samplers.__file__"))
    assert [f"{path.name}: {name}" for path in files for name in attributes_of_comfyui_modules(tree(path))] == []


FORBIDDEN_IMPORTS = {"subprocess", "marshal", "shelve", "dill", "cloudpickle", "pip", "ensurepip"}
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {"os.system", "os.popen", "sys.path"}


def forbidden(path: Path, source: ast.Module) -> list[str]:
    where = path.relative_to(ROOT).as_posix()
    wrong = [f"{i.where}: import {i.module}" for i in imports_of(path, source) if first(i.module) in FORBIDDEN_IMPORTS]
    for node in ast.walk(source):
        line = f"{where}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Name) and node.id in FORBIDDEN_NAMES:
            wrong.append(f"{line}: {node.id}")
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if name in FORBIDDEN_ATTRIBUTES or (node.value.id == "pickle" and node.attr != "UnpicklingError"):
                wrong.append(f"{line}: {name}")
        if isinstance(node, ast.ImportFrom) and node.module == "pickle":
            wrong.append(f"{line}: from pickle import")
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            wrong += [] if safe else [f"{line}: torch.load without weights_only=True"]
    return wrong


def test_the_pack_runs_no_foreign_code():
    """The registry's rules: no eval or exec, no pip at run time. Ours: nor any pickle that could carry code."""
    assert [line for path in sources(*SHIPPED, "demo") for line in forbidden(path, tree(path)) if not tool(path)] == []


def tool(path: Path) -> bool:
    return path.name in ("client.py", "train.py")  # programs a developer runs; they are not in the archive


@pytest.mark.parametrize(
    "code",
    [
        "import subprocess",
        "from subprocess import run",
        "eval('1')",
        "import pickle\npickle.loads(b'')",
        "from pickle import loads",
        "torch.load('x')",
        "torch.load('x', weights_only=False)",
        "os.system('x')",
        "sys.path.insert(0, 'x')",
    ],
)
def test_forbidden_code_is_found(code):
    assert forbidden(ROOT / "host" / "example.py", ast.parse(code))


def test_no_file_names_a_place_on_somebodys_machine():
    """Neither a home or working folder nor the address of a package index belongs into the project."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    place = re.compile(
        r"(?<![\w.])/(?:home|Users|root|work|tmp|mnt|opt)/\w"  # a folder of one machine
        r"|\b[A-Z]:\\\\?Users\b"
        r"|https?://(?:[\w.-]+@)?(?:[\w-]+\.)*(?:pypi\.org|pythonhosted\.org|download\.pytorch\.org)"
    )
    suffixes = {".py", ".md", ".toml", ".txt", ".json", ".yaml", ".yml", ".js", ".sh", ""}
    wrong = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.suffix in suffixes and path.is_file() and path != Path(__file__).resolve():
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                wrong += [f"{name}:{number}: {line.strip()[:100]}"] if place.search(line) else []
    assert wrong == []
