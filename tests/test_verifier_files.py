"""Weight files that are damaged, unsafe or the wrong ones: each refused with its cause and what to do."""

import io
import json
import os
import pickle
import zipfile

import pytest
import tiny_clips
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noise_search.verifiers.base import VerifierError, require
from noise_search.verifiers.clip import CLIPScore
from noise_search.verifiers.weights import read_weights


class Bomb:
    """A pickle of it runs a command when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_clips.save_open_clip_folder(folder)
    return folder


def refuses(path, *parts, **arguments):
    """Loading raises VerifierError whose text names the path and has all the parts."""
    with pytest.raises(VerifierError) as raised:
        CLIPScore.load(path, **arguments)
    message = str(raised.value)
    for part in (str(path), *parts):
        assert part in message, message
    return message


def test_missing_file(tmp_path):
    refuses(tmp_path / "nothing.safetensors", "No such file", "check the name")


@pytest.mark.parametrize("keep", [4, 100, 100_000, -1])
def test_truncated_safetensors(tiny, tmp_path, keep):
    data = (tiny / "open_clip_model.safetensors").read_bytes()[:keep]
    path = tmp_path / "cut.safetensors"
    path.write_bytes(data)
    refuses(path, "download it again and compare its size")


@pytest.mark.parametrize("keep", [100, 100_000, -1])
@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_torch_file(tmp_path, keep, legacy):
    buffer = io.BytesIO()
    torch.save(tiny_clips.open_clip_model().state_dict(), buffer, _use_new_zipfile_serialization=not legacy)
    path = tmp_path / "cut.pt"
    path.write_bytes(buffer.getvalue()[:keep])
    refuses(path, "download it again and compare its size")


def test_truncated_weights_in_a_transformers_folder(tmp_path):
    tiny_clips.save_hf_clip_folder(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    refuses(tmp_path, "model.safetensors", "download it again")


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": 3}, {"weight_map": {"logit_scale": 1}}])
def test_an_index_of_nothing(tmp_path, index):
    tiny_clips.save_hf_clip_folder(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    refuses(tmp_path / "model", "does not say which files")


def test_weights_in_several_files(tmp_path):
    model = tiny_clips.save_hf_clip_folder(tmp_path / "whole")
    model.save_pretrained(tmp_path / "parts", max_shard_size="1MB")
    tiny_clips.save_clip_tokenizer(tmp_path / "parts")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    whole, parts = (CLIPScore.load(tmp_path / name) for name in ("whole", "parts"))
    images = tiny_clips.images(2)
    assert torch.equal(parts.score(images, ["a", "b"]), whole.score(images, ["a", "b"]))
    part = sorted((tmp_path / "parts").glob("*.safetensors"))[-1]
    part.unlink()
    refuses(tmp_path / "parts", part.name, "No such file")


def test_pickle_where_safetensors_is_expected(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    refuses(path, "it is a Python pickle, not a safetensors file", "get the model's .safetensors file instead")
    torch.save({"a": torch.zeros(1)}, path)
    refuses(path, "it is a torch.save file, not a safetensors file")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_a_pickle_with_more_than_weights_is_refused_and_not_run(tmp_path, suffix, legacy):
    path = tmp_path / f"model{suffix}"
    content = {"a": torch.zeros(1), "b": Bomb(tmp_path / "ran")}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    message = refuses(path, "is refused: it is a Python pickle that holds more than weights", "run code")
    assert "mkdir" in message and not (tmp_path / "ran").exists()


def test_bare_pickle(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "ran"), protocol=2))
    refuses(path, "refused")
    assert not (tmp_path / "ran").exists()


def test_torchscript_archive(tmp_path):
    path = tmp_path / "ViT-B-32.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ViT-B-32/code/__torch__.py", "")
        archive.writestr("ViT-B-32/data.pkl", b"")
    refuses(path, "TorchScript archive", "model.safetensors with its config.json")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ("empty",)),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", ("Git LFS pointer", "git lfs pull")),
        (b"<!doctype html><html><body>Log in</body></html>", ("a web page", "gated")),
        (b"what is this?" * 20, ("in no known weight format",)),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_not_weights_at_all(tmp_path, suffix, content, parts):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    refuses(path, *parts)


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=200),
    st.sampled_from([".safetensors", ".pt"]),
    st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02"]),
)
def test_any_bytes_are_refused_with_a_sentence(tmp_path_factory, content, suffix, head):
    path = tmp_path_factory.getbasetemp() / f"fuzzed{suffix}"
    path.write_bytes(head + content)
    with pytest.raises(VerifierError, match="fuzzed"):
        read_weights(path)


def test_a_safetensors_file_without_weights(tmp_path):
    from safetensors.torch import save_file

    save_file({}, tmp_path / "model.safetensors")
    refuses(tmp_path / "model.safetensors", "holds no weights")


@pytest.mark.parametrize("content", [[1, 2, 3], torch.zeros(3), None, "text", {"state_dict": {"epoch": 1}}])
def test_a_torch_file_of_anything_else(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    refuses(tmp_path / "model.pt", "holds no weights")


def test_wrong_models(tmp_path):
    """A VAE, an image tower alone, a text encoder without its projection."""
    from safetensors.torch import save_file

    path = tmp_path / "vae.safetensors"
    save_file({"decoder.conv_in.weight": torch.zeros(4, 4), "encoder.conv_in.weight": torch.zeros(4, 4)}, path)
    refuses(path, "is not a complete CLIP", "decoder.conv_in", "encoder.conv_in")

    state = tiny_clips.hf_clip_model().state_dict()
    path = tmp_path / "vision.safetensors"
    save_file({key: value for key, value in state.items() if key.startswith("vi")}, path)
    refuses(path, "is not a complete CLIP", "vision_model")

    path = tmp_path / "unprojected.safetensors"
    save_file({key: value for key, value in state.items() if key != "text_projection.weight"}, path)
    refuses(path, "lacks text_projection.weight", "both towers with their projections")


def test_unknown_sizes(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "odd.safetensors"
    save_file(tiny_clips.open_clip_model(embed_dim=20).state_dict(), path)
    refuses(path, "fits none of the architectures", "token_embedding.weight (49408, 32)", "visual.conv1.weight")
    save_file(tiny_clips.hf_clip_model(projection_dim=20).state_dict(), tmp_path / "odd-hf.safetensors")
    refuses(tmp_path / "odd-hf.safetensors", "fits none of the architectures", "patch_embedding.weight (64, 3, 8, 8)")


def test_architecture_that_does_not_exist_or_fit(tmp_path, tiny):
    path = tmp_path / "weights.safetensors"
    path.write_bytes((tiny / "open_clip_model.safetensors").read_bytes())
    with pytest.raises(VerifierError, match="no architecture 'ViT-B-23'; did you mean ViT-B-32"):
        CLIPScore.load(path, architecture="ViT-B-23")
    refuses(path, "does not fit its architecture", "it lacks", architecture="ViT-S-32-alt")
    refuses(tiny, "leave `architecture` ('ViT-B-32') empty", architecture="ViT-B-32")


def test_siglip_file_without_its_tokenizer(tmp_path):
    tiny_clips.save_hf_siglip_folder(tmp_path / "whole")
    path = (tmp_path / "whole" / "model.safetensors").rename(tmp_path / "siglip.safetensors")
    refuses(path, "SigLIP", "put the file into a folder of its own with config.json and the tokenizer's files")


def test_folders_with_something_missing(tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    refuses(folder, "is not a CLIP model folder (found: nothing)", "open_clip_config.json", "model.safetensors")

    tiny_clips.save_hf_clip_folder(tmp_path / "untokenized")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "untokenized" / name).unlink()
    refuses(tmp_path / "untokenized", "has no tokenizer", "vocab.json and merges.txt")

    tiny_clips.save_open_clip_folder(tmp_path / "unweighted")
    (tmp_path / "unweighted" / "open_clip_model.safetensors").unlink()
    refuses(tmp_path / "unweighted", "found: open_clip_config.json", "open_clip_model.safetensors")


@pytest.mark.parametrize("config", ["{", "[]", "{}", '{"model_cfg": {"embed_dim": 1}}'])
def test_broken_open_clip_configuration(tmp_path, config):
    tiny_clips.save_open_clip_folder(tmp_path)
    (tmp_path / "open_clip_config.json").write_text(config)
    refuses(tmp_path, "open_clip_config.json", "take the file from the model's own repository")


def test_configuration_of_other_sizes(tmp_path):
    tiny_clips.save_open_clip_folder(tmp_path, tiny_clips.open_clip_model(), embed_dim=20)
    refuses(tmp_path, "does not fit its architecture", "text_projection (32, 24) instead of (32, 20)")
    tiny_clips.save_open_clip_folder(tmp_path, tiny_clips.open_clip_model(), vision_cfg={"layers": "many"})
    refuses(tmp_path, "open_clip cannot build the model")


def test_other_transformers_models(tmp_path):
    tiny_clips.save_hf_clip_folder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "clip_text_model"}))
    refuses(tmp_path, "a model of type 'clip_text_model'", "complete clip or siglip model")


def test_a_transformers_folder_with_one_tower(tmp_path):
    """transformers itself would leave the other at random values."""
    from safetensors.torch import save_file

    model = tiny_clips.save_hf_clip_folder(tmp_path)
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("text_model.final")}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    refuses(tmp_path, "model.safetensors", "text_model.final_layer_norm")


@pytest.mark.parametrize(
    "tower", [{"text_cfg": {"hf_model_name": "roberta-base"}}, {"vision_cfg": {"timm_model_name": "hf-hub:a/b"}}]
)
def test_towers_fetched_by_name_are_refused(tmp_path, tower):
    tiny_clips.save_open_clip_folder(tmp_path, tiny_clips.open_clip_model(), **tower)
    refuses(tmp_path, "to be fetched from the internet", list(list(tower.values())[0].values())[0])


def test_code_in_a_model_folder_is_not_run(tmp_path):
    text = {**tiny_clips.OPEN_CLIP_CONFIG["text_cfg"], "context_length": 12, "vocab_size": 15, "hf_tokenizer_name": "."}
    text["tokenizer_kwargs"] = {"trust_remote_code": True}
    tiny_clips.save_open_clip_folder(tmp_path, text_cfg=text)
    tiny_clips.save_word_tokenizer(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    config["tokenizer_class"] = "Evil"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nclass Evil: pass\n")
    try:
        CLIPScore.load(tmp_path)
    except VerifierError as error:
        assert str(tmp_path) in str(error)
    assert not (tmp_path / "ran").exists()


def test_a_kernel_that_a_folder_names_is_not_fetched(tmp_path):
    tiny_clips.save_hf_clip_folder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"attn_implementation": "evil/kernel"}))
    assert CLIPScore.load(tmp_path).module.config._attn_implementation != "evil/kernel"


def test_missing_package():
    with pytest.raises(
        VerifierError, match="scoring needs the Python package no-such-thing.*pip install no-such-thing"
    ):
        require("no_such_thing", "no-such-thing", "scoring")
