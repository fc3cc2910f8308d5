"""ImageReward against the authors' own scores and the formula in plain torch, on a tiny checkpoint as published."""

import gc
import json
import logging
import shutil
import sys
import weakref
from types import SimpleNamespace

import pytest
import tiny_clips
import tiny_imagereward as tiny
import torch
from noise_search.verifiers.base import VerifierError
from noise_search.verifiers.imagereward import ImageReward, load_tokenizer

ALLOWED = 1e-5
LONG = "tri, red circle " * 30
PROMPTS = [
    "a red circle above a blue square",
    "two small green triangles",
    "",
    "x" * 10_000,
    "红猫 قطة, a café 🟥 [SEP] [DEC] [ENC]",
    LONG,
    "A RED Circle.\n\t12 x2",
]
# What ImageReward.score of the authors' package (image-reward 1.5, with transformers 4.27.4, timm 0.6.13, fairscale
# 0.4.13) gives for PROMPTS on the checkpoint of `tiny_imagereward` and tiny_clips.images(7, height, width, seed=3).
AUTHORS = {
    (32, 32): [-1.7515677, -1.6504833, -0.6544321, -1.6035405, -0.6396981, -2.3383844, -1.5717506],
    (32, 57): [-0.7018828, -1.1721495, -0.9174390, -2.4518278, -0.4313081, -3.1645031, -2.3178031],
    (75, 41): [-1.5512474, -1.5185635, -0.2034660, -2.0611765, -0.2707236, -1.2487196, -1.5845222],
    (200, 300): [-1.0053784, -1.1950501, -0.2212473, -3.3466220, -0.3692116, -3.3028014, -2.1033351],
}
PUBLISHED = ("ImageReward.pt", "Apache-2.0", "1.79 GB", "THUDM/ImageReward", "vocab.txt", "232 KB", "bert-base-uncased")


@pytest.fixture(scope="module")
def state():
    return tiny.state_dict()


@pytest.fixture
def checkpoint(tmp_path, state):
    return tiny.save(tmp_path / "verifiers" / "ImageReward", state)


def difference(values, expected):
    return (values - torch.tensor(expected)).abs().max()


def refuses(path, *parts):
    """Loading raises VerifierError with all the parts and the files to get."""
    with pytest.raises(VerifierError) as raised:
        ImageReward.load(path)
    for part in (*parts, *PUBLISHED):
        assert part in str(raised.value), str(raised.value)


class TestTheScore:
    @pytest.mark.parametrize("size", AUTHORS)
    def test_it_is_the_authors(self, checkpoint, size):
        values = ImageReward.load(checkpoint).score(tiny_clips.images(7, *size, seed=3), PROMPTS)
        assert values.shape == (7, 1) and values.dtype == torch.float32
        assert values.std() > 0.5
        assert difference(values[:, 0], AUTHORS[size]) <= ALLOWED

    @pytest.mark.parametrize("seed", [1, 2])
    def test_it_is_the_formula(self, tmp_path, seed):
        """In float64, with the prompt padded to 35 tokens and masked, as the authors do."""
        state = tiny.state_dict(seed)
        verifier = ImageReward.load(tiny.save(tmp_path, state))
        pictures = tiny_clips.images(7, 32, 40, seed)
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
        std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
        pixels = ((pictures[:, :, 4:36] - mean) / std).movedim(-1, 1)
        ids = [verifier.encoder.tokenize(prompt)[0][0].tolist() for prompt in PROMPTS]
        expected = [tiny.reward(state, p[None], tiny.padded(i)) for p, i in zip(pixels, ids, strict=True)]
        assert difference(verifier.score(pictures, PROMPTS)[:, 0], expected) <= ALLOWED

    def test_prompts_and_images_both_count(self, checkpoint):
        verifier, pictures = ImageReward.load(checkpoint), tiny_clips.images(3)
        assert verifier.score(pictures, ["a red circle"] * 3).std() > 0.1
        assert verifier.score(pictures[:1].repeat(3, 1, 1, 1), PROMPTS[:3]).std() > 0.1

    @pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 0.01), (torch.bfloat16, 0.1)])
    def test_half_precision_makes_no_ties(self, checkpoint, dtype, bound):
        pictures = tiny_clips.images(8, 40, 32)
        exact = ImageReward.load(checkpoint).score(pictures, ["a red circle"] * 8)
        values = ImageReward.load(checkpoint, dtype=dtype).score(pictures, ["a red circle"] * 8)
        assert 0 < (values - exact).abs().max() < bound
        assert len(values.unique()) == 8

    def test_it_says_what_it_is(self, checkpoint):
        verifier = ImageReward.load(checkpoint)
        assert verifier.members == ("ImageReward",) and verifier.needs_prompt
        assert verifier.usual_range == (-2.0, 2.0) and verifier.prompt_tokens == 35
        assert ImageReward.load(checkpoint, "tuned").members == ("ImageReward (tuned)",)

    def test_its_identity_knows_weights_vocabulary_and_precision(self, checkpoint, tmp_path):
        verifier = ImageReward.load(checkpoint)
        identities = {verifier.identity(), ImageReward.load(checkpoint, dtype=torch.bfloat16).identity()}
        identities.add(ImageReward.load(tiny.save(tmp_path / "other", tiny.state_dict(1))).identity())
        words = checkpoint.with_name("vocab.txt")
        words.write_text(words.read_text(encoding="utf-8").replace("red\ngreen", "green\nred"), encoding="utf-8")
        identities.add(ImageReward.load(checkpoint).identity())
        assert len(identities) == 4 and verifier.identity().startswith("imagereward:")


