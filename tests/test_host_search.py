"""What a search hands on: the prompt as text, metadata, and videos."""

import hashlib

import pytest
import torch

pytest.importorskip("comfy")

from noise_search.host.sampling import Sampling
from noise_search.host.search import METADATA_KEY, Graph, plain_text, search


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


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a (red:1.3) cat", "a red cat"),
        ("((red)) cat", "red cat"),
        (r"a cat \(sitting\)", "a cat (sitting)"),
        ("a cat embedding:style.pt", "a cat"),
        ("a red cat, sitting", "a red cat, sitting"),
    ],
)
def test_the_verifier_reads_prompts_without_markup(text, plain):
    assert plain_text(text) == plain


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
    assert [entry["seed"] for entry in graph.extra_pnginfo[METADATA_KEY]["9"]] == seeds


def test_the_metadata_tells_the_winner_from_other_pictures(demo, brightness):
    graph = Graph("9", None, {})
    result = run(demo, brightness, graph=graph)
    saved = (255.0 * result.image[0]).clamp(0, 255).to(torch.uint8)
    assert graph.extra_pnginfo[METADATA_KEY]["9"][0]["sha256"] == [hashlib.sha256(saved.numpy().tobytes()).hexdigest()]
