"""CLIP Score against independent computations, on tiny checkpoints in the real file layouts."""

import importlib.util
import json
import socket

import numpy as np
import pytest
import tiny_clips
import torch
from noise_search.verifiers.base import Verifier, VerifierError
from noise_search.verifiers.clip import CLIPScore
from noise_search.verifiers.network import MAX_PROMPTS
from PIL import Image

PROMPTS = ["a red circle above a blue square", "two small green triangles", "a", "x" * 40]
LONG = "a red circle above a blue square and " * 20
EXACT = 1e-5  # of the cosine, in float32


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"the network was used: {args}")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def tiny_architectures(tmp_path_factory):
    """Two architectures of the sizes of the tiny models, in open_clip's own list."""
    quick = {"tiny-ViT": False, "tiny-ViT-quickgelu": True}
    configs = {name: {**tiny_clips.OPEN_CLIP_CONFIG, "quick_gelu": value} for name, value in quick.items()}
    with tiny_clips.open_clip_architectures(tmp_path_factory.mktemp("configs"), **configs):
        yield


def pil(image):
    return Image.fromarray((image.numpy() * 255).round().astype(np.uint8))


def assert_scores(verifier, pictures, prompts, expected, tolerance=EXACT):
    """expected: cosines. They must spread, or equality would show nothing."""
    assert expected.std() > 0.02
    values = verifier.score(pictures, prompts)
    assert values.shape == (len(pictures), 1) and values.dtype == torch.float32
    difference = np.abs(values[:, 0].numpy() / 100 - expected).max()
    assert difference <= tolerance, difference
    assert verifier.usual_range[0] < verifier.usual_range[1] <= 100


