"""Values of any kind as a hash of their content: objects, functions, models with their patches, tensors.

Small tensors are read whole, the weights of networks in samples. What cannot be read is an error, as nothing may be
taken for the same that may not be.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import random
import re
import sys
import types
import uuid
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import PurePath
from typing import Any

import comfy.model_patcher
import comfy.samplers
import comfy.sd
import numpy as np
import torch

from ..known import LOADING, PASSING, PASSING_LAYERS, PASSING_PREFIXES, kinds
from . import weights
from .functions import assigned_around, class_settings, contents_of, is_setting, names_in, source_hash
from .leftovers import Digests, Leftovers, can_own, changed_since, undone
from .weights import Unreadable

MAX_DEPTH = 100
MAX_READ_BYTES = 2**33  # of what is read whole, at about a second for each GB


class Content:
    """Reads values of any kind into one hash. `where` names the part that is read, for the error.

    Every value has a digest, which goes into that of what it is part of; an object that is met again keeps its
    digest. before: what was read before a search, to learn what the search left behind. changed: where somebody else
    has replaced what the last search left.
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
        """Takes the parts of a network as known: its patcher reads the weights, and what loading sets is ignored."""
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
        if self.depth >= MAX_DEPTH:
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
        """Drops what was found there: it does not count."""
        for place in [place for place in self.places if place == where or place.startswith(f"{where}.")]:
            del self.places[place]

    def _text(self, kind: str, text: str) -> None:
        data = text.encode("utf-8", "surrogatepass")
        self.hash.update(f"{kind} {len(data)}:".encode() + data)

    def _bytes(self, kind: str, data: Any, where: str) -> None:
        size = memoryview(data).nbytes
        self.bytes += size
        if self.bytes > MAX_READ_BYTES:
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
        for part in weights.stored(value, _digest_of):
            if isinstance(part, str):
                self._text("stored", part)
            else:
                self._bytes("values", weights.values(part), where)

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
            self._network(model, functools.partial(weights.unpatched, value), passing, where)
        self.patching, before = True, self.patching  # to read large LoRAs twice would take seconds
        try:
            self.add(value.patches, f"{where}.patches")
            self.add(value.hook_patches, f"{where}.hooks")
        finally:
            self.patching = before
        self._hung_on(getattr(model, "diffusion_model", None), f"{where}.network")
        self._set_on(value, "patcher", parts, where)

    def _network(
        self, network: torch.nn.Module, original: weights.Original, passing: tuple[str, ...], where: str
    ) -> None:
        """The weights of a network, and the classes of its layers with what is set on them: packs that load quantised
        weights say there how to read them. passing: how the names of layers begin that are no part of it."""
        samples, layers = weights.of_network(network, original, passing, _digest_of, where)
        self._text("weights", samples)
        for kind in layers:
            self._defined(kind)
            plain = {name: item for name, item in class_settings(kind).items() if _plain(name, item)}
            self._set_on(kind, "class of layers", plain, f"{where}.{kind.__qualname__}")

    def _hung_on(self, network: Any, where: str) -> None:
        """What packs set on the network itself, such as LoRAs in their own format."""
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
        self._text("defined", f"{value.__module__}.{value.__qualname__} {source_hash(value.__module__)}")

    def _function(self, value: types.FunctionType, where: str) -> None:
        self._defined(value)
        self._code(value.__code__, where)
        cells, state = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True), assigned_around(value)
        around = {f"closure.{name}": contents_of(cell) for name, cell in cells if name not in state}
        defaults = {"defaults": value.__defaults__, "keywords": value.__kwdefaults__}
        self._set_on(value, "function", around | defaults, where)
        named = {name: value.__globals__.get(name) for name in names_in(value.__code__)}
        settings = {name: item for name, item in named.items() if is_setting(name, item)}
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
            shared |= {name: item for name, item in vars(kind).items() if is_setting(name, item) and name not in shared}
            names = kind.__dict__.get("__slots__", ())
            for name in (names,) if isinstance(names, str) else names:
                if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                    attributes[name] = getattr(value, name)
        for called in filter(PASSING.__contains__, kinds(value)):
            passing, prefix = PASSING[called], PASSING_PREFIXES.get(called, "\0")
            attributes, shared = (
                {name: item for name, item in some.items() if name not in passing and not name.startswith(prefix)}
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


def _digest_of(value: Any, where: str) -> str:
    content = Content()
    content.add(value, where)
    return content.digest()


def _deep(place: str) -> tuple[int, int]:
    return place.count("."), len(place)


def _plain(name: str, value: Any) -> bool:
    return (
        not name.startswith("_")
        and name not in LOADING
        and (value is None or isinstance(value, (bool, int, float, str, torch.dtype)))
    )
