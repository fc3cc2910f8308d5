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
KILLS = 8


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    """What `benchmarks/survive.py` counts. A process of its own: this one may have threads, which no fork survives."""
    told = tmp_path_factory.mktemp("survive") / "counts.json"
    command = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / "survive.py"), "--kills", str(KILLS)]
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
    comfy, prompt, reported = Path(os.environ["COMFYUI_PATH"]), big(40), []

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
    assert reported[-1] <= log["recalled"]["candidates"] < 40
    assert never_stopped["recalled"]["candidates"] == 0
    assert [one["values"] for one in log["candidates"]] == [one["values"] for one in never_stopped["candidates"]]
    assert log["warnings"] == never_stopped["warnings"]
    assert np.array_equal(picture, expected)


# A disk that is full, a folder that cannot be written to, another server: each in a process of its own

ENGINE = """
import sys
sys.path.insert(0, {tests!r})
import conftest
import hashlib, json, os, resource
from pathlib import Path
import torch
torch.set_num_threads(1)
from remembered import Red
from noise_search.host.demo import load_generator
from noise_search.host.sampling.engine import Options
from noise_search.host.sampling.stock import Sampling
from noise_search.host.graph.graph import Graph
from noise_search.host.search import run_node as search
from noise_search.host.memory.store import Store

STEPS, SEED = 6, 20
with torch.inference_mode():
    model, clip, vae = load_generator()
    encode = lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text))
    positive, negative = encode("a red circle above a blue square"), encode("")


@torch.inference_mode()
def find(folder, candidates=12, batch_size=1):
    latent = dict(samples=torch.zeros(1, 16, 8, 8))
    sampling = Sampling.ksampler(model, STEPS, 3.0, "euler", "simple", positive, negative, latent)
    result = search(
        lambda: sampling, vae, Red(), SEED, candidates, "", 1, Graph(), "positive", options=Options(batch_size),
        store=folder and Store(Path(folder)),
    )
    log = result.log
    image = hashlib.sha256(result.image.numpy().tobytes()).hexdigest()
    counts = dict(recalled=len(log.recalled), made=len(log.candidates))
    return dict(recipe=result.recipe, image=image, warnings=log.warnings, **counts)


def tell(**found):
    print("FOUND " + json.dumps(found), flush=True)
"""


def start(script, **options):
    code = ENGINE.format(tests=str(ROOT / "tests")) + script
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options,
    )  # fmt: skip


def answer(process):
    """What the script told."""
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(next(line for line in out.splitlines() if line.startswith("FOUND ")).removeprefix("FOUND "))


LIMITS = [0, 10_000, 40_000, 90_000]
FULL = """
told = dict(whole=find(None))
for limit in LIMITS:
    folder = FOLDER + str(limit)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    full = find(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    told[limit] = dict(folder=folder, full=full, after=find(folder), last=find(folder))
tell(**{str(key): value for key, value in told.items()})
"""


@pytest.fixture(scope="module")
def full_disks(tmp_path_factory):
    """Searches on a disk that is full, by how much goes onto it. A limit on the size of a file stands for it: writes
    beyond it fail at the system call."""
    folder = str(tmp_path_factory.mktemp("full") / "store")
    return answer(start(FULL.replace("LIMITS", str(LIMITS)).replace("FOLDER", repr(folder))))


@pytest.mark.slow
@pytest.mark.parametrize("limit", LIMITS)
def test_where_the_disk_is_full_the_search_ends_with_its_image_and_says_so(full_disks, limit):
    whole, found = full_disks["whole"], full_disks[str(limit)]
    full = found["full"]
    assert (full["recipe"], full["image"], full["made"]) == (whole["recipe"], whole["image"], 12)
    assert [text for text in full["warnings"] if "no longer remembered" in text and found["folder"] in text]


@pytest.mark.slow
@pytest.mark.parametrize("limit", LIMITS)
def test_once_there_is_room_again_it_remembers_as_before(full_disks, limit):
    whole, found = full_disks["whole"], full_disks[str(limit)]
    after = found["after"]
    assert (after["recipe"], after["image"], after["warnings"]) == (whole["recipe"], whole["image"], whole["warnings"])
    assert found["last"]["recalled"] == 12
    assert is_sound(Path(found["folder"]))


READ_ONLY = """
whole = find(None)
first = find(FOLDER, 4)
os.chmod(FOLDER, 0o555)
for file in Path(FOLDER).iterdir():
    file.chmod(0o444)
if os.getuid() == 0:  # permissions do not bind root
    os.setgid(65534)
    os.setuid(65534)
tell(whole=whole, full=find(FOLDER))
"""


@pytest.mark.slow
@pytest.mark.parametrize("before", ["first = find(FOLDER, 4)", "Path(FOLDER).mkdir()"], ids=["used", "empty"])
def test_where_the_folder_is_read_only_the_search_ends_with_its_image_and_says_so(tmp_path, before):
    for part in (tmp_path, *list(tmp_path.parents)[:3]):
        if part.stat().st_uid == os.getuid() and part != Path("/tmp"):
            part.chmod(0o755)
    folder = tmp_path / "store"
    script = READ_ONLY.replace("first = find(FOLDER, 4)", before).replace("FOLDER", repr(str(folder)))
    found = answer(start(script))
    whole, full = found["whole"], found["full"]
    assert (full["recipe"], full["image"], full["made"]) == (whole["recipe"], whole["image"], 12)
    assert [warning for warning in full["warnings"] if "no longer remembered" in warning and str(folder) in warning]


TWO = """
print("READY", flush=True)
sys.stdin.readline()
found = find(FOLDER, 24)
tell(**found)
"""


@pytest.mark.slow
def test_two_servers_on_one_folder_that_search_the_same_at_once_find_the_same(tmp_path):
    folder = tmp_path / "store"
    two = [start(TWO.replace("FOLDER", repr(str(folder)))) for _ in range(2)]
    for process in two:
        assert process.stdout.readline() == "READY\n"
    for process in two:
        process.stdin.write("go\n")
        process.stdin.flush()
    first, second = map(answer, two)
    assert (first["recipe"], first["image"]) == (second["recipe"], second["image"])
    assert first["made"] == second["made"] == 24
    assert first["warnings"] == second["warnings"]
    assert not [warning for warning in first["warnings"] if "remembered" in warning]
    assert is_sound(folder)
    assert sum(one["candidates"] for one in Store(folder).overview()["searches"]) == 24


def is_sound(folder):
    connection = sqlite3.connect(folder / "evaluations.sqlite3")
    try:
        return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    finally:
        connection.close()
