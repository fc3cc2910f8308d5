"""The key of the store: the same content makes the same key, in any process, and other content another."""

import dataclasses
import json
import os
import random
import re
import subprocess
import sys
import threading
import types
import weakref
from collections import deque
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("comfy")

import comfy.model_patcher
import comfy.ops
import comfy.samplers
import comfy.sd
import tiny_models
from any_model import (
    GUIDERS,
    STEPS,
    advanced_sampling,
    made,
    sampling_of,
    searched,
    sigmas_of,
    stock_ksampler,
    with_every_feature,
    with_every_model,
)
from comfy_extras import nodes_apg, nodes_sag, nodes_tomesd
from keys import TWO_MODELS, VERSIONS, Judge, all_keys, base, key, ksampler, vae
from noise_search.host.memory import content, functions, weights
from noise_search.host.memory import key as key_module
from noise_search.host.memory.key import files_behind, host_source
from noise_search.host.memory.weights import Unreadable


@with_every_model
def test_the_same_search_has_the_same_key_before_and_after(brightness, name):
    before = key(sampling_of(made(name)))
    searched(sampling_of(made(name)), brightness)
    assert key(sampling_of(made(name))) == before


@with_every_feature
def test_the_same_search_has_the_same_key_before_and_after_with(brightness, name, feature):
    setup = made(name, feature)
    before = key(sampling_of(setup))
    assert before != key(sampling_of(made(name)))
    searched(sampling_of(setup), brightness)
    assert key(sampling_of(setup)) == before


@with_every_feature
def test_what_the_stock_sampler_did_before_makes_no_other_key(name, feature):
    weights._known.clear()
    before = key(sampling_of(made(name, feature)))
    stock_ksampler(made(name, feature))
    weights._known.clear()
    assert key(sampling_of(made(name, feature))) == before


@pytest.mark.parametrize("guider", GUIDERS)
@with_every_model
def test_guiders_have_the_same_key_before_and_after(brightness, name, guider):
    setup = made(name)
    sampling = advanced_sampling(GUIDERS[guider](setup), sigmas_of(setup), setup.latent)
    before = key(sampling)
    searched(sampling, brightness)
    again = advanced_sampling(GUIDERS[guider](setup), sigmas_of(setup), setup.latent)
    assert key(sampling) == key(again) == before


@pytest.mark.any_host  # test_store_reuse.py finds what it knew after a restart, on every ComfyUI
def test_another_process_makes_the_same_keys():
    script = "import conftest, json, keys; print(json.dumps(keys.all_keys()))"
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, env=environment, check=True
    )
    assert json.loads(run.stdout.splitlines()[-1]) == all_keys()


CHANGES = {
    "cfg": lambda: dataclasses.replace(base(), cfg=base().cfg + 1),
    "denoise": lambda: dataclasses.replace(base(), denoise=0.5),
    "positive": lambda: dataclasses.replace(base(), positive=tiny_models.BUILDERS["sd15"]().conditioning(5)),
    "negative": lambda: dataclasses.replace(base(), negative=tiny_models.BUILDERS["sd15"]().conditioning(5)),
    "one number of the latent": lambda: dataclasses.replace(base(), latent=touched(base().latent)),
    "batch index": lambda: dataclasses.replace(base(), latent={**base().latent, "batch_index": [3]}),
    "a LoRA": lambda: dataclasses.replace(base(), model=tiny_models.BUILDERS["sd15"]().with_lora(1.0)),
    "its strength": lambda: dataclasses.replace(base(), model=tiny_models.BUILDERS["sd15"]().with_lora(0.5)),
    "its file": lambda: dataclasses.replace(base(), model=with_lora_of(2)),
    "a cfg function": lambda: dataclasses.replace(base(), model=with_function(0.9)),
    "what the function closes over": lambda: dataclasses.replace(base(), model=with_function(0.8)),
}


def touched(latent):
    samples = latent["samples"].clone()
    samples.view(-1)[-1] += 1e-3
    return {**latent, "samples": samples}


def with_lora_of(seed):
    tiny = tiny_models.BUILDERS["sd15"]()
    return comfy.sd.load_lora_for_models(tiny.model, None, tiny.lora(seed), 1.0, 0.0)[0]


