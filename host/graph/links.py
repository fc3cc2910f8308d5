"""Links between the nodes of a workflow, as the API sends it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def is_link(value: Any) -> bool:
    """Whether an input's value is a link: [node id, output index]."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
        and not isinstance(value[1], bool)
    )


def upstream(prompt: Mapping[str, Any], node_id: str) -> dict[str, Mapping[str, Any]]:
    """A node and all before it, by id."""
    found: dict[str, Mapping[str, Any]] = {}
    todo = [node_id]
    while todo:
        current = todo.pop()
        if current in found or current not in prompt:
            continue
        found[current] = prompt[current]
        todo += [link[0] for link in prompt[current].get("inputs", {}).values() if is_link(link)]
    return found
