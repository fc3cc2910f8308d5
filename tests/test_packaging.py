"""What the Comfy registry and ComfyUI Manager read: pyproject.toml, requirements.txt, .comfyignore."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOST_PACKAGES = {"torch", "torchvision", "torchaudio", "numpy", "transformers", "pillow", "safetensors", "einops"}


@pytest.fixture(scope="module")
def project():
    if sys.version_info < (3, 11):
        pytest.skip("tomllib needs Python 3.11")
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirements(name="requirements.txt"):
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def test_requirements_and_pyproject_are_equal(project):
    assert project["project"]["dependencies"] == requirements()


def test_requirements_touch_nothing_that_comfyui_brings():
    """A pack that names torch or numpy makes pip replace the user's builds."""
    names = {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in requirements()}
    assert names.isdisjoint(HOST_PACKAGES)
    assert not [line for line in requirements() if re.search(r"==|<|~=|@|://", line)], "no pins, no upper bounds"


def test_registry_fields(project):
    assert project["project"]["name"] == "noise-search"
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["project"]["version"])
    assert project["project"]["license"] == {"file": "LICENSE"}
    assert "Repository" in project["project"]["urls"]
    assert {"PublisherId", "DisplayName", "requires-comfyui"} <= set(project["tool"]["comfy"])
    assert "GNU GENERAL PUBLIC LICENSE" in (ROOT / "LICENSE").read_text(encoding="utf-8")[:100]


def test_one_version(project):
    from noise_search.version import __version__

    assert project["project"]["version"] == __version__


def test_the_archive_keeps_what_the_pack_needs():
    dropped = requirements(".comfyignore")
    assert {"tests/", "benchmarks/", ".ci/"} <= set(dropped)
    needed = ("demo/weights", "demo/world.py", "web", "example_workflows", "LICENSE", "requirements.txt")
    assert not [line for line in dropped for name in needed if name.startswith(line.rstrip("/")) or line == "demo/"]
    assert [line for line in dropped if not (ROOT / line).exists()] == []