def open_clip_cosines(folder, pictures, prompts):
    """With everything from open_clip's own loader: model, PIL pipeline and tokenizer."""
    import open_clip

    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        pixels = torch.stack([preprocess(pil(picture)) for picture in pictures])
        return tiny_clips.cosine(model.encode_image(pixels), model.encode_text(tokenize(prompts)))


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("weights", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_open_clip_folder(tmp_path, weights, quick_gelu):
    tiny_clips.save_open_clip_folder(tmp_path, weights=weights, quick_gelu=quick_gelu)
    pictures = tiny_clips.images()
    verifier = CLIPScore.load(tmp_path, "tiny")
    assert_scores(verifier, pictures, PROMPTS, open_clip_cosines(tmp_path, pictures, PROMPTS))
    assert verifier.members == ("CLIP Score (tiny)",)
    beside = CLIPScore.load(tmp_path / weights)  # a weight file beside its configuration stands for the folder
    assert torch.equal(beside.score(pictures, PROMPTS), verifier.score(pictures, PROMPTS))


def test_open_clip_folder_with_its_own_tokenizer(tmp_path):
    text = {"context_length": 12, "vocab_size": 15, "width": 32, "heads": 2, "layers": 2, "hf_tokenizer_name": "."}
    tiny_clips.save_open_clip_folder(tmp_path, text_cfg=text)
    tiny_clips.save_word_tokenizer(tmp_path)
    pictures = tiny_clips.images(3)
    verifier = CLIPScore.load(tmp_path)
    assert verifier.prompt_tokens == 12
    assert_scores(verifier, pictures, PROMPTS[:3], open_clip_cosines(tmp_path, pictures, PROMPTS[:3]))


def test_open_clip_siglip_layout(tmp_path):
    """open_clip's SigLIP: a custom text tower without causal mask, a logit bias, squashed images, mean 0.5."""
    import open_clip

    text = {"context_length": 16, "vocab_size": 15, "width": 32, "heads": 2, "layers": 2, "hf_tokenizer_name": "."}
    text |= {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    config = {**tiny_clips.OPEN_CLIP_CONFIG, "text_cfg": text, "init_logit_bias": -10}
    model = tiny_clips.randomise(open_clip.CustomTextCLIP(**config))
    tiny_clips.save_open_clip_folder(tmp_path, model, text_cfg=text, custom_text=True, init_logit_bias=-10)
    tiny_clips.save_word_tokenizer(tmp_path)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["preprocess_cfg"] = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    pictures = tiny_clips.images()
    verifier = CLIPScore.load(tmp_path)
    assert_scores(verifier, pictures, PROMPTS, open_clip_cosines(tmp_path, pictures, PROMPTS))
    assert verifier.usual_range == (-5.0, 20.0)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_transformers_clip_folder(tmp_path, activation, safe):
    """Against transformers' two single-tower classes and its PIL preprocessing."""
    import transformers

    tiny_clips.save_hf_clip_folder(tmp_path, hidden_act=activation, safe=safe)
    pictures = tiny_clips.images()
    tokens = transformers.CLIPTokenizer.from_pretrained(tmp_path)(PROMPTS, padding=True, return_tensors="pt")
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = processor([pil(picture) for picture in pictures], return_tensors="pt").pixel_values
    vision = transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path, use_safetensors=safe)
    text = transformers.CLIPTextModelWithProjection.from_pretrained(tmp_path, use_safetensors=safe)
    with torch.no_grad():
        expected = tiny_clips.cosine(vision(pixels).image_embeds, text(**tokens).text_embeds)
    verifier = CLIPScore.load(tmp_path)
    assert_scores(verifier, pictures, PROMPTS, expected)
    assert verifier.prompt_tokens == 77


def test_transformers_siglip_folder(tmp_path):
    """Against SiglipModel's own logits, exp(scale) cos + bias."""
    import transformers

    tiny_clips.save_hf_siglip_folder(tmp_path)
    pictures = tiny_clips.images()
    model = transformers.SiglipModel.from_pretrained(tmp_path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(PROMPTS, padding="max_length", max_length=16, truncation=True, return_tensors="pt").input_ids
    processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    pixels = processor([pil(picture) for picture in pictures], return_tensors="pt").pixel_values
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=pixels).logits_per_image.diagonal()
        expected = ((logits - model.logit_bias) / model.logit_scale.exp()).double().numpy()
    verifier = CLIPScore.load(tmp_path)
    assert_scores(verifier, pictures, PROMPTS, expected)
    assert verifier.prompt_tokens == 16


def test_siglip_with_its_sentencepiece_tokenizer(tmp_path):
    """As in the published folders; it needs two packages, of which ComfyUI brings one."""
    spm = pytest.importorskip("sentencepiece")
    import transformers

    tiny_clips.save_hf_siglip_folder(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "SiglipTokenizer"}')
    (tmp_path / "words.txt").write_text("a red circle above a blue square\ntwo green triangles\n" * 20)
    spm.SentencePieceTrainer.train(
        input=str(tmp_path / "words.txt"), model_prefix=str(tmp_path / "spiece"), vocab_size=30, hard_vocab_limit=False
    )
    if importlib.util.find_spec("google") is None or importlib.util.find_spec("google.protobuf") is None:
        with pytest.raises(VerifierError, match="protobuf.*pip install .*sentencepiece protobuf`$"):
            CLIPScore.load(tmp_path)
        return
    verifier = CLIPScore.load(tmp_path)
    tokenizer = transformers.SiglipTokenizer(str(tmp_path / "spiece.model"))
    ids = tokenizer("A red circle!", padding="max_length", max_length=16, return_tensors="pt").input_ids
    with torch.no_grad():
        embedding = verifier.module.get_text_features(input_ids=ids)
    embedding = getattr(embedding, "pooler_output", embedding)[0]
    assert torch.allclose(verifier.prompt_features("A red circle!"), embedding / embedding.norm(), atol=EXACT)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin"])
def test_single_open_clip_file(tmp_path, tiny_architectures, suffix, caplog):
    from safetensors.torch import save_file

    pictures = tiny_clips.images()
    for quick in (False, True):
        model = tiny_clips.open_clip_model(quick)
        tiny_clips.save_open_clip_folder(tmp_path / f"reference-{quick}", model, quick_gelu=quick)
        expected = open_clip_cosines(tmp_path / f"reference-{quick}", pictures, PROMPTS)
        path = tmp_path / f"weights{suffix}"
        if suffix == ".safetensors":
            save_file(model.state_dict(), path)
        else:
            # as a training run leaves it
            state = {f"module.{key}": value for key, value in model.state_dict().items()}
            torch.save({"epoch": 3, "name": "run", "state_dict": state}, path)
        assert_scores(
            CLIPScore.load(path, architecture=f"tiny-ViT{'-quickgelu' if quick else ''}"), pictures, PROMPTS, expected
        )
        if not quick:
            caplog.clear()
            assert_scores(CLIPScore.load(path), pictures, PROMPTS, expected)
            assert "set `architecture` to tiny-ViT-quickgelu" in caplog.text


def test_single_file_in_transformers_layout(tmp_path, tiny_architectures):
    for activation, architecture in (("gelu", "tiny-ViT"), ("quick_gelu", "TINY-vit-quickgelu")):
        folder = tmp_path / activation
        tiny_clips.save_hf_clip_folder(folder, hidden_act=activation)
        path = (folder / "model.safetensors").rename(tmp_path / f"{activation}.safetensors")
        alone = CLIPScore.load(path, architecture=architecture)
        path.rename(folder / "model.safetensors")
        whole = CLIPScore.load(folder)
        pictures = tiny_clips.images()
        assert torch.allclose(alone.score(pictures, PROMPTS), whole.score(pictures, PROMPTS), atol=100 * EXACT, rtol=0)


def test_architectures_that_a_test_adds_are_gone_afterwards(tmp_path_factory):
    import open_clip

    before, folders = open_clip.list_models(), tmp_path_factory.mktemp
    with tiny_clips.open_clip_architectures(folders("one"), one=tiny_clips.OPEN_CLIP_CONFIG):
        assert {*open_clip.list_models()} == {"one", *before}
    with tiny_clips.open_clip_architectures(folders("two"), two=tiny_clips.OPEN_CLIP_CONFIG):  # reads all folders again
        assert {*open_clip.list_models()} == {"two", *before}
    assert open_clip.list_models() == before


def test_openai_weights_are_known_by_the_sizes_they_carry(tmp_path, tiny_architectures, caplog):
    from safetensors.torch import save_file

    state = tiny_clips.open_clip_model(quick_gelu=True).state_dict()
    sizes = {
        "input_resolution": torch.tensor(32),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
    }
    save_file({**state, **sizes}, tmp_path / "a.safetensors")
    verifier = CLIPScore.load(tmp_path / "a.safetensors")
    assert verifier.encoder.architecture == "tiny-ViT-quickgelu"
    assert not caplog.text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("openai-ViT-B-32.safetensors", "ViT-B-32-quickgelu"),
        ("clip-vit-base-patch32/weights.safetensors", "ViT-B-32-quickgelu"),
        ("ViT-B-32-laion400m_e32.pt", "ViT-B-32-quickgelu"),
        ("CLIP-ViT-B-32-laion2B-s34B-b79K.safetensors", "ViT-B-32"),
        ("vit_b_32-metaclip.safetensors", "ViT-B-32-quickgelu"),
        ("datacomp.safetensors", "ViT-B-32"),
        ("weights.safetensors", "ViT-B-32"),
    ],
)
def test_activation_by_the_name_of_published_weights(tmp_path, name, expected):
    import open_clip
    from noise_search.verifiers.clip_files import _with_activation

    assert _with_activation(open_clip, "ViT-B-32", tmp_path / name, {}, default_openai=False) == expected
    unnamed = _with_activation(open_clip, "ViT-B-32", tmp_path / "weights.safetensors", {}, default_openai=True)
    assert unnamed == "ViT-B-32-quickgelu"  # transformers' layout
    assert _with_activation(open_clip, "ViT-g-14", tmp_path / name, {}, default_openai=True) == "ViT-g-14"


