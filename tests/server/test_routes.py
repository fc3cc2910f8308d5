"""The HTTP routes on a real server: what they do, and that nothing else can be done with them."""

import asyncio
import json
import os
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest
from yarl import URL

CALLS = int(os.environ.get("NOISE_SEARCH_FUZZ_CALLS", 12_000))
FINISH, STORE, DELETE = "/noise_search/finish", "/noise_search/store", "/noise_search/store/delete"


@pytest.fixture(scope="module")
def own_server(tmp_path_factory):
    """A server whose store nobody else uses: these tests empty it and switch it off."""
    if not os.environ.get("COMFYUI_PATH"):
        pytest.skip("COMFYUI_PATH is not set")
    from comfy_server import ComfyServer

    with ComfyServer(Path(os.environ["COMFYUI_PATH"]), tmp_path_factory.mktemp("comfyui"), store=True) as running:
        yield running


async def call(session, method, url, **what):
    async with session.request(method, url, **what) as response:
        return response.status, await response.read()


def ask(server, path, body=None, method="POST", **what):
    """Status and JSON of one request; a body of bytes goes as it is."""
    if body is not None:
        what["headers"] = {"Content-Type": "application/json", **what.get("headers", {})}
        what["data"] = body if isinstance(body, bytes) else json.dumps(body)

    async def once():
        async with aiohttp.ClientSession() as session:
            return await call(session, method, server.url + path, **what)

    status, text = asyncio.run(once())
    return status, json.loads(text)


def search_prompt(candidates, prompt="a red circle", seed=5):
    demo = lambda output: ["1", output]  # noqa: E731
    return {
        "1": {"class_type": "NoiseSearchDemoCheckpoint", "inputs": {}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": demo(1), "text": prompt}},
        "3": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "4": {
            "class_type": "NoiseSearchKSampler",
            "inputs": {
                "model": demo(0),
                "seed": seed,
                "steps": 2,
                "cfg": 1.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "positive": ["2", 0],
                "negative": ["2", 0],
                "latent_image": ["3", 0],
                "denoise": 1.0,
                "vae": demo(2),
                "verifier": demo(3),
                "candidates": candidates,
                "prompt": "",
                "top_k": 1,
                "batch_size": 1,
            },
        },
        "5": {"class_type": "NoiseSearchReport", "inputs": {"log": ["4", 5], "theme": "light"}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["4", 1], "filename_prefix": "x"}},
    }


