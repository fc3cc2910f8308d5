"""Odd images, odd prompts and wrong files, for every verifier of the registry: the right score or a clear error, and
nothing left behind."""

import gc
import shutil
import weakref

import pytest
import tiny_clips
import tiny_verifiers as contract
import torch
from noise_search.verifiers import registry
from noise_search.verifiers.base import VerifierError
from noise_search.verifiers.preprocess import Preprocess
from safetensors.torch import save_file

pytest.importorskip("comfy")

import comfy.model_management as mm
from noise_search.host.judging.hosted import HostedVerifier

pytestmark = pytest.mark.comfyui
PROMPT = "two small squares above a circle"
LONG = "a red circle above a blue square, " * 300
VLMS = ("vlm_grader", "vqa_score")


@pytest.fixture(scope="module", params=registry.names())
def hosted(request, tmp_path_factory):
    """Each verifier under ComfyUI's model management, on a tiny checkpoint."""
    return HostedVerifier(contract.TINY[request.param](tmp_path_factory.mktemp(request.param)))


def values(hosted, images, prompt=PROMPT):
    found = hosted.score(images, prompt)
    assert found.shape == (len(images), len(hosted.members)) and torch.isfinite(found).all()
    return found


# Images


def test_grey_is_the_same_in_all_channels(hosted):
    grey = tiny_clips.images(2)[..., :1]
    assert torch.equal(values(hosted, grey), values(hosted, grey.expand(-1, -1, -1, 3)))


def test_alpha_is_left_out(hosted):
    images = tiny_clips.images(2)
    with_alpha = torch.cat([images, torch.rand(2, 32, 32, 1)], dim=-1)
    assert torch.equal(values(hosted, with_alpha), values(hosted, images))


def test_the_frames_of_a_video_are_images_each_for_itself(hosted):
    frames = tiny_clips.images(3)
    together = values(hosted, frames)
    for index in range(3):
        assert torch.equal(values(hosted, frames[index : index + 1]), together[index : index + 1])


@pytest.mark.parametrize("shape", [(1, 3, 8, 8, 3), (8, 8, 3), (1, 8, 8, 2), (1, 0, 8, 3), (0, 8, 8, 3)])
def test_what_is_no_image_is_refused_with_its_shape(hosted, shape):
    with pytest.raises(ValueError, match=r"must be \[images, height, width, 3\], found \["):
        hosted.score(torch.zeros(shape), PROMPT)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (8, 8192), (8192, 8)])
def test_a_plain_colour_has_one_score_at_any_size(hosted, height, width):
    preprocess = getattr(hosted.verifier, "preprocess", None) or getattr(
        getattr(hosted.verifier, "tower", None), "preprocess", None
    )
    images = torch.tensor([0.2, 0.6, 0.4]).expand(1, height, width, 3)
    found = values(hosted, images)
    if preprocess is not None and preprocess.resize_mode != "longest":  # which has black beside it
        assert torch.allclose(found, values(hosted, torch.tensor([0.2, 0.6, 0.4]).expand(1, 32, 32, 3)), atol=1e-4)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_an_8192_pixel_wide_strip_becomes_the_towers_size_or_is_refused(mode):
    preprocess = Preprocess(resize_mode=mode)
    strip = torch.full((8, 8192, 3), 0.5)
    if mode == "shortest":
        with pytest.raises(VerifierError, match="8192x8 pixels is too long and narrow.*crop it first"):
            preprocess(strip)
    else:
        assert preprocess(strip).shape == (1, 3, 224, 224)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_pixels_that_are_no_numbers_are_refused_by_image(hosted, bad):
    images = tiny_clips.images(3)
    images[1, 5, 5, 0] = bad
    with pytest.raises(ValueError, match="image 2 of 3 has pixels that are not numbers"):
        hosted.score(images, PROMPT)


def test_values_out_of_range_count_as_the_nearest_in_it(hosted):
    images = tiny_clips.images(2)
    beyond = torch.where(images > 0.5, images + 3, images - 3)
    assert torch.equal(values(hosted, beyond), values(hosted, (images > 0.5).float()))


def test_odd_neighbours_have_no_influence(hosted):
    images = tiny_clips.images(3, 40, 30)
    alone = values(hosted, images[1:2])
    images[0], images[2] = 0, 1
    together = hosted.score(images, ["猫" * 50, PROMPT, f"a green circle. {LONG}"] if hosted.prompt_tokens else PROMPT)
    assert torch.equal(together[1:2], alone)


# Prompts


@pytest.mark.parametrize(
    "prompt", ["红色的猫在蓝色的方块上", "قطة حمراء فوق مربع أزرق", "🟥 \n\t 'quotes\" {prompt} <|endoftext|>"]
)
def test_any_script_has_a_score(hosted, prompt):
    assert torch.equal(values(hosted, tiny_clips.images(1), prompt), values(hosted, tiny_clips.images(1), prompt))
    assert hosted.cut(prompt) is None


def test_an_empty_prompt_has_a_score_or_is_refused_in_words(hosted):
    try:
        values(hosted, tiny_clips.images(1), "")
    except VerifierError as error:
        assert "prompt" in str(error) and hosted.needs_prompt


