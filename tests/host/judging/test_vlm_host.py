"""Vision-language judges inside ComfyUI: folders, memory, the CLIP back end, nodes."""

import asyncio
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("comfy")

import comfy.model_management as mm
import folder_paths
import tiny_encoders
import tiny_vlms
from noise_search.host.graph.graph import Graph
from noise_search.host.judging import folders
from noise_search.host.judging import vlm as hosting
from noise_search.host.judging.folders import vlm_choices
from noise_search.host.judging.selection import score_images
from noise_search.host.judging.vlm import ClipVLM, load_endpoint, load_vlm_folder, load_vlm_grader, load_vqa_score
from noise_search.host.sampling.stock import Sampling
from noise_search.host.search import run_node as search
from noise_search.search.judges import combined
from noise_search.verifiers.base import VerifierError
from noise_search.verifiers.transformers_vlm import FolderVLM
from noise_search.verifiers.vlm import Ask, VQAScore
from vlm_server import VLMServer, answer, grades


@pytest.fixture
def models(tmp_path, monkeypatch):
    """An empty models/LLM of our own, as the only one that ComfyUI knows."""
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, folders.LLM, ([str(tmp_path / "LLM")], set()))
    (tmp_path / "LLM").mkdir()
    return tmp_path / "LLM"


@pytest.fixture
def tiny(models):
    tiny_vlms.save_vlm(models / "maker" / "tiny")
    return models / "maker" / "tiny"


@pytest.fixture
def server():
    with VLMServer() as running:
        yield running


def shade(value):
    return torch.full((1, 8, 8, 3), float(value))


# Folders


def test_only_models_that_see_are_listed(models, tiny):
    (models / "text-only").mkdir()
    (models / "text-only" / "config.json").write_text("{}")
    (models / "model.gguf").write_text("")
    assert vlm_choices() == ["maker/tiny"]


@pytest.mark.parametrize("name", ["../tiny", folders.NONE_FOUND, "/etc", ""])
def test_without_a_model_the_error_names_one(models, name):
    assert vlm_choices() == [folders.NONE_FOUND]
    with pytest.raises(VerifierError, match=r"Put all .*Qwen3-VL-4B-Instruct \(Apache-2.0 licence, 8.9 GB\).* press R"):
        load_vlm_folder(name)


def test_the_node_says_so_before_anything_runs(models, tiny):
    from noise_search.nodes.vlm import VLMFolder

    assert "did you mean 'maker/tiny'" in VLMFolder.validate_inputs("maker/tinny")
    for listed in ("maker/tiny", None):  # None: another node gives it
        assert VLMFolder.validate_inputs(listed) is True


def test_a_misspelt_model_gets_a_suggestion(tiny):
    with pytest.raises(
        VerifierError, match="no vision-language model 'maker/tinny' here; did you mean 'maker/tiny'\\?"
    ):
        load_vlm_folder("maker/tinny")


# Memory


def test_scores_like_the_plain_verifier_under_comfyuis_patcher(tiny):
    hosted = load_vqa_score(load_vlm_folder("maker/tiny"))
    images = torch.rand(2, 20, 20, 3)
    values = hosted.score(images, "a red circle")
    assert torch.equal(values, VQAScore(FolderVLM.load(tiny)).score(images, ["a red circle"] * 2))
    assert any(loaded.model is hosted.patcher for loaded in mm.current_loaded_models)


def test_two_judges_of_one_folder_share_one_network(tiny):
    vqa, grader = load_vqa_score(load_vlm_folder("maker/tiny")), load_vlm_grader(load_vlm_folder("maker/tiny"))
    assert vqa.patcher is grader.patcher and vqa.verifier.module is grader.verifier.module
    assert load_vlm_folder("maker/tiny", "bf16") is not load_vlm_folder("maker/tiny")


def test_comfyuis_cache_is_told_of_a_replaced_model(tiny, nodes):
    def told(name):
        return nodes["NoiseSearchVLMFolder"].fingerprint_inputs(model_name=name, precision="auto")

    before = told("maker/tiny")
    tiny_vlms.save_vlm(tiny, seed=1)
    assert told("maker/tiny") == told("maker/tiny") != before
    assert told(None) == ""
    with pytest.raises(VerifierError, match="no vision-language model 'maker/other' here"):
        told("maker/other")