def with_function(factor):
    model = base().model.clone()
    model.set_model_sampler_post_cfg_function(lambda values: factor * values["denoised"])
    return model


def test_every_change_makes_another_key():
    keys = {"nothing": key(sampling_of(base()))} | {name: key(sampling_of(setup())) for name, setup in CHANGES.items()}
    assert len(set(keys.values())) == len(keys)


class Shared:
    factor = 0.9

    def __call__(self, values):
        return self.factor * values["denoised"]


def shared(values):
    return FACTOR * values["denoised"]


FACTOR = 0.9


@pytest.mark.parametrize(
    ("function", "owner", "name"), [(shared, sys.modules[__name__], "FACTOR"), (Shared(), Shared, "factor")]
)
def test_what_a_function_reads_of_its_module_or_class_makes_another_key(monkeypatch, function, owner, name):
    model = base().model.clone()
    model.set_model_sampler_post_cfg_function(function)
    before = key(sampling_of(dataclasses.replace(base(), model=model)))
    monkeypatch.setattr(owner, name, 0.5)
    assert key(sampling_of(dataclasses.replace(base(), model=model))) != before


@pytest.mark.parametrize(
    "other",
    [
        lambda: key(ksampler("euler")),
        lambda: key(ksampler("euler_ancestral")),
        lambda: key(ksampler("ddim")),
        lambda: key(ksampler("uni_pc")),
        lambda: key(ksampler("dpm_fast")),
        lambda: key(ksampler(scheduler="karras")),
        lambda: key(ksampler(steps=STEPS + 1)),
        lambda: key(ksampler(), verifier=Judge("b")),
        lambda: key(ksampler(), prompt="a dog"),
        lambda: key(ksampler(), frames=7),
        lambda: key(ksampler(), versions={**VERSIONS, "comfyui": "1.1"}),
        lambda: key(ksampler(), versions={**VERSIONS, "noise_search": "2.1"}),
        lambda: key(ksampler(), files=[("a.safetensors", 1, 2)]),
        lambda: key(ksampler(), vae=vae("")),
    ],
)
def test_another_setting_makes_another_key(other):
    assert other() != key(ksampler())


def test_each_sampler_has_a_key_of_its_own():
    names = comfy.samplers.KSampler.SAMPLERS
    keys = {name: key(ksampler(name)) for name in names}
    assert len(set(keys.values())) == len(names)


def test_other_weights_make_another_key():
    setup = base()
    before = key(sampling_of(setup))
    weights._known.clear()
    weight = next(iter(setup.model.model.diffusion_model.parameters()))
    with torch.no_grad():
        weight += 1
        try:
            assert key(sampling_of(setup)) != before
        finally:
            weight -= 1
            weights._known.clear()


class Packed(torch.Tensor):
    """A quantised weight as loaders of GGUF files have it: bytes, with their type and the shape that they stand for."""

    def __new__(cls, data, **said):
        return data.as_subclass(cls)

    def __init__(self, data, kind, shape):
        self.kind, self.stands_for, self.patches = kind, shape, []

    @property
    def shape(self):
        return self.stands_for

    def clone(self, *args, **kwargs):
        return self

    detach = clone


class PackedLinear(torch.nn.Linear):
    """A layer of such a loader. In its state dict are stand-ins for the weights, and one of a weight that it has not,
    both for estimating memory."""

    dequantise_as = None

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[f"{prefix}weight"] = torch.zeros(4, device="meta")
        destination[f"{prefix}temp.weight"] = torch.empty(4, device="meta")


def with_packed_layer(byte=1, kind="Q4_0", shape=(4, 4)):
    """A model where one layer's weights are packed. Each call has a network of its own."""
    setup = dataclasses.replace(base(), model=tiny_models.sd15.__wrapped__().model)
    network = setup.model.model.diffusion_model
    name = next(name for name, layer in network.named_modules() if type(layer).__name__ == "Linear")
    layer = PackedLinear(4, 4, bias=False)
    bytes_ = torch.full((18,), byte, dtype=torch.uint8)
    layer.weight = torch.nn.Parameter(Packed(bytes_, kind=kind, shape=torch.Size(shape)), requires_grad=False)
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, layer)
    return setup


