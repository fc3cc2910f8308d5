"""Verifier Score and Best-of-N on videos: the frames of one candidate stay together."""

import pytest
import torch

pytest.importorskip("comfy")

from executor import host as executor_host
from noise_search.host.graph.graph import Graph
from noise_search.host.graph.videos import makes_videos
from picture_graphs import Keep, node

import nodes as comfy_nodes

FRAMES = 5


class Clips:
    """Two videos, as KSampler and VAE Decode give them for a list of noises: of each the other is better in places."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_IS_LIST = "test", "clips", ("IMAGE",), (True,)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",)}}

    def clips(self, samples):
        dark = torch.full((FRAMES, 8, 8, 3), 0.3)
        bright = dark.clone()
        bright[::2] = 0.9
        dark[1::2] = 0.5
        return ([dark, bright],)


class Brightness:
    members, needs_prompt = ("brightness",), False

    def score(self, images, prompts):
        return images.mean(dim=(1, 2, 3))[:, None]


def latent(kind, **inputs):
    return node(kind, **inputs)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (latent("EmptyHunyuanLatentVideo", width=64, height=64, length=FRAMES, batch_size=1), True),
        (latent("EmptyHunyuanLatentVideo", width=64, height=64, length=1, batch_size=4), False),  # for one picture
        (latent("EmptyHunyuanLatentVideo", width=64, height=64, length=["n", 0], batch_size=1), True),
        (latent("EmptyLatentImage", width=64, height=64, batch_size=FRAMES), False),
        (latent("StringReplace", length=4), False),  # makes no latent
    ],
)
def test_a_video_is_told_from_a_batch(monkeypatch, made, expected):
    executor_host(monkeypatch)
    from comfy_extras import nodes_hunyuan

    kind = getattr(nodes_hunyuan, "EmptyHunyuanLatentVideo", None)
    if kind is not None:
        monkeypatch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, "EmptyHunyuanLatentVideo", kind)
    prompt = {
        "l": made,
        "d": node("VAEDecode", samples=["l", 0]),
        "s": node("NoiseSearchVerifierScore", image=["d", 0]),
    }
    assert makes_videos(Graph("s", prompt)) is expected


def test_the_frames_of_the_best_video_stay_together(monkeypatch):
    host = executor_host(monkeypatch)
    from comfy_extras.nodes_hunyuan import EmptyHunyuanLatentVideo

    class Judge:
        CATEGORY, FUNCTION, RETURN_TYPES = "test", "judge", ("NOISE_SEARCH_VERIFIER",)

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {}}

        def judge(self):
            return (Brightness(),)

    kinds = {"Clips": Clips, "Judge": Judge, "Keep": Keep, "EmptyHunyuanLatentVideo": EmptyHunyuanLatentVideo}
    for name, kind in kinds.items():
        monkeypatch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, name, kind)
    graph = {
        "l": node("EmptyHunyuanLatentVideo", width=64, height=64, length=FRAMES, batch_size=1),
        "c": node("Clips", samples=["l", 0]),
        "j": node("Judge"),
        "s": node("NoiseSearchVerifierScore", image=["c", 0], verifier=["j", 0], prompt=""),
        "b": node("NoiseSearchBestOfN", scores=["s", 0], k=1, image=["c", 0]),
        "keep": node("Keep", value=["b", 0], key="best"),
        "scores": node("Keep", value=["s", 1], key="scores"),
    }
    host.run(graph, "keep", "scores")
    _, bright = Clips().clips(None)[0]
    [best] = Keep.kept["best"]
    assert torch.equal(best, bright)  # and no frame of the other, though some of those are brighter
    assert Keep.kept["scores"] == pytest.approx([0.38, 0.66])
