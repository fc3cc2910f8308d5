"""Search Picture on what the official templates consist of, with tiny models: every candidate is the workflow itself.

A few of the kinds that `benchmarks/templates.py --kinds` takes from the templates, written down: latents of videos and
of several tensors, two stages with other latents between, guides, masks, reference latents.
"""

import importlib
import sys
from pathlib import Path

import pytest

pytest.importorskip("comfy")

import executor

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
MODULES = ("lt", "lt_upsampler", "wan", "edit_model", "mask", "video")  # of comfy_extras, beside those of the executor


@pytest.fixture(scope="module")
def kinds():
    """As a program in the folder of the benchmarks finds it."""
    before = sys.path[:]
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("_kinds")
    finally:
        sys.path[:] = before


@pytest.fixture
def host(kinds, monkeypatch):
    monkeypatch.setattr(executor, "EXTRAS", (*executor.EXTRAS, *MODULES))
    return kinds.host_of(monkeypatch)


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def given(kind, family, made_by="", number=""):
    return node("StandIn", kind=kind, family=family, made_by=made_by, number=f"{kind} {number}")


def loaded(family):
    return {
        "model": given("MODEL", family),
        "vae": given("VAE", family),
        "pos": given("CONDITIONING", family, number="positive"),
        "neg": given("CONDITIONING", family, number="negative"),
        "still": given("IMAGE", family),
        "mask": given("MASK", family),
    }


SCHEDULE = {"steps": 3, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple"}
CONDS = {"model": ["model", 0], "positive": ["pos", 0], "negative": ["neg", 0]}


def ksampler(latent, **changes):
    return node("KSampler", **{"seed": 5, **SCHEDULE, **CONDS, "latent_image": latent, "denoise": 1.0, **changes})


def advanced(latent, noise, start, end, first, conds):
    said = "enable" if first else "disable"
    return node(
        "KSamplerAdvanced", noise_seed=noise, **SCHEDULE, model=["model", 0], positive=[conds, 0], negative=[conds, 1],
        latent_image=latent, add_noise=said, start_at_step=start, end_at_step=end, return_with_leftover_noise=said,
    )  # fmt: skip


def decoded(latent):
    return node("VAEDecode", samples=latent, vae=["vae", 0])


def sampled(latent, noise, sigmas="sigmas"):
    return node(
        "SamplerCustomAdvanced", noise=[noise, 0], guider=["guider", 0], sampler=["sampler", 0], sigmas=[sigmas, 0],
        latent_image=latent,
    )  # fmt: skip


SIZE = {"width": 128, "height": 128, "length": 9, "batch_size": 1}
CUSTOM = {
    "sampler": node("KSamplerSelect", sampler_name="euler"),
    "sigmas": node("BasicScheduler", model=["model", 0], scheduler="simple", steps=3, denoise=1.0),
    "guider": node("CFGGuider", cfg=2.0, **CONDS),
}
KINDS = {
    "two stages of a video with its sound, enlarged between": {
        **loaded("ltxav"), **CUSTOM,
        "video": node("EmptyLTXVLatentVideo", **SIZE),
        "sound": given("LATENT", "ltxav", "Audio"),
        "both": node("LTXVConcatAVLatent", video_latent=["video", 0], audio_latent=["sound", 0]),
        "noise": node("RandomNoise", noise_seed=7),
        "first": sampled(["both", 0], "noise"),
        "apart": node("LTXVSeparateAVLatent", av_latent=["first", 0]),
        "upscaler": given("LATENT_UPSCALE_MODEL", "ltxav"),
        "larger": node("LTXVLatentUpsampler", samples=["apart", 0], upscale_model=["upscaler", 0], vae=["vae", 0]),
        "again": node("LTXVConcatAVLatent", video_latent=["larger", 0], audio_latent=["apart", 1]),
        "own": node("RandomNoise", noise_seed=8),
        "later": node("BasicScheduler", model=["model", 0], scheduler="simple", steps=3, denoise=0.5),
        "second": sampled(["again", 0], "own", "later"),
        "parts": node("LTXVSeparateAVLatent", av_latent=["second", 1]),
        "picture": node("VAEDecodeTiled", samples=["parts", 0], vae=["vae", 0], tile_size=512, overlap=64,
                        temporal_size=64, temporal_overlap=8),
    },
    "a video with a guide that is cut away": {
        **loaded("ltxv"),
        "video": node("EmptyLTXVLatentVideo", **SIZE),
        "guide": node("LTXVAddGuide", positive=["pos", 0], negative=["neg", 0], vae=["vae", 0], latent=["video", 0],
                      image=["still", 0], frame_idx=0, strength=0.8),
        "k": ksampler(["guide", 2], positive=["guide", 0], negative=["guide", 1]),
        "cut": node("LTXVCropGuides", positive=["guide", 0], negative=["guide", 1], latent=["k", 0]),
        "picture": decoded(["cut", 2]),
    },
    "a pair over a video that begins with a picture": {
        **loaded("wan_i2v"),
        "start": node("WanImageToVideo", positive=["pos", 0], negative=["neg", 0], vae=["vae", 0], **SIZE,
                      start_image=["still", 0]),
        "high": advanced(["start", 2], 7, 0, 2, True, "start"),
        "low": advanced(["high", 0], 0, 2, 3, False, "start"),
        "picture": decoded(["low", 0]),
    },
    "under a mask, put back into the picture": {
        **loaded("flux"),
        "encoded": node("VAEEncode", pixels=["still", 0], vae=["vae", 0]),
        "masked": node("SetLatentNoiseMask", samples=["encoded", 0], mask=["mask", 0]),
        "k": ksampler(["masked", 0], denoise=0.5),
        "decode": decoded(["k", 0]),
        "picture": node("ImageCompositeMasked", destination=["still", 0], source=["decode", 0], mask=["mask", 0], x=0,
                        y=0, resize_source=False),
    },
    "with a reference": {
        **loaded("flux"), **CUSTOM,
        "encoded": node("VAEEncode", pixels=["still", 0], vae=["vae", 0]),
        "referring": node("ReferenceLatent", conditioning=["pos", 0], latent=["encoded", 0]),
        "guider": node("CFGGuider", cfg=2.0, **CONDS | {"positive": ["referring", 0]}),
        "latent": node("EmptySD3LatentImage", width=128, height=128, batch_size=1),
        "noise": node("RandomNoise", noise_seed=9),
        "k": sampled(["latent", 0], "noise"),
        "picture": decoded(["k", 0]),
    },
}  # fmt: skip


@pytest.mark.parametrize("as_noises", [False, True], ids=["seeds", "noises"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_candidate_is_the_workflow_with_another_seed(kinds, host, kind, as_noises):
    from noise_search.host.graph import classes
    from noise_search.host.graph.part import find_part

    part = find_part(KINDS[kind], [("picture", 0)], classes.node_class)
    small = kinds.Reduced(KINDS[kind], ["picture", 0], part)
    found = kinds.searched(host, small, kinds.FIRST, as_noises)
    expected = [kinds.stock(host, small, step) for step in range(kinds.CANDIDATES)]
    assert kinds.equal(found, expected) == kinds.CANDIDATES
    assert len({expected[step][0].sum().item() for step in range(kinds.CANDIDATES)}) == kinds.CANDIDATES
