"""The HTTP routes behind the Finish now button and the list of stored searches.

    POST /noise_search/finish         {} or {"node_id": "12"}                  -> {"finishing": ["12"]}
    GET  /noise_search/store                                                   -> what is stored, and where
    POST /noise_search/store          {"enabled": true, "limit_mb": 512}       -> the same; either key may be left out
    POST /noise_search/store/delete   {"searches": [3, 4]} or {"all": true}    -> the same, with the number "deleted"

A body is a JSON object with these keys and types and nothing else; no path ever comes from a request. It is sent as
application/json: a page of another site may send forms and plain text to any address without being asked, but of this
type a browser asks first, and ComfyUI says no. What is wrong is answered with 400 (413 where it is too long, 415 where
it is of another type), and a store that cannot be used with 503, both with {"error": a sentence}.
ComfyUI serves every route below /api too.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from ..graph import finish
from ..server import running_server
from . import store

FINISH, STORE, DELETE = "/noise_search/finish", "/noise_search/store", "/noise_search/store/delete"
JSON = "application/json"
MAX_BODY_BYTES = 64 * 2**10
LONGEST_NODE_ID = 1000
LAST_ID = 2**63 - 1  # of SQLite
SHOWN_CHARACTERS = 100  # characters of a wrong input that an error repeats


class BadRequest(ValueError):
    """What is wrong with a request, as a sentence; `status` is the HTTP one."""

    def __init__(self, sentence: str, status: int = 400):
        super().__init__(sentence)
        self.status = status


def register_routes() -> None:
    """Adds the routes to the running server. Without one and after the first time: nothing."""
    server = running_server()
    if server is None or any(getattr(route, "path", None) == FINISH for route in server.routes):
        return
    from aiohttp import web  # here: ComfyUI brings it, and only its server needs it

    def answers(action: Callable[[Any], Awaitable[dict[str, Any]]]) -> Callable[[Any], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            try:
                return web.json_response(await action(request))
            except BadRequest as wrong:
                return web.json_response({"error": str(wrong)}, status=wrong.status)
            except web.RequestPayloadError as wrong:  # such as a body that is not in the encoding it claims
                return web.json_response({"error": f"The request cannot be read: {wrong}."}, status=400)
            except store.StoreError as problem:
                return web.json_response({"error": f"The store cannot be used: {problem}."}, status=503)

        return handle

    server.routes.post(FINISH)(answers(_finish))
    server.routes.get(STORE)(answers(_overview))
    server.routes.post(STORE)(answers(_configure))
    server.routes.post(DELETE)(answers(_delete))


async def _finish(request: Any) -> dict[str, Any]:
    return {"finishing": finish.finish(node_to_finish(await _body(request)))}


async def _overview(request: Any) -> dict[str, Any]:
    return await asyncio.to_thread(store.overview)


async def _configure(request: Any) -> dict[str, Any]:
    enabled, limit_mb = store_settings(await _body(request))
    await asyncio.to_thread(store.configure, enabled, limit_mb)
    return await asyncio.to_thread(store.overview)


async def _delete(request: Any) -> dict[str, Any]:
    deleted = await asyncio.to_thread(store.delete, searches_to_delete(await _body(request)))
    return {**await asyncio.to_thread(store.overview), "deleted": deleted}


def node_to_finish(body: dict[str, Any]) -> str | None:
    """The node id in the body of a finish request; None stands for all. Raises BadRequest."""
    _only(body, "node_id")
    node_id = body.get("node_id")
    if "node_id" in body and not (isinstance(node_id, str) and 0 < len(node_id) <= LONGEST_NODE_ID):
        raise BadRequest(f'node_id is the id of a node as a text, such as "12" or "5:3", not {_shown(node_id)}.')
    return node_id


def store_settings(body: dict[str, Any]) -> tuple[bool | None, int | None]:
    """(enabled, limit_mb) in the body of a settings request; None is: as it was. Raises BadRequest."""
    _only(body, "enabled", "limit_mb")
    if not body:
        raise BadRequest("Nothing to change: give enabled (true or false), limit_mb (a number) or both.")
    enabled, limit_mb = body.get("enabled"), body.get("limit_mb")
    if "enabled" in body and not isinstance(enabled, bool):
        raise BadRequest(f"enabled is true or false, not {_shown(enabled)}.")
    if "limit_mb" in body and not _is_whole(limit_mb, store.SMALLEST_MB, store.LARGEST_MB):
        span = f"{store.SMALLEST_MB} to {store.LARGEST_MB}"
        raise BadRequest(f"The size limit (limit_mb) is a whole number from {span}, not {_shown(limit_mb)}.")
    return enabled, limit_mb


def searches_to_delete(body: dict[str, Any]) -> list[int] | None:
    """The ids in the body of a delete request; None stands for all. Raises BadRequest."""
    _only(body, "searches", "all")
    if len(body) != 1:
        raise BadRequest('Give either "searches" (a list of ids) or "all": true.')
    if "all" in body:
        if body["all"] is not True:
            raise BadRequest(f"all can only be true, not {_shown(body['all'])}.")
        return None
    ids = body["searches"]
    if not isinstance(ids, list):
        raise BadRequest(f"searches is a list of ids, not {_shown(ids)}.")
    for item in ids:
        if not _is_whole(item, 0, LAST_ID):
            raise BadRequest(f"searches holds ids, which are whole numbers, not {_shown(item)}.")
    return ids


async def _body(request: Any) -> dict[str, Any]:
    """The JSON object in a request's body, read as far as the limit only. Raises BadRequest."""
    if request.content_type != JSON:
        sent = request.headers.get("Content-Type", "nothing")
        raise BadRequest(f"The request must be sent with Content-Type: {JSON}, not {_shown(sent)}.", 415)
    text = bytearray()
    async for chunk in request.content.iter_any():
        text += chunk
        if len(text) > MAX_BODY_BYTES:
            raise BadRequest(f"The request is too long: more than {MAX_BODY_BYTES} bytes.", 413)
    try:
        body = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):  # RecursionError: brackets in thousands
        raise BadRequest(f"The request is not JSON: {_shown(text.decode('utf-8', 'replace'))}.") from None
    if not isinstance(body, dict):
        raise BadRequest(f"The request is not a JSON object: {_shown(body)}.")
    return body


def _only(body: dict[str, Any], *keys: str) -> None:
    for key in body:
        if key not in keys:
            raise BadRequest(f"Unknown key {_shown(key)}; known: {', '.join(keys)}.")


def _is_whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _shown(value: Any) -> str:
    """A value as JSON in ASCII, shortened."""
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " ..."
