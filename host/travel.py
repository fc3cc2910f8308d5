"""Winners that travel: a saved picture remembers, in its own workflow, what its searches found.

ComfyUI writes the workflow into every picture. The winners' recipes go into the workflow's `extra`, which the front end
keeps, so that a picture dragged in and queued is made again from its recipe, at the cost of one render, by any ComfyUI.
As soon as anything before the node is changed, it searches.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..search.recipe import Recipe, from_json

KEY = "noise_search"
MOST_RUNS = 256  # of one node in one prompt that are written down
MOST_RANKS = 64  # that are read: a workflow may come from anybody


@dataclass(frozen=True)
class Winners:
    """What one run of a search node found: the recipes of the best k, each for the whole latent batch, and the score
    of the first, one per item."""

    recipes: tuple[tuple[Recipe, ...], ...]
    scores: tuple[tuple[float, ...], ...]


def find(workflow: Any, prompt: Mapping[str, Any] | None, node_id: str | None, run: int) -> Winners | None:
    """What the picture's workflow says of this node's run number `run`, if nothing before the node has changed."""
    try:
        entry = workflow["extra"][KEY][str(node_id)]
        if entry["graph"] != graph_hash(prompt or {}, str(node_id)):
            return None
        found = entry["runs"][run]
        recipes = tuple(tuple(from_json(json.dumps(recipe))) for recipe in found["recipes"][:MOST_RANKS])
        scores = tuple(tuple(math.nan if value is None else float(value) for value in row) for row in found["values"])
        alike = len({len(row) for row in scores}) == 1 and all(any(map(math.isfinite, row)) for row in scores)
        return Winners(recipes, scores) if recipes and alike else None
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError):
        return None  # a workflow may hold anything


def leave(workflow: Any, prompt: Mapping[str, Any] | None, node_id: str | None, run: int, winners: Winners) -> None:
    """Writes what was found into the workflow that ComfyUI is about to save."""
    if not isinstance(workflow, dict) or node_id is None or run >= MOST_RUNS:
        return
    extra = workflow.setdefault("extra", {})
    if not isinstance(extra, dict):
        return
    nodes = extra.get(KEY)
    nodes = dict(nodes) if isinstance(nodes, dict) else {}
    graph = graph_hash(prompt or {}, node_id)
    entry = nodes.get(node_id)
    known = entry.get("runs") if isinstance(entry, dict) and entry.get("graph") == graph else None
    runs = known[:MOST_RUNS] if isinstance(known, list) else []
    runs += [{}] * (run - len(runs))
    recipes = [[recipe.to_dict() for recipe in rank] for rank in winners.recipes]
    # NaN, of a verifier that was dropped, is no JSON: a front end may then refuse the whole picture.
    values = [[None if math.isnan(value) else value for value in row] for row in winners.scores]
    # The runs after this one stay: they are still to be found by those that follow.
    nodes[node_id] = {"graph": graph, "runs": [*runs[:run], {"recipes": recipes, "values": values}, *runs[run + 1 :]]}
    extra[KEY] = nodes


def graph_hash(prompt: Mapping[str, Any], node_id: str) -> str:
    """A hash of a node and all before it, of an API-format workflow: their classes, widgets and links."""
    nodes: dict[str, Any] = {}
    todo = [node_id]
    while todo:
        current = todo.pop()
        if current in nodes or current not in prompt:
            continue
        inputs = prompt[current].get("inputs", {})
        nodes[current] = [prompt[current].get("class_type"), inputs]
        todo += [str(link[0]) for link in inputs.values() if _is_link(link)]
    return hashlib.sha256(json.dumps(nodes, sort_keys=True, default=str).encode()).hexdigest()


def _is_link(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
