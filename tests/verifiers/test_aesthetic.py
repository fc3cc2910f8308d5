"""Aesthetic against the formula in NumPy and transformers' image towers; the published heads against known values."""

import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_clips
import torch
from noise_search.verifiers.aesthetic import POOLING, Aesthetic, ImageTower, load_head
from noise_search.verifiers.base import VerifierError
from noise_search.verifiers.preprocess import Preprocess

EXACT = 1e-5
REAL = Path(os.environ.get("NOISE_SEARCH_HEADS", Path(__file__).parents[3] / "shared" / "data" / "heads"))
VISION = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION |= {"image_size": 32, "patch_size": 8, "num_channels": 3}


@pytest.fixture
def clip():
    """A tiny CLIP image tower of transformers, and the tower made of it."""
    import transformers

    config = transformers.CLIPVisionConfig(**VISION, hidden_act="quick_gelu", projection_dim=24)
    model = tiny_clips.randomise(transformers.CLIPVisionModelWithProjection(config)).requires_grad_(False)
    encode = lambda pixels: model(pixel_values=pixels).image_embeds  # noqa: E731
    return ImageTower(model, encode, lambda: torch.device("cpu"), Preprocess((32, 32)), width=24)


@pytest.fixture(scope="module")
def siglip_model():
    import transformers

    config = transformers.SiglipVisionConfig(**VISION, hidden_act="gelu_pytorch_tanh")
    return tiny_clips.randomise(transformers.SiglipVisionModel(config)).requires_grad_(False)


def published_names(model):
    """The weights as published files name them; transformers 5 leaves out the prefix."""
    state = {f"vision_model.{key.removeprefix('vision_model.')}": value for key, value in model.state_dict().items()}
    return {key: value.contiguous() for key, value in state.items()}


@pytest.fixture
def siglip(siglip_model):
    squash = Preprocess((32, 32), "squash", mean=(0.5,) * 3, std=(0.5,) * 3)
    encode = lambda pixels: siglip_model(pixel_values=pixels).last_hidden_state  # noqa: E731
    state = published_names(siglip_model)
    pooling = {key.removeprefix(POOLING): value for key, value in state.items() if key.startswith(POOLING)}
    assert len(pooling) == 11
    return ImageTower(siglip_model, encode, lambda: torch.device("cpu"), squash, 64, True, 4, pooling)


