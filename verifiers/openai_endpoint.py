"""A vision-language model behind an OpenAI-compatible HTTP endpoint (chat/completions)."""

from __future__ import annotations

import asyncio
import email.utils
import json
import math
import os
import random
import re
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, TypeVar
from urllib.parse import urljoin, urlsplit

import torch

from .base import VerifierError, require
from .console import logger
from .vlm import Ask, data_url

TOP_LOGPROBS = 20
FEWER_LOGPROBS = 5  # where a server allows no more
ANSWER_TOKENS = 1500
MAX_REPLY = 4 * 2**20  # bytes
LEAST_KEY = 8  # characters of what is worth hiding in an answer
LONGEST_WAIT = 120.0  # seconds that a server may ask us to wait
CHECK_EVERY = 0.1  # seconds between looks at the Cancel button
RETRIED_STATUSES = {408, 409, 425, 429, 500, 502, 503, 504, 529}
SCHEMA_WORDS = ("response_format", "json_schema", "schema", "grammar")
REFUSED_STATUSES = {400, 415, 422, 501}  # a server that does not know a parameter says so with one of these

# Where a key may be sent. A workflow names the variable and the URL, and comes from anybody: without this it could send
# any secret in the environment to anyone. For other keys or hosts the user sets NAME_HOST beside NAME.
KEY_HOSTS = {
    "GEMINI_API_KEY": "generativelanguage.googleapis.com",
    "MISTRAL_API_KEY": "api.mistral.ai",
    "OPENAI_API_KEY": "api.openai.com",
    "OPENROUTER_API_KEY": "openrouter.ai",
}

VARIABLE = re.compile("[A-Z][A-Z0-9_]{0,59}")  # what an environment variable is called, and no key looks like

T = TypeVar("T")
log_to_console = logger(__name__)