@pytest.mark.comfyui
@pytest.mark.slow
class TestOnAServer:
    @pytest.fixture(scope="class")
    def finished(self, own_server):
        """A search of 4096 candidates that was asked to finish once it had scored one."""
        answers = []

        def on_message(message):
            if message.type != "progress_state" or answers:
                return
            if message.data["nodes"].get("4", {}).get("value", 0) > 2:
                other = ask(own_server, FINISH, {"node_id": "44"})
                answers.extend([other, ask(own_server, FINISH, {"node_id": "4"})])

        run = own_server.run(search_prompt(4096), on_message)
        return SimpleNamespace(run=run, other=answers[0], own=answers[1])

    def test_finish_reaches_the_node_that_is_named(self, finished):
        assert finished.own == (200, {"finishing": ["4"]})

    def test_finish_reaches_no_other(self, finished):
        assert finished.other == (200, {"finishing": []})

    def test_the_run_goes_on_with_the_best_so_far(self, finished, own_server):
        assert finished.run.status == "success", finished.run.error
        assert len(own_server.images(finished.run, "6")) == 1

    def test_the_rest_is_not_made(self, finished):
        log = json.loads(finished.run.outputs["5"]["noise_search_report"][0])
        assert 1 <= len(log["candidates"]) < 1000

    def test_where_nothing_runs_nothing_is_finished(self, own_server):
        assert ask(own_server, FINISH, {}) == (200, {"finishing": []})

    def test_comfyuis_prefix_works_too(self, own_server):
        assert ask(own_server, "/api" + FINISH, {}) == (200, {"finishing": []})

    def test_a_search_is_listed(self, own_server):
        assert own_server.run(search_prompt(3, "a listed search")).status == "success"
        status, told = ask(own_server, STORE, method="GET")
        [search] = [one for one in told["searches"] if one["prompt"] == "a listed search"]
        assert (status, search["candidates"]) == (200, 3)

    def test_one_search_is_deleted(self, own_server):
        for text in ("to be deleted", "to be kept"):
            assert own_server.run(search_prompt(2, text)).status == "success"
        ids = {one["prompt"]: one["id"] for one in ask(own_server, STORE, method="GET")[1]["searches"]}
        status, told = ask(own_server, DELETE, {"searches": [ids["to be deleted"]]})
        left = {one["prompt"] for one in told["searches"]}
        assert (status, told["deleted"], "to be deleted" in left, "to be kept" in left) == (200, 1, False, True)

    def test_all_searches_are_deleted(self, own_server):
        assert own_server.run(search_prompt(2, "one of all")).status == "success"
        status, told = ask(own_server, DELETE, {"all": True})
        assert (status, told["searches"]) == (200, [])

    def test_settings_are_kept(self, own_server):
        before = ask(own_server, STORE, method="GET")[1]
        ask(own_server, STORE, {"enabled": False, "limit_mb": 77})
        changed = ask(own_server, STORE, method="GET")[1]
        ask(own_server, STORE, {key: before[key] for key in ("enabled", "limit_mb")})
        assert (changed["enabled"], changed["limit_mb"]) == (False, 77)

    @pytest.mark.parametrize("path", [FINISH, STORE, DELETE])
    @pytest.mark.parametrize(
        "body",
        [b"", b"[]", b"null", b"3", b'"x"', b"{", b"\xff\xfe", b"[" * 60_000, b'{"a":' * 10_000, b'{"x": 1}', b"NaN"],
    )
    def test_what_is_no_such_object_is_refused_with_a_sentence(self, own_server, path, body):
        status, told = ask(own_server, path, body)
        assert (status, told["error"][-1]) == (400, ".")

    def test_a_body_that_is_not_in_its_encoding_is_refused(self, own_server):
        status, told = ask(own_server, STORE, b"{}", headers={"Content-Encoding": "gzip"})
        assert status == 400 and "cannot be read" in told["error"]

    @pytest.mark.parametrize("prefix", ["", "/api"])
    @pytest.mark.parametrize("path", [FINISH, STORE, DELETE])
    def test_what_a_page_of_another_site_can_send_unasked_does_nothing(self, own_server, path, prefix):
        """Browsers ask the server before they send any type but these to another site; and without a type."""
        assert own_server.run(search_prompt(2, "not to be deleted")).status == "success"
        before = ask(own_server, STORE, method="GET")[1]
        body = {FINISH: b"{}", STORE: b'{"enabled": false}', DELETE: b'{"all": true}'}[path]
        simple = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
        for kind in [*simple, "text/plain; application/json", "application/json, text/plain", "x"]:
            status, told = ask(own_server, prefix + path, body, headers={"Content-Type": kind})
            assert status == 415 and "application/json" in told["error"] and told["error"][-1] == ".", kind
        after = ask(own_server, STORE, method="GET")[1]
        assert (after["enabled"], after["searches"]) == (before["enabled"], before["searches"])
        assert "not to be deleted" in {search["prompt"] for search in after["searches"]}

    def test_a_page_of_another_site_is_not_told_to_go_on(self, own_server):
        """What a browser asks first, for a JSON body, from a page elsewhere, with ComfyUI as it starts."""
        asked = {"Origin": "http://elsewhere.example", "Access-Control-Request-Method": "POST"}
        for path in (FINISH, STORE, DELETE):

            async def preflight(path=path):
                headers = {**asked, "Access-Control-Request-Headers": "content-type"}
                async with (
                    aiohttp.ClientSession() as session,
                    session.options(own_server.url + path, headers=headers) as response,
                ):
                    return response.status, response.headers.get("Access-Control-Allow-Origin")

            status, allowed = asyncio.run(preflight())
            assert status >= 400 and allowed is None

    @pytest.mark.parametrize("path", [FINISH, STORE, DELETE])
    def test_a_long_body_is_not_read(self, own_server, path):
        status, told = ask(own_server, path, b'{"node_id": "' + b"x" * 70_000 + b'"}')
        assert status == 413 and "65536" in told["error"]

    def test_nothing_that_is_sent_breaks_it_or_is_written_elsewhere(self, own_server):
        store = Path(ask(own_server, STORE, method="GET")[1]["path"])
        before = listing(own_server.home, store.parent)
        statuses = asyncio.run(fuzz(own_server))
        assert [status for status in statuses if status >= 500] == []
        assert sum(statuses.values()) == CALLS
        assert min(statuses[200], statuses[400], statuses[415]) > CALLS // 20  # it was the routes that answered
        assert ask(own_server, STORE, method="GET")[0] == 200
        assert listing(own_server.home, store.parent) == before


