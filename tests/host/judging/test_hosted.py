"""Verifiers under ComfyUI's model management."""

import asyncio
import gc
import re
import time
import weakref

import pytest
import tiny_clips
import torch

pytest.importorskip("comfy")

import comfy.model_management as mm
import comfy.model_patcher
import folder_paths
from noise_search.host.judging import folders
from noise_search.host.judging import hosted as hosting
from noise_search.host.judging.hosted import HostedVerifier, check_images, load, load_demo_verifier, resolve_dtype
from noise_search.nodes import NoiseSearchExtension
from noise_search.nodes import verifiers as nodes
from noise_search.verifiers import registry
from noise_search.verifiers.base import VerifierError
from noise_search.verifiers.clip import CLIPScore
from safetensors.torch import save_file


class Toy:
    """Scores with a function; its module has a layer that ComfyUI cannot offload in parts."""

    members = ("Toy brightness", "Toy area")
    needs_prompt = False
    usual_range = (0.0, 1.0)
    prompt_tokens = None

    def __init__(self, function=None, module=None):
        self.module = module
        self.function = function or (lambda images, prompts: images.mean(dim=(1, 2, 3))[:, None].repeat(1, 2))

    def identity(self):
        return "toy"

    def score(self, images, prompts):
        return self.function(images, prompts)


@pytest.fixture
def models(tmp_path, monkeypatch):
    """An empty models/verifiers of our own, as the only one that ComfyUI knows, beside such folders of ComfyUI's."""
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    ours = (folders.FOLDER, folders.HEADS, folders.REWARDS, *folders.HOST_FOLDERS)
    for name in ours:
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(tmp_path / name)], set()))
        monkeypatch.delitem(folder_paths.filename_list_cache, name, raising=False)
        (tmp_path / name).mkdir()
    yield tmp_path / "verifiers"
    for name in ours:
        folder_paths.filename_list_cache.pop(name, None)


@pytest.fixture
def tiny(models):
    tiny_clips.save_open_clip_folder(models / "tiny")
    return models / "tiny"


