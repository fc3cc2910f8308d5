"""Never a wrong reuse: what is not the same search finds nothing of another, and what is the same finds everything."""

import json
import os
import shutil
from pathlib import Path

import graphs
import numpy as np
import pytest
from graphs import node
from PIL import Image

pytest.importorskip("comfy")

import folder_paths
import safetensors.torch
import tiny_clips
import tiny_models
import torch
from comfy_server import ComfyServer
from noise_search.host import search as host_search
from noise_search.host.graph.graph import Graph
from noise_search.host.judging.hosted import HostedVerifier
from noise_search.host.sampling.stock import Sampling
from noise_search.verifiers.clip import CLIPScore
from remembered import CANDIDATES, NODES, Grey, find, known

import nodes

pytestmark = pytest.mark.comfyui

RED, GREEN, BLUE = "a red circle", "a green square", "a blue triangle"


# On a real server, over HTTP


def remembering(home, *arguments):
    (home / "custom_nodes").mkdir(parents=True, exist_ok=True)
    if not (home / "custom_nodes" / "test-nodes").exists():
        shutil.copytree(NODES, home / "custom_nodes" / "test-nodes")
    return ComfyServer(Path(os.environ["COMFYUI_PATH"]), home, *arguments, store=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("remembering")


@pytest.fixture(scope="module")
def server(home):
    """A server that remembers candidates. ComfyUI's own cache is off, so that every prompt runs again."""
    with remembering(home, "--cache-none") as running:
        yield running


def small(text=RED, seed=16, candidates=CANDIDATES, **sampler):
    """A search for 64x64 pictures, with a report; the verifier reads the same text."""
    prompt = graphs.fused(seed=seed, candidates=candidates, prompt=text, **sampler)
    prompt["positive"]["inputs"]["text"] = text
    prompt["latent"]["inputs"] |= {"width": 64, "height": 64}
    prompt["search"]["inputs"]["batch_size"] = 1
    return prompt | {"report": node("NoiseSearchReport", log=["search", 5])}


def with_text_of(class_type, *lines, seed):
    prompt = small(seed=seed) | {"texts": node(class_type, text="\n".join(lines))}
    prompt["positive"]["inputs"]["text"] = prompt["search"]["inputs"]["prompt"] = ["texts", 0]
    return prompt


class Ran:
    """What a finished run found: a log, a winner and how many candidates were known for each search in it."""

    def __init__(self, server, prompt):
        run = server.run(prompt)
        assert run.status == "success", run.error
        self.logs = [json.loads(text) for text in run.outputs["report"]["noise_search_report"]]
        self.pictures = [np.asarray(picture).tolist() for picture in server.images(run, "save")]
        self.known = [log["recalled"]["candidates"] for log in self.logs]
        self.computed = [log["nfe"] - log["recalled"]["nfe"] for log in self.logs]
        self.recipes = [log["winners"][0]["recipe"] for log in self.logs]
        self.warnings = [warning for log in self.logs for warning in log["warnings"]]


def test_of_a_prompt_list_each_text_finds_its_own(server):
    prompt = with_text_of("NoiseSearchTestTexts", RED, BLUE, GREEN, seed=100)
    first, again = Ran(server, prompt), Ran(server, prompt)
    assert [log["settings"]["prompt"] for log in first.logs] == [RED, BLUE, GREEN]
    assert first.known == [0, 0, 0]
    assert again.known == [CANDIDATES] * 3
    assert again.computed == [graphs.STEPS] * 3
    assert len({str(picture) for picture in first.pictures}) == 3
    assert again.pictures == first.pictures
    assert again.warnings == []


def test_a_text_of_a_list_is_the_same_search_as_the_text_alone(server):
    listed = Ran(server, with_text_of("NoiseSearchTestTexts", RED, BLUE, seed=200))
    alone = Ran(server, small(BLUE, seed=200))
    assert alone.known == [CANDIDATES]
    assert alone.pictures == listed.pictures[1:]


def test_a_wildcard_finds_what_belongs_to_the_text_that_it_drew(server):
    prompt = with_text_of("NoiseSearchTestWildcard", RED, BLUE, seed=300)
    first, second, third = (Ran(server, prompt) for _ in range(3))
    assert [run.logs[0]["settings"]["prompt"] for run in (first, second, third)] in (
        [RED, BLUE, RED],
        [BLUE, RED, BLUE],
    )
    assert [run.known for run in (first, second, third)] == [[0], [0], [CANDIDATES]]
    assert third.pictures == first.pictures != second.pictures


def test_the_text_of_the_verifier_alone_makes_another_search(server):
    first = small(RED, seed=400)
    other = small(RED, seed=400)
    other["search"]["inputs"]["prompt"] = BLUE
    assert Ran(server, first).known == Ran(server, other).known == [0]


def bitmap(path, colour):
    """A picture in a file whose size does not depend on what it shows, and that never gets any older."""
    Image.new("RGB", (64, 64), colour).save(path, "BMP")
    os.utime(path, ns=(10**18, 10**18))


def test_an_edited_image_of_the_same_name_size_and_time_is_another(server, home):
    prompt = small(seed=500, denoise=0.7) | {
        "picture": node("LoadImage", image="start.bmp"),
        "latent": node("VAEEncode", pixels=["picture", 0], vae=["demo", 2]),
    }
    file = home / "input" / "start.bmp"
    bitmap(file, "white")
    first = Ran(server, prompt)
    bitmap(file, "black")
    edited = Ran(server, prompt)
    bitmap(file, "white")
    back = Ran(server, prompt)
    assert (first.known, edited.known, back.known) == ([0], [0], [CANDIDATES])
    assert back.pictures == first.pictures != edited.pictures


def test_after_a_restart_the_same_prompt_renders_its_winner_alone(tmp_path):
    prompt = small(seed=600)
    with remembering(tmp_path) as server:
        first = Ran(server, prompt)
    with remembering(tmp_path) as server:
        again = Ran(server, prompt)
        larger = Ran(server, small(seed=600, candidates=CANDIDATES + 2))
    assert first.known == [0]
    assert again.known == [CANDIDATES]
    assert again.computed == [graphs.STEPS]
    assert (again.pictures, again.recipes, again.warnings) == (first.pictures, first.recipes, [])
    assert larger.known == [CANDIDATES]


def test_a_result_that_ended_early_is_not_served_from_comfyuis_cache_and_goes_on(tmp_path):
    prompt = small(seed=700, candidates=40, steps=2)
    with remembering(tmp_path) as server:
        asked = []

        def finish_now(message):
            if message.type == "text" and not asked:
                asked.append(json.loads(server.post("/noise_search/finish", {"node_id": "search"})))

        early = server.run(prompt, finish_now)
        assert asked == [{"finishing": ["search"]}]
        [log] = map(json.loads, early.outputs["report"]["noise_search_report"])
        scored = len(log["candidates"])
        assert scored < 40
        resumed = Ran(server, prompt)
        third = server.run(prompt)
        cached = [name for message in third.of_type("execution_cached") for name in message["nodes"]]
    assert len(resumed.logs[0]["candidates"]) == 40
    assert resumed.known == [scored]
    assert "search" in cached


# In this process


def sd3(model=None):
    tiny = tiny_models.BUILDERS["sd3"]()
    conditioning = tiny.conditioning(1), tiny.conditioning(2)
    return Sampling.ksampler(model or tiny.model, 3, 3.0, "euler", "simple", *conditioning, tiny.latent())


@pytest.fixture
def lora(tmp_path, monkeypatch):
    """A LoRA file that can be written with other weights, and a MODEL with it by ComfyUI's own loader."""
    folder = tmp_path / "loras"
    folder.mkdir()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folder)], {".safetensors"}))
    tiny = tiny_models.BUILDERS["sd3"]()

    class File:
        path = folder / "style.safetensors"

        def write(self, seed):
            safetensors.torch.save_file(tiny.lora(seed), self.path)

        def sampling(self):
            loader = nodes.LoraLoaderModelOnly()
            return sd3(loader.load_lora_model_only(tiny.model, self.path.name, 1.0)[0])

        graph = Graph(
            "2",
            {
                "1": {"class_type": "LoraLoaderModelOnly", "inputs": {"lora_name": "style.safetensors"}},
                "2": {"class_type": "NoiseSearchKSampler", "inputs": {"model": ["1", 0]}},
            },
        )

        def find(self, store):
            return find(store, self.sampling(), graph=self.graph)

    return File()