def listing(home, left_out):
    """Every file below the server's folder with its size, but for the store's and the log."""
    return {
        str(path.relative_to(home)): path.stat().st_size
        for path in home.rglob("*")
        if path.is_file()
        and left_out not in path.parents
        and path.name != "comfyui.log"
        and "custom_nodes" not in path.parts
    }


NASTY = ["../../x", "/etc/passwd", "..\\..\\x", "C:\\x", "\0", "\ud800", "'; DROP TABLE searches; --", "é" * 300, ""]
KEYS = ["node_id", "enabled", "limit_mb", "searches", "all", "path", "__class__", *NASTY]
NUMBERS = [
    0,
    1,
    -1,
    15,
    16,
    512,
    10**6,
    10**6 + 1,
    2**31,
    2**63 - 1,
    2**63,
    10**40,
    1.5,
    1e308,
    float("inf"),
    float("nan"),
]


def value(rng, depth=0):
    kind = rng.randrange(7 if depth < 4 else 5)
    if kind == 0:
        return rng.choice(NASTY)
    if kind == 1:
        return rng.choice(NUMBERS)
    if kind == 2:
        return rng.choice([True, False, None])
    if kind == 3:
        return str(rng.randrange(30))
    if kind == 4:
        return rng.randrange(-5, 40)
    if kind == 5:
        return [value(rng, depth + 1) for _ in range(rng.randrange(5))]
    return {rng.choice(KEYS): value(rng, depth + 1) for _ in range(rng.randrange(4))}


def body(rng):
    kind = rng.randrange(10)
    if kind == 0:
        return rng.randbytes(rng.randrange(200))
    if kind == 1:
        return rng.choice([b"[", b'{"a":', b"1", b'{"all": true}', b" "]) * rng.choice([1, 7, 5000])
    if kind == 2:
        return json.dumps(value(rng)).encode()
    text = json.dumps({rng.choice(KEYS[:5]): value(rng) for _ in range(rng.randrange(3))}).encode()
    if kind == 3:  # torn
        at = rng.randrange(len(text) + 1)
        return text[:at] + rng.randbytes(rng.randrange(4)) + text[at + rng.randrange(3) :]
    return text


async def fuzz(server):
    """CALLS requests, the same on every machine. Status -> how often."""
    rng = random.Random(20)
    paths = [FINISH, STORE, DELETE, "/api" + FINISH, "/api" + STORE, "/api" + DELETE]
    paths += [STORE + "/%2e%2e/%2e%2e/x", STORE + "/../../../etc/passwd", STORE + "/1", FINISH + "?node_id=../../x"]
    methods = ["POST"] * 12 + ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"]
    kinds = [
        None,
        *["application/json"] * 6,
        "text/plain",
        "multipart/form-data",
        "application/json; charset=utf-16",
        "x",
    ]
    statuses = Counter()

    async def one(session, number):
        method, path, data = rng.choice(methods), rng.choice(paths[:6] * 5 + paths[6:]), body(rng)
        headers = {"Content-Type": kind} if (kind := rng.choice(kinds)) else {}
        if number % 40 == 0:
            headers["Content-Encoding"] = rng.choice(["gzip", "deflate", "br", "nonsense"])
        if number % 1000 == 7:
            data = b"[" * rng.choice([65_536, 65_537, 3_000_000])
        try:
            status, _ = await call(session, method, URL(server.url + path, encoded=True), data=data, headers=headers)
        except aiohttp.ClientError:  # the server hung up on what is no HTTP; whether it lives is asked afterwards
            status = 0
        statuses[status] += 1

    async with aiohttp.ClientSession() as session:
        for start in range(0, CALLS, 20):
            await asyncio.gather(*(one(session, number) for number in range(start, start + 20)))
    return statuses