@pytest.mark.parametrize(
    "name", ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14", "ViT-bigG-14", "RN50", "ViT-B-16-SigLIP"]
)
def test_published_architectures_are_found_by_their_shapes(tmp_path, name):
    """Shapes only: models of the real sizes on the meta device."""
    import open_clip
    from noise_search.verifiers.clip_files import _build_open_clip, _matches, _one_architecture

    with torch.device("meta"):
        state = _build_open_clip(open_clip.get_model_config(name), tmp_path).state_dict()
    candidates = [other for other in open_clip.list_models() if _matches(open_clip, other, state)]
    assert _one_architecture(tmp_path, candidates, state) == name


@pytest.mark.slow
def test_real_architecture_as_a_single_file(tmp_path):
    """The smallest architecture of open_clip's own list, at its real size, in half precision as files often are."""
    import open_clip
    from safetensors.torch import save_file

    model = tiny_clips.randomise(open_clip.CLIP(**open_clip.get_model_config("ViT-S-32-alt"))).half().float()
    path = tmp_path / "model.safetensors"
    save_file({key: value.half() for key, value in model.state_dict().items()}, path)
    verifier = CLIPScore.load(path)
    assert verifier.encoder.architecture == "ViT-S-32-alt"
    pictures = tiny_clips.images(3, 224, 224)
    preprocess = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(), is_train=False)
    with torch.no_grad():
        pixels = torch.stack([preprocess(pil(picture)) for picture in pictures])
        expected = tiny_clips.cosine(model.encode_image(pixels), model.encode_text(open_clip.tokenize(PROMPTS[:3])))
    values = verifier.score(pictures, PROMPTS[:3])[:, 0].numpy() / 100
    assert np.abs(values - expected).max() <= EXACT


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 0.1), (torch.bfloat16, 1.0)])
def test_half_precision_towers(tmp_path, dtype, bound):
    """The bound is on the score (100 cos); the cosine itself is float32, so equal scores stay rare."""
    tiny_clips.save_open_clip_folder(tmp_path)
    pictures = tiny_clips.images(8)
    exact = CLIPScore.load(tmp_path).score(pictures, PROMPTS * 2)
    half = CLIPScore.load(tmp_path, dtype=dtype)
    values = half.score(pictures, PROMPTS * 2)
    assert next(half.module.parameters()).dtype == dtype and values.dtype == torch.float32
    assert 0 < (values - exact).abs().max() < bound
    assert len(values.unique()) == 8


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_clips.save_open_clip_folder(folder)
    return folder


