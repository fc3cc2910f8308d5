"""Finish now: searches under way can be asked to end with the best so far."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_running: dict[threading.Event, str | None] = {}  # searches under way, and the nodes that run them
_early: Counter[str] = Counter()  # by node: how often a search of its ended early


@contextmanager
def finishable(node_id: str | None) -> Iterator[Callable[[], bool]]:
    """Lets `finish` reach the search in this block. Gives the question whether it was asked to end."""
    asked = threading.Event()
    _running[asked] = node_id
    try:
        yield asked.is_set
    finally:
        del _running[asked]


def finish(node_id: str | None = None) -> list[str]:
    """Asks a node's search, or all of them, to end after the candidate under way. Returns the ids it reached."""
    reached = []
    for asked, runs_in in list(_running.items()):
        if runs_in is not None and node_id in (None, runs_in):
            asked.set()
            reached.append(runs_in)
    return reached


def ended_early(node_id: str | None) -> None:
    """Marks the node's cached result as incomplete, so that queueing it again resumes the search."""
    if node_id is not None:
        _early[node_id] += 1


def fingerprint(hidden: Any) -> int:
    """What ComfyUI's cache compares: another number once the node's last search ended early."""
    return _early[str(hidden.unique_id)] if hidden is not None else 0
