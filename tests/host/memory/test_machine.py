"""What decides the last bits of a candidate is in its key: options, PyTorch's settings, libraries, the device."""

import enum
import importlib.metadata

import pytest
import torch

pytest.importorskip("comfy")

import comfy.cli_args
import comfy.model_management as mm
from keys import key, ksampler
from noise_search.host import known
from noise_search.host.memory import key as store_key
from noise_search.host.memory import machine

OPTIONS = sorted(action.dest for action in comfy.cli_args.parser._actions)
# What ComfyUI takes out of the options for itself, and then no longer has in `args`.
VANISHING = {"help"}


def test_every_option_of_comfyui_is_known_to_change_numbers_or_not():
    classified = known.CHANGES_NUMBERS | known.CHANGES_NO_NUMBERS
    new = [f"--{name.replace('_', '-')}" for name in OPTIONS if name not in classified]
    assert not new, (
        f"ComfyUI has options that host/known.py does not know: {', '.join(new)}. Look into ComfyUI for what "
        "each does, and write it into CHANGES_NUMBERS if it can change one bit of an image, else into "
        "CHANGES_NO_NUMBERS. Until then it counts as changing numbers, which only costs that candidates are computed "
        "again."
    )
    assert not known.CHANGES_NUMBERS & known.CHANGES_NO_NUMBERS


def another(value):
    return "another" if value is not True else False


@pytest.mark.parametrize("name", sorted(set(OPTIONS) - VANISHING))
def test_an_option_that_changes_numbers_makes_another_machine_and_no_other_does(monkeypatch, name):
    before = machine.machine()
    monkeypatch.setattr(machine.args, name, another(getattr(machine.args, name)))
    assert (machine.machine() != before) == (name not in known.CHANGES_NO_NUMBERS)


def test_an_option_that_nobody_knows_yet_counts(monkeypatch):
    before = machine.machine()
    monkeypatch.setattr(machine.args, "of_a_newer_comfyui", True, raising=False)
    assert machine.machine() != before


TORCH_SETTINGS = {
    "default dtype": (torch.set_default_dtype, torch.float64, torch.float32),
    "matmul precision": (torch.set_float32_matmul_precision, "high", "highest"),
    "deterministic": (torch.use_deterministic_algorithms, True, False),
    "flash attention": (torch.backends.cuda.enable_flash_sdp, False, True),
    "plain attention": (torch.backends.cuda.enable_math_sdp, False, True),
    "memory-efficient attention": (torch.backends.cuda.enable_mem_efficient_sdp, False, True),
    "cuDNN attention": (torch.backends.cuda.enable_cudnn_sdp, False, True),
    "fp16 reduction in attention": (torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp, True, False),
    "threads": (torch.set_num_threads, 3, None),
}


@pytest.mark.parametrize("name", TORCH_SETTINGS)
def test_a_setting_of_pytorch_makes_another_machine(name):
    change, other, usual = TORCH_SETTINGS[name]
    usual = torch.get_num_threads() if name == "threads" else usual
    change(usual)
    before = machine.machine()
    try:
        change(other)
        assert {key for key, value in machine.machine().items() if value != before[key]} >= {f"torch {name}"}
    finally:
        change(usual)
    assert machine.machine() == before


BACKENDS = {
    "matmul TF32": (torch.backends.cuda.matmul, "allow_tf32"),
    "cuDNN TF32": (torch.backends.cudnn, "allow_tf32"),
    "cuDNN": (torch.backends.cudnn, "enabled"),
    "cuDNN benchmark": (torch.backends.cudnn, "benchmark"),
    "cuDNN deterministic": (torch.backends.cudnn, "deterministic"),
    "fp16 reduction": (torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction"),
    "bf16 reduction": (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"),
    "fp16 accumulation": (torch.backends.cuda.matmul, "allow_fp16_accumulation"),
}


@pytest.mark.parametrize("name", BACKENDS)
def test_a_setting_of_its_backends_makes_another_machine(name):
    backend, attribute = BACKENDS[name]
    before, usual = machine.machine(), getattr(backend, attribute)
    try:
        setattr(backend, attribute, not usual)
        assert machine.machine()[f"torch {name}"] != before[f"torch {name}"]
    finally:
        setattr(backend, attribute, usual)
    assert machine.machine() == before


def test_every_setting_of_pytorch_that_can_be_set_is_tried_here():
    told_by_the_build = {"oneDNN", "CUDA", "cuDNN version", "instructions"}
    settings = {*machine.TORCH, *machine.ON_THE_CPU} - told_by_the_build
    assert settings == {*TORCH_SETTINGS, *BACKENDS}
    assert not any(value.endswith("Error") for value in machine.machine().values())


@pytest.mark.parametrize("name", ["ftfy", "transformers", "open_clip_torch", "comfy-kitchen", "sageattention"])
@pytest.mark.parametrize("version", ["0.0.1", None])
def test_a_library_of_another_version_or_none_makes_another_machine(monkeypatch, name, version):
    def told(asked):
        if asked != name:
            return importlib.metadata.distribution(asked).version
        if version is None:
            raise importlib.metadata.PackageNotFoundError(asked)
        return version

    def fresh():
        machine.libraries.cache_clear()
        return machine.machine()

    monkeypatch.setattr(importlib.metadata, "version", lambda asked: "1.0" if asked == name else told(asked))
    before = fresh()
    monkeypatch.setattr(importlib.metadata, "version", told)
    assert {key for key, value in fresh().items() if value != before[key]} == {name}
    machine.libraries.cache_clear()


def test_the_name_of_the_device_is_in_it_and_not_its_number(monkeypatch):
    names = {0: "Card A", 1: "Card A", 2: "Card B"}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[device.index])
    told = []
    for number in names:
        monkeypatch.setattr(mm, "get_torch_device", lambda number=number: torch.device("cuda", number))
        told.append(machine.machine())
    assert told[0] == told[1] != told[2]


@pytest.mark.parametrize("part", ["the machine", "the rounding of intermediate values", "the host's source"])
def test_it_is_in_the_key(monkeypatch, part):
    sampling = ksampler()
    before = key(sampling)
    if part == "the machine":
        monkeypatch.setattr(store_key, "machine", lambda: {"device": "another"})
    elif part == "the host's source":
        monkeypatch.setattr(store_key, "host_source", lambda: "another")
    else:
        sampling.to_intermediate_dtype = not sampling.to_intermediate_dtype
    assert key(sampling) != before


def test_options_that_are_sets_are_the_same_in_every_process():
    class Feature(enum.Enum):
        A, B, C = "a", "b", "c"

    assert machine.written(set(Feature)) == "['Feature.A', 'Feature.B', 'Feature.C']"