def test_a_value_does_not_depend_on_the_batch(tiny):
    verifier = CLIPScore.load(tiny)
    pictures = tiny_clips.images(5, 48, 40)
    together = verifier.score(pictures, [PROMPTS[0]] * 5)
    apart = torch.cat([verifier.score(picture[None], [PROMPTS[0]]) for picture in pictures])
    assert torch.equal(together, apart)
    assert torch.equal(together.flip(0), verifier.score(pictures.flip(0), [PROMPTS[0]] * 5))
    assert torch.equal(together, CLIPScore.load(tiny).score(pictures, [PROMPTS[0]] * 5))


def test_long_prompt_is_cut_as_open_clip_does_and_said(tiny):
    verifier = CLIPScore.load(tiny)
    pictures = tiny_clips.images(2)
    expected = open_clip_cosines(tiny, pictures, [LONG] * 2)
    values = verifier.score(pictures, [LONG] * 2)
    assert np.abs(values[:, 0].numpy() / 100 - expected).max() <= EXACT
    said = verifier.cut(LONG)
    assert said.startswith("CLIP Score") and "reads the first 77 of " in said and "'...and a red circle'" in said
    assert torch.equal(verifier.score(pictures, [LONG] * 2), verifier.score(pictures, [LONG + "ignored"] * 2))


@pytest.mark.parametrize("prompt", ["x" * 10_000, "一只红色的猫 " * 50, "قطة حمراء", "🟥 above 🟦", "\x00\n\t", ""])
def test_any_text_is_read(tiny, prompt):
    assert torch.isfinite(CLIPScore.load(tiny).score(tiny_clips.images(1), [prompt])).all()


def test_prompts_are_read_once(tiny, monkeypatch):
    verifier = CLIPScore.load(tiny)
    calls = []
    encode = verifier.encoder.encode_text
    object.__setattr__(verifier.encoder, "encode_text", lambda ids: calls.append(1) or encode(ids))
    for _ in range(3):
        verifier.score(tiny_clips.images(4), ["a", "b", "a", "b"])
    assert len(calls) == 2
    for index in range(2 * MAX_PROMPTS):
        verifier.prompt_features(f"prompt {index}")
    assert len(verifier._prompts) == MAX_PROMPTS


def test_of_remembered_prompts_the_one_used_longest_ago_goes(tiny):
    verifier = CLIPScore.load(tiny)
    for prompt in ["first", "second", *map(str, range(MAX_PROMPTS - 2)), "first", "new"]:
        verifier.prompt_features(prompt)
    assert "first" in verifier._prompts and "second" not in verifier._prompts


def test_identity_is_of_content_and_settings(tiny, tmp_path):
    identity = CLIPScore.load(tiny).identity()
    assert identity.startswith("clip_score:") and identity == CLIPScore.load(tiny, "another label").identity()
    assert identity != CLIPScore.load(tiny, dtype=torch.bfloat16).identity()
    copy = tmp_path / "elsewhere"
    tiny_clips.save_open_clip_folder(copy)
    assert identity == CLIPScore.load(copy).identity()
    verifier = CLIPScore.load(copy)
    tiny_clips.save_open_clip_folder(copy, tiny_clips.open_clip_model(seed=1))
    assert identity != CLIPScore.load(copy).identity()
    with pytest.raises(VerifierError, match="changed after they were loaded"):
        verifier.identity()


def test_weights_can_be_used_outside_the_inference_mode_they_were_loaded_in(tiny):
    with torch.inference_mode():
        verifier = CLIPScore.load(tiny)
    assert not any(parameter.is_inference() for parameter in verifier.module.parameters())


def test_it_keeps_the_contract(tiny):
    verifier = CLIPScore.load(tiny)
    assert isinstance(verifier, Verifier)
    assert verifier.needs_prompt and verifier.prompt_tokens == 77
    with pytest.raises(VerifierError, match="2 images for 1 prompts"):
        verifier.score(tiny_clips.images(2), ["a"])
