"""The embedded model inside a real ComfyUI: it loads as ordinary objects and the stock nodes sample it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("comfy")
torch = pytest.importorskip("torch")

from noise_search.demo import world  # noqa: E402
from noise_search.demo.oracle import examine  # noqa: E402
from noise_search.demo.world import parse, render  # noqa: E402
from noise_search.host import demo as host_demo  # noqa: E402

import nodes  # noqa: E402

WEIGHTS = Path(host_demo.__file__).resolve().parents[1] / "demo" / "weights"
FILES = [
    "generator.safetensors",
    "vae.safetensors",
    "verifier/open_clip_model.safetensors",
    "verifier/open_clip_config.json",
    "verifier/tokenizer.json",
    "verifier/tokenizer_config.json",
]


@pytest.fixture(autouse=True)
def inference():
    """As ComfyUI executes nodes."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def empty():
    """128x128 pixels, from the stock node."""
    import importlib

    with torch.inference_mode():
        node = importlib.import_module("comfy_extras.nodes_sd3").EmptySD3LatentImage
        result = node.execute(128, 128, 1) if hasattr(node, "execute") else node().generate(128, 128, 1)
    return (result.result if hasattr(result, "result") else result)[0]


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A copy of the weights that a test may damage."""
    folder = tmp_path / "weights"
    shutil.copytree(WEIGHTS, folder)
    monkeypatch.setattr(host_demo, "WEIGHTS", folder)
    return folder


def pictures(count: int, seed: int = 0):
    """Prompts, and their true pictures [count, 128, 128, 3] in 0..1."""
    rng = np.random.default_rng(seed)
    prompts = [world.sample_prompt(rng) for _ in range(count)]
    images = np.stack([np.asarray(render(parse(prompt), rng), np.float32) / 255 for prompt in prompts])
    return prompts, torch.from_numpy(images)


# ------------------------------------------------------------------------------------------------------------ weights


def test_the_weights_are_small_and_no_pickle():
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 24 * 2**20
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md"}
    assert {path.relative_to(WEIGHTS).as_posix() for path in files} >= set(FILES)


def test_the_training_log_says_what_it_took():
    log = json.loads((WEIGHTS / "training.json").read_text(encoding="utf-8"))
    for stage in ("vae", "generator", "verifier"):
        assert log[stage]["steps"] > 0 and log[stage]["minutes"] > 0 and log[stage]["hardware"]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_with_what_to_do(weights, name):
    (weights / name).unlink()
    load = host_demo.verifier_directory if "verifier" in name else host_demo.load_generator
    with pytest.raises(FileNotFoundError, match=rf"{Path(name).name} is missing.*python demo/train.py"):
        load()


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".safetensors")])
@pytest.mark.parametrize("damage", ["truncated", "empty", "pickle"])
def test_a_damaged_file_is_named_with_what_to_do(weights, name, damage):
    path = weights / name
    if damage == "pickle":
        with torch.inference_mode(False):
            torch.save({"weight": torch.zeros(2)}, path)
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 if damage == "truncated" else 0])
    load = host_demo.verifier_directory if "verifier" in name else host_demo.load_generator
    with pytest.raises(ValueError, match=rf"{path.name} is damaged.*python demo/train.py"):
        load()


def test_a_file_of_another_model_is_refused(weights):
    shutil.copy(weights / "vae.safetensors", weights / "generator.safetensors")
    with pytest.raises(ValueError, match="generator.safetensors is damaged"):
        host_demo.load_generator()


# ----------------------------------------------------------------------------------------------------------- sampling


def conditioning(demo, text: str):
    return nodes.CLIPTextEncode().encode(demo.clip, text)[0]


def test_the_ksampler_and_vae_decode_make_a_picture(demo, empty):
    latent = nodes.KSampler().sample(
        demo.model, 3, 4, 3.0, "euler", "simple", demo.positive, demo.negative, empty, denoise=1.0
    )[0]
    image = nodes.VAEDecode().decode(demo.vae, latent)[0]
    assert image.shape == (1, 128, 128, 3)
    assert torch.isfinite(image).all()
    assert image.std() > 0.02


def test_two_halves_of_the_advanced_ksampler_are_the_whole(demo, empty):
    def half(latent, start, end):
        add_noise, keep = ("enable", "enable") if start == 0 else ("disable", "disable")
        return nodes.KSamplerAdvanced().sample(
            demo.model, add_noise, 3, 6, 3.0, "euler", "simple", demo.positive, demo.negative, latent, start, end, keep
        )[0]

    whole = nodes.KSampler().sample(demo.model, 3, 6, 3.0, "euler", "simple", demo.positive, demo.negative, empty)[0]
    joined = half(half(empty, 0, 3), 3, 6)
    assert torch.allclose(joined["samples"], whole["samples"], atol=1e-4)


def test_the_custom_sampler_equals_the_ksampler(demo, empty):
    import comfy.samplers
    from comfy_extras import nodes_custom_sampler as custom

    guider = comfy.samplers.CFGGuider(demo.model)
    guider.set_conds(demo.positive, demo.negative)
    guider.set_cfg(3.0)
    sigmas = comfy.samplers.calculate_sigmas(demo.model.get_model_object("model_sampling"), "simple", 4)
    sampler = comfy.samplers.sampler_object("euler")
    node = custom.SamplerCustomAdvanced
    run = node.execute if hasattr(node, "execute") else node().sample
    result = run(custom.Noise_RandomNoise(3), guider, sampler, sigmas, empty)
    samples = (result.result if hasattr(result, "result") else result)[0]["samples"]
    stock = nodes.KSampler().sample(demo.model, 3, 4, 3.0, "euler", "simple", demo.positive, demo.negative, empty)[0]
    assert torch.equal(samples, stock["samples"])


def test_guidance_changes_the_picture(demo, empty):
    def run(cfg):
        return nodes.KSampler().sample(demo.model, 3, 4, cfg, "euler", "simple", demo.positive, demo.negative, empty)[
            0
        ]["samples"]

    assert (run(3.0) - run(1.0)).abs().mean() > 0.01


@pytest.mark.parametrize(
    "text",
    [
        "a (red:1.3) circle",
        "a photograph of an astronaut, 4k",
        "(((red)))",
        "embedding:nothing a red circle",
        "a red circle and a blue square " * 10,
        "",
    ],
)
def test_any_prompt_can_be_encoded(demo, text):
    vectors, options = conditioning(demo, text)[0]
    assert vectors.shape[0] == 1 and vectors.shape[1] % host_demo.MAX_TOKENS == 0
    assert torch.isfinite(vectors).all() and torch.isfinite(options["pooled_output"]).all()


def test_prompt_weights_have_an_effect(demo):
    plain, weighted = (conditioning(demo, text)[0][0] for text in ("a red circle", "a (red:1.5) circle"))
    assert plain.shape == weighted.shape
    assert not torch.allclose(plain, weighted)


def test_a_latent_of_the_largest_size_is_sampled(demo):
    side = host_demo.MAX_LATENT
    samples = torch.zeros(1, 16, side, side)
    host_demo.check_latent(demo.model, samples)
    latent = nodes.KSampler().sample(
        demo.model, 0, 1, 1.0, "euler", "simple", demo.positive, demo.negative, {"samples": samples}
    )[0]
    assert torch.isfinite(latent["samples"]).all()


@pytest.mark.parametrize(("width", "height"), [(65, 16), (16, 65), (128, 128)])
def test_a_larger_latent_is_refused_with_the_sizes(demo, width, height):
    with pytest.raises(ValueError, match=rf"latent is {width}x{height} .*at most 64x64 \(512x512 pixels\)"):
        host_demo.check_latent(demo.model, torch.zeros(1, 16, height, width))


def test_models_without_a_table_of_positions_take_any_latent():
    from types import SimpleNamespace

    model = SimpleNamespace(model=SimpleNamespace(diffusion_model=torch.nn.Linear(1, 1)))
    host_demo.check_latent(model, torch.zeros(1, 4, 999, 999))


# -------------------------------------------------------------------------------------------------------- autoencoder


@pytest.mark.any_host
def test_the_autoencoder_gives_the_picture_back(demo):
    prompts, images = pictures(24)
    decoded = demo.vae.decode(demo.vae.encode(images)).clamp(0, 1)
    error = (decoded - images).square().mean((1, 2, 3))
    assert (-10 * torch.log10(error)).mean() > 32  # decibels
    right = [examine(image.numpy(), prompt).ok for image, prompt in zip(decoded, prompts, strict=True)]
    assert np.mean(right) >= 0.95


def test_latents_have_unit_variance_where_the_model_works(demo):
    _, images = pictures(32)
    latents = demo.model.model.process_latent_in(demo.vae.encode(images))
    assert 0.9 < latents.std() < 1.1
    assert latents.mean().abs() < 0.1


# ----------------------------------------------------------------------------------------------------------- verifier


@pytest.fixture(scope="module")
def verifier():
    open_clip = pytest.importorskip("open_clip")
    name = f"local-dir:{host_demo.verifier_directory()}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    tokenizer = open_clip.get_tokenizer(name)

    def score(image, prompts):
        from PIL import Image

        pixels = preprocess(Image.fromarray((image.numpy() * 255).round().astype(np.uint8)))[None]
        with torch.inference_mode():
            text = model.eval().encode_text(tokenizer(prompts), normalize=True)
            return (model.encode_image(pixels, normalize=True) @ text.T)[0]

    return score


def test_the_verifier_prefers_the_true_caption(verifier):
    """To the same words with attributes exchanged or another number. (It is blind to relations: see its README.)"""
    rng = np.random.default_rng(5)
    cases = [
        ("a red circle and a blue square", "a blue circle and a red square"),
        ("a large green star and a small purple triangle", "a large purple star and a small green triangle"),
        ("three small yellow squares", "two small yellow squares"),
        ("a small red star", "a large red star"),
        ("four purple circles", "four purple squares"),
    ]
    won = []
    for true, false in cases * 6:
        image = torch.from_numpy(np.asarray(render(parse(true), rng), np.float32) / 255)
        scores = verifier(image, [true, false])
        won.append(bool(scores[0] > scores[1]))
    assert np.mean(won) >= 0.9


def test_the_verifier_finds_the_caption_of_held_out_pictures(verifier):
    rng = np.random.default_rng(6)
    prompts = world.held_out_prompts(40)
    found = []
    for index, prompt in enumerate(prompts):
        image = torch.from_numpy(np.asarray(render(parse(prompt), rng), np.float32) / 255)
        found.append(int(verifier(image, prompts).argmax()) == index)
    assert np.mean(found) >= 0.6


# ---------------------------------------------------------------------------------------------------------- the point


@pytest.mark.any_host
def test_the_seed_decides(demo):
    """Of 32 pictures of easy prompts some follow and some do not."""
    verdicts = []
    for prompt in ("a red circle", "a blue square and a yellow star"):
        noise = torch.cat([torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(s)) for s in range(16)])
        import comfy.sample

        latents = comfy.sample.sample(
            demo.model,
            noise,
            12,
            3.0,
            "euler",
            "simple",
            conditioning(demo, prompt),
            demo.negative,
            torch.zeros_like(noise),
            disable_pbar=True,
        )
        verdicts += [examine(image.numpy(), prompt).ok for image in demo.vae.decode(latents)]
    assert 0.15 < np.mean(verdicts) < 0.95