def test_nothing_stays_when_the_judge_goes(tiny):
    hosted = load_vqa_score(load_vlm_folder("maker/tiny"))
    hosted.score(shade(0.5), "a red circle")
    network = weakref.ref(hosted.verifier.module)
    del hosted
    gc.collect()
    mm.cleanup_models_gc()
    mm.cleanup_models()
    assert network() is None


def test_the_network_is_loaded_as_a_whole_with_room_to_think(tiny, monkeypatch):
    asked = []
    monkeypatch.setattr(mm, "load_models_gpu", lambda *args, **kwargs: asked.append(kwargs))
    load_vqa_score(load_vlm_folder("maker/tiny")).score(shade(0.5), "a red circle")
    assert asked == [{"memory_required": 2 * 2**30, "force_full_load": True}]


@pytest.mark.parametrize(("bf16", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_prefers_bf16_on_a_gpu(monkeypatch, bf16, expected):
    monkeypatch.setattr(mm, "should_use_bf16", lambda device: bf16)
    monkeypatch.setattr(mm, "should_use_fp16", lambda *args, **kwargs: True)
    assert hosting.vlm_dtype("auto", torch.device("cuda")) == expected
    assert hosting.vlm_dtype("fp32", torch.device("cuda")) == torch.float32
    assert hosting.vlm_dtype("auto", torch.device("cpu")) == torch.float32


# The grader's columns


def test_the_overall_grade_decides_and_the_others_are_reported(server):
    hosted = load_vlm_grader(load_endpoint(server.url, "tiny"))

    def reply(request):
        dark = request.brightness < 0.5
        return answer(grades(6 if dark else 5, accuracy_to_prompt=0 if dark else 10))

    server.reply = reply
    scores = score_images([shade(0.1), shade(0.9)], hosted, ["a cat"])
    assert scores.flat() == [6.0, 5.0] and scores.order(0) == [0, 1]
    assert scores.values[:, 0, 1].tolist() == [0.0, 10.0] and len(scores.members) == 6


def test_in_an_ensemble_the_criteria_still_only_report(server):
    vlm = load_endpoint(server.url, "tiny")
    ensemble = combined([(load_vqa_score(vlm), 1.0), (load_vlm_grader(vlm), 2.0)])
    assert ensemble.aggregator.weights == (1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_vqa_score_has_one_column(tiny):
    hosted = load_vqa_score(load_vlm_folder("maker/tiny"))
    assert hosted.members == ("VQA Score (tiny)",) and hosted.member_weights is None


# The endpoint


def test_calls_are_counted_for_every_run_of_a_node(server):
    from comfy_execution.utils import CurrentNodeContext

    hosted = load_vlm_grader(load_endpoint(server.url, "tiny", max_calls=2))
    for prompt_id, node in (("one", "5"), ("one", "6"), ("two", "5")):
        with CurrentNodeContext(prompt_id, node, 0):
            hosted.score(shade(0.5), "a cat")
            hosted.score(shade(0.6), "a cat")
            with pytest.raises(VerifierError, match="VLM Grader .* failed: VLM Endpoint has made 2 calls"):
                hosted.score(shade(0.7), "a cat")


def test_cancel_keeps_its_type_while_a_server_is_waited_for(server):
    def cancel_and_be_silent(request):
        mm.interrupt_current_processing()
        return None

    server.reply = cancel_and_be_silent
    hosted = load_vlm_grader(load_endpoint(server.url, "tiny", timeout=600))
    with pytest.raises(mm.InterruptProcessingException):
        hosted.score(shade(0.5), "a cat")


def test_no_network_is_no_patcher(server):
    assert load_vqa_score(load_endpoint(server.url, "tiny")).patcher is None


# The CLIP back end


class FakeClip:
    """Not a model: answers as it is told, by the interface of ComfyUI's CLIP; what it is asked is kept."""

    def __init__(self, reply="", sees=True):
        self.reply, self.sees, self.asked = reply, sees, []
        self.patcher = None
        self.cond_stage_model = torch.nn.Module()
        self.cond_stage_model.preprocess_embed = None

    def tokenize(self, text, **options):
        self.asked.append((text, options))
        image = [({"type": "image", "data": options.get("image")}, 1.0)] if self.sees else []
        return {"fake": [[(1, 1.0), *image, (2, 1.0)]]}

    def generate(self, tokens, **options):
        self.options = options
        return [3, 4]

    def decode(self, ids):
        return self.reply

    tokenizer = SimpleNamespace(state_dict=dict)


def test_a_clip_that_cannot_see_is_refused():
    with pytest.raises(VerifierError, match="CLIP does not look at images; connect .*Qwen3-VL.*0.16.3"):
        ClipVLM(FakeClip(sees=False))


def test_what_cannot_write_is_refused():
    with pytest.raises(VerifierError, match="this ComfyUI's CLIP cannot generate text"):
        ClipVLM(object())


def test_a_real_clip_of_an_image_model_is_refused(demo):
    with pytest.raises(VerifierError, match="does not look at images"):
        ClipVLM(demo.clip)


def test_the_grader_reads_what_a_clip_writes():
    clip = FakeClip("Sure!\n" + grades(8.5))
    values = load_vlm_grader(ClipVLM(clip), samples=2).score(shade(0.2), "a (red:1.3) circle")
    assert values.tolist() == [[8.5] * 6]
    text, options = clip.asked[-1]
    assert "a (red:1.3) circle" in text and options["skip_template"] is False and options["thinking"] is False
    assert torch.equal(options["image"], torch.full((1, 28, 28, 3), 51 / 255))
    assert clip.options["do_sample"] is True and clip.options["seed"] == 1 and clip.options["top_k"] == 0


@pytest.fixture(scope="module", params=[tiny_encoders.qwen_clip, tiny_encoders.gemma_clip], ids=["Qwen3-VL", "Gemma 3"])
def seeing(request):
    """Text encoders of ComfyUI that see and write."""
    with pytest.MonkeyPatch.context() as patch:
        yield request.param(patch)


def test_comfyuis_own_models_see_and_write(seeing, monkeypatch):
    monkeypatch.setattr(hosting, "ANSWER_TOKENS", 8)
    vlm, image = ClipVLM(seeing), torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0))

    def drawn(image):
        return vlm.answers([Ask(image, "hello", temperature=1.0, seed=seed) for seed in range(4)])

    first, again = vlm.answers([Ask(image, "hello"), Ask(image, "hello")])
    assert first == again != ""
    assert drawn(image) == drawn(image) != drawn(torch.zeros(64, 64, 3))
    assert len(set(drawn(image))) > 1
    assert vlm.name == seeing.cond_stage_model.clip_name and vlm.identity() == vlm.identity()


def test_what_is_patched_onto_a_clip_is_in_the_identity_and_in_whose_memory_it_was_is_not(seeing):
    key, weight = next((name, one) for name, one in seeing.patcher.model.named_parameters() if one.ndim == 2)

    def identity(strength):
        clip = seeing.clone()
        assert clip.add_patches({key: (torch.ones_like(weight),)}, strength) == [key]
        return ClipVLM(clip).identity()

    plain = ClipVLM(seeing).identity()
    assert identity(0.5) == identity(0.5)
    assert len({plain, identity(0.5), identity(0.7)}) == 3


def test_what_the_tokeniser_has_in_its_file_is_in_the_identity():
    words = FakeClip()
    words.tokenizer = SimpleNamespace(state_dict=lambda: {"spiece_model": torch.ones(3, dtype=torch.uint8)})
    assert ClipVLM(words).identity() != ClipVLM(FakeClip()).identity() == ClipVLM(FakeClip()).identity()


def test_a_random_model_grades_nothing_and_the_error_shows_its_answer(seeing, monkeypatch):
    monkeypatch.setattr(hosting, "ANSWER_TOKENS", 4)
    hosted = load_vlm_grader(ClipVLM(seeing))
    assert hosted.patcher is seeing.patcher and not hosted.whole
    with pytest.raises(
        VerifierError, match=r"^verifier VLM Grader \(\S+\) failed: the answer holds no grading in JSON"
    ):
        hosted.score(torch.rand(1, 64, 64, 3), "a cat")


@pytest.fixture(scope="module")
def answering():
    """A Qwen3-VL that says yes or no."""
    with pytest.MonkeyPatch.context() as patch:
        yield tiny_encoders.made_to_answer(tiny_encoders.qwen_clip(patch))


def test_vqa_score_from_clip_is_the_log_odds_of_transformers_with_the_same_weights(answering):
    image = torch.randint(0, 256, (64, 96, 3), generator=torch.Generator().manual_seed(3)) / 255
    hosted = load_vqa_score(ClipVLM(answering))
    expected = tiny_encoders.log_odds_by_transformers(answering, image, hosted.verifier.ask_about("a red circle"))
    assert hosted.score(image[None], "a red circle").item() == pytest.approx(expected, abs=1e-5)


def test_images_in_one_call_have_no_influence_on_each_other(answering):
    hosted, images = load_vqa_score(ClipVLM(answering)), torch.rand(3, 40, 56, 3)
    together = hosted.score(images, "a cat")
    assert torch.equal(together, torch.cat([hosted.score(image[None], "a cat") for image in images]))
    assert len(set(together.flatten().tolist())) == 3


def test_a_search_is_judged_by_the_text_encoder_of_the_workflow(answering, demo):
    hosted = load_vqa_score(ClipVLM(answering))
    latent = {"samples": torch.zeros(1, 16, 8, 8)}
    setup = lambda: Sampling.ksampler(  # noqa: E731
        demo.model, 2, 1.0, "euler", "simple", demo.positive, demo.negative, latent
    )
    with torch.inference_mode():
        found = search(setup, demo.vae, hosted, 3, 4, "a red circle", 1, Graph(), "positive")
    values = [candidate.values[0][0] for candidate in found.log.candidates]
    assert len(set(values)) == 4 and values[found.log.best().index] == max(values)
    assert hosted.score(found.image, "a red circle").item() == max(values)


def test_yes_and_no_are_found_in_the_vocabulary_of_a_gemma(monkeypatch):
    pieces = ["yes", "Yes", "▁yes", "▁Yes", "no", "▁No", "NO", "yesterday", "not"]
    clip = tiny_encoders.gemma_clip(monkeypatch, pieces=pieces)
    words = ClipVLM(clip)._word_ids()
    assert words.keys() == tiny_encoders.words_of(clip).keys() and len(words) == len(pieces) - 2


def test_vqa_score_of_a_gemma_tells_images_apart(monkeypatch):
    hosted = load_vqa_score(
        ClipVLM(tiny_encoders.made_to_answer(tiny_encoders.gemma_clip(monkeypatch, pieces=["yes", "no"])))
    )
    values = hosted.score(torch.stack([torch.zeros(32, 32, 3), torch.rand(32, 32, 3)]), "a cat")
    assert values.isfinite().all() and values[0] != values[1]


def test_a_model_that_says_neither_is_told_with_what_it_says(seeing, monkeypatch):
    monkeypatch.setattr(hosting, "SPELLINGS", ())  # the small vocabulary of one of them is not without a chance
    monkeypatch.setattr(hosting, "LIKELIEST_TOKENS", 1)
    with pytest.raises(VerifierError, match="VQA Score .*failed: the answer begins with neither yes nor no, but with "):
        load_vqa_score(ClipVLM(seeing)).score(torch.rand(1, 64, 64, 3), "a cat")


@pytest.mark.parametrize("unlike", ["no logits", "other logits"])
def test_a_comfyui_that_chooses_by_other_means_is_refused(unlike):
    class Clip(FakeClip):
        def generate(self, tokens, **options):
            return super().generate(tokens) if unlike == "no logits" else [torch.argmax(torch.eye(4)[2]).item() + 1]

    with pytest.raises(VerifierError, match="shows no probabilities of what CLIP answers.*use VLM Grader, or VLM from"):
        load_vqa_score(ClipVLM(Clip())).score(shade(0.2), "a cat")


def test_cancel_ends_vqa_score_between_images(answering):
    hosted = load_vqa_score(ClipVLM(answering))
    mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        hosted.score(shade(0.5), "a cat")


def test_a_gemma_without_eyes_is_refused_though_its_tokenizer_takes_images(monkeypatch):
    with pytest.raises(VerifierError, match="gemma3_4b does not look at images"):
        ClipVLM(tiny_encoders.gemma_clip(monkeypatch, "gemma3_4b"))


# Nodes


@pytest.fixture(scope="module")
def nodes():
    import noise_search

    extension = asyncio.run(noise_search.comfy_entrypoint())
    return {node.define_schema().node_id: node for node in asyncio.run(extension.get_node_list())}


def test_the_key_is_no_widget(nodes):
    ids = [item.id for item in nodes["NoiseSearchVLMEndpoint"].define_schema().inputs]
    assert ids == ["url", "model", "key_variable", "concurrency", "timeout", "max_calls"]
