"""Running a part of the user's graph by itself, on ComfyUI's own executor.

Of the executor this needs what has no promise: `execution.execute`, `ExecutionList`, the caches and `DynamicPrompt`.
All of it is in this file, `tests/host/picture` runs it on every known ComfyUI, and `available` says whether the one at
hand has it.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import torch
from comfy_execution.graph import DynamicPrompt
from comfy_execution.utils import get_executing_context

import nodes as host_nodes

from ..errors import is_cancel
from ..sampling.oom import is_oom
from .part import Link

VALUES = "noise search"  # the id of the node that the runs' own values come from; a user's has no blank in it
HELPER = "NoiseSearchPicture"  # its class; it is never run

Values = Mapping[Link, Sequence[Any]]
Nodes = Mapping[str, Mapping[str, Any]]


class NodeFailed(RuntimeError):
    """A node of the part failed. The message names it as ComfyUI does."""


def this_prompt() -> str:
    """The id of what ComfyUI executes now, "" where it executes nothing."""
    context = get_executing_context()
    return "" if context is None else context.prompt_id


def available() -> str:
    """Why parts of a graph cannot be run on this ComfyUI; "" where they can."""
    try:
        import execution
        from comfy_execution.caching import CacheKeySetID, HierarchicalCache
        from comfy_execution.graph import ExecutionList

        wanted = {
            execution.execute: 11,
            HierarchicalCache.set_prompt: 4,
            ExecutionList.stage_node_execution: 1,
            CacheKeySetID.add_keys: 2,
        }
        wrong = [
            work.__qualname__ for work, count in wanted.items() if len(inspect.signature(work).parameters) != count
        ]
        if wrong or not hasattr(execution, "CacheEntry"):
            return f"{', '.join(wrong) or 'CacheEntry'} is another in this ComfyUI"
    except (ImportError, AttributeError) as error:
        return str(error)
    return ""


class PartPrompt(DynamicPrompt):
    """The nodes of a part, laid over the user's graph: they keep their ids there, and are no children of any node."""

    def __init__(self, outer: Any, nodes: Nodes):
        super().__init__({node_id: dict(node) for node_id, node in nodes.items()})
        self.outer = outer

    def get_node(self, node_id: str) -> Any:
        return super().get_node(node_id) if super().has_node(node_id) else self.outer.get_node(node_id)

    def has_node(self, node_id: str) -> bool:
        return super().has_node(node_id) or self.outer.has_node(node_id)

    def get_display_node_id(self, node_id: str) -> str:
        own = super().get_display_node_id(node_id)
        return self.outer.get_display_node_id(own) if self.outer.has_node(own) else own

    def get_real_node_id(self, node_id: str) -> str:
        own = super().get_real_node_id(node_id)
        return self.outer.get_real_node_id(own) if self.outer.has_node(own) else own

    def all_node_ids(self) -> set[str]:
        return super().all_node_ids().union(self.outer.all_node_ids()) - {VALUES}

    def get_original_prompt(self) -> Any:
        return self.outer.get_original_prompt()


