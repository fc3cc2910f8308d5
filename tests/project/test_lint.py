"""The linters of pyproject.toml, as tests. A missing linter is a failure: `python dev.py test` installs them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGINES = ("benchmarks/_pack.py", "benchmarks/replay.py", "tests/support/synthetic.py")  # that are not of the pack
TYPED = ("search", "verifiers", "report", "host", "nodes", "demo", "__init__.py", "version.py")


def passes(*arguments: str | Path, cwd: Path = ROOT) -> None:
    run = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], cwd=cwd, capture_output=True, text=True, encoding="utf-8"
    )
    if run.returncode:
        pytest.fail(f"{arguments[0]} complains:\n{run.stdout}{run.stderr}", pytrace=False)


def test_ruff_check():
    passes("ruff", "check", ".")


def test_ruff_format():
    passes("ruff", "format", "--check", ".")


def test_types(tmp_path):
    """A checkout may have any folder name; mypy wants the package's, so it checks a copy."""
    package = tmp_path / "noise_search"
    package.mkdir()
    for name in TYPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, package / name, ignore=shutil.ignore_patterns("weights"))
        else:
            shutil.copy(ROOT / name, package / name)
    modules = [ROOT / name for name in ("dev.py", *ENGINES)]
    for module in modules:
        shutil.copy(module, tmp_path / module.name)
    options = ("--config-file", ROOT / "pyproject.toml", "--cache-dir", ROOT / ".mypy_cache")
    named = [part for module in modules for part in ("-m", module.stem)]
    passes("mypy", *options, "-p", "noise_search", *named, cwd=tmp_path)
