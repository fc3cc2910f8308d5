"""Weight files that are damaged, unsafe or the wrong ones: each refused with its cause and what to do."""

import io
import json
import os
import pickle
import socket
import struct
import zipfile
from contextlib import contextmanager

import pytest
import safetensors
import tiny_clips
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noise_search.verifiers.base import VerifierError, require
from noise_search.verifiers.clip import CLIPScore
from noise_search.verifiers.clip_files import _read_json
from noise_search.verifiers.imagereward import _read_vocabulary
from noise_search.verifiers.transformers_vlm import FolderVLM, model_files
from noise_search.verifiers.weights import content_hash, read_tensors, read_weights, tensor_names


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


def safetensors_bytes(header, data=b"0000", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape, start=0, end=4, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


ABSURD = {
    "a size of 2^63": safetensors_bytes({"a": tensor([2**63])}),
    "a size above 2^64": safetensors_bytes({"a": tensor([2**70])}),
    "sizes whose product overflows": safetensors_bytes({"a": tensor([2**62, 2**62])}),
    "nothing times 2^63": safetensors_bytes({"a": tensor([0, 2**63], end=0), "b": tensor([1])}),
    "nothing times 2^62": safetensors_bytes({"a": tensor([0, 2**62], end=0), "b": tensor([1])}),
    "thousands of axes": safetensors_bytes({"a": tensor([1] * 5000)}),
    "a hundred axes": safetensors_bytes({"a": tensor([1] * 100)}),
    "a negative size": safetensors_bytes({"a": tensor([-1])}),
    "half a size": safetensors_bytes({"a": tensor([1.5])}),
    "overlapping offsets": safetensors_bytes({"a": tensor([1]), "b": tensor([1])}),
    "offsets beyond the end": safetensors_bytes({"a": tensor([2], end=8)}),
    "offsets backwards": safetensors_bytes({"a": tensor([1], 4, 0)}),
    "a hole": safetensors_bytes({"a": tensor([1], 4, 8)}, b"00000000"),
    "a header of 2^63 bytes": safetensors_bytes({"a": tensor([1])}, length=2**63),
    "a header of 2^40 bytes": safetensors_bytes({"a": tensor([1])}, length=2**40),
    "an unknown type": safetensors_bytes({"a": tensor([1], dtype="F99")}),
    "a type that torch lacks": safetensors_bytes({"a": tensor([16], end=12, dtype="F6_E2M3")}, b"0" * 12),
    "brackets in thousands": safetensors_bytes(b'{"a":' * 10_000),
}


@pytest.mark.parametrize("content", ABSURD.values(), ids=ABSURD)
def test_absurd_headers_are_refused(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(VerifierError) as raised:
        read_weights(path)
    said = str(raised.value)
    assert str(path) in said and "download it again" in said and len(said) < 600 + len(str(path))
    assert "\n" not in said
    tensor_names(path)  # what lists of files ask
    assert read_tensors(path, "a") == {}


def saved(value, changed=(), **options):
    """torch.save, and then some bytes of the pickle inside replaced."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    if not changed:
        return buffer.getvalue()
    if options:
        return buffer.getvalue().replace(*changed)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(out := io.BytesIO(), "w") as archive:
        for entry in source.infolist():
            content = source.read(entry)
            archive.writestr(entry.filename, content.replace(*changed) if entry.filename.endswith(".pkl") else content)
    return out.getvalue()


def packed(value):
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved(value))) as source,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for entry in source.infolist():
            archive.writestr(entry.filename, source.read(entry))
    return out.getvalue()


OLD = {"_use_new_zipfile_serialization": False}
SIZE, HUGE = b"K\x4d", b"\x8a\x08" + b"\xff" * 7 + b"\x3f"  # 77 and about 2^62, as a pickle writes them
ABSURD_TORCH = {
    "one value for a terabyte": lambda: saved({"a": torch.zeros(1).expand(2**40)}),
    "nothing times 2^62": lambda: saved({"a": torch.zeros(0, 2**62)}),
    "thousands of axes": lambda: saved({"a": torch.zeros([1] * 5000)}),
    "a size of 2^62": lambda: saved({"a": torch.zeros(77)}, (SIZE + b"\x85", HUGE + b"\x85")),
    "a negative size": lambda: saved({"a": torch.zeros(77)}, (SIZE + b"\x85", b"J\xff\xff\xff\xff\x85")),
    "2^62 values in the old format": lambda: saved({"a": torch.zeros(77)}, (SIZE, HUGE), **OLD),
    "no values": lambda: saved({"a": torch.empty(3, device="meta")}),
    "sparse": lambda: saved({"a": torch.eye(3).to_sparse()}),
    "quantised": lambda: saved({"a": torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)}),
    "nested": lambda: saved({"a": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])}),
    "packed zeros": lambda: packed({"a": torch.zeros(2**20)}),
}


@pytest.mark.parametrize("content", ABSURD_TORCH.values(), ids=ABSURD_TORCH)
@pytest.mark.filterwarnings("ignore")  # torch's, about its own nested tensors
def test_absurd_torch_files_are_refused(tmp_path, content):
    path = tmp_path / "model.pt"
    path.write_bytes(content())
    with pytest.raises(VerifierError) as raised:
        read_weights(path)
    said = str(raised.value)
    assert str(path) in said and "download it again" in said and len(said) < 600 + len(str(path))


def test_views_of_one_storage_are_weights(tmp_path):
    """Transposed, tied, and parts of a larger tensor, as real files have them."""
    whole = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": whole, "b": whole.T, "c": whole[1:], "d": torch.tensor(2.0)}, tmp_path / "model.pt")
    found = read_weights(tmp_path / "model.pt")
    assert torch.equal(found["b"], whole.T) and torch.equal(found["c"], whole[1:]) and found["d"] == 2


@contextmanager
def special(path, kind):
    """Something at `path` that is no regular file, with nobody at its other end."""
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as listener:
            here = os.getcwd()
            os.chdir(path.parent)  # the name of a socket may have 100 characters only
            try:
                listener.bind(path.name)
            finally:
                os.chdir(here)
            yield
            return
    elif kind == "a folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    yield


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("kind", ["a named pipe", "a socket", "a device", "a folder"])
def test_what_is_no_regular_file_is_not_opened(tmp_path, kind, linked, monkeypatch):
    """To open a pipe waits for ever; a device never ends."""
    path = tmp_path / "model.safetensors"
    target = tmp_path / "elsewhere" if linked else path
    with special(target, kind):
        if linked:
            path.symlink_to(target)
        monkeypatch.setattr("builtins.open", lambda *args, **options: pytest.fail("opened"))
        monkeypatch.setattr(safetensors, "safe_open", lambda *args, **options: pytest.fail("opened"))
        for read in (read_weights, lambda path: content_hash([path], {}), _read_json, _read_vocabulary):
            with pytest.raises(VerifierError, match=f"cannot read .*model.safetensors: it is {kind}, not a file"):
                read(path)
        assert tensor_names(path) == frozenset()
        assert read_tensors(path, "a") == {}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_a_pipe_in_a_folder_of_a_vision_language_model_is_not_opened(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes({"a": tensor([1])}))
    os.mkfifo(tmp_path / "generation_config.json")
    assert [file.name for file in model_files(tmp_path)] == ["model.safetensors"]
    with pytest.raises(VerifierError, match=r"generation_config.json: it is a named pipe"):
        FolderVLM.load(tmp_path, torch.float32)


@pytest.mark.parametrize("read", [_read_json, _read_vocabulary])
def test_brackets_in_thousands_are_refused(tmp_path, read):
    path = tmp_path / "tokenizer.json"
    path.write_text("[" * 100_000)
    with pytest.raises(VerifierError, match="cannot read .*tokenizer.json"):
        read(path)


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
        VerifierError, match="scoring needs the Python package no-such-thing.*pip install .*no-such-thing`$"
    ):
        require("no_such_thing", "no-such-thing", "scoring")
