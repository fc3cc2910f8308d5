"""Links between the nodes of a workflow, as the API sends it. It comes from outside: anything may be missing."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

T = TypeVar("T", bound=Hashable)


def is_link(value: Any) -> bool:
    """Whether an input's value is a link: [node id, output index]."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
        and not isinstance(value[1], bool)
    )


def inputs_of(prompt: Mapping[str, Any], node_id: str) -> Mapping[str, Any]:
    """What stands at the inputs of a node: values and links."""
    node = prompt.get(node_id)
    inputs = node.get("inputs") if isinstance(node, Mapping) else None
    return inputs if isinstance(inputs, Mapping) else {}


def links_of(prompt: Mapping[str, Any], node_id: str) -> dict[str, list[Any]]:
    """The inputs of a node that are linked."""
    return {name: value for name, value in inputs_of(prompt, node_id).items() if is_link(value)}


def walk(starts: Iterable[T], before: Callable[[T], Iterable[T]]) -> Iterator[T]:
    """These and all that comes before them, each once, as far as possible along the first link, then the next.

    before: what comes directly before one; it is asked once, after that one was given out.
    """
    waiting, seen = [*starts][::-1], set()
    while waiting:
        here = waiting.pop()
        if here not in seen:
            seen.add(here)
            yield here
            waiting += [*before(here)][::-1]


def upstream(prompt: Mapping[str, Any], node_id: str) -> dict[str, Mapping[str, Any]]:
    """A node and all before it, by id; without those that are not there."""
    reached = walk([node_id], lambda one: [link[0] for link in links_of(prompt, one).values()])
    return {one: prompt[one] for one in reached if one in prompt}