def test_a_lora_file_that_is_replaced_by_another_of_the_same_name_is_another(store, lora):
    lora.write(1)
    first, again = lora.find(store), lora.find(store)
    lora.write(2)
    replaced = lora.find(store)
    assert known(first, again, replaced) == [0, CANDIDATES, 0]
    assert not torch.equal(first.image, replaced.image)


def test_so_it_is_where_size_and_time_are_the_same_too(store, lora):
    lora.write(1)
    before = lora.path.stat()
    first = lora.find(store)
    lora.write(2)
    os.utime(lora.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = lora.path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    replaced = lora.find(store)
    assert known(first, replaced) == [0, 0]
    assert not torch.equal(first.image, replaced.image)


def test_another_verifier_file_of_the_same_name_is_another(store, tmp_path):
    def judge(seed):
        folder = tmp_path / "clip"
        shutil.rmtree(folder, ignore_errors=True)
        tiny_clips.save_open_clip_folder(folder, tiny_clips.open_clip_model(seed=seed))
        return HostedVerifier(CLIPScore.load(folder))

    first, again, other = (find(store, sd3(), judge(seed)) for seed in (0, 0, 1))
    assert known(first, again, other) == [0, CANDIDATES, 0]
    assert first.log.candidates[0].values != other.log.candidates[0].values


@pytest.mark.parametrize("part", ["comfyui", "noise_search", "torch"])
def test_another_version_is_another(store, monkeypatch, part):
    first, again = find(store, sd3()), find(store, sd3())
    versions = host_search.host_info()
    monkeypatch.setattr(host_search, "host_info", lambda: {**versions, part: "0.0.0"})
    newer = find(store, sd3())
    assert known(first, again, newer) == [0, CANDIDATES, 0]


def test_finished_early_in_this_process_it_goes_on(store):
    early = find(store, sd3(), Grey(at=2), graph=Graph("node"))
    assert len(early.log.candidates) == 2
    rest = find(store, sd3(), graph=Graph("node"))
    whole = find(None, sd3())
    assert known(rest) == [2]
    assert torch.equal(rest.image, whole.image)
