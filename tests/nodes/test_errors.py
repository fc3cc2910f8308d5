"""What a node raises is what the user is shown: a plain error of Python's with our sentence."""

import asyncio
import builtins
import importlib
import inspect
import pkgutil

import pytest

pytest.importorskip("comfy_api.latest")

import comfy.model_management
import noise_search
import torch
from noise_search.host.errors import PACK, plain
from noise_search.nodes import NoiseSearchExtension
from noise_search.search.comparisons import NoAnswer

NODES = {node.define_schema().node_id: node for node in asyncio.run(NoiseSearchExtension().get_node_list())}


def errors_of_the_pack():
    """Every exception class that the pack defines."""
    found = set()
    for layer in ("search", "verifiers", "report", "host", "nodes"):
        package = importlib.import_module(f"{noise_search.__name__}.{layer}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
                if issubclass(kind, Exception) and kind.__module__.startswith(PACK):
                    found.add(kind)
    return sorted(found, key=lambda kind: kind.__name__)


OURS = errors_of_the_pack()


def raised_by(node, error):
    """What comes out of ComfyUI's own call of a node whose work fails with this."""

    def execute(cls, **inputs):
        raise error

    broken = type(node.__name__, (node,), {"execute": classmethod(execute)})
    with pytest.raises(BaseException) as caught:  # noqa: B017, PT011 - Cancel is a BaseException on newer hosts
        broken.PREPARE_CLASS_CLONE(None).EXECUTE_NORMALIZED()
    return caught.value


def test_the_pack_has_errors_of_its_own():
    assert {"VerifierError", "PromptNotFound", "RecipeError", "StoreError"} <= {kind.__name__ for kind in OURS}


@pytest.mark.parametrize("name", NODES)
def test_every_node_raises_them_as_python_has_them(name):
    for kind in OURS:
        error = NoAnswer(0, "the sentence") if kind is NoAnswer else kind("the sentence")
        shown = raised_by(NODES[name], error)
        assert type(shown) is getattr(builtins, type(shown).__name__) and type(shown) is not Exception
        assert isinstance(shown, ValueError) == issubclass(kind, ValueError)
        assert str(shown) == "the sentence" and shown.__cause__ is error


@pytest.mark.parametrize("name", NODES)
def test_every_node_of_the_pack_has_its_own_work_guarded(name):
    assert hasattr(NODES[name].execute.__func__, "__wrapped__")


class OfAnotherPack(Exception):
    pass


OutOfMemory = torch.OutOfMemoryError if hasattr(torch, "OutOfMemoryError") else torch.cuda.OutOfMemoryError


@pytest.mark.parametrize(
    "error",
    [
        comfy.model_management.InterruptProcessingException(),
        OutOfMemory("CUDA out of memory"),
        MemoryError("no memory"),
        KeyError("x"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OfAnotherPack("theirs"),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_all_others_come_out_as_they_are(error):
    """Cancel and running out of memory are ComfyUI's to handle."""
    assert raised_by(NODES["NoiseSearchKSampler"], error) is error


def test_a_module_that_only_begins_like_the_pack_is_another():
    Other = type("Other", (Exception,), {"__module__": f"{PACK}_other.x"})
    assert plain(Other("x")) is None
