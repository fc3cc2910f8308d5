"""VQA Score and VLM Grader on a vision-language model in a folder: a tiny LLaVA, saved and loaded as a real one.

Runs with transformers 4.57 and 5: the layout of the folder, of the templates and of the weights' names differ.
"""

import json
import shutil
import sys

import pytest
import torch

pytest.importorskip("transformers")

import tiny_vlms
from noise_search.verifiers import transformers_vlm
from noise_search.verifiers.base import VerifierError
from noise_search.verifiers.transformers_vlm import FolderVLM, model_files
from noise_search.verifiers.vlm import QUESTION, Ask, VLMGrader, VQAScore, picture

PROMPTS = ["a red circle", 'a sign that says "yes"', "two cats"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("LLM") / "tiny"
    return folder, *tiny_vlms.save_vlm(folder)


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(saved[0], tmp_path / "tiny")


@pytest.fixture(scope="module")
def vlm(saved):
    return FolderVLM.load(saved[0])


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 40, 30, 3, generator=torch.Generator().manual_seed(0))


def raw_log_odds(model, processor, image, prompt, mark):
    """From the raw logits of the model that was saved, without any of our code but the 8-bit picture."""
    question = prompt.replace('"', '\\"')
    text = f'user: {mark}Does this figure show "{question}"? Please answer yes or no.\nassistant:'
    inputs = processor(images=[picture(image)], text=[text], return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1].double()
    p = logits.softmax(dim=-1)
    yes, no = (p[tiny_vlms.ids(processor, words)].sum() for words in (tiny_vlms.YES, tiny_vlms.NO))
    return float(yes.log() - no.log())


@pytest.mark.parametrize(
    ("save", "mark"), [(tiny_vlms.save_vlm, tiny_vlms.IMAGE), (tiny_vlms.save_qwen, tiny_vlms.QWEN_IMAGE)]
)
def test_log_odds_are_those_of_the_models_raw_logits(save, mark, tmp_path, images):
    import transformers

    model, _ = save(tmp_path / "tiny")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "tiny")
    expected = [raw_log_odds(model, processor, *pair, mark) for pair in zip(images, PROMPTS, strict=True)]
    values = VQAScore(FolderVLM.load(tmp_path / "tiny")).score(images, PROMPTS)[:, 0].tolist()
    assert max(abs(a - b) for a, b in zip(values, expected, strict=True)) <= 1e-5
    assert len({round(value, 4) for value in expected}) == 3


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("LLM") / "qwen"
    tiny_vlms.save_qwen(folder)
    return FolderVLM.load(folder)


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (8, 4000), (2000, 2000)])
def test_images_of_any_size(qwen, size):
    assert torch.isfinite(VQAScore(qwen).score(torch.rand(1, *size, 3), ["a cat"])).all()


def test_every_way_to_write_yes_and_no_counts_and_nothing_else(saved, vlm, images):
    [pairs] = vlm.first_tokens([Ask(images[0], "hello")])
    said = [text for text, _ in pairs if text.strip().lower() in ("yes", "no")]
    assert sorted(said) == sorted(["Yes", "yes", " yes", " Yes", "No", "no", " no", " No"])
    assert len(pairs) == len(set(pairs)) <= len(said) + 5


def test_the_image_matters(vlm, images):
    values = VQAScore(vlm).score(images, ["a red circle"] * 3)
    assert len(set(values[:, 0].tolist())) == 3


def test_the_same_seed_gives_the_same_answer(vlm, images, monkeypatch):
    monkeypatch.setattr(transformers_vlm, "ANSWER_TOKENS", 12)
    asks = [Ask(images[0], "hello", temperature=1.0, seed=seed) for seed in (1, 2, 1)]
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first, second, again = vlm.answers(asks)
    assert first == again != second
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_likeliest_answer_is_the_models_own_greedy_one(saved, vlm, images, monkeypatch):
    monkeypatch.setattr(transformers_vlm, "ANSWER_TOKENS", 12)
    _, model, processor = saved
    inputs = processor(images=[picture(images[0])], text=["user: <image>hello\nassistant:"], return_tensors="pt")
    tokens = inputs["input_ids"]
    for _ in range(12):  # without a cache, token by token
        with torch.no_grad():
            logits = model(input_ids=tokens, pixel_values=inputs["pixel_values"]).logits[0, -1]
        tokens = torch.cat([tokens, logits.argmax().reshape(1, 1)], dim=1)
        if int(tokens[0, -1]) == processor.tokenizer.eos_token_id:
            break
    expected = processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert vlm.answers([Ask(images[0], "hello")]) == [expected] and expected


