"""The files that a graph names are read by their content: neither place nor date of a file is in it."""

import json
import os

import pytest

pytest.importorskip("comfy")

import folder_paths
from graphs import node
from noise_search.host.graph import files
from noise_search.host.graph.files import contents
from noise_search.host.memory.key import files_behind
from noise_search.nodes.verifiers import CLIPScore

import nodes as comfy_nodes

pytestmark = pytest.mark.comfyui


class ListsVerifiers:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model_name": (["a-model", "clip_vision/whole.safetensors", "taesd"], {})}}


class ListsTypes:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"type": (["stable_diffusion", "sd3", "flux", "wan"],), "device": (["default", "cpu"],)}}


class ListsLoras:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": (["None", *folder_paths.get_filename_list("loras")],)}}


class Breaks:
    @classmethod
    def INPUT_TYPES(cls):
        raise RuntimeError("as packs do")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Empty model folders, and folders for input, output and temp; a function that moves them elsewhere."""
    kinds = ("checkpoints", "loras", "embeddings", "vae_approx", "clip_vision", "text_encoders", "verifiers")

    def settle(place):
        for kind in kinds:
            (place / "models" / kind).mkdir(parents=True, exist_ok=True)
        known = {kind: ([str(place / "models" / kind)], {".safetensors", ".pt", ".json"}) for kind in kinds}
        monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
        monkeypatch.setattr(folder_paths, "filename_list_cache", {})
        for kind in ("input", "output", "temp"):
            (place / kind).mkdir(exist_ok=True)
            monkeypatch.setattr(folder_paths, f"{kind}_directory", str(place / kind))
        return place

    for kind in (ListsVerifiers, ListsTypes, ListsLoras, Breaks, CLIPScore):
        monkeypatch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, kind.__name__, kind)
    settle(tmp_path / "here")
    settle.here, settle.there = tmp_path / "here", tmp_path / "there"
    return settle


def put(path, data, seconds=1000):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (seconds, seconds))


# What the graph says -> where the file is.
NAMED = [
    (node("CheckpointLoaderSimple", ckpt_name="sub/model.safetensors"), "models/checkpoints/sub/model.safetensors"),
    (node("LoraLoader", lora_name="style.safetensors"), "models/loras/style.safetensors"),
    (node("OfAnotherPack", anything="style.safetensors"), "models/loras/style.safetensors"),
    (node("Breaks", anything="style.safetensors"), "models/loras/style.safetensors"),
    (node("LoadImage", image="ref.png"), "input/ref.png"),
    (node("LoadImage", image="sub/ref.png [input]"), "input/sub/ref.png"),
    (node("LoadImageMask", image="ref.png [output]", channel="red"), "output/ref.png"),
    (node("LoadImage", image="clipspace/mask.png [temp]"), "temp/clipspace/mask.png"),
    (node("LoadLatent", latent="some.latent"), "input/some.latent"),
    (node("LoadVideo", file="film.mp4"), "input/film.mp4"),
    (node("Load3D", image={"image": "3d/seen.png [temp]", "mask": "3d/seen.png [temp]"}), "temp/3d/seen.png"),
    (node("CLIPTextEncode", text="a cat, (embedding:fluffy:1.2), at night"), "models/embeddings/fluffy.pt"),
    (node("CLIPTextEncode", text="embedding:sub/fluffy.pt, a cat"), "models/embeddings/sub/fluffy.pt"),
    (node("CLIPTextEncode", text="two\nlines, embedding:fluffy,"), "models/embeddings/sub/fluffy.safetensors"),
    (node("OfAnotherPack", text="a cat <lora:style:0.8>"), "models/loras/sub/style.safetensors"),
    (node("ListsVerifiers", model_name="a-model"), "models/verifiers/a-model/model.safetensors"),
    (node("CLIPScore", model_name="a-model"), "models/verifiers/a-model/open_clip_config.json"),
    (node("ListsVerifiers", model_name="clip_vision/whole.safetensors"), "models/clip_vision/whole.safetensors"),
    (node("ListsVerifiers", model_name="taesd"), "models/vae_approx/taesd_decoder.pt"),
]


@pytest.mark.parametrize(("loader", "file"), NAMED, ids=[f"{one['class_type']} {file}" for one, file in NAMED])
def test_a_file_counts_by_its_bytes(home, loader, file):
    graph = {"1": loader, "2": node("KSampler", model=["1", 0])}
    assert contents(graph, "2") == {}
    put(home.here / file, b"first")
    first = contents(graph, "2")
    assert len(first) == 1
    put(home.here / file, b"first", seconds=2000)
    assert contents(graph, "2") == first
    put(home.here / file, b"other")
    assert contents(graph, "2").keys() == first.keys()
    assert contents(graph, "2") != first
    put(home(home.there) / file, b"first", seconds=3000)
    assert contents(graph, "2") == first
    assert contents(graph, "1") == first
    assert contents({"1": loader, "2": node("KSampler")}, "2") == {}


def test_of_two_files_of_one_name_the_one_counts_that_the_node_lists(home):
    graph = {"1": node("ListsLoras", name="same.safetensors")}
    put(home.here / "models/checkpoints/another.safetensors", b"another")
    put(home.here / "models/loras/same.safetensors", b"lora")
    alone = contents(graph, "1")
    put(home.here / "models/checkpoints/same.safetensors", b"checkpoint")
    assert contents(graph, "1") == alone
    put(home.here / "models/loras/same.safetensors", b"arol")
    assert contents(graph, "1") != alone


@pytest.mark.parametrize("place", ["models/loras", "input"])
def test_a_choice_that_is_called_like_somebodys_folder_is_no_folder(home, place):
    graph = {"1": node("ListsTypes", type="flux", device="cpu")}
    put(home.here / place / "flux/style.safetensors", b"lora")
    assert contents(graph, "1") == {}


def test_a_file_at_a_full_path(home, tmp_path):
    graph = {"1": node("LoadFromPath", path=str(tmp_path / "ref.png")), "2": node("LoadAll", folder=str(tmp_path))}
    put(tmp_path / "ref.png", b"first")
    put(tmp_path / "secret.txt", b"mine")
    first = contents(graph, "1"), contents(graph, "2")
    put(tmp_path / "secret.txt", b"ours")
    assert (contents(graph, "1"), contents(graph, "2")) == first
    assert contents({"1": node("LoadFromPath", path=str(tmp_path / "secret.txt"))}, "1") == {}
    put(tmp_path / "ref.png", b"other")
    assert contents(graph, "1") != first[0] and contents(graph, "2") != first[1]
    whole = contents(graph, "2")
    put(tmp_path / "deeper" / "ref.png", b"nobody named it")
    assert contents(graph, "2") == whole


def test_the_name_of_a_linked_node_is_no_file(home):
    put(home.here / "input/ref.png", b"a file that is called like a node, whose name may be anything")
    graph = {"ref.png": node("Text"), "2": node("LoadImage", image=["ref.png", 0])}
    assert contents(graph, "2") == {}


def test_a_full_path_on_another_drive_of_windows(home, tmp_path, monkeypatch):
    def get_full_path(folder, name):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    path = tmp_path / "ref.png"
    graph = {"1": node("LoadFromPath", path=str(path)), "2": node("KSampler", image=["1", 0])}
    put(path, b"first")
    first = contents(graph, "2")
    monkeypatch.setattr(folder_paths, "get_full_path", get_full_path)
    assert contents(graph, "2") == first != {}
    assert files_behind(graph, "2") == []


STRANGE = ["", "/", "..", ".", "../here/input/ref.png", "../../x.png", "a\0b.png", "x" * 5000, "a cat.", "euler", None]


@pytest.mark.parametrize("value", [*STRANGE, 5, 1.5, {"a": [None]}, [["1", 0], "x.png"]])
def test_what_is_no_file_is_none(home, value):
    put(home.here / "input/ref.png", b"first")
    put(home.here / "x.png", b"outside")
    (home.here / "input" / "euler").mkdir()
    found = contents({"1": node("LoadImage", image=value)}, "1")
    assert set(found) <= {"/"}


def test_a_large_file_is_read_in_samples_once(home, monkeypatch):
    monkeypatch.setattr(files, "MAX_WHOLE_BYTES", 6400)
    graph = {"1": node("CheckpointLoaderSimple", ckpt_name="model.safetensors")}
    path, size = home.here / "models/checkpoints/model.safetensors", 10**6
    put(path, bytes(size))
    first = contents(graph, "1")
    read = files._read.cache_info().misses
    assert contents(graph, "1") == first and files._read.cache_info().misses == read
    for place in (0, size // 63, size - 1):  # the first, one in the middle, the last
        data = bytearray(size)
        data[place] = 1
        put(path, bytes(data))
        assert contents(graph, "1") != first
    put(path, bytes(size + 1))
    assert contents(graph, "1") != first
    assert json.loads(json.dumps(first)) == first


def test_the_hashes_stay_those_that_saved_pictures_carry(home):
    """Were a file read in other blocks, every picture saved before would be searched anew."""
    models = home.here / "models/checkpoints"
    put(models / "small.safetensors", b"small")
    with open(models / "large.safetensors", "wb") as large:
        for part in range(66):
            large.seek(part * 2**20 + 77 * part)
            large.write(bytes([part + 1]) * 1000)
    graph = {"1": node("CheckpointLoaderSimple", ckpt_name="small.safetensors", more="large.safetensors")}
    assert contents(graph, "1") == {
        "small.safetensors": "3ce5bc56199884d5",
        "large.safetensors": "08a479f95369badf",
    }