def test_packed_weights_are_read_though_the_state_dict_has_stand_ins_for_them():
    key_of = lambda **changed: key(sampling_of(with_packed_layer(**changed)))  # noqa: E731
    with pytest.raises(AttributeError, match="temp"):  # what the stand-ins do to ComfyUI's own list of the weights
        with_packed_layer().model.get_key_patches()
    assert key_of() == key_of()
    others = [key_of(byte=2), key_of(kind="Q8_0"), key_of(shape=(2, 8))]
    assert len({key_of(), *others}) == 4


def test_how_a_loader_reads_its_packed_weights_makes_another_key(monkeypatch):
    setup = with_packed_layer()
    before = key(sampling_of(setup))
    monkeypatch.setattr(PackedLinear, "dequantise_as", torch.bfloat16)
    assert key(sampling_of(setup)) != before


def test_weights_that_are_not_there_make_no_key():
    setup = with_packed_layer()
    layer = next(one for one in setup.model.model.modules() if isinstance(one, PackedLinear))
    layer.weight = torch.nn.Parameter(torch.empty(4, device="meta"), requires_grad=False)
    with pytest.raises(Unreadable, match="not there"):
        key(sampling_of(setup))


def quantised(weight):
    quant_ops = pytest.importorskip("comfy.quant_ops")
    if not getattr(quant_ops, "_CK_AVAILABLE", False):
        pytest.skip("this ComfyUI has no quantised tensors")
    return quant_ops.QuantizedTensor.from_float(weight, "TensorCoreFP8E4M3Layout")


def test_quantised_weights_are_read_as_they_are_stored():
    parts = weights.stored(quantised(torch.arange(600.0).reshape(30, 20)), lambda value, where: repr(value))
    assert [part.dtype for part in parts if not isinstance(part, str)] == [
        torch.float8_e4m3fn,
        torch.float32,
    ]  # the codes and their scale


def test_scaled_layers_of_comfyui_itself_are_read():
    weight = torch.arange(600.0).reshape(30, 20)
    keys = set()
    for factor in (1.0, 1.0, 2.0):  # the codes are the same, the scale is not
        setup = dataclasses.replace(base(), model=tiny_models.sd15.__wrapped__().model)
        layer = comfy.ops.mixed_precision_ops().Linear(20, 30, bias=False)
        layer.weight = torch.nn.Parameter(quantised(factor * weight), requires_grad=False)
        layer.quant_format, layer._full_precision_mm_config = "float8_e4m3fn", False
        setup.model.model.diffusion_model.scaled = layer
        keys.add(key(sampling_of(setup)))
    assert len(keys) == 2


def test_other_vae_weights_make_another_key():
    first, second = vae(""), vae("")
    assert key(ksampler(), vae=first) == key(ksampler(), vae=second)
    with torch.inference_mode():
        next(iter(second.first_stage_model.parameters())).add_(1)
    weights._known.clear()
    assert key(ksampler(), vae=first) != key(ksampler(), vae=second)


@pytest.mark.parametrize("name", TWO_MODELS)
@pytest.mark.parametrize("holds", ["the network", "the model", "a layer"])
def test_a_patch_that_holds_a_part_of_the_model_has_the_same_key_before_and_after(brightness, name, holds):
    setup = made(name)
    base_model = setup.model.model
    layer = next(module for module in base_model.diffusion_model.modules() if isinstance(module, torch.nn.Linear))
    part = {"the network": base_model.diffusion_model, "the model": base_model, "a layer": layer}[holds]
    model = setup.model.clone()
    model.set_model_sampler_post_cfg_function(lambda values: values["denoised"] if part else None)
    setup = dataclasses.replace(setup, model=model)
    before = key(sampling_of(setup))
    searched(sampling_of(setup), brightness)
    assert key(sampling_of(setup)) == before


REMEMBERING_PATCHES = {
    "self-attention guidance": lambda model, n=0: nodes_sag.SelfAttentionGuidance.execute(model, 0.5 + n, 2.0),
    "adaptive projected guidance": lambda model, n=0: nodes_apg.APG.execute(model, 1.0 + n, 5.0, 0.5),
    "token merging": lambda model, n=0: nodes_tomesd.TomePatchModel.execute(model, 0.3 + n / 10),
}