def test_a_folders_own_settings_do_not_change_the_answers(folder, images, monkeypatch):
    monkeypatch.setattr(transformers_vlm, "ANSWER_TOKENS", 12)
    path = folder / "generation_config.json"
    settings = {"do_sample": True, "top_k": 1, "temperature": 0.01, "repetition_penalty": 3.0}
    asks = [Ask(images[0], "hello", temperature=1.0, seed=1), Ask(images[0], "hello")]
    expected = FolderVLM.load(folder).answers(asks)
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    assert FolderVLM.load(folder).answers(asks) == expected


def test_the_system_text_comes_first(vlm, images):
    inputs = vlm._inputs(Ask(images[0], "hello", "be strict"))
    text = vlm.processor.tokenizer.decode(inputs["input_ids"][0])
    assert text.startswith("system: be strict\nuser: ") and text.endswith("hello\nassistant:")


def test_a_model_that_can_think_or_not_is_asked_not_to(folder, images):
    template = next(file for file in folder.iterdir() if file.name.startswith("chat_template"))
    template.write_text(template.read_text() + "{% if enable_thinking is false %} no thoughts{% endif %}")
    vlm = FolderVLM.load(folder)
    [question] = vlm._inputs(Ask(images[0], "hello"))["input_ids"]
    assert vlm.processor.tokenizer.decode(question).endswith("assistant: no thoughts")


def test_bf16_is_close_and_its_probabilities_are_float32(saved, vlm, images):
    half = FolderVLM.load(saved[0], torch.bfloat16)
    assert next(half.module.parameters()).dtype == torch.bfloat16
    assert half.identity() != vlm.identity()
    difference = VQAScore(half).score(images, PROMPTS) - VQAScore(vlm).score(images, PROMPTS)
    assert 0 < difference.abs().max() < 0.5


def test_identity_is_of_the_files_and_the_question(saved, vlm, folder):
    assert FolderVLM.load(saved[0], name="another").identity() == vlm.identity()
    template = next(file for file in folder.iterdir() if file.name.startswith("chat_template"))
    template.write_text(template.read_text().replace("assistant:", "model:"))
    assert FolderVLM.load(folder).identity() != vlm.identity()
    assert VQAScore(vlm).identity() != VQAScore(vlm, QUESTION.replace("figure", "image")).identity()


def test_files_that_change_after_loading_are_noticed(folder):
    loaded = FolderVLM.load(folder)
    tiny_vlms.break_config(folder, note=1)
    with pytest.raises(VerifierError, match="tiny: its files changed after they were loaded"):
        loaded.identity()


def test_files_that_are_not_the_models_do_not_count(folder, vlm):
    (folder / "README.md").write_text("hello")
    assert FolderVLM.load(folder).identity() == vlm.identity()


def test_a_random_model_grades_nothing_and_says_so(vlm, images, monkeypatch):
    monkeypatch.setattr(transformers_vlm, "ANSWER_TOKENS", 8)
    with pytest.raises(VerifierError, match="the answer holds no grading in JSON: .*, in 3 tries; try a larger model"):
        VLMGrader(vlm).score(images[:1], PROMPTS[:1])


def test_cancel_ends_a_question_before_the_model_sees_it(saved, images, monkeypatch):
    class Cancelled(Exception):
        pass

    def check():
        raise Cancelled

    vlm = FolderVLM.load(saved[0], check=check)
    monkeypatch.setattr(vlm.model, "forward", lambda *args, **kwargs: pytest.fail("the model was asked"))
    with pytest.raises(Cancelled):
        vlm.first_tokens([Ask(images[0], "?")])


def test_cancel_ends_an_answer_before_its_next_token(saved, images):
    class Cancelled(Exception):
        pass

    looks = []

    def check():
        looks.append(1)
        if len(looks) == 4:
            raise Cancelled

    vlm = FolderVLM.load(saved[0], check=check)
    with pytest.raises(Cancelled):
        vlm.answers([Ask(images[0], "hello")])
    assert len(looks) == 4


def test_a_prompt_that_is_too_long_is_refused(vlm, images):
    with pytest.raises(VerifierError, match=r"tiny reads 2048 tokens and the question has \d+: shorten the prompt"):
        VQAScore(vlm).score(images[:1], ["cat " * 1000])


@pytest.mark.parametrize("prompt", ["一只红色的猫", "قطة حمراء", "🐈" * 20, "<image>", "{prompt} {0}"])
def test_any_text_is_a_prompt(vlm, images, prompt):
    if prompt == "<image>":  # the model's own word for an image: one image for two places
        with pytest.raises(Exception, match="(?i)image"):
            VQAScore(vlm).score(images[:1], [prompt])
    else:
        assert torch.isfinite(VQAScore(vlm).score(images[:1], [prompt])).all()


