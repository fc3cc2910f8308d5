"""Finish now: searches under way can be asked to end with the best so far."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .graph import Graph

_running: dict[threading.Event, Graph] = {}  # searches under way, and the nodes that run them
_early: Counter[str] = Counter()  # by node: how often a search of its ended early


@contextmanager
def finishable(graph: Graph) -> Iterator[Callable[[], bool]]:
    """Lets `finish` reach the search in this block. Gives the question whether it was asked to end."""
    asked = threading.Event()
    _running[asked] = graph
    try:
        yield asked.is_set
    finally:
        del _running[asked]


def finish(node_id: str | None = None) -> list[str]:
    """Asks a node's search, or all of them, to end after the candidate under way. Returns the nodes that it reached, by
    the ids that the user knows."""
    reached = []
    for asked, graph in list(_running.items()):
        if graph.user_id is not None and node_id in (None, graph.user_id, graph.node_id):
            asked.set()
            reached.append(graph.user_id)
    return reached


def ended_early(graph: Graph) -> None:
    """Marks the node's cached result as incomplete, so that queueing it again resumes the search."""
    _early.update({str(node_id) for node_id in (graph.node_id, graph.user_id) if node_id is not None})


def fingerprint(hidden: Any) -> int:
    """What ComfyUI's cache compares: another number once the node's last search ended early."""
    return _early[str(hidden.unique_id)] if hidden is not None else 0
