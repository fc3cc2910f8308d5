"""What a search hands on: the prompt as text, metadata, and videos."""

import gc
import hashlib
import json
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("comfy")

from noise_search.host.graph.finish import fingerprint, finish
from noise_search.host.graph.graph import Graph
from noise_search.host.judging.hosted import load_demo_verifier
from noise_search.host.pictures import pixels_sha256
from noise_search.host.sampling.engine import ComfyEngine
from noise_search.host.sampling.stock import Sampling
from noise_search.host.search import run_node as search
from noise_search.search.algorithms.replay import ReplayRecipe
from noise_search.search.judges import gated
from noise_search.search.recipe import METADATA, Recipe

import nodes as comfy_nodes


class VideoVae:
    """Decodes every latent to 3 frames of 4x4 pixels, brighter from frame to frame."""

    def decode(self, samples):
        frames = samples.mean(dim=(1, 2, 3)).sigmoid()[:, None] * torch.tensor([0.2, 0.4, 0.6])
        return frames[:, :, None, None, None].expand(-1, -1, 4, 4, 3)


def run(demo, verifier, batch=1, vae=None, graph=None, seed=3, candidates=3):
    latent = {"samples": torch.zeros(batch, 16, 8, 8)}
    with torch.inference_mode():
        return search(
            lambda: Sampling.ksampler(demo.model, 2, 1.0, "euler", "simple", demo.positive, demo.negative, latent),
            vae or demo.vae,
            verifier,
            seed,
            candidates,
            "",
            1,
            graph or Graph(),
            "positive",
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_hash_of_a_picture_is_that_of_the_saved_one(tmp_path, dtype):
    """With --fp16-intermediates ComfyUI saves from half precision, which rounds otherwise."""
    image = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    saver = comfy_nodes.SaveImage()
    saver.output_dir = str(tmp_path)
    [entry] = saver.save_images(image[None])["ui"]["images"]
    saved = np.asarray(Image.open(tmp_path / entry["filename"]))
    assert pixels_sha256(image) == hashlib.sha256(saved.tobytes()).hexdigest()


def test_a_vae_that_gives_bf16_does_not_cost_the_search():
    image = torch.rand(4, 4, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert pixels_sha256(image) == pixels_sha256(image.float())


def test_a_prompt_that_is_cut_is_told_in_the_log_once(demo):
    text = "a red circle above a blue square " * 5
    encoder = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["demo", 1], "text": text}}
    loader = {"class_type": "NoiseSearchDemoCheckpoint", "inputs": {}}
    node = {"class_type": "NoiseSearchKSampler", "inputs": {"positive": ["encode", 0], "prompt": ""}}
    graph = Graph("search", {"search": node, "encode": encoder, "demo": loader})
    judge = gated(load_demo_verifier(), -100.0)
    said = [one for one in run(demo, judge, graph=graph).log.to_dict()["warnings"] if "token" in one]
    assert len(said) == 1 and "the first 16 of 37 tokens of the prompt, up to '...above a blue square'" in said[0]


def test_a_video_is_scored_by_the_mean_of_its_frames(demo, brightness):
    result = run(demo, brightness, vae=VideoVae())
    best = result.log.best()
    assert result.image.shape == (3, 4, 4, 3)
    assert best.values[0][0] == pytest.approx(result.image[..., 0].mean().item(), abs=1e-6)


def test_the_frames_of_a_batch_of_videos_stay_together(demo, brightness):
    result = run(demo, brightness, batch=2, vae=VideoVae())
    level = result.image[:, 0, 0, 0].reshape(2, 3)
    assert torch.allclose(level[:, 1] / level[:, 0], torch.tensor([2.0, 2.0]))
    assert [len(candidate.values) for candidate in result.log.candidates] == [2, 2, 2]


def test_the_recipe_goes_into_the_metadata_once_per_run(demo, brightness):
    graph = Graph("9", None, {})
    seeds = [run(demo, brightness, graph=graph, seed=seed).seed for seed in (3, 300)]
    assert [entry["seed"] for entry in graph.extra_pnginfo[METADATA]["9"]] == seeds


