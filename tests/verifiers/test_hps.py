"""HPS against open_clip's and ComfyUI's models and torchvision's transforms, on tiny checkpoints as published."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny_clips
import torch
from noise_search.verifiers.base import VerifierError
from noise_search.verifiers.clip import CLIPScore
from noise_search.verifiers.hps import HPS

PROMPTS = ["a red circle above a blue square", "two small green triangles", "", "x" * 10_000]
SIZES = [(32, 32), (40, 56), (75, 41), (3, 90), (1, 1), (20, 31)]
RELATIVE = 1e-5  # of a score of 100 cos
ARCHITECTURE = "tiny-ViT-HPS"


@pytest.fixture(scope="module", autouse=True)
def tiny_architecture(tmp_path_factory):
    configs = {ARCHITECTURE: {**tiny_clips.OPEN_CLIP_CONFIG, "embed_dim": 32}}
    with tiny_clips.open_clip_architectures(tmp_path_factory.mktemp("configs"), **configs):
        yield


@pytest.fixture(scope="module")
def model():
    """Weights with float16 values, as the published files have them."""
    model = tiny_clips.open_clip_model(embed_dim=32)
    return model.half().float()


@pytest.fixture
def checkpoint(model, tmp_path):
    """As published: half precision, in {"state_dict": ...}."""
    path = tmp_path / "verifiers" / "HPS_v2.1_compressed.pt"
    path.parent.mkdir()
    torch.save({"state_dict": {key: value.half() for key, value in model.state_dict().items()}}, path)
    return path


def letterboxed(picture, size=32):
    """What the authors' transform does: ToTensor, the longer side to `size`, zeros around, then normalised."""
    import torchvision.transforms.functional as F

    pixels = picture.movedim(-1, 0)
    height, width = pixels.shape[1:]
    scale = size / max(height, width)
    new = [max(1, round(height * scale)), max(1, round(width * scale))]
    pixels = F.resize(pixels, new, F.InterpolationMode.BICUBIC, antialias=True)
    down, across = size - new[0], size - new[1]
    pixels = F.pad(pixels, [across // 2, down // 2, across - across // 2, down - down // 2], fill=0)
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    return F.normalize(pixels, mean, std)


@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_cosine_of_the_letterboxed_image(checkpoint, model, size):
    """The authors' call: features of open_clip's forward, which are normalised, and their dot product."""
    import open_clip

    pictures = tiny_clips.images(4, *size, seed=1) if min(size) > 1 else torch.rand(4, *size, 3)
    with torch.no_grad():
        pixels = torch.stack([letterboxed(picture) for picture in pictures])
        image, text, _ = model(pixels, open_clip.tokenize(PROMPTS))
    expected = 100 * (image @ text.T).diagonal()
    values = HPS.load(checkpoint, architecture=ARCHITECTURE).score(pictures, PROMPTS)
    assert values.shape == (4, 1) and values.dtype == torch.float32
    assert expected.std() > 1
    assert (values[:, 0] - expected).abs().max() <= RELATIVE * 100


def test_what_a_centre_crop_would_cut_off_counts(checkpoint):
    wide = tiny_clips.images(1, 32, 96)
    changed = wide.clone()
    changed[:, :, :24] = 1 - changed[:, :, :24]
    hps, clip = HPS.load(checkpoint, architecture=ARCHITECTURE), CLIPScore.load(checkpoint, architecture=ARCHITECTURE)
    assert torch.equal(clip.score(wide, ["a"]), clip.score(changed, ["a"]))
    assert (hps.score(wide, ["a"]) - hps.score(changed, ["a"])).abs() > 0.1


def test_the_bars_are_black_before_normalising(checkpoint):
    verifier = HPS.load(checkpoint, architecture=ARCHITECTURE)
    pixels = verifier.preprocess(torch.ones(8, 32, 3))[0]
    black = -torch.tensor(verifier.preprocess.mean) / torch.tensor(verifier.preprocess.std)
    assert torch.allclose(pixels[:, 0, 0], black) and torch.allclose(pixels[:, -1, -1], black)
    assert (pixels[:, 16, 16] > black).all()


def test_the_published_file_is_taken_as_a_vit_h_14(checkpoint, caplog):
    with pytest.raises(VerifierError, match="does not fit its architecture ViT-H-14") as raised:
        HPS.load(checkpoint)
    assert "HPS_v2.1_compressed.pt" in str(raised.value) and HPS.architecture == "ViT-H-14"
    assert "QuickGELU" not in caplog.text


@pytest.mark.parametrize("scalar", [np.float64(0.5), 0.5])
def test_the_training_checkpoint_is_refused_with_the_right_files_name(model, tmp_path, scalar):
    optimizer = torch.optim.AdamW(model.parameters()).state_dict()
    path = tmp_path / "HPS_v2.pt"
    torch.save({"epoch": 1, "state_dict": model.state_dict(), "optimizer": optimizer, "best": scalar}, path)
    with pytest.raises(VerifierError, match=r"HPS_v2\.pt is a checkpoint for training.*HPS_v2\.1_compressed\.pt"):
        HPS.load(path, architecture=ARCHITECTURE)


def test_the_file_is_read_without_running_it(model, tmp_path):
    path = tmp_path / "HPS_v2_compressed.pt"
    torch.save({"state_dict": model.state_dict(), "code": ARCHITECTURE.__class__, "path": path}, path)
    with pytest.raises(VerifierError, match="Python pickle that holds more than weights.*xswu/HPSv2"):
        HPS.load(path, architecture=ARCHITECTURE)


@pytest.mark.parametrize("kind", ["vae", "no text tower", "truncated", "empty"])
def test_the_wrong_file_is_named_with_the_right_one(checkpoint, model, tmp_path, kind):
    path = tmp_path / "wrong.pt"
    if kind == "vae":
        torch.save({"encoder.conv_in.weight": torch.zeros(4, 3, 3, 3)}, path)
    elif kind == "no text tower":
        torch.save({key: value for key, value in model.state_dict().items() if key.startswith("visual.")}, path)
    else:
        path.write_bytes(checkpoint.read_bytes()[: -1000 if kind == "truncated" else 0])
    with pytest.raises(VerifierError, match=r"wrong\.pt.*HPS_v2\.1_compressed\.pt.*Apache-2\.0.*xswu/HPSv2"):
        HPS.load(path, architecture=ARCHITECTURE)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 0.1), (torch.bfloat16, 1.0)])