@pytest.mark.parametrize("name", REMEMBERING_PATCHES)
def test_what_a_patch_remembers_of_a_run_makes_no_other_key(brightness, name):
    patch, setup = REMEMBERING_PATCHES[name], made("sd15")
    patched, other = (dataclasses.replace(setup, model=patch(setup.model, n).args[0]) for n in (0, 1))
    before = key(sampling_of(patched))
    searched(sampling_of(patched), brightness)
    assert key(sampling_of(patched)) == before != key(sampling_of(other))


def test_a_patch_that_indexes_with_three_dots_can_be_read():
    model = base().model.clone()
    model.set_model_sampler_post_cfg_function(lambda values: values["denoised"][..., :])
    assert key(sampling_of(dataclasses.replace(base(), model=model))) != key(sampling_of(base()))


def test_what_a_pack_sets_on_the_network_makes_another_key():
    setup = base()
    network = setup.model.model.diffusion_model
    keys = [key(sampling_of(setup))]
    for strength in (0.5, 0.6):
        network.loras = [("style.safetensors", strength)]
        keys.append(key(sampling_of(setup)))
    del network.loras
    hook = network.register_forward_hook(lambda *args: None)
    keys.append(key(sampling_of(setup)))
    hook.remove()
    assert len(set(keys)) == 4
    assert key(sampling_of(setup)) == keys[0]


@pytest.mark.parametrize("kind", ["weak reference", "pattern", "operator", "queue", "array", "bound method", "partial"])
def test_what_packs_hang_on_a_model_can_be_read(kind):
    owners = [Judge("a"), Judge("b")]
    make = {
        "weak reference": lambda n: weakref.ref(owners[n]),
        "pattern": lambda n: re.compile(f"blocks.{n}"),
        "operator": lambda n: (torch.ops.aten.add.Tensor, torch.ops.aten.mul)[n],
        "queue": lambda n: deque([n]),
        "array": lambda n: np.full(3, n),
        "bound method": lambda n: Judge(f"judge {n}").identity,
        "partial": lambda n: partial(max, n),
    }[kind]

    def with_option(n):
        model = base().model.clone()
        model.model_options["transformer_options"]["pack"] = make(n)
        return key(sampling_of(dataclasses.replace(base(), model=model)))

    assert with_option(0) == with_option(0) != with_option(1)


def test_a_network_that_a_pack_holds_is_the_same_before_and_after_it_is_loaded():
    """As Advanced-ControlNet holds its network, outside what ComfyUI's own ControlNets are known by."""

    def read(held):
        reading = content.Content()
        reading.add([held], "pack")
        return reading.digest()

    network = torch.nn.Linear(4, 4)
    before = read(network)
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(network, load_device=cpu, offload_device=cpu)
    patcher.load(cpu)
    assert {"model_loaded_weight_memory", "current_weight_patches_uuid"} <= vars(network).keys()
    assert read(network) == before
    network.scale = 2.0
    assert read(network) != before


@pytest.mark.parametrize(
    ("what", "said"), [(threading.Lock(), "options.lot"), (random.Random(1), "options.lot .* other numbers each time")]
)
def test_what_cannot_be_read_makes_no_key(what, said):
    setup = base()
    model = setup.model.clone()
    model.model_options["transformer_options"]["lot"] = what
    with pytest.raises(Unreadable, match=said):
        key(sampling_of(dataclasses.replace(setup, model=model)))


def test_where_a_network_is_makes_no_other_key():
    setup = base()
    network, before = setup.model.model.diffusion_model, key(sampling_of(setup))
    network.device = torch.device("meta")
    try:
        assert key(sampling_of(setup)) == before
    finally:
        del network.device


def test_the_parts_of_a_key_have_the_names_that_they_had(monkeypatch):
    """Were one renamed, everything that was searched before would be searched anew."""
    named = {}
    monkeypatch.setattr(key_module, "_read", lambda models, parts, before: named.update(parts) or content.Content())
    key(ksampler())
    assert " ".join(sorted(named)) == (
        "files format frames guider host latent machine prompt rounding sampler sigmas vae verifier versions"
    )


def test_a_large_weight_is_sampled_from_its_first_value_to_its_last():
    flat = torch.zeros(10**6)
    flat[0], flat[-1] = 1.0, 2.0
    taken = weights._samples(flat)
    assert len(taken) < len(flat) / 10 and (taken[0], taken[-1]) == (1.0, 2.0)