def test_weights_that_are_no_safetensors_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(VerifierError, match="has no .safetensors weights; pickles .* are not loaded. .*Qwen3-VL-4B"):
        FolderVLM.load(folder)


def test_a_pickle_beside_other_safetensors_is_not_loaded(folder):
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").rename(folder / "adapter.safetensors")
    with pytest.raises(VerifierError, match="cannot load"):
        FolderVLM.load(folder)


def test_missing_weights_are_refused(folder):
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    gone = next(name for name in state if name.endswith("layers.1.mlp.up_proj.weight") and "language" in name)
    del state[gone]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(VerifierError, match="lack, or have in other sizes, .*layers.1.mlp.up_proj.weight; download"):
        FolderVLM.load(folder)


def test_a_truncated_file_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(VerifierError, match="transformers .* cannot load .*tiny"):
        FolderVLM.load(folder)


def test_code_in_the_folder_is_not_run(folder, tmp_path):
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n")
    tiny_vlms.break_config(
        folder, model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModelForImageTextToText": "evil.M"}
    )
    with pytest.raises(VerifierError, match="cannot load"):
        FolderVLM.load(folder)
    assert not ran.exists()


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("value", ["evil/kernel", {"": "evil/kernel", "text_config": "evil/kernel"}])
def test_a_kernel_that_the_folder_names_is_not_fetched(folder, name, value):
    tiny_vlms.break_config(folder, **{name: value})
    config = FolderVLM.load(folder).model.config
    assert "evil" not in f"{config._attn_implementation} {config.get_text_config()._attn_implementation}"


ELSEWHERE = {
    "timm's hub": {"model_type": "timm_wrapper", "architecture": "hf-hub:evil/net"},
    "timm's file": {
        "model_type": "timm_wrapper",
        "architecture": "resnet18",
        "model_args": {"checkpoint_path": "a.pth"},
    },
    "a timm backbone": {"model_type": "timm_backbone", "backbone": "resnet18"},
    "timm's hub as a backbone": {"model_type": "timm_backbone", "backbone": "hf-hub:evil/net"},
    "a backbone": {"model_type": "detr", "backbone": "evil/net", "use_timm_backbone": False},
    "a backbone inside": {"model_type": "detr", "backbone_config": {"model_type": "timm_backbone", "backbone": "net"}},
}


@pytest.fixture
def connections(monkeypatch):
    """The hosts that were asked for; none answers."""
    import socket

    asked = []

    def refuse(host, *args, **kwargs):
        asked.append(host)
        raise OSError("no network")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    return asked


@pytest.mark.parametrize("vision", ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_network_that_the_folder_names_is_not_fetched(folder, connections, vision):
    pytest.importorskip("timm")
    tiny_vlms.break_config(folder, vision_config=vision)
    with pytest.raises(VerifierError, match="config.json names '.*' as .*, which is not in the folder"):
        FolderVLM.load(folder)
    assert not connections


def test_nor_is_one_that_transformers_adds_by_itself(folder, connections):
    """A DETR of transformers 4 has a ResNet of timm unless its configuration says otherwise."""
    pytest.importorskip("timm")
    tiny_vlms.break_config(folder, vision_config={"model_type": "detr"})
    with pytest.raises(VerifierError):
        FolderVLM.load(folder)
    assert not connections


def test_nor_are_the_names_of_an_image_processors_classes(folder, connections):
    settings = {"image_processor_type": "OneFormerImageProcessor", "class_info_file": "a.json", "repo_path": "evil/net"}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(VerifierError, match="names 'a.json' as class_info_file"):
        FolderVLM.load(folder)
    assert not connections


def test_a_quantised_model_is_refused(folder):
    tiny_vlms.break_config(folder, quantization_config={"quant_method": "awq", "bits": 4})
    with pytest.raises(VerifierError, match="is quantised"):
        FolderVLM.load(folder)


def test_a_model_without_a_chat_template_is_refused(tmp_path):
    tiny_vlms.save_vlm(tmp_path / "plain", template=False)
    with pytest.raises(VerifierError, match="has no chat template"):
        FolderVLM.load(tmp_path / "plain")


def test_a_model_of_another_kind_is_refused(tmp_path):
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "text")
    with pytest.raises(VerifierError, match="cannot load .*text"):
        FolderVLM.load(tmp_path / "text")


def test_a_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(VerifierError, match="pip install .*transformers`"):
        FolderVLM.load(folder)


def test_the_files_of_a_model(saved):
    names = {file.name for file in model_files(saved[0])}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert any(name.startswith("chat_template.") for name in names)
