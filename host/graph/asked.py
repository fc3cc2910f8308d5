"""Values of other nodes that a node asks ComfyUI for while the workflow runs.

A node says in `check_lazy_status` which of its links it needs computed; ComfyUI looks them up in the graph that it
runs. So a link that is put there for this run alone has ComfyUI compute the value, whatever makes it, and hand it to
this very node. Node expansion can do that too, but by a node of its own: its id would stand in progress and history, a
result from the cache would not be shown again, and of a list every item would get all values.

What is relied on without a promise: that `DynamicPrompt.ephemeral_prompt` is looked into before the workflow itself.
Where that is not so nothing is asked for, and the node has to do without. The cache's keys are made before anything
runs, from the workflow alone, so they stay what they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .links import inputs_of, links_of, walk

PREFIX = "noise_search_asked_"  # of the inputs that are there for one run


def ask(hidden: Any, given: Mapping[str, Any], links: Mapping[str, Sequence[Any]]) -> list[str]:
    """What `check_lazy_status` returns to get these values, each under its name: nothing once they are there.

    hidden: the node's `unique_id` and `dynprompt`. given: what `check_lazy_status` was called with. links: name ->
    [node id, output index]; none may lead back to the node (`leads_to`).
    """
    wanted = {PREFIX + name: [*link] for name, link in links.items() if PREFIX + name not in given}
    extra = getattr(getattr(hidden, "dynprompt", None), "ephemeral_prompt", None)
    if not wanted or not isinstance(extra, dict):
        return []
    node_id = hidden.unique_id
    node = hidden.dynprompt.get_node(node_id)
    extra[node_id] = {**node, "inputs": {**node["inputs"], **wanted}}
    if inputs_of({node_id: hidden.dynprompt.get_node(node_id)}, node_id).items() >= wanted.items():
        return [*wanted]
    del extra[node_id]
    return []


def answers(hidden: Any, given: dict[str, Any]) -> dict[str, Any]:
    """What was asked for, by name, taken out of what `execute` was called with. Afterwards the graph is as it was."""
    found = {name.removeprefix(PREFIX): given.pop(name) for name in [*given] if name.startswith(PREFIX)}
    extra = getattr(getattr(hidden, "dynprompt", None), "ephemeral_prompt", None)
    if isinstance(extra, dict) and (node := extra.get(hidden.unique_id)) is not None:
        inputs = {name: value for name, value in node["inputs"].items() if not name.startswith(PREFIX)}
        if len(inputs) < len(node["inputs"]):
            if hidden.dynprompt.get_parent_node_id(hidden.unique_id) is None:
                del extra[hidden.unique_id]  # the user's own node, which is in the workflow
            else:  # of an expansion: this is the only place that it stands in
                extra[hidden.unique_id] = {**node, "inputs": inputs}
    return found


def leads_to(prompt: Mapping[str, Any], link: Sequence[Any], node_id: str) -> bool:
    """Whether what a link gives is made from what a node puts out, so that the node cannot wait for it."""
    return node_id in walk([link[0]], lambda one: [before[0] for before in links_of(prompt, one).values()])
