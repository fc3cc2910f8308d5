"""A real ComfyUI server with the pack in custom_nodes, and a client for it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from packed import unpack
from PIL import Image

PACK = Path(__file__).resolve().parents[2]
FOLDER = "noise-search"  # the pack's folder in custom_nodes
START_SECONDS = 600
RUN_SECONDS = 900
END_EVENTS = {"execution_success": "success", "execution_error": "error", "execution_interrupted": "interrupted"}
PREVIEW_EVENTS = (1, 4)  # without and with metadata in front
TEXT_EVENT = 3
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy the environment names


@dataclass
class Message:
    """One message of the server's websocket: `data` is the JSON, the preview image, or a node's progress text."""

    type: str
    data: Any


@dataclass
class Run:
    """What became of one queued prompt. `status` is "rejected" where it was not even queued."""

    status: str = ""
    prompt_id: str = ""
    error: str = ""
    messages: list[Message] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)

    def of_type(self, kind: str) -> list[Any]:
        return [message.data for message in self.messages if message.type == kind]


class ComfyServer:
    """Starts ComfyUI on the CPU with folders of its own under `home`, and talks to it. Use it as a context manager.

    store: whether searches remember candidates; without, nothing that another test computed is known.
    packed: the pack as the Comfy registry serves it, without what `.comfyignore` names.
    """

    def __init__(self, comfy: Path, home: Path, *arguments: str, store: bool = False, packed: bool = False):
        self.home = home
        self.log_file = home / "comfyui.log"
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        for folder in ("custom_nodes", "input", "output", "temp", "user", "models"):
            (home / folder).mkdir(parents=True, exist_ok=True)
        (unpack if packed else link_pack)(home / "custom_nodes" / FOLDER)
        settings = home / "user" / "__noise_search" / "settings.json"
        settings.parent.mkdir(exist_ok=True)
        settings.write_text(json.dumps({"enabled": store}))
        self.command = [sys.executable, str(comfy / "main.py"), "--cpu", "--port", str(self.port)]
        self.command += ["--base-directory", str(home), "--database-url", f"sqlite:///{home / 'comfyui.db'}"]
        self.command += ["--disable-auto-launch", "--disable-api-nodes", "--log-stdout", *arguments]
        if pages := os.environ.get("NOISE_SEARCH_FRONT_END"):  # `dev.py test --front-end` sets it
            self.command += ["--front-end-root", pages]
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> ComfyServer:
        with self.log_file.open("wb") as log:
            environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
            # The demo model is too small to gain by threads, and on a busy machine their waiting for each other costs
            # a hundred times the work.
            environment.setdefault("OMP_NUM_THREADS", "1")
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=subprocess.STDOUT, cwd=self.home, env=environment
            )
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.alive:
            try:
                self.get("/system_stats")
                return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError("ComfyUI did not start:\n" + self.log[-4000:])

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def log(self) -> str:
        return self.log_file.read_text("utf-8", "replace")

    def get_bytes(self, path: str, **query: str) -> bytes:
        url = self.url + path + ("?" + urllib.parse.urlencode(query) if query else "")
        with DIRECT.open(url, timeout=60) as response:
            return response.read()

    def get(self, path: str) -> Any:
        return json.loads(self.get_bytes(path))

    def post(self, path: str, data: Any) -> bytes:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(data).encode(), headers, method="POST")
        with DIRECT.open(request, timeout=60) as response:
            return response.read()

    def interrupt(self) -> None:
        """What the Cancel button does. When it returns, the server has taken note."""
        self.post("/interrupt", {})

    def run(
        self,
        prompt: dict[str, Any],
        on_message: Callable[[Message], None] | None = None,
        extra_pnginfo: dict[str, Any] | None = None,
        seconds: float = RUN_SECONDS,
    ) -> Run:
        """Queues an API-format prompt and waits for its end; `on_message` sees every message as it comes."""
        return asyncio.run(asyncio.wait_for(self._run(prompt, on_message, extra_pnginfo), seconds))

    async def _run(self, prompt, on_message, extra_pnginfo) -> Run:
        run = Run()
        client = uuid.uuid4().hex
        body = {"prompt": prompt, "client_id": client, "extra_data": {"extra_pnginfo": extra_pnginfo or {}}}
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.url}/ws", params={"clientId": client}, max_msg_size=0) as socket,
        ):
            async with session.post(f"{self.url}/prompt", json=body) as response:
                answer = await response.json()
            if "prompt_id" not in answer:
                run.status, run.error = "rejected", _rejection(answer)
                return run
            run.prompt_id = answer["prompt_id"]
            while not run.status:
                message = _parse(await socket.receive())
                if isinstance(message.data, dict) and message.data.get("prompt_id", run.prompt_id) != run.prompt_id:
                    continue
                run.messages.append(message)
                if on_message is not None:
                    await asyncio.to_thread(on_message, message)
                run.status = END_EVENTS.get(message.type, "")
                if run.status == "error":
                    run.error = message.data["exception_message"].strip()
        while not (history := self.get(f"/history/{run.prompt_id}")):
            await asyncio.sleep(0.02)
        run.outputs = history[run.prompt_id]["outputs"]
        return run

    def run_without_client(self, prompt: dict[str, Any]) -> Run:
        """Queues an API-format prompt as a script does that listens to nothing, and waits for its end."""
        run = Run(prompt_id=json.loads(self.post("/prompt", {"prompt": prompt}))["prompt_id"])
        while not (history := self.get(f"/history/{run.prompt_id}")):
            time.sleep(0.05)
        run.status, run.outputs = history[run.prompt_id]["status"]["status_str"], history[run.prompt_id]["outputs"]
        return run

    def overheard(self, work: Callable[[], Any]) -> list[Message]:
        """What another browser is told while some work is done that queues a prompt."""

        async def listen() -> list[Message]:
            heard: list[Message] = []
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(f"{self.url}/ws", params={"clientId": uuid.uuid4().hex}, max_msg_size=0) as socket,
            ):
                working, left = asyncio.create_task(asyncio.to_thread(work)), 1
                while left or not working.done():  # everybody is told how many prompts are left
                    with contextlib.suppress(asyncio.TimeoutError):
                        heard.append(_parse(await asyncio.wait_for(socket.receive(), 0.5)))
                        if heard[-1].type == "status":
                            left = heard[-1].data["status"]["exec_info"]["queue_remaining"]
                await working
            return heard

        return asyncio.run(listen())

    def images(self, run: Run, node_id: str) -> list[Image.Image]:
        """The pictures that a node of a finished run saved or previewed, with their text chunks in `.text`."""
        return [
            Image.open(io.BytesIO(self.get_bytes("/view", **{key: str(value) for key, value in entry.items()})))
            for entry in run.outputs.get(node_id, {}).get("images", [])
        ]


def link_pack(folder: Path) -> None:
    """Puts the pack where ComfyUI looks for it: a link, or a copy where the system allows no links."""
    if folder.exists():  # from an earlier start
        return
    try:
        folder.symlink_to(PACK, target_is_directory=True)
    except OSError:
        ignore = shutil.ignore_patterns(".*", "__pycache__", "demo-output")
        shutil.copytree(PACK, folder, ignore=ignore)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _parse(message: aiohttp.WSMessage) -> Message:
    if message.type == aiohttp.WSMsgType.TEXT:
        content = json.loads(message.data)
        return Message(content["type"], content.get("data"))
    if message.type != aiohttp.WSMsgType.BINARY:
        raise ConnectionError(f"the server closed the websocket ({message.type.name})")
    (event,) = struct.unpack(">I", message.data[:4])
    (number,) = struct.unpack(">I", message.data[4:8])
    if event in PREVIEW_EVENTS:
        picture = message.data[8 + (number if event == 4 else 0) :]
        return Message("preview", Image.open(io.BytesIO(picture)))
    if event == TEXT_EVENT:
        return Message("text", message.data[8 + number :].decode())
    return Message(f"binary {event}", message.data[4:])


def _rejection(answer: dict[str, Any]) -> str:
    """One text out of the server's nested account of what is wrong with a prompt."""
    error = answer.get("error", {})
    lines = [error.get("message", "") if isinstance(error, dict) else str(error)]
    for node in answer.get("node_errors", {}).values():
        lines += [f"{e.get('message', '')}: {e.get('details', '')}" for e in node.get("errors", [])]
    return "\n".join(lines)
