"""A ComfyUI server for the programs in this folder that measure whole prompts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import _pack

sys.path.append(str(_pack.ROOT / "tests" / "support"))  # for the client
from comfy_server import ComfyServer, Run

SERVER_NODES = Path(__file__).resolve().parent / "server_nodes"


@contextmanager
def comfy_server(*arguments: str, threads: int | None = None, gpu: bool = False, prepare=None) -> Iterator[ComfyServer]:
    """A running server with the pack and the benchmarks' own nodes; `prepare(home)` may fill its folders before."""
    if "COMFYUI_PATH" not in os.environ:
        raise SystemExit("Set COMFYUI_PATH to a ComfyUI folder: the benchmark runs inside it.")
    ours = {"OMP_NUM_THREADS": str(threads or os.cpu_count() or 1)}
    with TemporaryDirectory() as folder, mock.patch.dict(os.environ, ours):
        server = ComfyServer(Path(os.environ["COMFYUI_PATH"]), Path(folder), *arguments)
        (server.home / "custom_nodes" / "noise-search-benchmarks").symlink_to(SERVER_NODES, target_is_directory=True)
        if gpu:
            server.command.remove("--cpu")
        if prepare is not None:
            prepare(server.home)
        with server:
            yield server


def finish(server: ComfyServer, graph: dict[str, Any], seconds: float = 7200) -> Run:
    """The run of a graph; ends the program where it fails."""
    run = server.run(graph, seconds=seconds)
    if run.status != "success":
        raise SystemExit(f"The prompt ended with {run.status}: {run.error}\n{server.log[-3000:]}")
    return run


def wall_seconds(run: Run) -> float:
    """From the start of a prompt to its end, by the server's clock."""
    start, end = (run.of_type(kind)[0]["timestamp"] for kind in ("execution_start", "execution_success"))
    return (end - start) / 1000
