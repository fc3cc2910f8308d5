"""What ComfyUI knows of the classes of nodes, V1 or V3."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import nodes  # ComfyUI's

from ..known import OWN_MODULES
from .part import NodeClass


def output_names(class_type: str) -> list[str]:
    """The names of the outputs, in order; their types where they have no names."""
    node = nodes.NODE_CLASS_MAPPINGS.get(class_type)
    types = [str(getattr(kind, "value", kind)) for kind in getattr(node, "RETURN_TYPES", None) or ()]
    names = list(getattr(node, "RETURN_NAMES", None) or ())
    return [str(name) for name in names] + types[len(names) :]


def input_types(class_type: str) -> dict[str, str]:
    """The inputs, as name -> type; choices are "COMBO"."""
    return {
        name: str(getattr(spec[0], "value", spec[0])) if isinstance(spec[0], str) else "COMBO"
        for name, spec in declared(class_type).items()
    }


def is_own(class_type: str) -> bool:
    """Whether a class is ComfyUI's own."""
    node = nodes.NODE_CLASS_MAPPINGS.get(class_type)
    module = str(getattr(node, "RELATIVE_PYTHON_MODULE", "nodes"))
    return node is not None and module.split(".")[0] in OWN_MODULES


def declared(class_type: str) -> Mapping[str, Any]:
    """What a class says of its inputs, as ComfyUI asks it before each run; nothing where it cannot say."""
    node = nodes.NODE_CLASS_MAPPINGS.get(class_type)
    with suppress(Exception):  # of any pack
        inputs = node.INPUT_TYPES() if node is not None else {}
        return {**inputs.get("required", {}), **inputs.get("optional", {})}
    return {}


def node_class(class_type: str) -> NodeClass:
    """What the search for a picture's noises asks of a class; nothing where ComfyUI does not know it."""
    node = nodes.NODE_CLASS_MAPPINGS.get(class_type)
    if node is None:
        return NodeClass()
    inputs = declared(class_type).items()
    lazy = frozenset(
        name for name, spec in inputs if len(spec) > 1 and isinstance(spec[1], Mapping) and spec[1].get("lazy")
    )
    outputs = tuple(
        "COMBO" if isinstance(kind, list) else str(getattr(kind, "value", kind)) for kind in node.RETURN_TYPES
    )
    is_output, is_paid = (bool(getattr(node, name, False)) for name in ("OUTPUT_NODE", "API_NODE"))
    return NodeClass(input_types(class_type), outputs, lazy, is_output, is_paid)
