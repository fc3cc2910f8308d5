"""What every verifier of the registry keeps, and the registry itself."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_clips
import torch
from noise_search.verifiers import registry
from noise_search.verifiers.base import Verifier, VerifierError, install_command
from noise_search.verifiers.descriptor import Descriptor, Entry
from tiny_verifiers import PROMPTS, TINY


@pytest.mark.complete
def test_every_verifier_is_tested():
    lacking = set(registry.names()) - set(TINY)
    assert lacking == set(), "add each to TINY in tests/support/tiny_verifiers.py"
    assert set(TINY) - set(registry.names()) == set()


@pytest.fixture(params=registry.names())
def verifier(request, tmp_path):
    return TINY[request.param](tmp_path)


def test_contract(verifier):
    assert isinstance(verifier, Verifier)
    assert verifier.members and all(isinstance(name, str) and name for name in verifier.members)
    low, high = verifier.usual_range
    assert low < high
    assert verifier.prompt_tokens is None or verifier.prompt_tokens > 0
    assert verifier.identity() == verifier.identity() != ""
    if verifier.module is not None:
        assert not verifier.module.training
        assert not any(parameter.requires_grad for parameter in verifier.module.parameters())


@pytest.mark.parametrize(("height", "width"), [(32, 32), (1, 1), (40, 300), (1100, 1500)])
def test_values(verifier, height, width):
    images = torch.rand(3, height, width, 3)
    before = images.clone()
    values = verifier.score(images, PROMPTS)
    assert values.shape == (3, len(verifier.members)) and values.dtype == torch.float32
    assert torch.isfinite(values).all() and not values.requires_grad
    assert torch.equal(images, before)


def test_the_rest_of_the_batch_has_no_influence(verifier):
    images = tiny_clips.images(3, 50, 40)
    together = verifier.score(images, PROMPTS)
    order = torch.tensor([2, 0, 1])
    assert torch.equal(verifier.score(images[order], [PROMPTS[i] for i in order]), together[order])
    for index in range(3):
        assert torch.equal(
            verifier.score(images[index : index + 1], PROMPTS[index : index + 1]), together[index : index + 1]
        )


def test_the_layout_in_memory_has_no_influence(verifier):
    images = tiny_clips.images(2, 50, 40)
    values = verifier.score(images, PROMPTS[:2])
    assert torch.equal(verifier.score(images.movedim(-1, 1).contiguous().movedim(1, -1), PROMPTS[:2]), values)
    assert torch.equal(verifier.score(torch.cat([images, images], dim=-1)[..., :3], PROMPTS[:2]), values)


def test_no_images(verifier):
    assert verifier.score(torch.zeros(0, 8, 8, 3), []).shape == (0, len(verifier.members))


def test_half_precision_images(verifier):
    images = tiny_clips.images(2)
    difference = verifier.score(images.half(), PROMPTS[:2]) - verifier.score(images, PROMPTS[:2])
    low, high = verifier.usual_range
    assert difference.abs().max() < 0.01 * (high - low)


def test_unknown_names_suggest_the_closest():
    with pytest.raises(VerifierError, match="unknown verifier 'clip_scoer'; did you mean 'clip_score'?"):
        registry.get("clip_scoer")
    with pytest.raises(VerifierError, match="unknown verifier 'zzz'; known: .*clip_score"):
        registry.get("zzz")


def good(**other):
    entry = Entry("clip", "Put x.safetensors (MIT licence, 1 MB) of example.org into models/verifiers")
    given = {"id": "good", "kind": registry.get("clip_score"), "node": "NoiseSearchGood", "title": "Good"}
    return Descriptor(**{**given, "description": "Verifier: good.", "aliases": ("good",), "entry": entry, **other})


@pytest.mark.parametrize(
    ("other", "said"),
    [
        *(({name: ""}, f"has no {name}") for name in ("id", "node", "title", "description", "aliases", "computes")),
        ({"node": "Good"}, "must be called NoiseSearch"),
        ({"description": "good"}, "must begin with 'Verifier: '"),
        ({"entry": None}, "needs either `entry`, its files, or `reads`"),
        ({"reads": "It asks."}, "needs either `entry`, its files, or `reads`"),
        ({"kind": object}, "object must say by `resolve` which files it reads"),
    ],
)
def test_a_verifier_that_lacks_something_fails_at_import(other, said):
    assert good().id == "good"
    with pytest.raises(ValueError, match=said):
        good(**other)


@pytest.mark.complete
def test_the_documentation_says_what_every_verifier_reads():
    page = Path(__file__).parents[2] / "docs" / "verifiers.md"
    told = page.read_text(encoding="utf-8")
    lacking = [row for row in registry.files_table().splitlines() if row not in told]
    assert lacking == [], "the table of docs/verifiers.md lacks these rows:\n" + "\n".join(lacking)
    assert registry.files_table() in told, "the rows of docs/verifiers.md are in the registry's order"


@pytest.mark.parametrize("lacking", ["licence", "models/"])
def test_the_files_are_told_with_licence_and_folder(lacking):
    files = good().entry.files
    with pytest.raises(ValueError, match=f"must be told with their .*{lacking}"):
        Entry("clip", files.replace(lacking, ""))


@pytest.mark.parametrize("package", ["open_clip", "transformers"])
def test_clip_score_says_what_to_install(monkeypatch, tmp_path, package):
    if package == "open_clip":
        tiny_clips.save_open_clip_folder(tmp_path)
    else:
        tiny_clips.save_hf_clip_folder(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    name = {"open_clip": "open_clip_torch"}.get(package, package)
    with pytest.raises(
        VerifierError, match=rf"needs the Python package {name}, .*restart ComfyUI: `.*pip install .*{name}`$"
    ):
        registry.get("clip_score").load(tmp_path)


@pytest.mark.parametrize(
    ("platform", "python", "pip", "command"),
    [
        ("linux", "/srv/comfy/bin/python3", True, "/srv/comfy/bin/python3 -m pip install a b"),
        ("linux", "/srv/A B/python", True, "'/srv/A B/python' -m pip install a b"),
        (
            "darwin",
            "/Applications/A B/.venv/bin/python",
            False,
            "uv pip install --python '/Applications/A B/.venv/bin/python' a b",
        ),
        ("win32", r"D:\c\python_embeded\python.exe", True, r"D:\c\python_embeded\python.exe -m pip install a b"),
        ("win32", r"D:\A & B\python.exe", True, r'"D:\A & B\python.exe" -m pip install a b'),
        (
            "win32",
            r"C:\c\.venv\Scripts\python.exe",
            False,
            r"uv pip install --python C:\c\.venv\Scripts\python.exe a b",
        ),
        ("linux", "", True, "python -m pip install a b"),
    ],
)
def test_what_installs_a_package_names_the_python_that_runs(monkeypatch, platform, python, pip, command):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(sys, "executable", python)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if pip else None)
    assert install_command("a", "b") == command


def test_the_command_runs_in_this_shell():
    if importlib.util.find_spec("pip") is None:
        pytest.skip("this Python has no pip")
    command = install_command("--help")
    assert subprocess.run(command, shell=True, capture_output=True).returncode == 0
