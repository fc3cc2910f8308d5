"""What the Comfy registry and ComfyUI Manager read: pyproject.toml, requirements.txt, .comfyignore."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ACCELERATORS = (
    "GPU :: AMD ROCm",
    "GPU :: Apple Metal",
    "GPU :: Intel Arc",
    "GPU :: NVIDIA CUDA",
    "NPU :: Huawei Ascend",
)
SYSTEMS = ("MacOS", "Microsoft :: Windows", "OS Independent", "POSIX :: Linux")
IN_THE_ARCHIVE = {
    *("LICENSE", "README.md", "__init__.py", "pyproject.toml", "requirements.txt", "version.py"),
    *("demo", "docs", "example_workflows", "host", "nodes", "report", "search", "verifiers", "web"),
}
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


def test_the_registry_takes_every_classifier(project):
    """One that it does not know empties its whole list, of systems or of accelerators, and that in silence.

    Both lists are those of comfy-cli, which publishes; PyPI's own is another one ("Environment :: GPU" is in that).
    """
    classifiers = project["project"]["classifiers"]
    environments = {line for line in classifiers if line.startswith("Environment")}
    systems = {line for line in classifiers if line.startswith("Operating System")}
    assert environments and environments <= {f"Environment :: {name}" for name in ACCELERATORS}
    assert systems and systems <= {f"Operating System :: {name}" for name in SYSTEMS}


@pytest.fixture(scope="module")
def packed():
    pytest.importorskip("pathspec")
    from packed import packed_files

    return packed_files()


def test_the_archive_holds_the_pack_and_nothing_else(packed):
    from packed import project_files

    assert {name.split("/")[0] for name in packed} == IN_THE_ARCHIVE
    left_out = {name for name in project_files() if name.split("/")[0] in IN_THE_ARCHIVE} - {*packed}
    assert left_out == {"demo/client.py", "demo/train.py"}


@pytest.mark.parametrize("page", ["README.md", "docs", "web/docs"])
def test_no_page_links_to_what_the_archive_lacks(packed, page):
    """A user reads them in the folder that was unpacked."""
    pages = [name for name in packed if name.endswith(".md") and (name == page or Path(name).parent.as_posix() == page)]
    links = [
        ((ROOT / name).parent / target.split("#")[0]).resolve().relative_to(ROOT).as_posix()
        for name in pages
        for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text(encoding="utf-8"))
        if not re.match(r"[a-z]+:|#", target)
    ]
    assert pages and (links or page == "web/docs")
    assert [link for link in links if link not in packed] == []


def test_the_readme_says_which_commands_need_a_clone(packed):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = {
        re.sub(r"[^/]*$", "", name) or name for name in re.findall(r"(?:[\w.-]+/)*[\w-]+\.(?:py|sh|toml|txt)", text)
    }
    absent = {name for name in named if not any(file.startswith(name) for file in packed)}
    [said] = [line for line in text.splitlines() if "need a clone" in line]
    told = re.findall(r"`([^`]+)`", said)
    assert {name for name in absent if not name.startswith(tuple(told))} == set()
