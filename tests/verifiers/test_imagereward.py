"""ImageReward against the authors' own scores and the formula in plain torch, on a tiny checkpoint as published."""

import gc
import json
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
    def test_a_long_one_is_cut_and_it_is_said_where(self, checkpoint):
        said = ImageReward.load(checkpoint).cut(LONG)
        assert "reads the first 35 of 122 tokens" in said and "up to '...circle tri, red circle'" in said

    def test_what_is_cut_off_does_not_count(self, checkpoint):
        verifier, pictures = ImageReward.load(checkpoint), tiny_clips.images(1)
        score = verifier.score(pictures, [LONG])
        assert torch.equal(verifier.score(pictures, [LONG + "blue cafe"]), score)
        assert not torch.equal(verifier.score(pictures, ["blue " + LONG]), score)

    def test_35_tokens_are_read_and_no_more(self, checkpoint):
        verifier, pictures = ImageReward.load(checkpoint), tiny_clips.images(1)
        full, shorter = "red " * 33, "red " * 32
        assert not torch.equal(verifier.score(pictures, [full]), verifier.score(pictures, [shorter]))
        assert verifier.cut(full) is None
        assert torch.equal(verifier.score(pictures, ["red " * 34]), verifier.score(pictures, [full]))
        assert "reads the first 35 of 36 tokens" in verifier.cut("red " * 34)

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
            (
                "vocab.txt",
                "\n".join(tiny.TOKENS).replace("[CLS]", "<s>"),
                "another vocabulary (33 entries without [CLS]",
            ),
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
        with pytest.raises(VerifierError, match=f"pip install .*{package}`"):
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