def test_the_metadata_tells_the_winner_from_other_pictures(demo, brightness):
    graph = Graph("9", None, {})
    result = run(demo, brightness, graph=graph)
    saved = (255.0 * result.image[0]).clamp(0, 255).to(torch.uint8)
    assert graph.extra_pnginfo[METADATA]["9"][0]["sha256"] == [hashlib.sha256(saved.numpy().tobytes()).hexdigest()]


def test_a_node_that_an_expansion_put_there_is_the_users_node_to_the_user(demo, monkeypatch):
    """Its metadata, its texts, and Finish now by either id, which leaves both results of it incomplete."""
    shown = []
    monkeypatch.setattr("noise_search.host.progress.running_server", lambda: Told(shown))
    prompt = {"9": {"class_type": "Outer", "inputs": {}}, "9.0.0.inner": {"class_type": "Inner", "inputs": {}}}
    for asks in ("9", "9.0.0.inner"):
        extra = {"workflow": {}}
        graph = Graph("9.0.0.inner", prompt, extra, display_id="9")
        before = [fingerprint(SimpleNamespace(unique_id=node_id)) for node_id in prompt]
        assert run(demo, Finishes(asks), graph=graph).log.ended_early
        assert set(extra[METADATA]) == set(extra["workflow"]["extra"][METADATA]) == {"9"}
        assert fingerprint(SimpleNamespace(unique_id="9")) == before[0] + 1
        assert fingerprint(SimpleNamespace(unique_id="9.0.0.inner")) == before[1] + 1
    assert set(shown) == {"9"}


class Told:
    client_id = "somebody"

    def __init__(self, shown):
        self.shown = shown

    def send_progress_text(self, text, node_id, client_id):
        self.shown.append(node_id)


class Finishes:
    """Has somebody press Finish now."""

    members, needs_prompt, usual_range = ("grey",), False, (0.0, 1.0)

    def __init__(self, node_id):
        self.node_id = node_id

    def score(self, images, prompts):
        assert finish(self.node_id) == ["9"]
        return images.float().mean(dim=(1, 2, 3)).reshape(-1, 1)


def replay(demo, verifier, recipe, batch=1, batch_index=None):
    latent = {"samples": torch.zeros(batch, 16, 8, 8)}
    if batch_index is not None:
        latent["batch_index"] = batch_index
    sampling = Sampling.ksampler(demo.model, 2, 1.0, "euler", "simple", demo.positive, demo.negative, latent)
    with torch.inference_mode():
        return search(lambda: sampling, demo.vae, verifier, 3, 1, "", 1, Graph(), "positive", ReplayRecipe((recipe,)))


@pytest.mark.parametrize(
    ("recipe", "batch"), [(Recipe(42, row=1, batch=2), 2), (Recipe(42, batch=3), 2), (Recipe(42, batch=2), 1)]
)
def test_a_replayed_recipe_that_does_not_fit_the_latent_is_refused(demo, brightness, recipe, batch):
    with pytest.raises(ValueError, match=f"but the latent has {batch} items"):
        replay(demo, brightness, recipe, batch)


def test_a_replayed_item_of_a_batch_is_that_item(demo, brightness):
    recipe = Recipe(42, row=1, batch=2)
    assert json.loads(replay(demo, brightness, recipe).recipe) == recipe.to_dict()


def test_a_replay_without_steps_keeps_its_recipe(demo, brightness):
    latent = {"samples": torch.zeros(1, 16, 8, 8)}
    sampling = Sampling.ksampler(
        demo.model, 2, 1.0, "euler", "simple", demo.positive, demo.negative, latent, denoise=0.0
    )
    algorithm = ReplayRecipe((Recipe.from_seed(77),))
    with torch.inference_mode():
        result = search(lambda: sampling, demo.vae, brightness, 3, 1, "", 1, Graph(), "positive", algorithm)
    assert json.loads(result.recipe)["seed"] == 77


def test_a_finished_search_does_not_wait_for_the_garbage_collector(demo, brightness, monkeypatch):
    made = []
    init = ComfyEngine.__init__
    monkeypatch.setattr(
        ComfyEngine, "__init__", lambda self, *args: (init(self, *args), made.append(weakref.ref(self)))[0]
    )
    gc.collect()
    gc.disable()
    try:
        result = run(demo, brightness)
        assert made[0]() is None
    finally:
        gc.enable()
    assert result.log.candidates