class _Temporary(Exception):
    """An attempt that failed and may be repeated, after `wait` seconds if the server said so."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


class _Refused(Exception):
    """The server does not take the request as it is."""


@dataclass
class Endpoint:
    """An OpenAI-compatible server. The key stays in the environment: it is read when a request is sent.

    url: of the API ("http://localhost:8080/v1") or of chat/completions itself; http or https. model: the server's name
    for it. key_variable: the environment variable with the key, "" for none. concurrency: requests at the same time.
    timeout: seconds for one request. max_calls: requests in one search, repeated ones included; run_key: says which
    search runs. tries: of one question. check: called several times a second; what it raises ends the waiting. sleep:
    for tests.
    """

    repeatable: ClassVar[bool] = False  # servers batch requests, and models change behind their names

    url: str
    model: str
    key_variable: str = ""
    concurrency: int = 4
    timeout: float = 60.0
    max_calls: int = 500
    tries: int = 5
    check: Callable[[], None] = lambda: None
    run_key: Callable[[], object] = lambda: None
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    calls: int = field(default=0, init=False)
    name: str = field(default="", init=False)
    module: torch.nn.Module | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.url = chat_url(self.url)
        self.model = self.model.strip()
        self.key_variable = self.key_variable.strip()
        if not self.model:
            raise VerifierError(f"VLM Endpoint: no model given; write the name that {self.url} knows it by")
        if self.concurrency < 1 or self.timeout <= 0 or self.max_calls < 1 or self.tries < 1:
            raise VerifierError("VLM Endpoint: concurrency, timeout and max_calls must be above 0")
        self.name = self.model
        self._counted: object = None  # the key of the search that the calls are counted of
        self._unknown: set[str] = set()  # parameters that the server does not take
        self._failed, self._trouble = 0, ""  # calls of this search, and what the last of them said
        self._key()

    def identity(self) -> str:
        """URL and model. What is behind the name can change, and nothing here would show it."""
        return json.dumps(["endpoint", self.url, self.model])

    def first_tokens(self, asks: Sequence[Ask]) -> list[list[tuple[str, float]]]:
        # Temperature 1: some servers give the probabilities after it. What is drawn does not matter.
        options = {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP_LOGPROBS, "temperature": 1.0}
        return [self._top(choice) for choice in self._ask(asks, lambda ask: options)]

    def answers(self, asks: Sequence[Ask]) -> list[str]:
        return [_text(choice) for choice in self._ask(asks, _answer_options)]

    def _top(self, choice: dict[str, Any]) -> list[tuple[str, float]]:
        """The likeliest first tokens of an answer."""
        try:
            top = choice["logprobs"]["content"][0]["top_logprobs"]
            pairs = [(str(entry["token"]), float(entry["logprob"])) for entry in top]
        except (KeyError, IndexError, TypeError, ValueError):
            pairs = []
        if not pairs:
            raise VerifierError(
                f"{self.url} gave no top_logprobs for {self.model}, which VQA Score needs; many servers give none for "
                f"models that see images. Use VLM Grader with it, or another server. It answered {_text(choice)!r}"
            )
        return pairs

    def _ask(self, asks: Sequence[Ask], options: Callable[[Ask], dict[str, Any]]) -> list[dict[str, Any]]:
        """The first choice of the answer to each question, in order."""
        key = self.run_key()
        if key != self._counted:
            self._counted, self.calls, self._failed, self._trouble = key, 0, 0, ""
        urls = {id(ask.image): "" for ask in asks}  # several questions about one image need one picture
        requests = []
        for ask in asks:
            url = urls[id(ask.image)] = urls[id(ask.image)] or data_url(ask.image)
            requests.append({"model": self.model, "messages": _messages(ask, url), **options(ask)})
        return in_thread(lambda: self._ask_all(requests)) if requests else []

    async def _ask_all(self, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        aiohttp = require("aiohttp", "aiohttp", "VLM Endpoint")
        slots = asyncio.Semaphore(self.concurrency)
        timeout = aiohttp.ClientTimeout(total=self.timeout)
        # an answer is read as it comes: a few bytes of a packed one could become gigabytes
        plain = {"Accept-Encoding": "identity"}
        async with aiohttp.ClientSession(timeout=timeout, headers=plain, auto_decompress=False) as session:
            send = partial(self._send, aiohttp, session)
            return await gathered([partial(self._patiently, send, slots, request) for request in requests], self.check)

    async def _patiently(self, send: Callable, slots: asyncio.Semaphore, request: dict[str, Any]) -> dict[str, Any]:
        """One request, again after a while if the server is busy or broken, and without what it does not know."""
        reason, failed = "", 0
        while failed < self.tries:
            sent = request
            try:
                async with slots:
                    sent = self._known(request)
                    return await send(sent)
            except _Refused as error:
                self._failed, self._trouble = self._failed + 1, str(error)
                self._learn(sent, str(error))
                if self._known(request) == sent:
                    raise VerifierError(f"{self.url} refused the request: {error}") from None
                continue
            except _Temporary as error:
                reason, failed = str(error), failed + 1
                self._failed, self._trouble = self._failed + 1, reason
                if error.wait > LONGEST_WAIT:
                    raise VerifierError(f"{self.url} asks to wait {error.wait:.0f} seconds: {reason}") from None
                wait = max(error.wait, 2.0**failed * random.uniform(0.5, 1.0))
            if failed < self.tries:
                log_to_console.info("%s: %s; trying again in %.1f seconds", self.url, reason, wait)
                await self.sleep(wait)
        raise VerifierError(f"{self.url} failed {self.tries} times, at last: {reason}")

    async def _send(self, aiohttp: Any, session: Any, request: dict[str, Any]) -> dict[str, Any]:
        """One HTTP request. Redirects are not followed: they could carry the key to another host."""
        if self.calls >= self.max_calls:
            failed = f" ({self._failed} of them failed, at last: {self._trouble})" if self._failed else ""
            raise VerifierError(
                f"VLM Endpoint has made {self.calls} calls to {self.url} in this search{failed}, which is its limit: "
                "raise max_calls, or search with fewer candidates, frames or samples"
            )
        self.calls += 1
        key = self._key()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            async with session.post(self.url, json=request, headers=headers, allow_redirects=False) as response:
                status, reply_headers = response.status, response.headers
                body = await _read(response)
        except (asyncio.TimeoutError, TimeoutError):
            raise _Temporary(f"no answer in {self.timeout:g} seconds (raise timeout if it is just slow)") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _Temporary(_hide(f"{type(error).__name__}: {error}", key)) from None
        return self._reply(status, reply_headers, body, key)

    def _reply(self, status: int, headers: Any, body: str, key: str) -> dict[str, Any]:
        """The first choice in a reply; or what is wrong with it, without the key, which some servers repeat."""
        try:
            reply = json.loads(body)
        except (ValueError, RecursionError):
            reply = None
        said = f"{status} {_line(_hide(_message(reply) or body, key))}".strip()
        if status in RETRIED_STATUSES:
            raise _Temporary(said, _retry_after(headers.get("Retry-After")))
        if status in REFUSED_STATUSES:
            raise _Refused(said)
        if status in (401, 403):
            which = f"the key in {self.key_variable}" if self.key_variable else "a request without a key"
            raise VerifierError(f"{self.url} did not accept {which}: {said}")
        if 300 <= status < 400:
            place = _hide(_address(self.url, headers.get("Location", "")), key)
            raise VerifierError(
                f"{self.url} redirects to {place}, which is not followed, as it would get the key; if you trust it, "
                "give that address"
            )
        if status != 200:
            raise VerifierError(f"{self.url} answered {said}; check the URL and the model's name ({self.model})")
        try:
            choice = _without(reply["choices"][0], key)
            choice["message"]["content"]
        except (KeyError, IndexError, TypeError, RecursionError):
            raise _Temporary(f"an answer that is no chat completion: {said if body.strip() else 'nothing'}") from None
        return choice

    def _known(self, request: dict[str, Any]) -> dict[str, Any]:
        """The request as this server takes it, as far as it has told."""
        for name in self._unknown & request.keys():
            instead = {"max_tokens": "max_completion_tokens"}.get(name)
            others = {other: value for other, value in request.items() if other != name}
            if name == "top_logprobs":
                others[name] = FEWER_LOGPROBS
            request = others | ({instead: request[name]} if instead else {})
        return request

    def _learn(self, request: dict[str, Any], said: str) -> None:
        """Remembers what the server complained about, if it is something that can be done without."""
        for name in ("response_format", "seed", "temperature", "max_tokens", "top_logprobs"):
            words = SCHEMA_WORDS if name == "response_format" else (name,)
            if name in request and name not in self._unknown and any(word in said for word in words):
                self._unknown.add(name)
                log_to_console.info("%s does not take this %s; going on without it", self.url, name)
                return

    def _key(self) -> str:
        """The key, or "". Raises VerifierError where it is not set, or is not for this host; never shows it."""
        name = self.key_variable
        if not name:
            return ""
        key = os.environ.get(name, "").strip()
        if not key and not VARIABLE.fullmatch(name):
            raise VerifierError(
                "key_variable of VLM Endpoint is not the name of an environment variable that is set. What it says is "
                "not repeated here, as it may be a key: if it is, take it out of the workflow, put it into a variable "
                "such as OPENAI_API_KEY before ComfyUI starts, and write the name of that"
            )
        if not key:
            raise VerifierError(
                f"the environment variable {name} is not set, and VLM Endpoint was told to read the key there; set it "
                "before ComfyUI starts, or leave the field empty for a server without keys"
            )
        if not (key.isascii() and key.isprintable()):
            raise VerifierError(f"the key in the environment variable {name} has characters that no key has")
        scheme, host = urlsplit(self.url).scheme, urlsplit(self.url).hostname
        named = os.environ.get(f"{name}_HOST", "").lower().replace(",", " ").split()
        if host == KEY_HOSTS.get(name) and host not in named:
            if scheme != "https":
                raise VerifierError(f"the key in {name} is not sent unencrypted: write https:// for {host}")
        elif host not in named:
            raise VerifierError(
                f"the key in {name} is not sent to {host}, so that a workflow from somebody else cannot send your keys "
                f"anywhere; if you want it, set the environment variable {name}_HOST to {host}"
            )
        return key


def chat_url(url: str) -> str:
    """The address of chat/completions. Raises VerifierError on what is no plain http(s) URL."""
    url = url.strip()
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises on nonsense
    except ValueError as error:
        raise VerifierError(f"the URL of VLM Endpoint cannot be read ({error})") from None
    if not url.isprintable() or " " in url:
        raise VerifierError(f"the URL of VLM Endpoint has spaces or invisible characters in it: {url!r}")
    if parts.username is not None or parts.password is not None or "?" in url or "#" in url:
        raise VerifierError(
            "the URL of VLM Endpoint has a user name, a password or a part after '?' or '#'; it is saved in the "
            "workflow, so it must hold no secrets: give the bare URL, and the key by its environment variable"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise VerifierError(f"the URL of VLM Endpoint must begin with http:// or https://, not {url!r}")
    base = url.rstrip("/")
    return base if base.endswith("/chat/completions") else f"{base}/chat/completions"


async def gathered(
    work: Sequence[Callable[[], Coroutine[Any, Any, T]]], check: Callable[[], None] = lambda: None
) -> list[T]:
    """All results, in order. The first error, or what `check` raises, ends the rest."""
    tasks = [asyncio.ensure_future(one()) for one in work]
    pending = set(tasks)
    try:
        while pending:
            check()
            done, pending = await asyncio.wait(pending, timeout=CHECK_EVERY, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [task.result() for task in tasks]


def in_thread(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs a coroutine to its end on its own loop: ComfyUI calls nodes in a thread that has one running."""
    result: Future[T] = Future()

    async def run() -> None:
        try:  # the result is there before the loop ends, which waits for look-ups of hosts that were given up
            result.set_result(await work())
        except BaseException as error:  # noqa: B036 - handed on to the thread that waits
            result.set_exception(error)

    def start() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:  # noqa: B036 - no loop could be made
            if not result.done():
                result.set_exception(error)

    threading.Thread(target=start, name="noise-search-endpoint", daemon=True).start()
    return result.result()


