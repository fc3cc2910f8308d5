"""A stand-in for a chat/completions server: real HTTP on this machine, no model; the grades are the brightness."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

CRITERIA = (
    "accuracy_to_prompt",
    "creativity_and_originality",
    "visual_quality_and_realism",
    "consistency_and_cohesion",
    "emotional_or_thematic_resonance",
    "overall_score",
)


@dataclass
class Reply:
    """What the server answers: a body as it is, or else JSON. None instead of a Reply: nothing, ever."""

    body: str | bytes | Mapping[str, Any] = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Request:
    """What the server got. number: 0 for the first that came."""

    number: int
    path: str
    headers: Mapping[str, str]
    json: dict[str, Any]

    @property
    def text(self) -> str:
        return next(part["text"] for part in self.json["messages"][-1]["content"] if part["type"] == "text")

    @property
    def image(self) -> np.ndarray:
        """The picture, uint8 [H, W, 3]."""
        content = self.json["messages"][-1]["content"]
        url = next(part["image_url"]["url"] for part in content if part["type"] == "image_url")
        head, _, data = url.partition(",")
        assert head == "data:image/png;base64"
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))

    @property
    def brightness(self) -> float:
        return float(self.image.mean()) / 255


def grades(overall: float, **others: float) -> str:
    """A grading as a model writes it."""
    scores = {**dict.fromkeys(CRITERIA, overall), **others}
    return json.dumps({name: {"explanation": "because", "score": score} for name, score in scores.items()})


def answer(text: str | None) -> Reply:
    return Reply({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]})


def tokens(**logprobs: float) -> Reply:
    """An answer of one token, with what else it might have been."""
    top = [{"token": token, "logprob": value, "bytes": None} for token, value in logprobs.items()]
    content = [{"token": top[0]["token"], "logprob": top[0]["logprob"], "top_logprobs": top}]
    message = {"role": "assistant", "content": top[0]["token"]}
    return Reply({"choices": [{"index": 0, "message": message, "logprobs": {"content": content}}]})


def grade_brightness(request: Request) -> Reply:
    """Ten times the mean of the pixels as every grade."""
    return answer(grades(10 * request.brightness))


class VLMServer:
    """Serves until `close`. reply: what to answer; called in a thread per request. requests: what came, in order.
    most: the most requests that were open at the same time."""

    def __init__(self, reply: Callable[[Request], Reply | None] = grade_brightness):
        self.reply = reply
        self.requests: list[Request] = []
        self.most = 0
        self.came = threading.Event()
        self.closing = threading.Event()
        self._open = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer._serve(self)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> VLMServer:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            request = Request(len(self.requests), handler.path, dict(handler.headers), body)
            self.requests.append(request)
            self._open += 1
            self.most = max(self.most, self._open)
        self.came.set()
        try:
            reply = self.reply(request)
        finally:
            with self._lock:
                self._open -= 1
        if reply is None:
            self.closing.wait()
            return
        text = reply.body if isinstance(reply.body, (str, bytes)) else json.dumps(reply.body)
        data = text.encode() if isinstance(text, str) else text
        try:
            handler.send_response(reply.status)
            for name, value in {**reply.headers, "Content-Length": str(len(data))}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(data)
        except OSError:  # the client has given up
            handler.close_connection = True
