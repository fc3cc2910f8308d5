"""PickScore against transformers' and open_clip's own models, on tiny checkpoints in the published layouts."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny_clips
import torch
from noise_search.verifiers.base import VerifierError
from noise_search.verifiers.clip import CLIPScore
from noise_search.verifiers.pickscore import PickScore
from PIL import Image

PROMPTS = ["a red circle above a blue square", "two small green triangles", "", "x" * 10_000]
SCALE = 4.6052  # log 100, as far as training took it
RELATIVE = 1e-5  # of a score of 100 cos


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As published: config.json and model.safetensors of a CLIPModel; and a tokenizer, as users add one."""
    folder = tmp_path_factory.mktemp("models") / "PickScore_v1"
    model = tiny_clips.hf_clip_model("gelu")
    with torch.no_grad():
        model.logit_scale.fill_(SCALE)
    tiny_clips.save_hf_clip_folder(folder, model)
    return folder


@pytest.fixture(scope="module")
def tiny_architecture(tmp_path_factory):
    configs = {"tiny-ViT-H": tiny_clips.OPEN_CLIP_CONFIG}
    with tiny_clips.open_clip_architectures(tmp_path_factory.mktemp("configs"), **configs):
        yield "tiny-ViT-H"


@pytest.fixture
def pictures():
    return tiny_clips.images(4, 40, 50)


def pil(picture):
    return Image.fromarray((picture.numpy() * 255).round().astype(np.uint8))


def published(folder, pictures, prompts):
    """The logits of CLIPModel.forward with transformers' own preprocessing: exp(logit_scale) cos."""
    import transformers

    model = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    tokens = tokenizer(prompts, padding=True, truncation=True, max_length=77, return_tensors="pt")
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    # the pixels are ours, as PIL makes them: transformers 5 resizes with torchvision, a step of 8 bits off at places
    pixels = torch.cat([PickScore.load(folder).preprocess(picture) for picture in pictures])
    theirs = processor([pil(picture) for picture in pictures], return_tensors="pt").pixel_values
    assert (pixels - theirs).abs().mean() < 0.02
    with torch.no_grad():
        return model(pixel_values=pixels, **tokens).logits_per_image.diagonal()


def test_it_is_the_scaled_cosine_that_its_authors_publish(folder, pictures):
    expected = published(folder, pictures, PROMPTS)
    assert expected.std() > 2
    values = PickScore.load(folder).score(pictures, PROMPTS)[:, 0]
    assert (values - expected).abs().max() <= RELATIVE * 100


@pytest.mark.parametrize(("kind", "name"), [(PickScore, "."), (PickScore, "model.safetensors"), (CLIPScore, ".")])
def test_the_centre_is_the_one_that_transformers_cuts_out(folder, tiny_architecture, tmp_path, kind, name):
    import transformers

    picture = tiny_clips.images(1, 35, 32)[0]  # half a pixel off: torchvision cuts one row below
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    expected = processor(pil(picture), return_tensors="pt").pixel_values
    path = folder if name == "." else tmp_path / name
    if path != folder:
        path.write_bytes((folder / name).read_bytes())
    verifier = kind.load(path, architecture="" if path == folder else tiny_architecture)
    assert torch.allclose(verifier.preprocess(picture), expected, atol=1e-5)


def test_the_factor_is_the_exponential_of_the_logit_scale(folder, pictures):
    cosines = CLIPScore.load(folder).score(pictures, PROMPTS) / 100
    values = PickScore.load(folder).score(pictures, PROMPTS)
    assert torch.allclose(values, cosines * np.exp(np.float32(SCALE)), rtol=RELATIVE)