def test_half_precision_makes_no_ties(checkpoint, dtype, bound):
    pictures = tiny_clips.images(8, 40, 32)
    exact = HPS.load(checkpoint, architecture=ARCHITECTURE).score(pictures, PROMPTS * 2)
    values = HPS.load(checkpoint, architecture=ARCHITECTURE, dtype=dtype).score(pictures, PROMPTS * 2)
    assert 0 < (values - exact).abs().max() < bound
    assert len(values.unique()) == 8


def test_it_says_what_it_is(checkpoint):
    verifier = HPS.load(checkpoint, architecture=ARCHITECTURE)
    assert verifier.members == ("HPS (HPS_v2.1_compressed)",) and verifier.needs_prompt
    assert verifier.usual_range == (20.0, 35.0) and verifier.prompt_tokens == 77


def test_its_identity_knows_version_and_precision(checkpoint, model, tmp_path):
    verifier = HPS.load(checkpoint, architecture=ARCHITECTURE)
    other = tmp_path / "HPS_v2_compressed.pt"
    state = {key: value + 0.01 for key, value in model.state_dict().items()}
    torch.save({"state_dict": state}, other)
    identities = {
        verifier.identity(),
        HPS.load(other, architecture=ARCHITECTURE).identity(),
        HPS.load(checkpoint, architecture=ARCHITECTURE, dtype=torch.bfloat16).identity(),
        CLIPScore.load(checkpoint, architecture=ARCHITECTURE).identity(),
    }
    assert len(identities) == 4 and verifier.identity().startswith("hps:")


