"""The weights of a network as they are stored, for the key of the evaluation store: of each some samples."""

from __future__ import annotations

import enum
import hashlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import comfy.model_patcher
import torch

SAMPLES, RUN = 16, 16  # runs that are read of each weight, and the values in a run
Original = Callable[[str, torch.Tensor], torch.Tensor]  # a weight by name and as it is now, before any patch
Read = Callable[[Any, str], str]  # a hash of a value; its name, for the error


class Unreadable(ValueError):
    """Something whose content cannot be told, so that nothing may be reused."""


_known: weakref.WeakKeyDictionary[torch.nn.Module, tuple[str, list[type]]] = weakref.WeakKeyDictionary()


def of_network(
    network: torch.nn.Module, original: Original, passing: tuple[str, ...], read: Read, where: str
) -> tuple[str, list[type]]:
    """A hash of samples of all weights, and the classes of the layers. Read once per network: patches go on top, they
    do not change it. passing: how the names of layers begin that are no part of it. read: hashes what is no tensor.
    Raises Unreadable."""
    known = _known.get(network)
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
                for part in stored(tensor, read):
                    if isinstance(part, str):
                        digest.update(part.encode())
                    elif part.device.type == "meta":
                        raise Unreadable(f"the weights of {where} are not there ({name})")
                    else:
                        digest.update(values(_samples(part)))
        known = _known[network] = digest.hexdigest(), [kinds[name] for name in sorted(kinds)]
    return known


def _own_tensors(layer: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What a layer computes with. Its state dict need not be that: loaders of quantised weights put stand-ins into it,
    and entries that no layer has."""
    passing = layer._non_persistent_buffers_set
    for name, tensor in (layer._parameters | layer._buffers).items():
        if tensor is not None and name not in passing:
            yield name, tensor


def unpatched(patcher: comfy.model_patcher.ModelPatcher, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A weight of a MODEL as it was loaded."""
    if name in patcher.hook_backup:
        return patcher.hook_backup[name][0]
    return patcher.backup[name].weight if name in patcher.backup else tensor


def stored(tensor: torch.Tensor, read: Read) -> Iterator[torch.Tensor | str]:
    """A tensor as it is stored: of a quantised one its codes, their scales, and text that says how to read them. To
    dequantise a whole network takes a minute."""
    if hasattr(tensor, "__tensor_flatten__"):  # PyTorch's protocol for tensors that consist of others
        names, context = tensor.__tensor_flatten__()
        yield f"{type(tensor).__qualname__} {read(context, f'a {type(tensor).__qualname__}')}"
        for name in names:
            yield name
            yield from stored(getattr(tensor, name), read)
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
    """Some runs of values, evenly spread over a tensor; all values of a small one."""
    flat = flat.reshape(-1)
    if flat.numel() <= SAMPLES * RUN:
        return flat
    starts = torch.linspace(0, flat.numel() - RUN, SAMPLES).long().tolist()
    return torch.cat([flat[start : start + RUN] for start in starts])


def values(tensor: torch.Tensor) -> Any:
    """The bytes of a tensor of any type."""
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    tensor = tensor.resolve_neg().contiguous().cpu().reshape(-1)
    return tensor.view(torch.uint8).numpy() if tensor.numel() else b""