def test_a_folder_without_a_tokenizer_is_read_with_clips_own(folder, pictures, tmp_path, tiny_architecture):
    """As the published one is."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    values = PickScore.load(tmp_path, architecture=tiny_architecture).score(pictures, PROMPTS)
    assert torch.allclose(values, PickScore.load(folder).score(pictures, PROMPTS), rtol=0, atol=RELATIVE * 100)


def test_a_single_file_gives_the_folders_score(folder, pictures, tmp_path, tiny_architecture):
    path = tmp_path / "pickscore.safetensors"
    path.write_bytes((folder / "model.safetensors").read_bytes())
    verifier = PickScore.load(path, architecture=tiny_architecture)
    expected = PickScore.load(folder).score(pictures, PROMPTS)
    assert torch.allclose(verifier.score(pictures, PROMPTS), expected, rtol=0, atol=RELATIVE * 100)


def test_a_single_file_is_taken_as_a_vit_h_14_without_guessing(tmp_path, caplog):
    """The activation of the published weights is plain GELU, which a file of that name does not say."""
    import open_clip
    from noise_search.verifiers import clip_files

    path = tmp_path / "model.safetensors"
    assert PickScore.architecture in open_clip.list_models()
    config = open_clip.get_model_config(PickScore.architecture)
    assert not config.get("quick_gelu") and config["embed_dim"] == 1024
    assert clip_files._open_clip_sizes(open_clip, PickScore.architecture)["vision_width"] == 1280
    tiny_clips.save_hf_clip_folder(tmp_path)
    with pytest.raises(VerifierError, match="does not fit ViT-H-14"):
        PickScore.load(path)
    assert "QuickGELU" not in caplog.text


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 0.1), (torch.bfloat16, 1.0)])
def test_the_factor_is_not_rounded_with_the_towers(folder, pictures, dtype, bound):
    exact, half = PickScore.load(folder), PickScore.load(folder, dtype=dtype)
    assert half.factor == exact.factor and half.module.logit_scale.dtype == dtype
    difference = (half.score(pictures, PROMPTS) - exact.score(pictures, PROMPTS)).abs().max()
    assert 0 < difference < bound


def test_it_says_what_it_is(folder):
    verifier = PickScore.load(folder, "PickScore_v1")
    assert verifier.members == ("PickScore (PickScore_v1)",) and verifier.needs_prompt
    assert verifier.usual_range == (18.0, 24.0) and verifier.prompt_tokens == 77


def test_its_identity_is_not_clip_scores(folder):
    identity = PickScore.load(folder).identity()
    assert identity.startswith("pickscore:")
    assert identity.split(":")[1] != CLIPScore.load(folder).identity().split(":")[1]
    assert identity != PickScore.load(folder, dtype=torch.bfloat16).identity()


def vae(folder, path):
    torch.save({"encoder.conv_in.weight": torch.zeros(4, 3, 3, 3), "decoder.conv_out.bias": torch.zeros(3)}, path)


def text_encoder(folder, path):
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    torch.save({key: value for key, value in state.items() if key.startswith("text_model.")}, path)


def truncated(folder, path):
    path.write_bytes((folder / "model.safetensors").read_bytes()[:-1000])


@pytest.mark.parametrize("make", [vae, text_encoder, truncated])
def test_the_wrong_file_is_named_with_the_right_one(folder, tmp_path, make):
    path = tmp_path / "wrong.pt"
    make(folder, path)
    with pytest.raises(VerifierError, match=r"wrong\.pt.*model\.safetensors \(MIT licence.*PickScore_v1"):
        PickScore.load(path)


@pytest.mark.comfyui
class TestInComfyUI:
    @pytest.fixture(autouse=True)
    def comfyui(self):
        pytest.importorskip("comfy")

    @pytest.fixture
    def models(self, folder, tmp_path, monkeypatch):
        import folder_paths
        from noise_search.host.judging import folders

        root = tmp_path / "verifiers"
        monkeypatch.setattr(PickScore, "weights", 0)  # tiny ones have fewer
        monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
        monkeypatch.setitem(folder_paths.folder_names_and_paths, folders.FOLDER, ([str(root)], set()))
        folder_paths.filename_list_cache.pop(folders.FOLDER, None)
        (root / "PickScore_v1").mkdir(parents=True)
        for file in folder.iterdir():
            (root / "PickScore_v1" / file.name).write_bytes(file.read_bytes())
        yield root
        folder_paths.filename_list_cache.pop(folders.FOLDER, None)

    def test_the_node_gives_the_plain_score(self, models, folder, pictures):
        from noise_search.nodes.verifiers import LOADERS

        result = LOADERS["pickscore"].execute("PickScore_v1", "fp32")
        [hosted] = (result if hasattr(result, "result") else SimpleNamespace(result=result)).result
        values = hosted.score(pictures, "a red circle")
        assert torch.equal(values, PickScore.load(folder).score(pictures, ["a red circle"] * 4))
        assert hosted.members == ("PickScore (PickScore_v1)",)

    def test_two_judges_of_one_file_share_one_network(self, models, folder, pictures):
        from noise_search.host.judging.hosted import load

        picks, clip = load("pickscore", "PickScore_v1", "bf16"), load("clip_score", "PickScore_v1", "bf16")
        assert picks is load("pickscore", "PickScore_v1", "bf16") and picks is not clip
        assert picks.patcher is clip.patcher and picks.verifier.module is clip.verifier.module
        # whoever loads it first, the factor is that of the file
        assert picks.verifier.factor == PickScore.load(folder).factor
        assert load("pickscore", "PickScore_v1", "fp32").patcher is not picks.patcher

    def test_the_shared_network_goes_with_its_last_user(self, models, pictures):
        import gc
        import weakref

        from noise_search.host.judging.hosted import load

        picks, clip = load("pickscore", "PickScore_v1"), load("clip_score", "PickScore_v1")
        module = weakref.ref(picks.verifier.module)
        before = picks.score(pictures, "a")
        del clip
        gc.collect()
        assert torch.equal(picks.score(pictures, "a"), before)
        del picks
        gc.collect()
        assert module() is None

    def test_grey_and_transparent_pictures_are_scored_as_rgb(self, models, pictures):
        from noise_search.host.judging.hosted import load

        hosted = load("pickscore", "PickScore_v1")
        transparent = torch.cat([pictures, torch.rand(4, 40, 50, 1)], dim=-1)
        assert torch.equal(hosted.score(transparent, "a"), hosted.score(pictures, "a"))
        grey = pictures[..., :1]
        assert torch.equal(hosted.score(grey, "a"), hosted.score(grey.repeat(1, 1, 1, 3), "a"))

    def test_its_own_files_are_listed_first(self, models):
        from noise_search.host.judging.folders import clip_choices

        tiny_clips.save_open_clip_folder(models / "Another")
        assert clip_choices("pick") == ["PickScore_v1", "Another"]

    def test_with_no_file_the_error_says_where_to_put_which(self, models):
        import shutil

        from noise_search.host.judging import folders
        from noise_search.host.judging.hosted import load

        shutil.rmtree(models / "PickScore_v1")
        with pytest.raises(VerifierError) as raised:
            load("pickscore", folders.NONE_FOUND)
        for part in (str(models), "yuvalkirstain/PickScore_v1", "MIT", "3.94 GB", "Nothing is downloaded"):
            assert part in str(raised.value)

    def test_a_failed_load_leaves_nothing(self, models):
        import comfy.model_management as mm
        from noise_search.host.judging import hosted as hosting

        weights = models / "PickScore_v1" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        before = len(mm.current_loaded_models), len(hosting._loaded), len(hosting._encoders)
        with pytest.raises(
            VerifierError, match="cannot read .*model.safetensors.*Put config.json and model.safetensors"
        ):
            hosting.load("pickscore", "PickScore_v1")
        assert (len(mm.current_loaded_models), len(hosting._loaded), len(hosting._encoders)) == before

    @pytest.mark.parametrize("save", [tiny_clips.save_hf_clip_folder, tiny_clips.save_hf_siglip_folder])
    @pytest.mark.parametrize("shared", [False, True])
    def test_another_clip_is_refused_also_where_clip_score_uses_it(self, models, monkeypatch, save, shared):
        from noise_search.host.judging.hosted import load

        monkeypatch.setattr(PickScore, "weights", 986_109_441)
        save(models / "ViT-B-32")
        used = load("clip_score", "ViT-B-32") if shared else None
        with pytest.raises(VerifierError, match="ViT-B-32 is another model: .*PickScore is a ViT-H-14 .*PickScore_v1"):
            load("pickscore", "ViT-B-32")
        del used
