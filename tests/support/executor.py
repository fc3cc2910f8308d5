"""ComfyUI's own executor in this process, with the pack's nodes and some of ComfyUI's."""

from __future__ import annotations

import asyncio
import importlib
import inspect
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import execution
import noise_search

import nodes

EXTRAS = ("string", "primitive", "logic", "preview_any", "sd3", "custom_sampler")  # of comfy_extras
CACHE = {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}


def classes() -> dict[str, type]:
    """The pack's nodes and ComfyUI's, by id, as a server loads them."""
    found: dict[str, type] = {}

    async def load() -> None:
        modules = [importlib.import_module(f"comfy_extras.nodes_{name}") for name in EXTRAS]
        for module in [*modules, noise_search]:
            if hasattr(module, "NODE_CLASS_MAPPINGS"):
                found.update(module.NODE_CLASS_MAPPINGS)
                continue
            extension = module.comfy_entrypoint()  # in some of ComfyUI's modules no coroutine
            extension = await extension if inspect.isawaitable(extension) else extension
            for node in await extension.get_node_list():
                node.RELATIVE_PYTHON_MODULE = module.__name__
                found[node.GET_SCHEMA().node_id] = node

    asyncio.run(load())
    return found


@dataclass
class Host:
    """An executor with its cache, and what it told the client in the last run."""

    executor: Any
    server: Any
    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def run(self, prompt: dict[str, Any], *outputs: str, extra: dict[str, Any] | None = None) -> dict[str, Any]:
        """Executes a prompt; its history. Raises RuntimeError where it fails."""
        self.messages.clear()
        prompt = {name: {**node, "inputs": dict(node["inputs"])} for name, node in prompt.items()}
        self.executor.execute(prompt, "prompt", {"client_id": "test", **(extra or {})}, list(outputs))
        for event, data in self.executor.status_messages:
            if event == "execution_error":
                raise RuntimeError(f"{data['node_id']}: {data['exception_message']}")
        assert self.executor.success
        return self.executor.history_result

    def told(self, event: str) -> list[dict[str, Any]]:
        return [data for name, data in self.messages if name == event]

    @property
    def executing(self) -> list[str]:
        """The nodes that ran, by the id that the client was told."""
        return [data["node"] for data in self.told("executing")]

    @property
    def all_ids(self) -> set[str]:
        """Every id of a node in every message."""
        ids = {
            str(data[key]) for _, data in self.messages for key in ("node", "display_node", "node_id") if key in data
        }
        return ids | {name for data in self.told("progress_state") for name in data["nodes"]}


def host(monkeypatch: Any, cache: str = "CLASSIC") -> Host:
    for name, node in classes().items():
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, node)
    messages: list[tuple[str, dict[str, Any]]] = []
    server = SimpleNamespace(
        client_id=None,
        last_node_id=None,
        send_sync=lambda event, data, client=None: messages.append((event, data)),
        sockets_metadata={},
    )
    return Host(execution.PromptExecutor(server, execution.CacheType[cache], CACHE), server, messages)
