"""What determines a candidate, as a hash: the key of the evaluation store.

Everything that reaches the sampler, the autoencoder and the verifier is read by its content, so that a prompt from a
list, a wildcard or an edited image makes another key, whatever the graph says. Small tensors are read whole, the
weights of networks in samples, together with the sizes and times of the files behind them. What cannot be read makes
no key at all.
"""

from __future__ import annotations

import dis
import enum
import functools
import hashlib
import inspect
import os
import random
import re
import sys
import types
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

import comfy.model_patcher
import comfy.samplers
import comfy.sd
import numpy as np
import torch

from ..graph.files import model_files
from ..graph.links import upstream
from ..known import LOADING, PASSING, PASSING_LAYERS, PASSING_PREFIXES, kinds
from ..sampling.stock import Sampling
from .leftovers import Digests, Leftovers, can_own, changed_since, undone
from .machine import machine

FORMAT = 3  # of the key: what was made with another is not found
SAMPLES, RUN = 16, 16  # so many runs of so many values are read of each weight
DEEPEST = 100
LARGEST_BYTES = 2**33  # of what is read whole, at about a second for each GB


class Unreadable(ValueError):
    """Something whose content cannot be told, so that nothing may be reused."""


def search_key(
    sampling: Sampling, vae: Any, verifier: Any, prompt: str, frames: int, versions: Mapping[str, str], files: Any = ()
) -> str:
    """The key, in hex, of all candidates that these would make of the same recipe. Takes what `read_search` takes."""
    return read_search(sampling, vae, verifier, prompt, frames, versions, files).digest()


def read_search(
    sampling: Sampling,
    vae: Any,
    verifier: Any,
    prompt: str,
    frames: int,
    versions: Mapping[str, str],
    files: Any = (),
    before: Content | None = None,
) -> Content:
    """All that determines the candidates of a search.

    versions: of ComfyUI, torch and this pack. files: (name, bytes, time) of those behind the networks. before: what was
    read before the search; what has changed since is what sampling leaves behind, and does not count from now on.
    Raises Unreadable, which says what cannot be read.
    """
    content = Content(before)
    content.know(sampling.model.model)
    parts = {
        "format": FORMAT,
        "host": host_source(),
        "versions": dict(versions),
        "machine": machine(),
        "files": list(files),
        "guider": sampling.source,
        "sampler": sampling.sampler,
        "sigmas": sampling.sigmas,
        "latent": {**sampling.latent, **sampling.ratios},
        "rounding": sampling.to_intermediate_dtype,
        "vae": vae,
        "verifier": identity(verifier),
        "prompt": prompt,
        "frames": frames,
    }
    for name, part in parts.items():
        content.add(name, "")
        content.add(part, name)
    return content


def identity(verifier: Any) -> str:
    """What a verifier says of itself. Raises Unreadable where it says nothing."""
    own = getattr(verifier, "identity", None)
    if not callable(own):
        raise Unreadable(f"the verifier {', '.join(verifier.members)} does not say what determines its values")
    return own()


