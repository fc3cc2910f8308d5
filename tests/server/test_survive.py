"""An hour of search must not die: killed, out of disk or beside another server, it ends with its winner.

A power cut cannot be tried here; SQLite's promise for one rests on `synchronous = FULL` and on the disk.
"""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import graphs
import numpy as np
import pytest
from graphs import node

pytest.importorskip("comfy")

from comfy_server import ComfyServer
from noise_search.host.memory.store import Store

pytestmark = [
    pytest.mark.any_host,
    pytest.mark.comfyui,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here"),
]

ROOT = Path(__file__).resolve().parents[2]
KILLS = 6  # one for each kind of search, early, late and between


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    """What `benchmarks/survive.py` counts. A process of its own: this one may have threads, which no fork survives."""
    told = tmp_path_factory.mktemp("survive") / "counts.json"
    command = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / "survive.py"), "--kills", str(KILLS)]
    command += ["--candidates", "12"]
    run = subprocess.run([*command, "--json", str(told)], capture_output=True, text=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(told.read_text())


@pytest.mark.slow
def test_of_searches_that_are_killed_no_reported_candidate_is_lost(counts):
    assert counts["kills"] == KILLS
    assert counts["candidates reported before the kills"] > 0
    assert counts["of them lost"] == 0


@pytest.mark.slow
def test_nor_is_one_computed_twice(counts):
    assert counts["of them computed twice"] == 0


@pytest.mark.slow
def test_the_winner_is_that_of_a_search_that_never_stopped(counts):
    assert counts["winners with another recipe"] == counts["winners with another image"] == 0


@pytest.mark.slow
def test_the_file_is_sound_and_nothing_is_warned_of(counts):
    assert counts["files that are not sound"] == counts["new warnings"] == 0


def big(candidates):
    prompt = graphs.fused(seed=30, candidates=candidates, steps=4)
    prompt["latent"]["inputs"] |= {"width": 64, "height": 64}
    prompt["search"]["inputs"]["batch_size"] = 1
    return prompt | {"report": node("NoiseSearchReport", log=["search", 5])}


@pytest.mark.slow
def test_a_server_that_is_killed_and_started_again_goes_on(tmp_path):
    comfy, prompt, reported = Path(os.environ["COMFYUI_PATH"]), big(24), []

    def kill(message):
        if message.type == "text" and "candidate" in message.data:
            reported.append(int(message.data.split()[0]))
            if reported[-1] >= 5 and server.alive:
                server.process.kill()

    with ComfyServer(comfy, tmp_path, store=True) as server, pytest.raises((OSError, ConnectionError, ValueError)):
        server.run(prompt, kill)
    with ComfyServer(comfy, tmp_path, store=True) as server:
        resumed = server.run(prompt)
        picture = np.asarray(server.images(resumed, "save")[0])
        settings = json.dumps({"enabled": False}).encode()
        (tmp_path / "user" / "__noise_search" / "settings.json").write_bytes(settings)
        other = json.loads(json.dumps(prompt))
        other["search"]["inputs"]["frames"] = 7  # says nothing of images, and ComfyUI's own cache does not know it
        whole = server.run(other)
        expected = np.asarray(server.images(whole, "save")[0])
    assert resumed.status == "success", resumed.error
    log, never_stopped = (json.loads(run.outputs["report"]["noise_search_report"][0]) for run in (resumed, whole))
    assert reported[-1] <= log["recalled"]["candidates"] < 24
    assert never_stopped["recalled"]["candidates"] == 0
    assert [one["values"] for one in log["candidates"]] == [one["values"] for one in never_stopped["candidates"]]
    assert log["warnings"] == never_stopped["warnings"]
    assert np.array_equal(picture, expected)


# A disk that is full, a folder that cannot be written to, another server: each in a process of its own, forked from one
# that has everything loaded

LIMITS = [0, 10_000, 40_000, 70_000]
FORKS = """
import sys
sys.path.insert(0, {tests!r})
import conftest
import hashlib, json, os, resource, traceback
from pathlib import Path
import torch
torch.set_num_threads(1)
from remembered import Red
from tiny_models import sd3
from noise_search.host.demo import load_generator
from noise_search.host.sampling.engine import Options
from noise_search.host.sampling.stock import Sampling
from noise_search.host.graph.graph import Graph
from noise_search.host.search import run_node as search
from noise_search.host.memory.store import Store

STEPS, SEED, FOLDER = 6, 20, Path({folder!r})
tiny = sd3()
with torch.inference_mode():
    *_, vae = load_generator()  # its pictures are large enough to fill a disk


@torch.inference_mode()
def find(folder, candidates=8):
    latent = dict(samples=torch.zeros(1, 16, 8, 8))
    prompts = tiny.conditioning(1), tiny.conditioning(2)
    sampling = Sampling.ksampler(tiny.model, STEPS, 3.0, "euler", "simple", *prompts, latent)
    result = search(
        lambda: sampling, vae, Red(), SEED, candidates, "", 1, Graph(), "positive", options=Options(1),
        store=folder and Store(Path(folder)),
    )
    log = result.log
    image = hashlib.sha256(result.image.numpy().tobytes()).hexdigest()
    counts = dict(recalled=len(log.recalled), made=len(log.candidates))
    return dict(recipe=result.recipe, image=image, warnings=log.warnings, **counts)


def full(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    folder = FOLDER / f"full {{limit}}"
    found = find(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return dict(found, after=find(folder), last=find(folder))


def read_only(name):
    folder = FOLDER / name
    find(folder, 4) if name == "used" else folder.mkdir()
    os.chmod(folder, 0o555)
    for file in folder.iterdir():
        file.chmod(0o444)
    if os.getuid() == 0:  # permissions do not bind root
        os.setgid(65534)
        os.setuid(65534)
    return find(folder)


def shared(which):
    os.close(go)
    os.read(ready, 1)  # until both are there
    return find(FOLDER / "shared", 16)


def start(work, what):
    told = open(FOLDER / f"{{work.__name__}} {{what}}.json", "w")  # before it becomes somebody else
    if pid := os.fork():
        return pid
    try:
        json.dump(work(what), told)
    except BaseException:
        json.dump(dict(error=traceback.format_exc()), told)
    told.close()
    os._exit(0)


(FOLDER / "whole.json").write_text(json.dumps(find(None)))
for limit in {limits}:
    os.waitpid(start(full, limit), 0)
for name in ("used", "empty"):
    os.waitpid(start(read_only, name), 0)
ready, go = os.pipe()
two = [start(shared, which) for which in range(2)]
os.close(go)
for pid in two:
    os.waitpid(pid, 0)
"""


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    """The folder with what the forked searches found."""
    folder = tmp_path_factory.mktemp("forks")
    for part in (folder, *list(folder.parents)[:2]):  # root gives up its rights in one of them
        if part.stat().st_uid == os.getuid() and part != Path("/tmp"):
            part.chmod(0o755)
    script = FORKS.format(tests=str(ROOT / "tests"), folder=str(folder), limits=LIMITS)
    command = [sys.executable, "-W", "ignore", "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr[-3000:]
    return folder


def told(folder, name):
    found = json.loads((folder / f"{name}.json").read_text())
    assert "error" not in found, found["error"]
    return found


def outcome(found):
    return found["recipe"], found["image"], found["made"]


@pytest.mark.slow
@pytest.mark.parametrize("limit", LIMITS)
def test_where_the_disk_is_full_the_search_ends_with_its_image_and_says_so(forks, limit):
    """A limit on the size of a file stands for the disk: writes beyond it fail at the system call."""
    whole, full = told(forks, "whole"), told(forks, f"full {limit}")
    assert outcome(full) == outcome(whole) and whole["made"] == 8
    assert [text for text in full["warnings"] if "no longer remembered" in text and f"full {limit}" in text]


@pytest.mark.slow
@pytest.mark.parametrize("limit", LIMITS)
def test_once_there_is_room_again_it_remembers_as_before(forks, limit):
    whole, found = told(forks, "whole"), told(forks, f"full {limit}")
    assert (*outcome(found["after"]), found["after"]["warnings"]) == (*outcome(whole), whole["warnings"])
    assert found["last"]["recalled"] == 8
    assert is_sound(forks / f"full {limit}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["used", "empty"])
def test_where_the_folder_is_read_only_the_search_ends_with_its_image_and_says_so(forks, name):
    whole, found = told(forks, "whole"), told(forks, f"read_only {name}")
    assert outcome(found) == outcome(whole) and whole["made"] == 8
    assert [text for text in found["warnings"] if "no longer remembered" in text and str(forks / name) in text]


@pytest.mark.slow
def test_two_servers_on_one_folder_that_search_the_same_at_once_find_the_same(forks):
    first, second = (told(forks, f"shared {which}") for which in range(2))
    assert outcome(first) == outcome(second) and first["made"] == 16
    assert first["warnings"] == second["warnings"]
    assert not [warning for warning in first["warnings"] if "remembered" in warning]
    assert is_sound(forks / "shared")
    assert sum(one["candidates"] for one in Store(forks / "shared").overview()["searches"]) == 16


def is_sound(folder):
    connection = sqlite3.connect(folder / "evaluations.sqlite3")
    try:
        return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    finally:
        connection.close()