class NestedRuns:
    """Runs of one part of a graph. Node objects live as long as this, what they give only as long as a run.

    dynprompt: the user's graph, of the hidden input of that name. outside: what comes into the part, by link, each a
    list as ComfyUI's executor has it. extra_data: what ComfyUI hands to nodes beside their inputs.
    """

    def __init__(
        self,
        dynprompt: Any,
        prompt_id: str,
        outside: Values,
        extra_data: Mapping[str, Any] | None = None,
        server: Any = None,
    ):
        from comfy_execution.caching import CacheKeySetID, HierarchicalCache

        self.dynprompt = dynprompt
        self.prompt_id = prompt_id
        self.outside = dict(outside)
        self.extra_data = dict(extra_data or {})
        self.server = server or _Quiet()
        self._key_set, self._cache = CacheKeySetID, HierarchicalCache
        self._objects = HierarchicalCache(CacheKeySetID)
        self._thread = ThreadPoolExecutor(1, "noise-search-part")

    def close(self) -> None:
        self._thread.shutdown()
        self.outside.clear()
        del self._objects

    def run(
        self, nodes: Nodes, targets: Sequence[Link], values: Sequence[Sequence[Any]] = (), seconds: Any = None
    ) -> dict[Link, list[Any]]:
        """What these nodes give at the targets, each a list.

        nodes: in API format; an input [VALUES, i] stands for values[i]. seconds: a dict that gets the seconds of each
        node. Raises what the nodes raise for Cancel and for running out of memory, and NodeFailed for all else.
        """
        # In a thread of its own, as the executor is a coroutine and this one's loop is running.
        context = contextvars.copy_context()
        work = self._run(nodes, targets, [list(one) for one in values], {} if seconds is None else seconds)
        return self._thread.submit(context.run, _run_to_end, work).result()

    async def _run(
        self, nodes: Nodes, targets: Sequence[Link], values: list[list[Any]], seconds: dict[str, float]
    ) -> dict[Link, list[Any]]:
        import execution
        from comfy_execution.graph import ExecutionList

        part = PartPrompt(self.dynprompt, {**nodes, VALUES: {"class_type": HELPER, "inputs": {}}})
        given: dict[str, dict[int, Sequence[Any]]] = {VALUES: dict(enumerate(values))}
        for (node_id, slot), value in self.outside.items():
            given.setdefault(node_id, {})[slot] = value
        outputs = self._cache(self._key_set)
        caches = SimpleNamespace(outputs=outputs, objects=self._objects, all=[outputs, self._objects])
        known = [*nodes, *given]
        for cache in caches.all:
            await cache.set_prompt(part, known, None)
        for node_id, slots in given.items():
            filled = [list(slots[slot]) if slot in slots else [None] for slot in range(max(slots, default=-1) + 1)]
            await _done(outputs.set(node_id, execution.CacheEntry(ui=None, outputs=filled)))
        todo = ExecutionList(part, outputs)
        for node_id in dict.fromkeys(node_id for node_id, _ in targets if node_id in nodes):
            todo.add_node(node_id)
        kept: dict[str, Any] = {}  # what the targets give: the executor lets go of what no node asks for
        executed: set[str] = set()
        subgraphs: dict[str, Any] = {}
        coming: dict[str, Any] = {}
        shown: dict[str, Any] = {}
        while not todo.is_empty():
            node_id, error, cause = await todo.stage_node_execution()
            if cause is None:
                begun = time.perf_counter()
                result, error, cause = await execution.execute(
                    self.server, part, caches, node_id, self.extra_data, executed, self.prompt_id, todo, subgraphs,
                    coming, shown,
                )  # fmt: skip
                seconds[node_id] = seconds.get(node_id, 0.0) + time.perf_counter() - begun
            if cause is not None:
                raise self._failed(part, error or {}, cause)
            if result == execution.ExecutionResult.PENDING:
                todo.unstage_node_execution()
                continue
            todo.complete_node_execution()
            if any(node_id == target[0] for target in targets):
                kept[node_id] = await _done(outputs.get(node_id))
        found = {}
        for link in targets:
            entry = kept.get(link[0])
            found[link] = list(entry.outputs[link[1]] if entry is not None else given[link[0]][link[1]])
        return found

    def _failed(self, part: PartPrompt, details: Mapping[str, Any], cause: BaseException) -> BaseException:
        if is_cancel(cause) or is_oom(cause):
            return cause
        node_id = str(details.get("node_id", "?"))
        kind = part.get_node(node_id)["class_type"] if part.has_node(node_id) else "a node"
        failed = NodeFailed(f"{kind} (node {node_id}): {type(cause).__name__}: {cause}")
        failed.__cause__ = cause
        return failed


def asked_for(class_type: str, inputs: Mapping[str, Sequence[Any]]) -> set[str]:
    """The lazy inputs that a node asks for, as ComfyUI asks it before it runs.

    inputs: the values at its inputs, each a list; empty where a value is not there yet. All of these where the node
    cannot be asked.
    """
    kind: Any = host_nodes.NODE_CLASS_MAPPINGS[class_type]
    missing = {name for name, values in inputs.items() if not values}
    asking = getattr(kind if hasattr(kind, "GET_SCHEMA") else kind(), "check_lazy_status", None)
    if asking is None:
        return missing
    wanted: set[str] = set()
    for turn in range(max(map(len, inputs.values()), default=0)):
        one = {name: values[min(turn, len(values) - 1)] if values else None for name, values in inputs.items()}
        try:
            wanted |= {*(asking(**one) or ())}
        except Exception:  # a node of any pack, which says why when it runs
            return missing
    return wanted & missing


class _Quiet:
    """A server that nobody listens to: what a candidate's nodes show is not sent."""

    client_id = None
    last_node_id = None
    last_prompt_id = None

    def send_sync(self, *message: Any) -> None:
        pass


def _run_to_end(work: Any) -> Any:
    with torch.inference_mode():
        return asyncio.run(work)


async def _done(result: Any) -> Any:
    """Some of the caches' methods are coroutines, on newer hosts."""
    return await result if inspect.isawaitable(result) else result