@pytest.mark.comfyui
class TestInComfyUI:
    @pytest.fixture(autouse=True)
    def models(self, checkpoint, tmp_path, monkeypatch):
        """models/verifiers with the tiny file, taken as of the tiny architecture."""
        pytest.importorskip("comfy")
        import folder_paths
        from noise_search.host.judging import folders

        monkeypatch.setattr(HPS, "architecture", ARCHITECTURE)
        monkeypatch.setattr(HPS, "weights", 0)  # tiny ones have fewer
        monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
        monkeypatch.setitem(folder_paths.folder_names_and_paths, folders.FOLDER, ([str(tmp_path / "verifiers")], set()))
        folder_paths.filename_list_cache.pop(folders.FOLDER, None)
        yield checkpoint.parent
        folder_paths.filename_list_cache.pop(folders.FOLDER, None)

    def test_it_equals_comfyuis_own_clip(self, model):
        """An independent computation: ComfyUI's CLIP classes and tokenizer, weights renamed by ComfyUI."""

        import comfy.clip_model
        import comfy.clip_vision
        import comfy.ops
        import comfy.utils
        from noise_search.host.judging.hosted import load

        pictures = tiny_clips.images(4, 48, 30)
        shared = {"num_hidden_layers": 2, "hidden_act": "gelu", "num_attention_heads": 2}
        vision = shared | {"hidden_size": 64, "intermediate_size": 256, "image_size": 32, "patch_size": 8}
        vision |= {"num_channels": 3, "projection_dim": 32, "model_type": "clip_vision_model"}
        text = shared | {"hidden_size": 32, "intermediate_size": 128, "max_position_embeddings": 77}
        image_tower = comfy.clip_model.CLIPVisionModelProjection(vision, torch.float32, "cpu", comfy.ops.manual_cast)
        text_tower = comfy.clip_model.CLIPTextModel(
            text | {"eos_token_id": 49407}, torch.float32, "cpu", comfy.ops.manual_cast
        )
        state = {key: value.clone() for key, value in model.state_dict().items()}
        visual = {key: state.pop(key) for key in list(state) if key.startswith("visual.")}
        visual = comfy.clip_vision.convert_to_transformers(visual, "visual.")
        assert not image_tower.load_state_dict(visual, strict=False)[0]
        state = comfy.utils.clip_text_transformers_convert(state, "", "")
        assert not text_tower.load_state_dict(state, strict=False)[0]
        tokenizer = tiny_clips.stock_tokenizer()
        ids = tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
        with torch.no_grad():
            pixels = torch.stack([letterboxed(picture) for picture in pictures])
            expected = 100 * tiny_clips.cosine(image_tower(pixels)[2], text_tower(ids)[2])
        values = load("hps", "HPS_v2.1_compressed.pt", "fp32").score(pictures, PROMPTS)[:, 0].double().numpy()
        assert expected.std() > 1 and np.abs(values - expected).max() <= RELATIVE * 100

    def test_the_node_gives_the_plain_score(self, checkpoint):
        from noise_search.nodes.verifiers import LOADERS

        pictures = tiny_clips.images(2, 40, 32)
        result = LOADERS["hps"].execute("HPS_v2.1_compressed.pt", "fp32")
        [hosted] = (result if hasattr(result, "result") else SimpleNamespace(result=result)).result
        assert hosted.members == ("HPS (HPS_v2.1_compressed)",)
        assert torch.equal(hosted.score(pictures, "a"), HPS.load(checkpoint).score(pictures, ["a", "a"]))

    def test_a_folders_version_stays_in_its_name(self, models, model):
        from noise_search.host.judging.hosted import load

        tiny_clips.save_open_clip_folder(models / "HPS_v2.1", model, embed_dim=32)
        assert load("hps", "HPS_v2.1").members == ("HPS (HPS_v2.1)",)

    def test_two_judges_of_one_file_share_one_network(self):
        from noise_search.host.judging.hosted import load

        name = "HPS_v2.1_compressed.pt"
        first, second = load("hps", name), load("hps", name)
        clip = load("clip_score", name, architecture=ARCHITECTURE)
        assert first is second and clip.patcher is first.patcher and clip.verifier.module is first.verifier.module

    def test_nan_is_refused_and_grey_and_transparent_are_read_as_rgb(self):
        from noise_search.host.judging.hosted import load

        hosted, pictures = load("hps", "HPS_v2.1_compressed.pt"), tiny_clips.images(2, 40, 32)
        transparent = torch.cat([pictures, torch.rand(2, 40, 32, 1)], dim=-1)
        assert torch.equal(hosted.score(transparent, "a"), hosted.score(pictures, "a"))
        grey = pictures[..., :1]
        assert torch.equal(hosted.score(grey, "a"), hosted.score(grey.repeat(1, 1, 1, 3), "a"))
        pictures[1, 0, 0, 0] = float("nan")
        with pytest.raises(ValueError, match="image 2 of 2 has pixels that are not numbers"):
            hosted.score(pictures, "a")

    def test_with_no_file_the_error_says_where_to_put_which(self, models, checkpoint):
        from noise_search.host.judging import folders
        from noise_search.host.judging.hosted import load

        checkpoint.unlink()
        with pytest.raises(VerifierError) as raised:
            load("hps", folders.NONE_FOUND)
        for part in (str(models), "HPS_v2.1_compressed.pt", "Apache-2.0", "1.97 GB", "Nothing is downloaded"):
            assert part in str(raised.value)

    def test_a_failed_load_leaves_nothing(self, checkpoint):
        import comfy.model_management as mm
        from noise_search.host.judging import hosted as hosting

        checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
        before = len(mm.current_loaded_models), len(hosting._loaded), len(hosting._encoders)
        with pytest.raises(VerifierError, match="cannot read .*HPS_v2.1_compressed.pt"):
            hosting.load("hps", checkpoint.name)
        assert (len(mm.current_loaded_models), len(hosting._loaded), len(hosting._encoders)) == before

    def test_another_clip_is_refused(self, models, model, monkeypatch):
        from noise_search.host.judging.hosted import load

        monkeypatch.setattr(HPS, "weights", sum(parameter.numel() for parameter in model.parameters()))
        assert load("hps", "HPS_v2.1_compressed.pt")
        tiny_clips.save_open_clip_folder(models / "ViT-L-14", embed_dim=16)
        with pytest.raises(VerifierError, match=r"ViT-L-14 is another model: .*HPS_v2\.1_compressed\.pt"):
            load("hps", "ViT-L-14")


def test_a_vit_h_14_has_as_many_weights_as_it_says():
    import open_clip
    from noise_search.verifiers.pickscore import PickScore

    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config("ViT-H-14"))
    assert sum(parameter.numel() for parameter in model.parameters()) == HPS.weights == PickScore.weights