def _answer_options(ask: Ask) -> dict[str, Any]:
    options: dict[str, Any] = {"max_tokens": ANSWER_TOKENS, "temperature": ask.temperature, "seed": ask.seed}
    if ask.schema is not None:
        schema = {"name": "answer", "strict": True, "schema": ask.schema}
        options["response_format"] = {"type": "json_schema", "json_schema": schema}
    return options


def _messages(ask: Ask, url: str) -> list[dict[str, Any]]:
    user = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": ask.text}]
    system = [{"role": "system", "content": ask.system}] if ask.system else []
    return [*system, {"role": "user", "content": user}]


async def _read(response: Any) -> str:
    """The body of a response, at most MAX_REPLY bytes of it."""
    body = bytearray()
    async for chunk in response.content.iter_chunked(1 << 16):
        body += chunk
        if len(body) > MAX_REPLY:
            raise _Temporary(f"an answer of more than {MAX_REPLY // 2**20} MB")
    return body.decode("utf-8", "replace")


def _text(choice: dict[str, Any]) -> str:
    """What an answer says; a refusal is an answer too."""
    message = choice["message"]
    content = message["content"] or message.get("refusal") or ""
    if isinstance(content, list):
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return str(content)


def _message(reply: Any) -> str:
    """The words of an error reply, as OpenAI and its followers give them."""
    error = reply.get("error") if isinstance(reply, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    return error if isinstance(error, str) else ""


def _retry_after(value: str | None) -> float:
    """Seconds to wait, from a Retry-After header: a number, or a date (RFC 9110, 10.2.3). 0 if it says nothing."""
    if not value:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def _hide(text: str, key: str) -> str:
    return text.replace(key, "***") if key else text


def _without(answer: Any, key: str) -> Any:
    """An answer without the key, should the server repeat it there: errors show answers. Shorter ones, such as "none"
    for a server that needs no key, are words and numbers that answers are made of."""
    if len(key) < LEAST_KEY:
        return answer
    if isinstance(answer, dict):
        return {name: _without(value, key) for name, value in answer.items()}
    if isinstance(answer, list):
        return [_without(value, key) for value in answer]
    return _hide(answer, key) if isinstance(answer, str) else answer


def _line(text: str) -> str:
    """A server's words as the start of one line, without what could move the cursor of a terminal."""
    return "".join(filter(str.isprintable, " ".join(text[:1000].split())))[:300]


def _address(url: str, location: str) -> str:
    """Where a redirect leads, without the parts that may hold secrets."""
    try:
        place = urlsplit(urljoin(url, location))
    except ValueError:
        return "an address that cannot be read"
    return f"{place.scheme}://{place.hostname}{place.path}"