def test_ten_thousand_characters_are_cut_and_it_is_said_where(hosted):
    assert len(LONG) > 10_000
    try:
        first = values(hosted, tiny_clips.images(2), LONG)
    except VerifierError as error:  # a model that is asked, and cannot be asked half a question
        assert "shorten the prompt" in str(error) and hosted.prompt_tokens is None
        return
    assert torch.equal(values(hosted, tiny_clips.images(2), LONG), first)
    said = hosted.cut(LONG)
    if hosted.prompt_tokens is None:
        assert said is None
    else:
        assert f"{hosted.members[0]} reads the first {hosted.prompt_tokens} of " in said and len(said) < 250


@pytest.mark.parametrize("words", [[str(number) for number in range(300)], ["红色的猫", "在", "蓝色的方块上"] * 30])
def test_what_is_said_to_be_read_is_what_fits(hosted, words):
    if hosted.prompt_tokens is None:
        return
    said, text = hosted.cut(" ".join(words)), " ".join(words)
    last = said.split("'...")[1].split("'")[0]
    read = next(
        text[:end] for end in range(len(text), 0, -1) if text[:end].endswith(last) and not hosted.cut(text[:end])
    )
    following = text[len(read) :].lstrip()
    assert hosted.cut(read + " " + (following.split()[0] if following[0].isdigit() else following[0]))
    endless = hosted.cut("one" * 5000)  # one unknown word to BERT
    assert endless is None or "which end in its first word" in endless


def test_what_is_cut_has_no_influence(hosted):
    if hosted.prompt_tokens is None:
        return
    image = tiny_clips.images(1)
    assert torch.equal(values(hosted, image, LONG), values(hosted, image, LONG + "sea"))


# Wrong files


def wrong_files(folder):
    """Files that users take for a verifier's: name -> path."""
    state = tiny_clips.hf_clip_model().state_dict()
    vae = {"decoder.conv_in.weight": torch.zeros(4, 4), "encoder.conv_in.weight": torch.zeros(4, 4)}
    text = {key: value for key, value in state.items() if key.startswith("text_model.")}
    vision = {key: value for key, value in state.items() if key.startswith("vi")}
    for name, tensors in (("vae", vae), ("text_encoder_without_projection", text), ("image_tower", vision)):
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors")
    save_file(state, folder / "whole.safetensors")
    data = (folder / "whole.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(data[: len(data) // 2])
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "empty.pt").write_bytes(b"")
    (folder / "whole.safetensors").unlink()
    (folder / "folder").mkdir()
    return sorted(folder.iterdir())


WRONG = (
    *("vae.safetensors", "text_encoder_without_projection.safetensors", "image_tower.safetensors"),
    *("truncated.safetensors", "empty.safetensors", "empty.pt", "folder"),
)


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wrong")
    assert {path.name for path in wrong_files(folder)} == set(WRONG)
    return folder


def load(name, path, tmp_path):
    """Loads a verifier from a file or folder, as its node does."""
    if name in VLMS:
        from noise_search.verifiers.transformers_vlm import FolderVLM

        if path.is_file():  # these are folders: the wrong weights among the right settings
            import tiny_vlms

            folder = tmp_path / path.stem
            tiny_vlms.save_vlm(folder)
            (folder / "model.safetensors").unlink()
            shutil.copy(path, folder / f"model{path.suffix}")
            path = folder
        return registry.get(name)(FolderVLM.load(path))
    if name == "aesthetic":
        model = tiny_clips.open_clip_model().requires_grad_(False)
        from noise_search.verifiers.aesthetic import ImageTower

        tower = ImageTower(model, model.encode_image, lambda: torch.device("cpu"), Preprocess((32, 32)), width=24)
        return registry.get(name).load(path, tower)
    return registry.get(name).load(path)


@pytest.mark.parametrize("name", registry.names())
@pytest.mark.parametrize("file", WRONG)
def test_a_wrong_file_is_refused_in_words_that_name_it(name, file, wrong, tmp_path):
    before = list(mm.current_loaded_models)
    with pytest.raises(VerifierError) as raised:
        load(name, wrong / file, tmp_path)
    message = str(raised.value)
    assert file.rpartition(".")[0] in message or file in message
    assert "Traceback" not in message and 30 < len(message) < 1500
    assert mm.current_loaded_models == before


# What stays behind


@pytest.mark.parametrize("name", registry.names())
@pytest.mark.parametrize("ending", ["scores", "bad image", "failure"])
def test_nothing_loaded_stays_behind(name, ending, tmp_path, monkeypatch):
    gc.collect()  # what earlier tests left
    mm.cleanup_models()
    before = len(mm.current_loaded_models)
    hosted = HostedVerifier(contract.TINY[name](tmp_path))
    modules = [weakref.ref(module) for module in (hosted.verifier.module,) if module is not None]
    hosted.score(tiny_clips.images(1), PROMPT)
    if ending == "bad image":
        with pytest.raises(ValueError, match="NaN"):
            hosted.score(torch.full((1, 8, 8, 3), float("nan")), PROMPT)
    elif ending == "failure":

        def fail(*arguments):
            raise RuntimeError("boom")

        monkeypatch.setattr(hosted.verifier, "score", fail)
        with pytest.raises(VerifierError, match="boom"):
            hosted.score(tiny_clips.images(1), PROMPT)
        monkeypatch.undo()
    del hosted
    gc.collect()
    mm.cleanup_models()
    assert not any(module() for module in modules)
    assert len(mm.current_loaded_models) == before
