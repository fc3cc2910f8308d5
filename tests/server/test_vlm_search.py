"""Searches on a real ComfyUI server that ask a vision-language endpoint, and where the key goes."""

import json
import os
from pathlib import Path

import graphs
import numpy as np
import pytest
from graphs import node
from vlm_server import VLMServer, grade_brightness

pytestmark = pytest.mark.comfyui

KEY = "sk-very-secret-0123456789"


@pytest.fixture(scope="module")
def comfyui(tmp_path_factory):
    """A ComfyUI server of our own, since it must know a key."""
    comfy = os.environ.get("COMFYUI_PATH")
    if not comfy:
        pytest.skip("COMFYUI_PATH is not set")
    from comfy_server import ComfyServer

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY_KEY", KEY)
        patch.setenv("TINY_KEY_HOST", "127.0.0.1")
        with ComfyServer(Path(comfy), tmp_path_factory.mktemp("comfyui")) as running:
            yield running


@pytest.fixture
def endpoint():
    with VLMServer() as running:
        yield running


def search(endpoint, candidates=4, **settings):
    """A search whose verifier is VLM Grader on the endpoint: the demo's workflow with other judges."""
    defaults = {"key_variable": "TINY_KEY", "concurrency": 2, "timeout": 60, "max_calls": 100}
    prompt = graphs.fused(candidates=candidates)
    prompt["vlm"] = node("NoiseSearchVLMEndpoint", url=endpoint.url, model="tiny", **{**defaults, **settings})
    prompt["grader"] = node("NoiseSearchVLMGrader", vlm=["vlm", 0], samples=1, temperature=0.7)
    prompt["search"]["inputs"]["verifier"] = ["grader", 0]
    return prompt | {"report": node("NoiseSearchReport", log=["search", 5])}


def test_the_grades_choose_the_winner_and_every_column_is_reported(comfyui, endpoint):
    run = comfyui.run(search(endpoint))
    assert run.status == "success", run.error
    log = json.loads(run.outputs["report"]["noise_search_report"][0])
    overall = [candidate["values"][0][0] for candidate in log["candidates"]]
    assert overall == pytest.approx([10 * request.brightness for request in endpoint.requests], abs=1e-4)
    [picture] = comfyui.images(run, "save")
    assert np.asarray(picture).mean() / 25.5 == pytest.approx(max(overall), abs=0.03)
    assert len(log["members"]) == 6 and log["members"][0] == "VLM Grader (tiny)"
    assert all("a red circle above a blue square" in request.text for request in endpoint.requests)


def test_the_key_is_sent_and_is_nowhere_in_comfyui(comfyui, endpoint):
    run = comfyui.run(search(endpoint))
    assert endpoint.requests[0].headers["Authorization"] == f"Bearer {KEY}"
    [picture] = comfyui.images(run, "save")
    seen = [
        comfyui.log,
        json.dumps(comfyui.get("/history")),
        json.dumps(comfyui.get("/object_info")),
        str(picture.text),
    ]
    assert "TINY_KEY" in seen[1] and "TINY_KEY" in seen[3]
    assert not [text for text in seen if KEY in text]
    files = [path for path in comfyui.home.rglob("*") if path.is_file() and "custom_nodes" not in path.parts]
    assert files and not [path for path in files if KEY.encode() in path.read_bytes()]


def test_the_limit_of_calls_is_for_one_search(comfyui, endpoint):
    assert comfyui.run(search(endpoint, 3, max_calls=3)).status == "success"
    again = search(endpoint, 3, max_calls=3)
    again["search"]["inputs"]["seed"] = 99
    assert comfyui.run(again).status == "success"
    run = comfyui.run(search(endpoint, 5, max_calls=4, timeout=59))
    assert run.status == "error" and "has made 4 calls" in json.dumps(run.error)


def test_cancel_ends_the_wait_for_a_silent_server(comfyui, endpoint):
    def silent(request):
        comfyui.interrupt()

    endpoint.reply = silent
    run = comfyui.run(search(endpoint, timeout=600))
    assert run.status == "interrupted"
    endpoint.reply = grade_brightness
    assert comfyui.run(search(endpoint)).status == "success"