@pytest.mark.comfyui
class TestInComfyUI:
    @pytest.fixture(autouse=True)
    def models(self, tmp_path, monkeypatch):
        """Folders of our own, as the only ones that ComfyUI knows."""
        pytest.importorskip("comfy")
        import folder_paths
        from noise_search.host.judging import folders

        monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
        places = {folders.FOLDER: [str(tmp_path / "verifiers")], folders.REWARDS: []}
        for folder, paths in places.items():
            monkeypatch.setitem(folder_paths.folder_names_and_paths, folder, (paths, set()))
            folder_paths.filename_list_cache.pop(folder, None)
        yield tmp_path
        for folder in places:
            folder_paths.filename_list_cache.pop(folder, None)

    def test_the_node_gives_the_plain_score(self, checkpoint):
        from noise_search.nodes.verifiers import LOADERS

        pictures = tiny_clips.images(2, 40, 32)
        [hosted] = LOADERS["imagereward"].execute("ImageReward/ImageReward.pt", "fp32").result
        assert hosted.members == ("ImageReward",) and hosted.prompt_tokens == 35
        assert torch.equal(hosted.score(pictures, "a"), ImageReward.load(checkpoint).score(pictures, ["a", "a"]))

    @pytest.mark.parametrize("folder", ["verifiers", "verifiers/mine", "image_reward", "ImageReward"])
    def test_it_is_found_where_users_have_it(self, models, folder):
        from noise_search.host.judging.folders import reward_choices, reward_path

        path = tiny.save(models / folder)
        tiny_clips.save_open_clip_folder(models / "verifiers" / "a clip")
        name = "mine/ImageReward.pt" if folder.endswith("mine") else "ImageReward.pt"
        assert reward_choices() == [name, "a clip/open_clip_model.safetensors"]
        assert reward_path(name) == path

    @pytest.mark.parametrize(
        "name", ["", "../secret.pt", "ImageReward/../../secret.pt", "/etc/passwd", "ImageReward/vocab.txt"]
    )
    def test_only_listed_names_are_resolved(self, models, checkpoint, name):
        from noise_search.host.judging.folders import reward_path

        shutil.copy(checkpoint, models / "secret.pt")
        with pytest.raises(VerifierError, match="no ImageReward model"):
            reward_path(name)

    def test_with_no_file_the_error_says_where_to_put_which(self, models):
        from noise_search.host.judging.folders import NONE_FOUND, reward_choices
        from noise_search.host.judging.hosted import load

        assert reward_choices() == [NONE_FOUND]
        with pytest.raises(VerifierError) as raised:
            load("imagereward", NONE_FOUND)
        where = [str(models / folder) for folder in ("verifiers", "image_reward", "ImageReward")]
        for text in (*PUBLISHED, *where, "Nothing is downloaded"):
            assert text in str(raised.value)

    def test_two_loads_share_one_network(self, checkpoint):
        from noise_search.host.judging.hosted import load

        name = "ImageReward/ImageReward.pt"
        first, second = load("imagereward", name, "fp32"), load("imagereward", name, "fp32")
        assert first is second and load("imagereward", name, "bf16").patcher is not first.patcher

    def test_another_vocabulary_is_another_verifier(self, checkpoint):
        from noise_search.host.judging.hosted import load

        first = load("imagereward", "ImageReward/ImageReward.pt")
        identity = first.identity()
        words = checkpoint.with_name("vocab.txt")
        words.write_bytes(words.read_bytes().replace(b"\nred\ngreen\n", b"\ncrimson\ngreen\n"))
        second = load("imagereward", "ImageReward/ImageReward.pt")
        assert second is not first and second.identity() != identity

    def test_clip_score_does_not_take_it_for_a_clip(self, checkpoint):
        from noise_search.host.judging.hosted import load

        kept = load("imagereward", "ImageReward/ImageReward.pt")
        with pytest.raises(VerifierError, match="is not a complete CLIP"):
            load("clip_score", "ImageReward/ImageReward.pt")
        assert kept.patcher is not None

    def test_a_failed_load_leaves_nothing(self, checkpoint):
        import comfy.model_management as mm
        from noise_search.host.judging import hosted as hosting

        checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
        before = len(mm.current_loaded_models), len(hosting._loaded), len(hosting._encoders)
        with pytest.raises(VerifierError, match="cannot read .*ImageReward.pt"):
            hosting.load("imagereward", "ImageReward/ImageReward.pt")
        assert (len(mm.current_loaded_models), len(hosting._loaded), len(hosting._encoders)) == before

    def test_unloading_leaves_nothing(self, checkpoint):
        import comfy.model_management as mm
        from noise_search.host.judging import hosted as hosting

        hosted = hosting.load("imagereward", "ImageReward/ImageReward.pt")
        hosted.score(tiny_clips.images(1), "a")
        module = weakref.ref(hosted.verifier.module)
        assert any(loaded.model is hosted.patcher for loaded in mm.current_loaded_models)
        del hosted
        gc.collect()
        mm.cleanup_models()
        assert module() is None

    def test_with_too_little_memory_no_part_stays_behind(self, checkpoint, monkeypatch):
        """A fake device, the meta device, that claims to have next to no memory free."""
        import comfy.model_management as mm
        from noise_search.host.judging.hosted import HostedVerifier

        little = 2**20
        monkeypatch.setattr(mm, "vram_state", mm.VRAMState.NORMAL_VRAM)
        monkeypatch.setattr(
            mm, "get_free_memory", lambda *args, torch_free_too=False: (little, little) if torch_free_too else little
        )
        verifier = ImageReward.load(checkpoint)
        assert sum(p.numel() * 4 for p in verifier.module.parameters()) > little
        hosted = HostedVerifier(verifier, device=torch.device("meta"))
        hosted._load(tiny_clips.images(1))
        devices = {tensor.device.type for tensor in (*verifier.module.parameters(), *verifier.module.buffers())}
        assert devices == {"meta"}
        loaded = [loaded for loaded in mm.current_loaded_models if loaded.model is not hosted.patcher]
        mm.current_loaded_models[:] = loaded
