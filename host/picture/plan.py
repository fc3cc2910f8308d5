"""What a search of a picture needs of the user's graph, and the workflow that it runs from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..graph import classes
from ..graph.asked import PREFIX, ask
from ..graph.graph import all_nodes
from ..graph.links import inputs_of, is_link, links_of
from ..graph.nested import NestedRuns, asked_for, available, this_prompt
from ..graph.part import Graph, Link, Part, find_part, links_into
from .workflow import Workflow

ALSO = "also_"  # how the inputs begin at which more of the winner is wanted
Given = Mapping[Link, Sequence[Any]]


def targets_of(inputs: Mapping[str, Any]) -> dict[str, Link]:
    """The links of the picture and of what else is wanted, by input, the picture first."""
    also = sorted((name for name in inputs if name.startswith(ALSO)), key=lambda name: int(name[len(ALSO) :]))
    linked = {name: inputs[name] for name in ["image", *also] if is_link(inputs.get(name))}
    return {name: (link[0], link[1]) for name, link in linked.items()}


def needs(hidden: Any, given: Mapping[str, Any], vary_all: bool) -> list[str]:
    """What ComfyUI still has to compute before the search: for `check_lazy_status`.

    given: what that was called with. Raises ValueError where there is nothing to search.
    """
    part, graph = find(hidden, vary_all)
    if available():
        return []
    links = _links(part, graph, _values(given))[0]
    return ask(hidden, given, {name_of(link): link for link in links})


def workflow_of(hidden: Any, asked: Mapping[str, Any], vary_all: bool) -> Workflow:
    """The workflow that is searched. asked: what ComfyUI computed for it."""
    values = by_link(asked)
    part, graph = find(hidden, vary_all)
    links, running = _links(part, graph, values)
    lacking = [link for link in links if link not in values]
    if lacking:
        named = ", ".join(f"output {slot} of node {node}" for node, slot in lacking)
        raise ValueError(f"ComfyUI did not compute {named}, which the picture needs. Update ComfyUI, or Noise Search.")
    if not any(source.node_id in running for source in part.sources):
        named = ", ".join(f"{graph[one.node_id]['class_type']} (node {one.node_id})" for one in part.sources)
        raise ValueError(
            f"{named} is on a branch that the workflow does not take, so every candidate would be the same picture. "
            "Switch to that branch, or set vary to 'all stages' if another sampler makes the picture."
        )
    runs = NestedRuns(hidden.dynprompt, this_prompt(), {}, {"extra_pnginfo": getattr(hidden, "extra_pnginfo", None)})
    return Workflow(part, graph, runs, {link: values[link] for link in links}, running)


def name_of(link: Link) -> str:
    return f"{link[1]}:{link[0]}"


def by_link(asked: Mapping[str, Any]) -> dict[Link, list[Any]]:
    """What was asked for by `name_of` a link."""
    parts = {name: name.split(":", 1) for name in asked if ":" in name}
    return {(node_id, int(slot)): list(asked[name]) for name, (slot, node_id) in parts.items()}


def find(hidden: Any, vary_all: bool, node_id: str | None = None) -> tuple[Part, Graph]:
    """The part behind the picture of a node, this one where none is named, and the graph. Raises ValueError where there
    is nothing to search."""
    graph = all_nodes(hidden.dynprompt)
    targets = targets_of(inputs_of(graph, node_id or hidden.unique_id))
    if "image" not in targets:
        raise ValueError("nothing is linked to 'image': connect the picture to search, such as that of VAE Decode")
    return find_part(graph, [*targets.values()], classes.node_class, vary_all), graph


def _values(given: Mapping[str, Any]) -> Given:
    return by_link({name.removeprefix(PREFIX): value for name, value in given.items() if name.startswith(PREFIX)})


def _links(part: Part, graph: Graph, given: Given) -> tuple[tuple[Link, ...], frozenset[str]]:
    return links_into(part, graph, classes.node_class, lambda node_id: _asks(part, graph, given, node_id))


def _asks(part: Part, graph: Graph, given: Given, node_id: str) -> set[str]:
    """The lazy inputs that a node of the part asks for; all of them where the noise decides which."""
    kind = classes.node_class(graph[node_id]["class_type"])
    links = links_of(graph, node_id)
    eager = [(link[0], link[1]) for name, link in links.items() if name not in kind.lazy]
    if any(node in part.nodes for node, _ in eager):
        return {*kind.lazy}
    if any(link not in given for link in eager):
        return set()  # it is asked again when they are there
    inputs = {name: [value] for name, value in graph[node_id]["inputs"].items() if name not in links}
    inputs |= {name: list(given.get((link[0], link[1]), ())) for name, link in links.items()}
    return asked_for(graph[node_id]["class_type"], inputs)
