"""Runs the demo workflow on a ComfyUI server and says what the search was worth. `python dev.py demo` calls it.

The search judges by the learned verifier alone; the oracle looks at the two pictures afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import struct
import sys
import uuid
from pathlib import Path
from typing import Any

import aiohttp
from PIL import Image

from dev import Bar

from .oracle import examine

WORKFLOW = Path(__file__).with_name("workflow_api.json")
PICTURES = ("winner", "stock", "contact-sheet", "score-curve")  # the SaveImage nodes of the workflow
TEXT_EVENT = 3  # a node's line of text, among the binary messages
CONNECTION_LOST = (aiohttp.ClientConnectionError, ConnectionError, TimeoutError)


class DemoError(Exception):
    """What went wrong, in words for the terminal."""


def workflow(prompt: str | None = None, seed: int | None = None, candidates: int | None = None) -> dict[str, Any]:
    """The demo workflow in API format, with the stock KSampler on the same seed as the search."""
    graph = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    if prompt is not None:
        graph["positive"]["inputs"]["text"] = prompt
    if seed is not None:
        graph["search"]["inputs"]["seed"] = graph["stock-sample"]["inputs"]["seed"] = seed
    if candidates is not None:
        graph["search"]["inputs"]["candidates"] = candidates
    return graph


async def run(url: str, graph: dict[str, Any], output: Path) -> dict[str, Any]:
    """Queues the workflow, shows its progress, writes its pictures and returns the report."""
    client = uuid.uuid4().hex
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30)
    async with (
        aiohttp.ClientSession(url, timeout=timeout) as session,
        session.ws_connect("/ws", params={"clientId": client}, max_msg_size=0) as messages,
    ):
        prompt_id = await queue(session, graph, client)
        await watch(messages, prompt_id)
        outputs = await finished(session, prompt_id)
        for name in PICTURES:
            [entry] = outputs[name]["images"]
            async with session.get("/view", params=entry) as response:
                response.raise_for_status()
                (output / f"{name}.png").write_bytes(await response.read())
        [report] = outputs["report"]["noise_search_report"]
        (output / "report.json").write_text(report, encoding="utf-8")
        return json.loads(report)


async def queue(session: aiohttp.ClientSession, graph: dict[str, Any], client: str) -> str:
    """An empty `extra_pnginfo` gives the search a place for the winner's recipe, as the browser does."""
    body = {"prompt": graph, "client_id": client, "extra_data": {"extra_pnginfo": {}}}
    async with session.post("/prompt", json=body) as response:
        answer = await response.json()
    if "prompt_id" not in answer:
        raise DemoError("ComfyUI refuses the workflow:\n" + rejection(answer))
    return answer["prompt_id"]


def rejection(answer: dict[str, Any]) -> str:
    """What the server says about the workflow as a whole and about each node."""
    lines = [f"  {(answer.get('error') or {}).get('message', answer)}"]
    for node_id, node in (answer.get("node_errors") or {}).items():
        errors = (f"{error.get('message', '')}: {error.get('details', '')}" for error in node.get("errors", []))
        lines += [f"  {node.get('class_type')} ({node_id}): {text}" for text in errors]
    return "\n".join(lines)


async def watch(messages: aiohttp.ClientWebSocketResponse, prompt_id: str) -> None:
    """One bar for the search, until the workflow has ended. Raises DemoError with the node's error."""
    bar = Bar("Searching ")
    bar.update(0.0, "loading the model")
    text = ""
    try:
        async for message in messages:
            if message.type == aiohttp.WSMsgType.BINARY and bar.tty:
                text = node_text(message.data) or text
            if message.type != aiohttp.WSMsgType.TEXT:
                continue
            content = json.loads(message.data)
            kind, data = content["type"], content.get("data") or {}
            if data.get("prompt_id", prompt_id) != prompt_id:
                continue
            if (fraction := progress(kind, data)) is not None:
                bar.update(fraction, text)
            elif kind == "execution_error":
                raise DemoError(f"{data['node_type']} ({data['node_id']}) failed: {data['exception_message'].strip()}")
            elif kind == "execution_interrupted":
                raise DemoError("The workflow was cancelled.")
            elif kind == "execution_success":
                bar.close("done")
                return
        raise ConnectionError("the server closed the connection")
    except BaseException:
        bar.broke()
        raise


def progress(kind: str, data: dict[str, Any]) -> float | None:
    """How much of the search is done, if the message tells."""
    if kind == "progress_state":
        data = data["nodes"].get("search", {})
    elif kind != "progress" or data.get("node") != "search":
        return None
    return data["value"] / data["max"] if data.get("max") else None


def node_text(message: bytes) -> str:
    """What the search shows on its node, in one line: how far it is, and the best score so far."""
    event, length = struct.unpack(">II", message[:8])
    return " ".join(message[8 + length :].decode("utf-8", "replace").split()) if event == TEXT_EVENT else ""


async def finished(session: aiohttp.ClientSession, prompt_id: str) -> dict[str, Any]:
    """The outputs of all nodes; they are in the history a moment after the last message."""
    for _ in range(100):
        async with session.get(f"/history/{prompt_id}") as response:
            history = await response.json()
        if prompt_id in history:
            return history[prompt_id]["outputs"]
        await asyncio.sleep(0.05)
    raise DemoError("ComfyUI finished, but its history does not know the workflow.")


def summary(report: dict[str, Any], prompt: str, output: Path) -> str:
    """Scores, what the oracle says and what it cost. Candidate 0 is the stock image."""
    [winner] = report["winners"]
    scores = [candidate["scores"][0] for candidate in report["candidates"]]
    first, median, best = scores[0], statistics.median(scores), winner["score"]
    place = f"candidate {winner['candidate']}, seed {winner['seed']}"
    return "\n".join(
        [
            "",
            f"Prompt   {prompt}",
            f"Score    first {first:.4f}, median {median:.4f}, best {best:.4f} of {len(scores)} ({place})",
            f"Stock    {verdict(output / 'stock.png', prompt)}",
            f"Winner   {verdict(output / 'winner.png', prompt)}",
            f"Cost     {report['nfe']} NFE, {report['seconds']:.1f} s",
            f"Files    {', '.join([*(f'{name}.png' for name in PICTURES), 'report.json'])} in {output.name}/",
        ]
    )


def verdict(picture: Path, prompt: str) -> str:
    try:
        with Image.open(picture) as image:
            judged = examine(image, prompt)
    except ValueError as error:  # the model draws whatever it makes of other prompts, but nobody can judge them
        return f"not judged: {error}"
    return f"{'as asked' if judged.ok else 'not as asked'} - {judged.text}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--url", required=True, help="address of the ComfyUI server")
    parser.add_argument("--output", type=Path, required=True, help="an existing folder for the results")
    parser.add_argument("--prompt")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--candidates", type=int)
    options = parser.parse_args()
    graph = workflow(options.prompt, options.seed, options.candidates)
    try:
        report = asyncio.run(run(options.url, graph, options.output))
    except DemoError as error:
        print(error, file=sys.stderr)
        return 1
    except CONNECTION_LOST as error:
        print(f"Lost the connection to ComfyUI: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(summary(report, graph["positive"]["inputs"]["text"], options.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