@functools.cache
def host_source() -> str:
    """A hash of ComfyUI's own modules: between its releases they change under the same version."""
    digest = hashlib.blake2b(digest_size=16)
    root = _file("comfy.samplers").parent
    for file in sorted(path for path in root.rglob("*.py") if path.is_file()):
        digest.update(f"{file.relative_to(root).as_posix()} {file.stat().st_size}".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def files_behind(prompt: Mapping[str, Any] | None, node_id: str | None) -> list[tuple[str, int, int]]:
    """(name, bytes, time in nanoseconds) of the model files that the nodes upstream of a node name in their widgets."""
    found: dict[str, tuple[str, int, int]] = {}
    for node in upstream(prompt or {}, str(node_id)).values():
        for value in node.get("inputs", {}).values():
            if isinstance(value, str) and 0 < len(value) < 256 and value not in found:
                for path in list(model_files(value, ("custom_nodes", "configs")).values())[:1]:
                    stat = os.stat(path)
                    found[value] = (value, stat.st_size, stat.st_mtime_ns)
    return sorted(found.values())


class Content:
    """Reads values of any kind into one hash. `where` names the part that is read, for the error.

    Every value has a digest, which goes into that of what it is part of; an object that is met again has the one that
    it had. before: what was read before a search, to learn what the search left behind. changed: where that was, since
    the last search, put in its place by somebody else.
    """

    def __init__(self, before: Content | None = None) -> None:
        self.hash = hashlib.blake2b(digest_size=32)
        self.digests: dict[int, bytes] = {}  # of objects
        self.under_way: dict[int, int] = {}  # how deep the objects are that are being read
        self.kept: list[Any] = []  # so that no id is given twice
        self.bytes = 0
        self.depth = 0
        self.patching = False
        self.patches: dict[int, bytes] = {}  # the digests of large tensors that sampling only reads
        self.before = before
        self.shown: dict[tuple[int, str], dict[str, bytes]] = {}  # what was set on objects, as it counts
        self.places: dict[str, bytes] = {}
        self.changed: list[str] = []

    def digest(self) -> str:
        return self.hash.hexdigest()

    def differs_at(self, other: Content) -> str:
        """The deepest place where another reading found something else, or ""."""
        names = self.places.keys() | other.places.keys()
        return max((name for name in names if self.places.get(name) != other.places.get(name)), key=_deep, default="")

    def know(self, network: torch.nn.Module) -> None:
        """Takes the parts of a network as known: its patcher reads the weights, and what loading sets is no content."""
        inner = getattr(network, "diffusion_model", None)
        layers = getattr(inner, "_orig_mod", inner).modules() if inner is not None else ()
        for number, part in enumerate([network, *layers]):
            self.digests.setdefault(id(part), hashlib.blake2b(f"part {number}".encode(), digest_size=32).digest())
            self.kept.append(part)

    def add(self, value: Any, where: str) -> None:
        """Reads one value. Raises Unreadable."""
        self.hash.update(self._digest(value, where))

    def _digest(self, value: Any, where: str) -> bytes:
        value = getattr(value, "_orig_mod", value) if isinstance(value, torch.nn.Module) else value
        if id(value) in self.digests:
            return self.digests[id(value)]
        if self.depth >= DEEPEST:
            raise Unreadable(f"{where} is too deep to be read")
        self.depth += 1
        outer, self.hash = self.hash, hashlib.blake2b(digest_size=32)
        whole = False
        try:
            self._add(value, where)
            digest = self.hash.digest()
        finally:
            self.depth -= 1
            self.hash = outer
            if self.under_way.get(id(value)) == self.depth:
                del self.under_way[id(value)]
                whole = True
        if whole:
            self.digests[id(value)] = digest
            self.kept.append(value)
        self.places[where] = digest
        return digest

    def _add(self, value: Any, where: str) -> None:
        if value is None or isinstance(
            value, (bool, int, float, complex, str, enum.Enum, PurePath, types.EllipsisType)
        ):
            self._text(type(value).__name__, str(value) if isinstance(value, PurePath) else repr(value))
        elif isinstance(value, (torch.dtype, torch.device, torch.Size, range, slice, re.Pattern, types.GenericAlias)):
            self._text(type(value).__name__, repr(value))
        elif isinstance(value, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
            self._text("operator", str(value))
        elif isinstance(value, random.Random):
            raise Unreadable(f"{where} is a {type(value).__qualname__}, which gives other numbers each time")
        elif isinstance(value, weakref.ReferenceType):
            self.add(value(), where)
        elif isinstance(value, uuid.UUID):
            self._text("uuid", "")  # ComfyUI gives each conditioning a new one
        elif isinstance(value, (bytes, bytearray)):
            self._bytes("bytes", bytes(value), where)
        elif isinstance(value, (list, tuple, deque)):
            self._many(type(value).__name__, [(str(index), item) for index, item in enumerate(value)], where)
        elif isinstance(value, (set, frozenset)):
            self._text("set", " ".join(sorted(self._digest(item, where).hex() for item in value)))
        elif isinstance(value, Mapping):
            self._mapping(value, where)
        elif self._is_under_way(value):
            return
        elif isinstance(value, torch.nn.Module):
            self._module(value, where)
        elif isinstance(value, torch.Tensor):
            self._tensor(value, where)
        elif isinstance(value, (np.ndarray, np.generic)):
            array = np.asarray(value)
            if array.dtype.hasobject:
                raise Unreadable(f"{where} is an array of Python objects")
            self._text("array", f"{array.dtype} {array.shape}")
            self._bytes("values", array.tobytes(), where)
        elif isinstance(value, comfy.model_patcher.ModelPatcher):
            self._patcher(value, where)
        elif isinstance(value, comfy.sd.VAE):
            self._object(value, where)
            self.add(value.patcher, f"{where}.patcher")
        elif isinstance(value, type):
            self._defined(value)
        elif isinstance(value, functools.partial):
            self._many("partial", [("func", value.func), ("args", value.args), ("keywords", value.keywords)], where)
        elif isinstance(value, types.MethodType):
            self._many("method", [("function", value.__func__), ("self", value.__self__)], where)
        elif isinstance(value, types.FunctionType):
            self._function(value, where)
        elif isinstance(value, (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)):
            owner = getattr(value, "__self__", None)
            self._text("builtin", f"{getattr(value, '__module__', '')}.{value.__qualname__}")
            if owner is not None and not isinstance(owner, (types.ModuleType, type)):
                self.add(owner, where)
        elif isinstance(value, types.ModuleType):
            self._text("module", value.__name__)
        elif hasattr(value, "__dict__") or hasattr(type(value), "__slots__"):
            self._object(value, where)
        else:
            raise Unreadable(f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which cannot be read")

    def _is_under_way(self, value: Any) -> bool:
        """Whether this very object is part of itself; from here on it is being read."""
        depth = self.under_way.setdefault(id(value), self.depth - 1)
        if depth == self.depth - 1:
            return False
        self._text("part of itself", str(self.depth - depth))
        return True

    def _set_on(self, owner: Any, scope: str, items: Mapping[str, Any], where: str) -> None:
        """What is set on an object, by name: without what a search has left there."""
        shown: Digests = {name: self._digest(item, f"{where}.{name}") for name, item in items.items()}
        if can_own(owner) and type(owner) is not comfy.samplers.CFGGuider:  # ComfyUI makes one for each run
            now, left = shown, _leftovers.of(owner, scope)
            shown = undone(now, left)
            before = self.before.shown.get((id(owner), scope)) if self.before else None
            if before is not None:
                _leftovers.learn(owner, scope, now, before)
                shown = before
            else:
                self.changed += [f"{where}.{name}" for name in changed_since(now, left)]
            for name in now.keys() | shown.keys():
                if now.get(name) != shown.get(name):
                    self._forget(f"{where}.{name}")
            self.shown[id(owner), scope] = dict(shown)
            self.kept.append(owner)
        self._text("set", str(len(shown)))
        for name in sorted(shown):
            self._text("name", name)
            self.hash.update(shown[name])

    def _forget(self, where: str) -> None:
        """What was found there does not count."""
        for place in [place for place in self.places if place == where or place.startswith(f"{where}.")]:
            del self.places[place]

    def _text(self, kind: str, text: str) -> None:
        data = text.encode("utf-8", "surrogatepass")
        self.hash.update(f"{kind} {len(data)}:".encode() + data)

    def _bytes(self, kind: str, data: Any, where: str) -> None:
        size = memoryview(data).nbytes
        self.bytes += size
        if self.bytes > LARGEST_BYTES:
            raise Unreadable(f"{where} is too large to be read before every search")
        self.hash.update(f"{kind} {size}:".encode())
        self.hash.update(data)

    def _many(self, kind: str, items: Sequence[tuple[str, Any]], where: str) -> None:
        self._text(kind, str(len(items)))
        for name, item in items:
            self.add(item, f"{where}.{name}")

    def _mapping(self, value: Mapping, where: str) -> None:
        if all(isinstance(key, str) for key in value):
            self._text("mapping", str(len(value)))
            for key in sorted(value):
                self._text("key", key)
                self.add(value[key], f"{where}.{key}")
            return
        self._text("mapping in order", str(len(value)))
        for key, item in value.items():
            self.add(key, f"a key of {where}")
            self.add(item, f"{where}.{key if isinstance(key, (str, int, float)) else type(key).__name__}")

    def _tensor(self, value: torch.Tensor, where: str) -> None:
        if value.layout is not torch.strided or value.device.type == "meta":
            raise Unreadable(f"{where} is a tensor without plain values ({value.layout}, {value.device})")
        known = self.before.patches.get(id(value)) if self.before and self.patching else None
        if known is not None:
            self.hash.update(known)
            return
        outer, self.hash = self.hash, hashlib.blake2b(digest_size=32)
        try:
            self._values(value, where)
            digest = self.hash.digest()
        finally:
            self.hash = outer
        self.hash.update(digest)
        if self.patching:
            self.patches[id(value)] = digest

    def _values(self, value: torch.Tensor, where: str) -> None:
        self._text("tensor", f"{value.dtype} {tuple(value.shape)}")
        for part in _stored(value):
            if isinstance(part, str):
                self._text("stored", part)
            else:
                self._bytes("values", _values(part), where)

    def _module(self, value: torch.nn.Module, where: str) -> None:
        """A network that no patcher stands for: its classes, its plain settings, and samples of its weights."""
        for name, module in value.named_modules():
            self._text("layer", name)
            self._defined(type(module))
            plain = {key: item for key, item in vars(module).items() if _plain(key, item)}
            self._set_on(module, "layer", plain, f"{where}.{name}")
        self._network(value, lambda name, tensor: tensor, (), where)

    def _patcher(self, value: comfy.model_patcher.ModelPatcher, where: str) -> None:
        """A MODEL or the like: the weights as they were before any patch, and all that is patched onto them."""
        model = value.model
        self._defined(type(model))
        config = getattr(model, "model_config", None)
        parts = {
            "config": getattr(config, "unet_config", None),
            "settings": getattr(config, "sampling_settings", None),
            "type": getattr(model, "model_type", None),
            "cast": getattr(model, "manual_cast_dtype", None),
            "latent": getattr(model, "latent_format", None),
            "objects": value.object_patches,
            "options": value.model_options,
            "forced": value.forced_hooks,
            "attachments": value.attachments,
            "models": value.additional_models,
            "callbacks": value.callbacks,
            "wrappers": value.wrappers,
            "injections": value.injections,
            "weights": value.weight_wrapper_patches if hasattr(value, "weight_wrapper_patches") else {},
        }
        passing = tuple(layer for kind in kinds(model) for layer in PASSING_LAYERS.get(kind, ()))
        with value.use_ejected():
            self._network(model, functools.partial(_unpatched, value), passing, where)
        self.patching, before = True, self.patching  # to read large LoRAs twice would take seconds
        try:
            self.add(value.patches, f"{where}.patches")
            self.add(value.hook_patches, f"{where}.hooks")
        finally:
            self.patching = before
        self._hung_on(getattr(model, "diffusion_model", None), f"{where}.network")
        self._set_on(value, "patcher", parts, where)

    def _network(self, network: torch.nn.Module, original: Original, passing: tuple[str, ...], where: str) -> None:
        """The weights of a network, and the classes of its layers with what is set on them: packs that load quantised
        weights say there how to read them. passing: how the names of layers begin that are no part of it."""
        weights, kinds = _weights(network, original, passing, where)
        self._text("weights", weights)
        for kind in kinds:
            self._defined(kind)
            plain = {name: item for name, item in _class_settings(kind).items() if _plain(name, item)}
            self._set_on(kind, "class of layers", plain, f"{where}.{kind.__qualname__}")

    def _hung_on(self, network: Any, where: str) -> None:
        """What packs set on the network itself, such as LoRAs of their own kind."""
        if not isinstance(network, torch.nn.Module):
            return
        network = getattr(network, "_orig_mod", network)
        hung = {}
        for name, item in vars(network).items():
            hooks = name in ("_forward_hooks", "_forward_pre_hooks")
            if (hooks and item) or not (name.startswith(("_", "comfy")) or name in ("training", "device")):
                with suppress(Unreadable):  # then the check of the winner has to do
                    self._digest(item, f"{where}.{name}")
                    hung[name] = item
        self._set_on(network, "network", hung, where)

    def _defined(self, value: type | types.FunctionType) -> None:
        """A class or function by its name and the text of the file that defines it."""
        self._text("defined", f"{value.__module__}.{value.__qualname__} {_source(value.__module__)}")

    def _function(self, value: types.FunctionType, where: str) -> None:
        self._defined(value)
        self._code(value.__code__, where)
        cells, state = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True), _state(value)
        around = {f"closure.{name}": _cell(cell) for name, cell in cells if name not in state}
        defaults = {"defaults": value.__defaults__, "keywords": value.__kwdefaults__}
        self._set_on(value, "function", around | defaults, where)
        named = {name: value.__globals__.get(name) for name in _names(value.__code__)}
        settings = {name: item for name, item in named.items() if _is_setting(name, item)}
        self._set_on(sys.modules.get(value.__module__), value.__qualname__, settings, f"{where}.globals")

    def _code(self, code: types.CodeType, where: str) -> None:
        self._bytes("code", code.co_code, where)
        self._text("names", " ".join((*code.co_names, *code.co_varnames)))
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant, where)
            else:
                self.add(constant, where)

    def _object(self, value: Any, where: str) -> None:
        self._defined(type(value))
        attributes = dict(vars(value)) if hasattr(value, "__dict__") else {}
        shared: dict[str, Any] = {}
        for kind in type(value).__mro__:
            shared |= {
                name: item for name, item in vars(kind).items() if _is_setting(name, item) and name not in shared
            }
            names = kind.__dict__.get("__slots__", ())
            for name in (names,) if isinstance(names, str) else names:
                if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                    attributes[name] = getattr(value, name)
        for kind in filter(PASSING.__contains__, kinds(value)):
            names, prefix = PASSING[kind], PASSING_PREFIXES.get(kind, "\0")
            attributes, shared = (
                {name: item for name, item in some.items() if name not in names and not name.startswith(prefix)}
                for some in (attributes, shared)
            )
        if (
            not attributes
            and not shared
            and type(value).__module__ in ("builtins", "_thread", "threading", "io", "_io")
        ):
            raise Unreadable(f"{where} is a {type(value).__qualname__}, which cannot be read")
        self._set_on(value, "object", attributes, where)
        self._set_on(type(value), "class", shared, where)


_leftovers = Leftovers()
Original = Callable[[str, torch.Tensor], torch.Tensor]  # a weight by name and as it is now, before any patch
_known_weights: weakref.WeakKeyDictionary[torch.nn.Module, tuple[str, list[type]]] = weakref.WeakKeyDictionary()


def _weights(
    network: torch.nn.Module, original: Original, passing: tuple[str, ...], where: str
) -> tuple[str, list[type]]:
    """A hash of samples of all weights, and the classes of the layers. Read once per network: patches go on top, they
    do not change it."""
    known = _known_weights.get(network)
    if known is None:
        digest, kinds = hashlib.blake2b(digest_size=32), {}
        for layer_name, layer in network.named_modules(remove_duplicate=False):
            if f"{layer_name}.".startswith(passing):
                continue
            kinds[f"{type(layer).__module__}.{type(layer).__qualname__}"] = type(layer)
            for name, tensor in _own_tensors(layer):
                name = f"{layer_name}.{name}" if layer_name else name
                tensor = original(name, tensor)
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                for part in _stored(tensor):
                    if isinstance(part, str):
                        digest.update(part.encode())
                    elif part.device.type == "meta":
                        raise Unreadable(f"the weights of {where} are not there ({name})")
                    else:
                        digest.update(_values(_samples(part)))
        known = _known_weights[network] = digest.hexdigest(), [kinds[name] for name in sorted(kinds)]
    return known


def _own_tensors(layer: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What a layer computes with. Its state dict need not be that: loaders of quantised weights put stand-ins into it,
    and entries that no layer has."""
    passing = layer._non_persistent_buffers_set
    for name, tensor in (layer._parameters | layer._buffers).items():
        if tensor is not None and name not in passing:
            yield name, tensor


def _unpatched(patcher: comfy.model_patcher.ModelPatcher, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A weight of a MODEL as it was loaded."""
    if name in patcher.hook_backup:
        return patcher.hook_backup[name][0]
    return patcher.backup[name].weight if name in patcher.backup else tensor


def _stored(tensor: torch.Tensor) -> Iterator[torch.Tensor | str]:
    """A tensor as it is stored: of a quantised one its codes, their scales, and text that says how to read them. To
    dequantise a whole network takes a minute."""
    if hasattr(tensor, "__tensor_flatten__"):  # PyTorch's protocol for tensors that consist of others
        names, context = tensor.__tensor_flatten__()
        how = Content()
        how.add(context, f"a {type(tensor).__qualname__}")
        yield f"{type(tensor).__qualname__} {how.digest()}"
        for name in names:
            yield name
            yield from _stored(getattr(tensor, name))
        return
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        plain = {name: str(item) for name, item in vars(tensor).items() if not name.startswith("_") and _says(item)}
        yield f"{type(tensor).__qualname__} {sorted(plain.items())}"
    with torch._C.DisableTorchFunctionSubclass():  # a subclass may answer as if it were dequantised
        plain_tensor = torch.Tensor.as_subclass(tensor, torch.Tensor)
    yield torch.Tensor.detach(plain_tensor)


def _says(value: Any) -> bool:
    """Whether something set on a tensor says how to read it."""
    return isinstance(value, (bool, int, float, str, enum.Enum, torch.Size, torch.dtype))


def _samples(flat: torch.Tensor) -> torch.Tensor:
    """Some runs of values, evenly spread over a tensor; of a small one all."""
    flat = flat.reshape(-1)
    if flat.numel() <= SAMPLES * RUN:
        return flat
    starts = torch.linspace(0, flat.numel() - RUN, SAMPLES).long().tolist()
    return torch.cat([flat[start : start + RUN] for start in starts])


def _values(tensor: torch.Tensor) -> Any:
    """The bytes of a tensor of any type."""
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    tensor = tensor.resolve_neg().contiguous().cpu().reshape(-1)
    return tensor.view(torch.uint8).numpy() if tensor.numel() else b""


def _deep(place: str) -> tuple[int, int]:
    return place.count("."), len(place)


def _plain(name: str, value: Any) -> bool:
    return (
        not name.startswith("_")
        and name not in LOADING
        and (value is None or isinstance(value, (bool, int, float, str, torch.dtype)))
    )


def _class_settings(kind: type) -> dict[str, Any]:
    """What is set on a class and those that it is made from; not on PyTorch's own."""
    settings: dict[str, Any] = {}
    for one in reversed(kind.__mro__):
        if not one.__module__.startswith("torch."):
            settings |= vars(one)
    return settings


def _is_setting(name: str, value: Any) -> bool:
    """Of what belongs to a module or a class: whether it may be something that a node set."""
    return not name.startswith("__") and isinstance(value, (bool, int, float, str, torch.Tensor))


def _state(function: types.FunctionType) -> set[str]:
    """The names around a function that it or its neighbours assign (`nonlocal`): what they remember of a run, as
    SelfAttentionGuidance, APG and ToMe do, and no setting."""
    outermost: Any = sys.modules.get(function.__module__)
    for name in function.__qualname__.partition(".<locals>")[0].split("."):
        outermost = getattr(outermost, name, None)
    code = getattr(inspect.unwrap(getattr(outermost, "__func__", outermost)), "__code__", None)
    return _assigned(function.__code__) | (_assigned(code) if code is not None else set())


def _assigned(code: types.CodeType) -> set[str]:
    """The names of outer functions that a function assigns, and those inside it."""
    stores = (step.argval for step in dis.get_instructions(code) if step.opname == "STORE_DEREF")
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return {name for name in stores if name in code.co_freevars}.union(*map(_assigned, inner))


def _names(code: types.CodeType) -> set[str]:
    """The names that a function uses, and those inside it."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return None


@functools.lru_cache(maxsize=1024)
def _source(module: str) -> str:
    """A hash of a module's file: an updated node pack or ComfyUI may sample in another way under the same version."""
    path = _file(module)
    if not inspect.getmodulename(str(path)) or not path.is_file():
        return ""
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError:
        return ""


def _file(module: str) -> Path:
    """The file of an imported module, "." without one. By name: checkers of node packs look `module.__file__` up among
    the names that the module's file defines, and call the pack broken."""
    return Path(getattr(sys.modules.get(module), "__file__", None) or "")