def test_scores_like_the_plain_verifier(tiny):
    hosted = load("clip_score", "tiny")
    images = tiny_clips.images(3)
    values = hosted.score(images, "a red circle")
    assert torch.equal(values, CLIPScore.load(tiny).score(images, ["a red circle"] * 3))
    assert values.device.type == "cpu" and values.dtype == torch.float32 and values.shape == (3, 1)
    assert torch.equal(hosted.score(images, ["a red circle"] * 3), values)
    assert hosted.members == ("CLIP Score (tiny)",) and hosted.needs_prompt and hosted.prompt_tokens == 77
    assert hosted.identity().startswith("clip_score:")
    assert any(loaded.model is hosted.patcher for loaded in mm.current_loaded_models)


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_equals_comfyuis_own_clip(models, quick_gelu):
    """An independent computation: ComfyUI's CLIP classes and tokenizer on the same weights, renamed by ComfyUI."""
    import comfy.clip_model
    import comfy.clip_vision
    import comfy.ops
    import comfy.utils

    model = tiny_clips.save_open_clip_folder(models / "clip", embed_dim=32, quick_gelu=quick_gelu)
    images = tiny_clips.images(4, 48, 32)
    prompts = ["a red circle above a blue square", "two small green triangles", "a", "cat " * 200]

    shared = {"num_hidden_layers": 2, "hidden_act": "quick_gelu" if quick_gelu else "gelu", "num_attention_heads": 2}
    vision = shared | {"hidden_size": 64, "intermediate_size": 256, "image_size": 32, "patch_size": 8}
    vision |= {"num_channels": 3, "projection_dim": 32, "model_type": "clip_vision_model"}
    text = shared | {"hidden_size": 32, "intermediate_size": 128, "max_position_embeddings": 77, "eos_token_id": 49407}
    state = {key: value.clone() for key, value in model.state_dict().items()}
    image_tower = comfy.clip_model.CLIPVisionModelProjection(vision, torch.float32, "cpu", comfy.ops.manual_cast)
    text_tower = comfy.clip_model.CLIPTextModel(text, torch.float32, "cpu", comfy.ops.manual_cast)
    visual = {key: value for key, value in state.items() if key.startswith("visual.")}
    assert not image_tower.load_state_dict(comfy.clip_vision.convert_to_transformers(visual, "visual."), strict=False)[
        0
    ]
    rest = {key: value for key, value in state.items() if not key.startswith("visual.")}
    assert not text_tower.load_state_dict(comfy.utils.clip_text_transformers_convert(rest, "", ""), strict=False)[0]

    tokenizer = tiny_clips.stock_tokenizer()
    ids = tokenizer(prompts, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        pixels = comfy.clip_vision.clip_preprocess(images, size=32, crop=True)
        expected = tiny_clips.cosine(image_tower(pixels)[2], text_tower(ids)[2])
    assert expected.std() > 0.02
    values = load("clip_score", "clip").score(images, prompts)[:, 0].double().numpy() / 100
    assert abs(values - expected).max() <= 1e-5


def test_two_loads_share_one_network(tiny):
    first, second = load("clip_score", "tiny"), load("clip_score", "tiny")
    assert first.verifier.module is second.verifier.module and first.patcher is second.patcher
    other = load("clip_score", "tiny", "bf16")
    assert other.verifier.module is not first.verifier.module


def test_a_replaced_file_is_loaded_again(tiny):
    first = load("clip_score", "tiny")
    images = tiny_clips.images(2)
    before = first.score(images, "a red circle")
    time.sleep(0.02)
    tiny_clips.save_open_clip_folder(tiny, tiny_clips.open_clip_model(seed=1))
    assert not torch.equal(load("clip_score", "tiny").score(images, "a red circle"), before)


FROM_FILES = [name for name, verifier in registry.DESCRIPTORS.items() if verifier.entry is not None]


@pytest.mark.parametrize("name", FROM_FILES)
class TestEveryLoader:
    """The node of every verifier that reads files."""

    @pytest.fixture
    def node(self, name):
        return nodes.LOADERS[name]

    @pytest.fixture
    def widget(self, name):
        return registry.describe(name).entry.widget

    def inputs(self, node, widget, entry):
        return {item.id: None for item in node.define_schema().inputs} | {widget: entry}

    def test_an_entry_from_another_node_does_not_run_it_every_time(self, node, widget):
        assert node.fingerprint_inputs(**self.inputs(node, widget, None)) == ""
        assert node.validate_inputs() is True

    def test_comfyuis_cache_is_told_of_a_replaced_file(self, tiny, name, node, widget):
        file = tiny / "open_clip_model.safetensors"
        entry = "tiny" if registry.describe(name).entry.shelf == "clip" else f"tiny/{file.name}"
        inputs = self.inputs(node, widget, entry)
        before = node.fingerprint_inputs(**inputs)
        assert node.fingerprint_inputs(**inputs) == before != ""
        file.write_bytes(file.read_bytes() + b" ")
        assert node.fingerprint_inputs(**inputs) != before

    def test_comfyuis_cache_serves_nothing_for_a_file_that_is_gone(self, models, node, widget):
        """ComfyUI runs a node whose fingerprint fails; any answer that stays the same would be served again."""
        with pytest.raises(VerifierError, match="no .* 'gone' here"):
            node.fingerprint_inputs(**self.inputs(node, widget, "gone"))

    def test_it_says_what_to_get_before_anything_runs(self, models, name, node, widget):
        said = node.validate_inputs(**{widget: "nothing.pt"})
        files = registry.describe(name).entry.files
        assert re.match("no .* 'nothing.pt' here. ", said) and files in said and "Nothing is downloaded" in said
        assert isinstance(node.validate_inputs(**{widget: 5}), str)

    def test_its_list_says_in_one_entry_that_nothing_is_there(self, models, node, widget):
        [combo] = [item for item in node.define_schema().inputs if item.id == widget]
        assert combo.options == [folders.NONE_FOUND]
        assert "Nothing is downloaded." in combo.tooltip


def test_what_comfyui_lists_first(models):
    for name in ("a.pt", "hps.pt", "my_pickscore.pt", "image_reward.pt"):
        (models / name).write_bytes(b"")
    first = {name: hosting.choices(name)[0] for name in FROM_FILES}
    wanted = {"hps": "hps.pt", "pickscore": "my_pickscore.pt", "imagereward": "image_reward.pt"}
    assert first == dict.fromkeys(FROM_FILES, "a.pt") | wanted


@pytest.mark.complete
def test_every_verifier_has_its_node():
    """`NODES` of nodes/verifiers.py has those that read files; one that reads none needs a node of its own."""
    shown = {node.define_schema().node_id for node in asyncio.run(NoiseSearchExtension().get_node_list())}
    lacking = {verifier.node for verifier in registry.DESCRIPTORS.values() if verifier.node not in shown}
    assert lacking == set(), "write the node, and append it to NODES in nodes/verifiers.py"


def test_nothing_is_kept_when_the_last_user_goes(tiny):
    hosted = load("clip_score", "tiny")
    hosted.score(tiny_clips.images(1), "a")
    module, count = weakref.ref(hosted.verifier.module), len(hosting._loaded)
    del hosted
    gc.collect()
    mm.cleanup_models()
    assert module() is None
    assert len(hosting._loaded) == count - 1


def test_the_patcher_is_the_one_comfyui_uses_now(monkeypatch):
    """ComfyUI rebinds CoreModelPatcher after custom nodes may have been imported."""
    made = []

    class Rebound(comfy.model_patcher.ModelPatcher):
        def __init__(self, *args, **kwargs):
            made.append(self)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", Rebound, raising=False)
    assert [HostedVerifier(Toy(module=torch.nn.Linear(2, 2))).patcher] == made
    monkeypatch.delattr(comfy.model_patcher, "CoreModelPatcher")
    assert type(HostedVerifier(Toy(module=torch.nn.Linear(2, 2))).patcher) is comfy.model_patcher.ModelPatcher


def test_with_too_little_memory_no_part_stays_behind(tiny, monkeypatch):
    """A fake device, the meta device, that claims to have next to no memory free."""
    little = 2**20
    monkeypatch.setattr(mm, "vram_state", mm.VRAMState.NORMAL_VRAM)
    monkeypatch.setattr(
        mm, "get_free_memory", lambda *args, torch_free_too=False: (little, little) if torch_free_too else little
    )
    verifier = CLIPScore.load(tiny)
    assert sum(p.numel() * 4 for p in verifier.module.parameters()) > little
    hosted = HostedVerifier(verifier, device=torch.device("meta"))
    hosted._load(tiny_clips.images(1))
    devices = {tensor.device.type for tensor in (*verifier.module.parameters(), *verifier.module.buffers())}
    assert devices == {"meta"}
    mm.current_loaded_models[:] = [loaded for loaded in mm.current_loaded_models if loaded.model is not hosted.patcher]


def test_dynamic_vram_finds_no_parameter_that_it_would_move_for_good(tiny):
    """ComfyUI's own list for dynamic loading, with the meta device for a GPU."""
    plain, verifier = CLIPScore.load(tiny), CLIPScore.load(tiny)
    hosted = HostedVerifier(verifier)
    hosted.patcher._load_list(for_dynamic=True, default_device=torch.device("meta"))
    assert {tensor.device.type for tensor in verifier.module.state_dict().values()} == {"cpu"}
    assert verifier.module.state_dict().keys() == plain.module.state_dict().keys()
    pictures = tiny_clips.images(2)
    assert torch.equal(hosted.score(pictures, "a cat"), plain.score(pictures, ["a cat"] * 2))


def test_what_is_counted_as_weights_is_the_same_under_comfyuis_patcher(tiny):
    verifier = CLIPScore.load(tiny)
    before = sum(parameter.numel() for parameter in verifier.module.parameters())
    HostedVerifier(verifier)
    assert sum(tensor.numel() for tensor in verifier.module.state_dict().values()) == before


def test_a_failed_load_leaves_nothing(tiny, models):
    path = models / "cut.safetensors"
    path.write_bytes((tiny / "open_clip_model.safetensors").read_bytes()[:-100])
    loaded, known = len(mm.current_loaded_models), len(hosting._loaded)
    with pytest.raises(VerifierError, match="cut.safetensors"):
        load("clip_score", "cut.safetensors")
    assert (len(mm.current_loaded_models), len(hosting._loaded)) == (loaded, known)


def test_a_verifier_that_raises_is_named_with_its_cause():
    def broken(images, prompts):
        raise KeyError("no such token")

    hosted = HostedVerifier(Toy(broken, torch.nn.Linear(2, 2)))
    with pytest.raises(
        VerifierError, match="verifier Toy brightness, Toy area failed: KeyError: 'no such token'"
    ) as raised:
        hosted.score(tiny_clips.images(1), "")
    assert isinstance(raised.value.__cause__, KeyError)
    module = weakref.ref(hosted.verifier.module)
    del hosted, raised
    gc.collect()
    mm.cleanup_models()
    assert module() is None
    assert not any(loaded.model is None for loaded in mm.current_loaded_models)


def test_interrupts_and_memory_errors_keep_their_type():
    for error in (mm.InterruptProcessingException(), torch.cuda.OutOfMemoryError("no memory left")):

        def fail(images, prompts, error=error):
            raise error

        with pytest.raises(type(error)) as raised:
            HostedVerifier(Toy(fail)).score(tiny_clips.images(1), "")
        assert raised.value is error


def test_an_interrupt_stops_before_the_work():
    calls = []
    hosted = HostedVerifier(Toy(lambda images, prompts: calls.append(1)))
    mm.interrupt_current_processing(True)
    with pytest.raises(mm.InterruptProcessingException):
        hosted.score(tiny_clips.images(1), "")
    assert not calls
    hosted = HostedVerifier(Toy())
    assert hosted.score(tiny_clips.images(1), "").shape == (1, 2)


def test_a_verifier_without_a_network():
    hosted = HostedVerifier(Toy())
    assert hosted.patcher is None
    assert hosted.score(tiny_clips.images(3), "").shape == (3, 2)


@pytest.mark.parametrize("values", [torch.zeros(3), torch.zeros(2, 2), torch.zeros(3, 1), None, 0.5])
def test_wrong_values_are_refused(values):
    with pytest.raises(
        VerifierError, match=r"verifier Toy brightness, Toy area returned .* expected values of shape \(3, 2\)"
    ):
        HostedVerifier(Toy(lambda images, prompts: values)).score(tiny_clips.images(3), "")


def test_scores_carry_no_gradient_and_no_half_precision():
    weight = torch.ones(1, requires_grad=True)
    hosted = HostedVerifier(Toy(lambda images, prompts: (images.mean() * weight).expand(len(images), 2).half()))
    values = hosted.score(tiny_clips.images(3), "")
    assert values.dtype == torch.float32 and not values.requires_grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_images_with_nan_say_which(bad):
    images = tiny_clips.images(4)
    images[2, 5, 5, 1] = bad
    with pytest.raises(ValueError, match="image 3 of 4 has pixels that are not numbers.*vae"):
        HostedVerifier(Toy()).score(images, "")


@pytest.mark.parametrize("shape", [(32, 32, 3), (1, 32, 32, 2), (1, 2, 32, 32, 3), (0, 32, 32, 3), (1, 0, 32, 3)])
def test_wrong_shapes_say_what_was_found(shape):
    with pytest.raises(
        ValueError, match=r"must be \[images, height, width, 3\], found \[" + ", ".join(map(str, shape))
    ):
        HostedVerifier(Toy()).score(torch.zeros(shape), "")


def test_not_an_image():
    with pytest.raises(ValueError, match="found dict; connect a decoded IMAGE"):
        check_images({"samples": torch.zeros(1)})


def test_grey_and_alpha():
    images = tiny_clips.images(2)
    hosted = HostedVerifier(Toy())
    assert torch.equal(
        hosted.score(torch.cat([images, torch.rand(2, 32, 32, 1)], dim=-1), ""), hosted.score(images, "")
    )
    grey = images[..., :1]
    assert torch.equal(check_images(grey), grey.repeat(1, 1, 1, 3))
    assert check_images(images.half()).dtype == torch.float32


def test_as_many_prompts_as_images():
    with pytest.raises(ValueError, match="2 prompts for 3 images; give one for all, or one for each"):
        HostedVerifier(Toy()).score(tiny_clips.images(3), ["a", "b"])


def test_precision(monkeypatch):
    cpu, other = torch.device("cpu"), torch.device("meta")
    assert resolve_dtype("auto", cpu) is torch.float32
    assert [resolve_dtype(name, cpu) for name in ("fp32", "fp16", "bf16")] == [
        torch.float32,
        torch.float16,
        torch.bfloat16,
    ]
    for fp16, bf16, expected in (
        (True, True, torch.float16),
        (False, True, torch.bfloat16),
        (False, False, torch.float32),
    ):
        monkeypatch.setattr(mm, "should_use_fp16", lambda *args, fp16=fp16, **kwargs: fp16)
        monkeypatch.setattr(mm, "should_use_bf16", lambda *args, bf16=bf16, **kwargs: bf16)
        assert resolve_dtype("auto", other) is expected
    with pytest.raises(ValueError, match="unknown precision 'fp64'; known: auto, fp32, fp16, bf16"):
        resolve_dtype("fp64")


# models/verifiers


def test_choices(models):
    assert folders.clip_choices() == [folders.NONE_FOUND]
    for name in ("b.safetensors", "a.pt", "notes.txt", "deep/er/c.bin"):
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        (models / name).write_bytes(b"")
    tiny_clips.save_open_clip_folder(models / "laion" / "ViT")
    (models / "hf").mkdir()
    (models / "hf" / "config.json").write_text("{}")
    (models / "hf" / "model.safetensors").write_bytes(b"")
    assert folders.clip_choices() == ["a.pt", "b.safetensors", "deep/er/c.bin", "hf", "laion/ViT"]
    assert folders.clip_model_path("laion/ViT") == models / "laion" / "ViT"
    assert folders.clip_model_path("deep/er/c.bin") == models / "deep" / "er" / "c.bin"


def test_an_empty_list_is_said_in_as_few_words_as_a_node_shows():
    assert len(folders.NONE_FOUND) <= 17  # of the usual width, in either look of the front end


def test_nothing_found_says_where_to_put_what(models):
    with pytest.raises(VerifierError) as raised:
        load("clip_score", folders.NONE_FOUND)
    message = str(raised.value)
    for part in (str(models), "open_clip_model.safetensors", "laion/CLIP-ViT-B-32", "MIT", "Nothing is downloaded"):
        assert part in message


@pytest.mark.parametrize("name", [folders.NONE_FOUND, "(none found: put a CLIP model into models/verifiers)"])
@pytest.mark.parametrize(
    ("there", "said"),
    [([], "Put open_clip_config.json and .* press R"), (["b.pt", "a.pt"], "Choose one of: a.pt, b.pt")],
)
def test_a_workflow_made_when_there_was_none_is_told_to_choose(models, there, said, name):
    """At its beginning, before the folders: the front end cuts what is long."""
    for file in there:
        (models / file).write_bytes(b"")
    folder_paths.filename_list_cache.pop(folders.FOLDER, None)
    where = rf"Looked in .*{re.escape(str(models))} or .*clip_vision.*text_encoders"
    with pytest.raises(VerifierError, match=rf"^{said}.*\. {where}.*\. Nothing is downloaded"):
        load("clip_score", name)


def test_a_name_that_is_listed_passes(models, tiny):
    assert nodes.CLIPScore.validate_inputs("tiny") is True


@pytest.mark.parametrize(
    "name", ["../outside", "..", "", "tiny/../../outside", "/etc/passwd", "tiny/open_clip_config.json"]
)
def test_only_listed_names_are_resolved(models, tiny, name):
    tiny_clips.save_open_clip_folder(models.parent / "outside")
    with pytest.raises(VerifierError, match="no CLIP model"):
        load("clip_score", name)


def test_a_misspelt_name_suggests_the_closest(tiny):
    with pytest.raises(VerifierError, match="no CLIP model 'tinny' here; did you mean 'tiny'\\? Looked in"):
        load("clip_score", "tinny")


def test_registering_twice_is_registering_once(models):
    before = folder_paths.get_folder_paths(folders.FOLDER)
    folders.register_folders()
    folders.register_folders()
    assert folder_paths.get_folder_paths(folders.FOLDER) == before


# models/clip_vision and models/text_encoders


def whole_and_parts(folder):
    """A whole CLIP in both layouts, and files with one tower each."""
    state = tiny_clips.hf_clip_model().state_dict()
    parts = {
        "whole": state,
        "open": tiny_clips.open_clip_model().state_dict(),
        "image": {key: value for key, value in state.items() if key.startswith("vi")},
        "text": {key: value for key, value in state.items() if key.startswith("te")},
        "unprojected": {key: value for key, value in state.items() if key != "text_projection.weight"},
        "vae": {"decoder.conv_in.weight": torch.zeros(1)},
    }
    for name, tensors in parts.items():
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors")


@pytest.mark.parametrize("folder", folders.HOST_FOLDERS)
def test_whole_clips_in_comfyuis_own_folders_are_listed(models, folder):
    whole_and_parts(models.parent / folder)
    torch.save(tiny_clips.hf_clip_model().state_dict(), models.parent / folder / "pickle.pt")
    (models.parent / folder / "cut.safetensors").write_bytes(b"cut")
    assert folders.clip_choices() == [f"{folder}/open.safetensors", f"{folder}/whole.safetensors"]
    assert folders.clip_model_path(f"{folder}/open.safetensors") == models.parent / folder / "open.safetensors"


def test_a_file_with_one_tower_is_refused_with_the_reason(models):
    whole_and_parts(models.parent / "clip_vision")
    for name, reason in (
        ("image", "an image tower and no text tower"),
        ("text", "a text tower and no image tower"),
        ("unprojected", "lacks a projection"),
        ("vae", "not a CLIP"),
    ):
        with pytest.raises(VerifierError, match=f"clip_vision/{name}.safetensors cannot be used: it .*{reason}"):
            load("clip_score", f"clip_vision/{name}.safetensors")


def test_a_file_in_models_verifiers_goes_before_one_of_the_same_name(models):
    whole_and_parts(models.parent / "clip_vision")
    tiny_clips.save_open_clip_folder(models / "clip_vision" / "whole.safetensors")
    found = folders.clip_model_path("clip_vision/whole.safetensors")
    assert found == models / "clip_vision" / "whole.safetensors"


def test_two_nodes_with_one_file_of_comfyuis_share_one_network(models, monkeypatch):
    import open_clip

    path = models.parent / "clip_vision" / "ViT-tiny.safetensors"
    save_file(tiny_clips.open_clip_model().state_dict(), path)
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {"tiny": tiny_clips.OPEN_CLIP_CONFIG})
    score = load("clip_score", "clip_vision/ViT-tiny.safetensors", architecture="tiny")
    monkeypatch.setattr("noise_search.verifiers.pickscore.PickScore.architecture", "tiny")
    monkeypatch.setattr("noise_search.verifiers.pickscore.PickScore.weights", 0)
    pick = load("pickscore", "clip_vision/ViT-tiny.safetensors")
    assert pick.verifier.module is score.verifier.module and pick.patcher is score.patcher


def test_listing_reads_a_header_once_and_never_a_pickle(models, monkeypatch):
    whole_and_parts(models.parent / "clip_vision")
    torch.save({}, models.parent / "clip_vision" / "pickle.pt")
    folders.clip_choices()
    monkeypatch.setattr("safetensors.safe_open", None)
    monkeypatch.setattr(torch, "load", None)
    assert len(folders.clip_choices()) == 2


def test_a_replaced_file_is_looked_into_again(models):
    whole_and_parts(models.parent / "clip_vision")
    assert len(folders.clip_choices()) == 2
    path = models.parent / "clip_vision" / "whole.safetensors"
    save_file({"decoder.conv_in.weight": torch.zeros(1)}, path)
    assert folders.clip_choices() == ["clip_vision/open.safetensors"]


def test_demo_verifier():
    hosted = load_demo_verifier()
    assert hosted is load_demo_verifier()
    assert hosted.members == ("CLIP Score (demo)",)
    values = hosted.score(tiny_clips.images(2, 128, 128), "two small red circles above a blue square")
    assert values.shape == (2, 1) and torch.isfinite(values).all()