def test_what_is_too_large_to_be_read_before_every_search_makes_no_key(monkeypatch):
    model = base().model.clone()
    model.model_options["transformer_options"]["table"] = torch.zeros(1000)
    setup = dataclasses.replace(base(), model=model)
    monkeypatch.setattr(content, "MAX_READ_BYTES", 100_000)
    assert key(sampling_of(setup))
    monkeypatch.setattr(content, "MAX_READ_BYTES", 3000)
    with pytest.raises(Unreadable, match="too large"):
        key(sampling_of(setup))


def test_what_is_nested_without_end_makes_no_key():
    endless = []
    endless.append(endless)
    model = base().model.clone()
    model.model_options["transformer_options"]["endless"] = endless
    with pytest.raises(Unreadable, match="too deep"):
        key(sampling_of(dataclasses.replace(base(), model=model)))


def test_a_verifier_that_does_not_say_what_it_is_makes_no_key(brightness):
    with pytest.raises(Unreadable, match="red"):
        key(ksampler(), verifier=brightness)


@pytest.fixture
def lora_file(tmp_path, monkeypatch):
    import folder_paths

    file = tmp_path / "style.safetensors"
    file.write_bytes(b"one")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    return file


GRAPH = {
    "1": {"class_type": "LoraLoader", "inputs": {"lora_name": "style.safetensors", "model": ["0", 0]}},
    "2": {"class_type": "NoiseSearchKSampler", "inputs": {"model": ["1", 0], "prompt": "a cat. " * 100, "seed": 3}},
    "3": {"class_type": "LoraLoader", "inputs": {"lora_name": "other.safetensors"}},
}


def test_the_files_behind_a_node_are_found_by_size_and_time(lora_file):
    [(name, size, changed)] = files_behind(GRAPH, "2")
    assert (name, size, changed) == ("style.safetensors", 3, lora_file.stat().st_mtime_ns)
    os.utime(lora_file, ns=(1, 1))
    assert files_behind(GRAPH, "2") == [("style.safetensors", 3, 1)]


def test_files_that_are_not_behind_the_node_do_not_count(lora_file):
    (lora_file.parent / "other.safetensors").write_bytes(b"two")
    assert [name for name, _, _ in files_behind(GRAPH, "2")] == ["style.safetensors"]


def test_no_graph_has_no_files():
    assert files_behind(None, None) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes")
def test_what_is_no_regular_file_is_not_read(tmp_path, monkeypatch):
    """Among ComfyUI's modules, and as the file that a module names: to open a pipe waits for ever."""
    (tmp_path / "samplers.py").write_text("x = 1")
    monkeypatch.setattr(comfy.samplers, "__file__", str(tmp_path / "samplers.py"))
    before = host_source.__wrapped__()
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "folder.py").mkdir()
    assert host_source.__wrapped__() == before
    module = types.ModuleType("noise_search_test_pipe")
    module.__file__ = str(tmp_path / "pipe.py")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert functions.source_hash.__wrapped__(module.__name__) == ""


def test_the_node_whose_latent_is_rounded_at_the_end_has_another_key():
    """KSampler gives its latent in ComfyUI's intermediate type, SamplerCustomAdvanced as it is."""
    plain, rounded = ksampler(), ksampler()
    rounded.to_intermediate_dtype = not plain.to_intermediate_dtype
    assert key(plain) == key(ksampler()) != key(rounded)


def test_an_updated_pack_is_another_one_though_its_class_looks_the_same(tmp_path, monkeypatch):
    """A class is named by the text of the whole file that defines it, which may have changed anywhere."""
    import importlib

    from noise_search.host.memory import functions

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def key_with(constant):
        (tmp_path / "a_pack_of_tests.py").write_text(f"INNER = [{constant}]\n\n\nclass Patch:\n    pass\n")
        sys.modules.pop("a_pack_of_tests", None)
        importlib.invalidate_caches()
        functions.source_hash.cache_clear()
        model = base().model.clone()
        model.model_options["transformer_options"]["patch"] = importlib.import_module("a_pack_of_tests").Patch()
        return key(sampling_of(dataclasses.replace(base(), model=model)))

    try:
        assert key_with(1) == key_with(1) != key_with(2)
    finally:
        sys.modules.pop("a_pack_of_tests", None)
        functions.source_hash.cache_clear()