def by_formula(state, layout, embeddings):
    """The head's layers one after the other on unit embeddings, in float64, as their authors' classes have them."""
    x = np.asarray(embeddings, np.float64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    names = tiny_clips.HEADS[layout][0]
    for index, name in enumerate(names):
        if index and layout == "v2 relu":
            x = np.maximum(x, 0)
        x = x @ state[f"{name}weight"].double().numpy().T + state[f"{name}bias"].double().numpy()
    return x[:, 0]


@pytest.mark.parametrize("layout", ["v1", "v2", "v2 relu"])
def test_laions_heads_on_clips_projected_embedding(clip, tmp_path, layout):
    state = tiny_clips.save_head(tmp_path / "head.pth", layout, 24)
    pictures = tiny_clips.images(6, 40, 50)
    pixels = torch.cat([clip.preprocess(picture) for picture in pictures])
    expected = by_formula(state, layout, clip.module(pixel_values=pixels).image_embeds)
    values = Aesthetic.load(tmp_path / "head.pth", clip).score(pictures, [""] * 6)
    assert values.shape == (6, 1) and values.dtype == torch.float32
    assert expected.std() > 0.05 and np.abs(values[:, 0].numpy() - expected).max() <= EXACT


def test_v2_5_on_siglips_pooled_output(siglip, siglip_model, tmp_path):
    state = tiny_clips.save_head(tmp_path / "head.pth", "v2.5", 64)
    pictures = tiny_clips.images(6, 40, 50)
    pixels = torch.cat([siglip.preprocess(picture) for picture in pictures])
    expected = by_formula(state, "v2.5", siglip_model(pixel_values=pixels).pooler_output)
    verifier = Aesthetic.load(tmp_path / "head.pth", siglip)
    values = verifier.score(pictures, [""] * 6)[:, 0].numpy()
    assert expected.std() > 0.05 and np.abs(values - expected).max() <= EXACT
    assert verifier.usual_range == (3.0, 7.0)


@pytest.mark.parametrize(("layout", "count"), [("v1", 1), ("v2", 1), ("v2 relu", 5), ("v2.5", 1)])
def test_layers_without_activations_are_one(tmp_path, layout, count):
    tiny_clips.save_head(tmp_path / "head.pth", layout, 24)
    head = load_head(tmp_path / "head.pth")
    assert len(head.layers) == count and head.width == 24 and head.siglip == (layout == "v2.5")
    assert all(tensor.dtype == torch.float32 for layer in head.layers for tensor in layer)


@pytest.mark.skipif(not REAL.is_dir(), reason="the published heads are not here; NOISE_SEARCH_HEADS names their folder")
@pytest.mark.parametrize(
    ("name", "width", "bias", "length", "digits"),
    [
        ("sa_0_4_vit_l_14_linear.pth", 768, 3.529, 28.4, 1),
        ("sa_0_4_vit_b_32_linear.pth", 512, 3.421, 27.6, 1),
        ("sac+logos+ava1-l14-linearMSE.pth", 768, 5.2366, 17.996, 3),
    ],
)
def test_published_heads_are_their_known_vectors(name, width, bias, length, digits):
    head = load_head(REAL / name)
    [(weight, offset)] = head.layers
    assert head.width == width and not head.siglip
    assert offset.item() == pytest.approx(bias, abs=5e-4)
    assert round(weight.norm().item(), digits) == length


def test_the_prompt_plays_no_part(clip, tmp_path):
    tiny_clips.save_head(tmp_path / "head.pth", "v1", 24)
    verifier = Aesthetic.load(tmp_path / "head.pth", clip)
    pictures = tiny_clips.images(2)
    assert not verifier.needs_prompt and verifier.prompt_tokens is None
    assert torch.equal(verifier.score(pictures, ["", ""]), verifier.score(pictures, ["a cat", "x" * 10_000]))
    with pytest.raises(VerifierError, match="2 images for 1 prompts"):
        verifier.score(pictures, [""])


def test_a_half_precision_tower_makes_no_ties(clip, tmp_path):
    tiny_clips.save_head(tmp_path / "head.pth", "v2", 24)
    pictures = tiny_clips.images(8, 40, 32)
    exact = Aesthetic.load(tmp_path / "head.pth", clip).score(pictures, [""] * 8)
    model = clip.module.bfloat16()
    half = dataclasses.replace(clip, encode=lambda pixels: model(pixel_values=pixels.bfloat16()).image_embeds)
    values = Aesthetic.load(tmp_path / "head.pth", half).score(pictures, [""] * 8)
    assert values.dtype == torch.float32 and len(values.unique()) == 8
    assert 0 < (values - exact).abs().max() < 0.5


@pytest.mark.parametrize(
    ("layout", "width", "size", "wants"),
    [
        ("v2", 768, 224, "CLIP ViT-L/14 at 224 pixels.*openai/clip-vit-large-patch14.*MIT"),
        ("v2", 768, 336, "CLIP ViT-L/14 at 224 pixels"),  # its 336-pixel sister has the same width
        ("v1", 512, 224, "ViT-B/32 or ViT-B/16, which ComfyUI's loader does not know"),
        ("v2.5", 1152, 384, "SigLIP so400m/14 at 384 pixels.*sigclip_vision_patch14_384.safetensors.*Apache-2.0"),
        ("v1", 20, 32, "one of width 20"),
    ],
)
def test_a_tower_of_another_kind_is_refused_with_the_right_ones_name(clip, tmp_path, layout, width, size, wants):
    tiny_clips.save_head(tmp_path / "head.pth", layout, width)
    tower = dataclasses.replace(clip, width=width if size == 336 else 24, preprocess=Preprocess((size, size)))
    with pytest.raises(VerifierError, match=f"which is a CLIP of width .* at {size} pixels; it wants .*{wants}"):
        Aesthetic.load(tmp_path / "head.pth", tower)


def test_a_siglip_without_its_pooling_layer_is_refused(siglip, tmp_path):
    tiny_clips.save_head(tmp_path / "head.pth", "v2.5", 64)
    part = {name: value for name, value in siglip.pooling.items() if name != "probe"}
    for pooling in (None, {}, part):
        with pytest.raises(VerifierError, match=r"needs the pooling layer of its SigLIP.*clip_vision"):
            Aesthetic.load(tmp_path / "head.pth", dataclasses.replace(siglip, pooling=pooling))


WRONG = {
    "a VAE": {"encoder.conv_in.weight": torch.zeros(4, 3, 3, 3)},
    "two outputs": {"weight": torch.zeros(2, 24), "bias": torch.zeros(2)},
    "no bias": {"weight": torch.zeros(1, 24)},
    "unknown places": {
        f"layers.{i}.{k}": torch.zeros(1, 1)[0 if k == "bias" else ...] for i in (0, 1) for k in ("weight", "bias")
    },
    "layers that do not fit": {"layers.0.weight": torch.zeros(8, 24), "layers.0.bias": torch.zeros(8)}
    | {
        f"layers.{i}.{k}": torch.zeros(1, 9)[0, :1] if k == "bias" else torch.zeros(1, 9)
        for i in (2, 4, 6, 7)
        for k in ("weight", "bias")
    },
    "more than a head": {"weight": torch.zeros(1, 24), "bias": torch.zeros(1), "tower.weight": torch.zeros(2)},
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_that_is_no_head_is_refused_with_the_right_ones_names(tmp_path, kind):
    torch.save(WRONG[kind], tmp_path / "wrong.pth")
    with pytest.raises(VerifierError, match=r"wrong\.pth is not an aesthetic head \(found: .*sac\+logos\+ava1.*Apache"):
        load_head(tmp_path / "wrong.pth")


def test_a_truncated_or_unsafe_head_is_refused(tmp_path):
    tiny_clips.save_head(tmp_path / "head.pth", "v2", 24)
    (tmp_path / "cut.pth").write_bytes((tmp_path / "head.pth").read_bytes()[:-500])
    torch.save({"weight": torch.zeros(1, 24), "path": tmp_path}, tmp_path / "code.pth")
    for name in ("cut.pth", "code.pth"):
        with pytest.raises(VerifierError, match=rf"{name}.*sac\+logos\+ava1"):
            load_head(tmp_path / name)


def test_its_identity_is_of_the_weights_and_not_of_names(clip, siglip, tmp_path):
    def identity(tower=clip, layout="v2", name="head.pth", **arguments):
        tiny_clips.save_head(tmp_path / name, layout, tower.width, **arguments)
        return Aesthetic.load(tmp_path / name, tower).identity()

    first = identity()
    assert first.startswith("aesthetic:") and identity(name="renamed.pth") == first
    other = tiny_clips.randomise(clip.module.__class__(clip.module.config), seed=1)
    changed = siglip.pooling | {"probe": siglip.pooling["probe"] + 1}
    identities = {first, identity(seed=1), identity(layout="v1"), identity(dataclasses.replace(clip, module=other))}
    identities |= {identity(siglip, "v2.5"), identity(dataclasses.replace(siglip, pooling=changed), "v2.5")}
    assert len(identities) == 6


@pytest.mark.comfyui
class TestInComfyUI:
    @pytest.fixture(autouse=True)
    def models(self, tmp_path, monkeypatch):
        """models/aesthetic, models/verifiers and models/clip_vision of our own."""
        pytest.importorskip("comfy")
        import folder_paths

        monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
        names = ("aesthetic", "verifiers", "clip_vision")
        for name in names:
            (tmp_path / name).mkdir()
            found = ([str(tmp_path / name)], {".safetensors"} if name == "clip_vision" else set())
            monkeypatch.setitem(folder_paths.folder_names_and_paths, name, found)
            folder_paths.filename_list_cache.pop(name, None)
        yield tmp_path
        for name in names:
            folder_paths.filename_list_cache.pop(name, None)

    @pytest.fixture
    def clip_vision(self, clip, models):
        """What Load CLIP Vision gives, of the tiny size: ComfyUI's own class, with float16 weights."""
        settings = VISION | {"hidden_act": "quick_gelu", "projection_dim": 24, "model_type": "clip_vision_model"}
        return self.load(clip.module.state_dict(), settings, models)

    @pytest.fixture
    def siglip_vision(self, siglip_model, models):
        from safetensors.torch import save_file

        state = {key: value.half() for key, value in published_names(siglip_model).items()}
        save_file(state, models / "clip_vision" / "siglip.safetensors")
        settings = VISION | {"hidden_act": "gelu_pytorch_tanh", "model_type": "siglip_vision_model"}
        return self.load(state, settings | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, models)

    @staticmethod
    def load(state, settings, folder):
        import comfy.clip_vision

        (folder / "config.json").write_text(json.dumps(settings))
        loaded = comfy.clip_vision.ClipVisionModel(str(folder / "config.json"))
        missing, _ = loaded.load_sd(dict(state))
        assert not missing
        return loaded

    def test_it_scores_with_the_stock_loaders_tower(self, clip_vision, models):
        """Against the stock node's image_embeds at the tower's own size, where nothing is resized."""
        from noise_search.host.judging.hosted import load_aesthetic

        state = tiny_clips.save_head(models / "aesthetic" / "head.pth", "v2", 24)
        pictures = tiny_clips.images(5)
        expected = by_formula(state, "v2", clip_vision.encode_image(pictures)["image_embeds"].detach())
        values = load_aesthetic(clip_vision, "head.pth").score(pictures, "")[:, 0].numpy()
        assert expected.std() > 0.05 and np.abs(values - expected).max() <= EXACT

    def test_v2_5_takes_the_pooling_layer_from_the_towers_own_file(self, siglip_vision, siglip_model, models):
        """Against transformers' pooled output, with the float16 weights of the file; another SigLIP lies beside it."""
        from noise_search.host.judging.hosted import load_aesthetic
        from safetensors.torch import save_file

        other = published_names(tiny_clips.randomise(siglip_model.__class__(siglip_model.config), seed=1))
        save_file(other, models / "clip_vision" / "another.safetensors")
        (models / "clip_vision" / "broken.safetensors").write_bytes(b"x" * 100)
        state = tiny_clips.save_head(models / "verifiers" / "v2_5.pth", "v2.5", 64)
        pictures = tiny_clips.images(5)
        rounded = siglip_model.__class__(siglip_model.config).eval()
        rounded.load_state_dict({key: value.half().float() for key, value in siglip_model.state_dict().items()})
        with torch.no_grad():
            pooled = rounded(pixel_values=2 * pictures.movedim(-1, 1) - 1).pooler_output
        values = load_aesthetic(siglip_vision, "v2_5.pth").score(pictures, "")[:, 0].numpy()
        expected = by_formula(state, "v2.5", pooled)
        assert expected.std() > 0.05 and np.abs(values - expected).max() <= EXACT

    def test_without_that_file_the_error_says_what_to_load(self, siglip_vision, models):
        from noise_search.host.judging.hosted import load_aesthetic

        tiny_clips.save_head(models / "aesthetic" / "v2_5.pth", "v2.5", 64)
        (models / "clip_vision" / "siglip.safetensors").unlink()
        with pytest.raises(VerifierError, match="needs the pooling layer of its SigLIP"):
            load_aesthetic(siglip_vision, "v2_5.pth")

    def test_the_node_shares_the_network_of_the_clip_vision(self, clip_vision, models):
        import comfy.model_management as mm
        from noise_search.nodes.verifiers import Aesthetic as Node

        tiny_clips.save_head(models / "aesthetic" / "sac.linearMSE.pth", "v2", 24)
        result = Node.execute(clip_vision, "sac.linearMSE.pth")
        [hosted] = (result if hasattr(result, "result") else SimpleNamespace(result=result)).result
        assert hosted.patcher is clip_vision.patcher and hosted.members == ("Aesthetic (sac.linearMSE)",)
        hosted.score(tiny_clips.images(2), "")
        assert [loaded.model is clip_vision.patcher for loaded in mm.current_loaded_models].count(True) == 1

    def test_comfyui_may_keep_parts_of_the_tower_off_the_gpu(self, clip_vision, models, monkeypatch):
        """Its own layers can do that, unlike ours."""
        import comfy.model_management as mm
        from noise_search.host.judging.hosted import load_aesthetic

        tiny_clips.save_head(models / "aesthetic" / "head.pth", "v1", 24)
        calls = []
        monkeypatch.setattr(mm, "load_models_gpu", lambda *args, **kwargs: calls.append(kwargs))
        load_aesthetic(clip_vision, "head.pth").score(tiny_clips.images(1), "")
        assert [call["force_full_load"] for call in calls] == [False]

    def test_pictures_of_any_kind(self, clip_vision, models):
        from noise_search.host.judging.hosted import load_aesthetic

        tiny_clips.save_head(models / "aesthetic" / "head.pth", "v2", 24)
        hosted, pictures = load_aesthetic(clip_vision, "head.pth"), tiny_clips.images(2, 20, 200)
        transparent = torch.cat([pictures, torch.rand(2, 20, 200, 1)], dim=-1)
        assert torch.equal(hosted.score(transparent, ""), hosted.score(pictures, ""))
        assert torch.isfinite(hosted.score(torch.rand(1, 1, 1, 1), "")).all()
        pictures[0, 0, 0, 0] = float("inf")
        with pytest.raises(ValueError, match="image 1 of 2 has pixels that are not numbers"):
            hosted.score(pictures, "")

    @pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes")
    def test_what_is_no_regular_file_is_in_no_list(self, models, monkeypatch):
        """Named pipes where weights and configurations are looked for, and links to them: opening one never ends."""
        import folder_paths
        from noise_search.host.judging import folders

        monkeypatch.setitem(folder_paths.folder_names_and_paths, "LLM", ([str(models / "LLM")], set()))
        monkeypatch.setitem(
            folder_paths.folder_names_and_paths, "image_reward", ([str(models / "image_reward")], set())
        )
        for place in ("aesthetic", "verifiers", "clip_vision", "image_reward", "LLM/model", "verifiers/clip"):
            (models / place).mkdir(parents=True, exist_ok=True)
            for name in ("a.safetensors", "b.pt", "config.json", "open_clip_config.json"):
                os.mkfifo(models / place / name)
            (models / place / "c.safetensors").symlink_to(models / place / "a.safetensors")
        (models / "LLM" / "model" / "preprocessor_config.json").write_text("{}")
        lists = (folders.clip_choices, folders.head_choices, folders.reward_choices, folders.vlm_choices)
        assert [choices() for choices in lists] == [[folders.NONE_FOUND]] * 4
        assert folders.clip_vision_files() == []

    def test_small_weight_files_of_both_folders_are_listed(self, models, monkeypatch):
        from noise_search.host.judging import folders

        assert folders.head_choices() == [folders.NONE_FOUND]
        for name in ("aesthetic/b.pth", "aesthetic/note.txt", "verifiers/a.safetensors", "verifiers/whole.pt"):
            (models / name).write_bytes(b"x" * (2000 if "whole" in name else 10))
        monkeypatch.setattr(folders, "HEAD_BYTES", 1000)
        assert folders.head_choices() == ["a.safetensors", "b.pth"]
        (models / "verifiers" / "b.pth").write_bytes(b"y")
        assert folders.head_path("b.pth") == models / "aesthetic" / "b.pth"

    @pytest.mark.parametrize("name", ["../outside.pth", "/etc/passwd", ""])
    def test_only_listed_names_are_resolved(self, models, name):
        from noise_search.host.judging import folders

        (models / "outside.pth").write_bytes(b"x")
        with pytest.raises(VerifierError, match="no aesthetic head .* here. Put one of"):
            folders.head_path(name)

    def test_with_no_file_the_error_says_where_to_put_which(self, models, clip_vision):
        from noise_search.host.judging import folders
        from noise_search.host.judging.hosted import load_aesthetic

        with pytest.raises(VerifierError) as raised:
            load_aesthetic(clip_vision, folders.NONE_FOUND)
        for part in (
            str(models / "aesthetic"),
            "sac+logos+ava1-l14-linearMSE.pth",
            "Apache-2.0",
            "AGPL-3.0",
            "Nothing is",
        ):
            assert part in str(raised.value)

    @pytest.mark.parametrize("wrong", [None, "a model", SimpleNamespace(config={})])
    def test_something_else_than_a_clip_vision_is_refused(self, models, wrong):
        from noise_search.host.judging.hosted import load_aesthetic

        tiny_clips.save_head(models / "aesthetic" / "head.pth", "v1", 24)
        with pytest.raises(VerifierError, match=f"clip_vision is {type(wrong).__name__}; connect"):
            load_aesthetic(wrong, "head.pth")