class TestPrompts:
    def test_a_long_one_is_cut_with_one_warning(self, checkpoint, caplog):
        verifier, pictures = ImageReward.load(checkpoint), tiny_clips.images(2)
        with caplog.at_level(logging.WARNING):
            values = [verifier.score(pictures, [LONG, LONG]) for _ in range(2)]
        [warning] = [record.getMessage() for record in caplog.records if "reads 35 tokens" in record.getMessage()]
        assert "this one has 122" in warning and "tri, red circle" in warning
        assert torch.equal(values[0], values[1])

    def test_what_is_cut_off_does_not_count(self, checkpoint):
        verifier, pictures = ImageReward.load(checkpoint), tiny_clips.images(1)
        score = verifier.score(pictures, [LONG])
        assert torch.equal(verifier.score(pictures, [LONG + "blue cafe"]), score)
        assert not torch.equal(verifier.score(pictures, ["blue " + LONG]), score)

    def test_35_tokens_are_read_and_no_more(self, checkpoint, caplog):
        verifier, pictures = ImageReward.load(checkpoint), tiny_clips.images(1)
        full, shorter = "red " * 33, "red " * 32
        assert not torch.equal(verifier.score(pictures, [full]), verifier.score(pictures, [shorter]))
        assert "tokens of a prompt" not in caplog.text
        assert torch.equal(verifier.score(pictures, ["red " * 34]), verifier.score(pictures, [full]))
        assert "reads 35 tokens of a prompt and this one has 36" in caplog.text

    def test_they_are_read_once(self, checkpoint):
        verifier, read = ImageReward.load(checkpoint), []
        tokenize = verifier.encoder.tokenize
        object.__setattr__(verifier.encoder, "tokenize", lambda text: read.append(text) or tokenize(text))
        for _ in range(3):
            verifier.score(tiny_clips.images(4), ["a", "red", "a", "red"])
        assert read == ["a", "red"]

    @pytest.mark.parametrize(
        ("text", "tokens"),
        [
            ("A Red\n\tCIRCLE, café", ["a", "red", "circle", ",", "cafe"]),
            ("triangles", ["triangle", "##s"]),
            ("红猫", ["红", "猫"]),
            ("قطة", ["ق", "##ط", "##ة"]),
            ("🟥 zebra", ["🟥", "[UNK]"]),
            ("re\x00d\ue000 \ud83d", ["red"]),
            ("x" * 101, ["[UNK]"]),
            ("[SEP]", ["[SEP]"]),
            ("", []),
        ],
    )
    def test_they_are_read_as_bert_reads_them(self, checkpoint, text, tokens):
        ids, count = load_tokenizer(checkpoint.parent, len(tiny.TOKENS) + 2)(text)
        expected = [tiny.TOKENS.index(token) for token in ["[CLS]", *tokens, "[SEP]"]]
        assert ids.tolist() == [expected] and count == len(expected)

    @pytest.mark.parametrize("place", [".", "bert-base-uncased", "bert"])
    @pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "tokenizer.json with BLIP's marks"])
    def test_the_vocabulary_is_found(self, checkpoint, place, name):
        expected = ImageReward.load(checkpoint).score(tiny_clips.images(1), ["a red circle"])
        folder = checkpoint.parent / place
        folder.mkdir(exist_ok=True)
        shutil.move(checkpoint.with_name("vocab.txt"), folder / "moved")
        if name == "vocab.txt":
            shutil.move(folder / "moved", folder / name)
        else:
            tokens = [*tiny.TOKENS, *(("[DEC]", "[ENC]") if "marks" in name else ())]
            vocabulary = {token: index for index, token in enumerate(tokens)}
            (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordPiece", "vocab": vocabulary}}))
        assert torch.equal(ImageReward.load(checkpoint).score(tiny_clips.images(1), ["a red circle"]), expected)


class TestFiles:
    def test_safetensors_is_as_good(self, checkpoint, tmp_path, state):
        other = ImageReward.load(tiny.save(tmp_path / "safe", state, "ImageReward.safetensors"))
        pictures = tiny_clips.images(2)
        assert torch.equal(
            other.score(pictures, PROMPTS[:2]), ImageReward.load(checkpoint).score(pictures, PROMPTS[:2])
        )

    def test_half_precision_files_are_read(self, checkpoint, tmp_path, state):
        half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
        verifier = ImageReward.load(tiny.save(tmp_path / "half", half))
        assert {parameter.dtype for parameter in verifier.module.parameters()} == {torch.float32}
        pictures = tiny_clips.images(2)
        exact = ImageReward.load(checkpoint).score(pictures, PROMPTS[:2])
        assert (verifier.score(pictures, PROMPTS[:2]) - exact).abs().max() < 0.02

    def test_no_weight_is_left_unset(self, checkpoint, state):
        module = ImageReward.load(checkpoint).module
        used = [v for k, v in state.items() if k.startswith(("blip.v", "blip.t")) and "_proj." not in k]
        found = [*module.parameters(), *module.buffers()]
        assert not any(tensor.is_meta for tensor in found)
        assert sorted(tensor.numel() for tensor in found) == sorted(tensor.numel() for tensor in used)

    def test_weights_read_in_inference_mode_can_be_used_outside(self, checkpoint):
        with torch.inference_mode():
            verifier = ImageReward.load(checkpoint)
        assert not any(parameter.is_inference() for parameter in verifier.module.parameters())

    @pytest.mark.parametrize(
        "wrong", [{"decoder.conv_in.weight": torch.zeros(4, 4, 3, 3)}, "clip", "blip", "head", "text"]
    )
    def test_the_wrong_model_is_named_with_the_right_one(self, checkpoint, state, wrong):
        if wrong == "clip":
            wrong = tiny_clips.open_clip_model().state_dict()
        elif isinstance(wrong, str):
            missing = {"blip": "blip.visual_encoder.", "head": "mlp.", "text": "blip.text_encoder."}[wrong]
            wrong = {key: value for key, value in state.items() if not key.startswith(missing)}
        torch.save(wrong, checkpoint)
        first = ".".join(next(iter(wrong)).split(".")[:2])
        refuses(checkpoint, f"{checkpoint} is not ImageReward", "found", first)

    @pytest.mark.parametrize(
        ("name", "shape"),
        [
            ("blip.visual_encoder.blocks.1.attn.qkv.weight", None),
            ("blip.visual_encoder.pos_embed", None),
            ("blip.visual_encoder.pos_embed", (17, 128)),
            ("blip.visual_encoder.patch_embed.proj.weight", ()),
            ("blip.visual_encoder.blocks.0.norm1.weight", (64,)),
            ("blip.text_encoder.encoder.layer.0.crossattention.self.key.weight", (192, 64)),
            ("blip.text_encoder.embeddings.word_embeddings.weight", (35, 100)),
            ("blip.text_encoder.pooler.dense.weight", (192, 192)),
        ],
    )
    def test_other_sizes_are_named(self, checkpoint, state, name, shape):
        state = dict(state)
        state.pop(name, None)
        if shape is not None:
            state[name] = torch.zeros(shape)
        torch.save(state, checkpoint)
        refuses(checkpoint, str(checkpoint), "ImageReward's" if shape != (35, 100) else "width 100")

    def test_a_head_for_another_width_is_refused(self, checkpoint, state):
        torch.save(state | {"mlp.layers.0.weight": torch.zeros(1024, 99)}, checkpoint)
        refuses(checkpoint, "a head for 99 features on 192")

    @pytest.mark.parametrize("keep", [0, 100, -1000])
    @pytest.mark.parametrize("name", ["ImageReward.pt", "ImageReward.safetensors"])
    def test_a_truncated_file_is_refused(self, tmp_path, state, keep, name):
        path = tiny.save(tmp_path, state, name)
        path.write_bytes(path.read_bytes()[:keep])
        refuses(path, str(path), "download it again")

    def test_a_file_with_code_is_refused(self, checkpoint, state):
        torch.save(state | {"code": SimpleNamespace}, checkpoint)
        refuses(checkpoint, "Python pickle that holds more than weights")

    def test_a_missing_vocabulary_is_named_with_its_licence(self, checkpoint):
        checkpoint.with_name("vocab.txt").unlink()
        refuses(checkpoint, f"{checkpoint.parent} has no vocab.txt", "huggingface.co/google-bert/bert-base-uncased")

    @pytest.mark.parametrize(
        ("name", "content", "part"),
        [
            ("vocab.txt", "a\nb\nc\n", "another vocabulary (3 entries without [PAD], [UNK], [CLS], [SEP], not 33)"),
            ("vocab.txt", "\n".join([*tiny.TOKENS, "one more"]), "another vocabulary (34 entries, not 33)"),
            ("vocab.txt", b"\xff\xfe\x00", "as a vocabulary (UnicodeDecodeError"),
            ("tokenizer.json", "{", "as a vocabulary (JSONDecodeError"),
            ("tokenizer.json", '{"model": {"vocab": [["a", 1.5]]}}', "as a vocabulary (AttributeError"),
            ("tokenizer.json", '{"model": {"vocab": {"a": 0}}}', "another vocabulary (1 entries"),
        ],
    )
    def test_another_vocabulary_is_refused(self, checkpoint, name, content, part):
        checkpoint.with_name("vocab.txt").unlink()
        content = content if isinstance(content, bytes) else content.encode()
        checkpoint.with_name(name).write_bytes(content)
        refuses(checkpoint, str(checkpoint.with_name(name)), part)

    @pytest.mark.parametrize("package", ["transformers", "tokenizers"])
    def test_a_missing_package_is_named(self, checkpoint, monkeypatch, package):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(VerifierError, match=f"python -m pip install {package}"):
            ImageReward.load(checkpoint)

    def test_a_failed_load_leaves_nothing(self, checkpoint):
        checkpoint.with_name("vocab.txt").unlink()
        gc.collect()
        before = sum(isinstance(item, torch.nn.Module) for item in gc.get_objects())
        with pytest.raises(VerifierError):
            ImageReward.load(checkpoint)
        gc.collect()
        assert sum(isinstance(item, torch.nn.Module) for item in gc.get_objects()) <= before

    def test_it_goes_with_its_last_reference(self, checkpoint):
        """Without the cycle collector: a cycle would keep 1.79 GB until it runs."""
        verifier = ImageReward.load(checkpoint)
        verifier.score(tiny_clips.images(1), ["a"])
        gone = weakref.ref(verifier)
        gc.collect()
        gc.disable()
        try:
            del verifier
            assert gone() is None
        finally:
            gc.enable()
