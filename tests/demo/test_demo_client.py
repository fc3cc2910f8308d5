"""The demo's client: what it queues, what it shows, what it says when something fails."""

from __future__ import annotations

import importlib
import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def client():
    """As `python -m demo.client` finds it: from the root of the project."""
    before = sys.path[:]
    sys.path.append(str(ROOT))
    yield importlib.import_module("demo.client")
    sys.path[:] = before


def run(*arguments):
    command = [sys.executable, "-m", "demo.client", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")


def test_stock_is_the_search_without_searching(client):
    """Same model, same seed, same settings: the two pictures differ by the search alone."""
    for graph in (client.workflow(), client.workflow("a red circle", 5, 3)):
        search, stock = graph["search"]["inputs"], graph["stock-sample"]["inputs"]
        assert stock == {name: search[name] for name in stock}
        assert set(client.PICTURES) <= set(graph)
    assert graph["positive"]["inputs"]["text"] == "a red circle"
    assert (search["seed"], search["candidates"]) == (5, 3)


def test_the_default_prompt_is_in_the_world(client):
    from noise_search.demo.world import parse

    prompt = client.workflow()["positive"]["inputs"]["text"]
    assert str(parse(prompt)) == prompt


def test_progress_of_the_search_alone(client):
    state = {"prompt_id": "p", "nodes": {"search": {"value": 3, "max": 12}, "stock-sample": {"value": 1, "max": 1}}}
    assert client.progress("progress_state", state) == 0.25
    assert client.progress("progress_state", {"nodes": {"stock-sample": {"value": 1, "max": 2}}}) is None
    assert client.progress("progress", {"node": "search", "value": 6, "max": 12}) == 0.5
    assert client.progress("progress", {"node": "stock-sample", "value": 6, "max": 12}) is None
    assert client.progress("status", {}) is None


def test_the_line_of_text_on_the_node(client):
    assert client.node_text(struct.pack(">II", 3, 6) + b"search" + "best 0.3 · stock".encode()) == "best 0.3 · stock"
    assert client.node_text(struct.pack(">II", 1, 2) + b"a preview") == ""


def test_a_refused_workflow_names_the_node(client):
    error = {"message": "Value not in list", "details": "sampler_name: 'x'"}
    answer = {
        "error": {"message": "Prompt outputs failed validation"},
        "node_errors": {"search": {"class_type": "NoiseSearchKSampler", "errors": [error]}},
    }
    text = client.rejection(answer)
    assert "Prompt outputs failed validation" in text
    assert "NoiseSearchKSampler (search): Value not in list: sampler_name: 'x'" in text


def test_a_prompt_outside_the_world_is_not_judged(client, tmp_path):
    from PIL import Image

    Image.new("RGB", (128, 128)).save(tmp_path / "winner.png")
    assert client.verdict(tmp_path / "winner.png", "a portrait of my cat").startswith("not judged: ")
    assert client.verdict(tmp_path / "winner.png", "a red circle").startswith("not as asked - found: ")


def test_no_server(tmp_path):
    done = run("--url", "http://127.0.0.1:9", "--output", tmp_path)
    assert done.returncode == 1 and "Lost the connection to ComfyUI" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.comfyui
def test_the_demo(server, tmp_path, client):
    """The real thing, with fewer noises."""
    from PIL import Image

    done = run("--url", server.url, "--output", tmp_path, "--candidates", 3, "--seed", 11)
    assert done.returncode == 0, done.stderr
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["contact-sheet.png", "report.json", "score-curve.png", "stock.png", "winner.png"]
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [candidate["recipes"][0]["seed"] for candidate in report["candidates"]] == [11, 12, 13]
    scores = [candidate["scores"][0] for candidate in report["candidates"]]
    [winner] = report["winners"]
    assert winner["score"] == max(scores)
    for text in (f"first {scores[0]:.4f}", f"best {max(scores):.4f} of 3", f"{report['nfe']} NFE", "Stock ", "Winner "):
        assert text in done.stdout
    with Image.open(tmp_path / "winner.png") as image:
        assert json.loads(image.text["noise_search"])["search"][0]["seed"] == winner["seed"]
    # The stock picture of the winner's seed is the winner.
    again = tmp_path / "again"
    again.mkdir()
    assert run("--url", server.url, "--output", again, "--candidates", 1, "--seed", winner["seed"]).returncode == 0
    with Image.open(tmp_path / "winner.png") as a, Image.open(again / "stock.png") as b:
        assert a.tobytes() == b.tobytes()


@pytest.mark.comfyui
def test_a_failing_node_is_named(server, tmp_path):
    done = run("--url", server.url, "--output", tmp_path, "--candidates", 1, "--prompt", "")
    assert done.returncode == 1
    assert "NoiseSearchKSampler (search) failed: " in done.stderr
    assert list(tmp_path.iterdir()) == []
