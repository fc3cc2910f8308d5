"""The HTTP routes, without a server: what they read of a request, and what they do. tests/server has them on one."""

import asyncio
import sys
from types import SimpleNamespace

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

pytest.importorskip("comfy")

from noise_search.host.memory import routes, store

FINISH, STORE, DELETE = "/noise_search/finish", "/noise_search/store", "/noise_search/store/delete"
OVERVIEW = {"searches": [{"id": 4}]}


@pytest.fixture
def comfyui(monkeypatch):
    """What the running server looks like to `register_routes`. A stand-in: the real one starts half of ComfyUI."""
    table = web.RouteTableDef()
    instance = SimpleNamespace(routes=table)
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=instance)))
    return table


def test_registering_twice_adds_them_once(comfyui):
    routes.register_routes()
    routes.register_routes()
    found = [(route.method, route.path) for route in comfyui]
    assert found == [("POST", FINISH), ("GET", STORE), ("POST", STORE), ("POST", DELETE)]


def test_without_a_server_there_is_nothing_to_register(monkeypatch):
    monkeypatch.delitem(sys.modules, "server", raising=False)
    routes.register_routes()


def test_a_finish_request_names_a_node_or_means_all():
    assert routes.node_to_finish({"node_id": "5:3"}) == "5:3"
    assert routes.node_to_finish({}) is None


def test_settings_may_be_given_one_by_one():
    assert routes.store_settings({"enabled": False}) == (False, None)
    assert routes.store_settings({"limit_mb": 16}) == (None, 16)


def test_a_delete_request_names_ids_or_means_all():
    assert routes.searches_to_delete({"searches": [3, 4]}) == [3, 4]
    assert routes.searches_to_delete({"all": True}) is None


@pytest.mark.parametrize(
    ("read", "body", "said"),
    [
        ("node_to_finish", {"node_id": 12}, "not 12"),
        ("node_to_finish", {"node_id": None}, "not null"),
        ("node_to_finish", {"node_id": ""}, 'not ""'),
        ("node_to_finish", {"node_id": "9" * 1001}, "9 ..."),
        ("node_to_finish", {"node": "12"}, '"node"'),
        ("store_settings", {}, "Nothing to change"),
        ("store_settings", {"enabled": 1}, "not 1"),
        ("store_settings", {"enabled": None}, "not null"),
        ("store_settings", {"limit_mb": True}, "not true"),
        ("store_settings", {"limit_mb": 512.0}, "not 512.0"),
        ("store_settings", {"limit_mb": "512"}, 'not "512"'),
        ("store_settings", {"limit_mb": 15}, "not 15"),
        ("store_settings", {"limit_mb": 1_000_001}, "not 1000001"),
        ("store_settings", {"enabled": True, "path": "../../x"}, '"path"'),
        ("searches_to_delete", {}, "Give either"),
        ("searches_to_delete", {"searches": [1], "all": True}, "Give either"),
        ("searches_to_delete", {"all": False}, "not false"),
        ("searches_to_delete", {"all": 1}, "not 1"),
        ("searches_to_delete", {"searches": 3}, "not 3"),
        ("searches_to_delete", {"searches": "../../x"}, 'not "../../x"'),
        ("searches_to_delete", {"searches": [1, True]}, "not true"),
        ("searches_to_delete", {"searches": [-1]}, "not -1"),
        ("searches_to_delete", {"searches": [2**63]}, f"not {2**63}"),
        ("searches_to_delete", {"searches": [[1]]}, "not [1]"),
    ],
)
def test_anything_else_is_refused_with_what_was_given(read, body, said):
    with pytest.raises(routes.BadRequest) as refused:
        getattr(routes, read)(body)
    assert said in str(refused.value)


def test_the_answer_to_a_long_input_is_short():
    with pytest.raises(routes.BadRequest) as refused:
        routes.searches_to_delete({"searches": "x" * 60_000})
    assert len(str(refused.value)) < 200


def asked(table, *requests):
    """What the routes answer to POST requests, one after the other: status and JSON."""

    async def ask():
        app = web.Application()
        app.add_routes(table)
        async with TestClient(TestServer(app)) as client:
            answers = [await client.post(path, json=body) for path, body in requests]
            return [(answer.status, await answer.json()) for answer in answers]

    return asyncio.run(ask())


def test_they_hand_on_what_is_asked_and_give_back_what_came_of_it(comfyui, monkeypatch):
    done = []
    monkeypatch.setattr(routes.finish, "finish", lambda node: done.append(node) or ["5:3"])
    monkeypatch.setattr(store, "configure", lambda *settings: done.append(settings))
    monkeypatch.setattr(store, "delete", lambda ids: done.append(ids) or 2)
    monkeypatch.setattr(store, "overview", lambda: OVERVIEW)
    routes.register_routes()
    answers = asked(
        comfyui,
        (FINISH, {"node_id": "5:3"}),
        (STORE, {"limit_mb": 64}),
        (DELETE, {"searches": [3]}),
        (DELETE, {"all": True}),
    )
    assert done == ["5:3", (None, 64), [3], None]
    assert [status for status, _ in answers] == [200] * 4
    assert [told for _, told in answers] == [{"finishing": ["5:3"]}, OVERVIEW, *[OVERVIEW | {"deleted": 2}] * 2]


def test_what_goes_wrong_is_said(comfyui, monkeypatch):
    def broken(*settings):
        raise store.StoreError("the disk is full")

    monkeypatch.setattr(store, "configure", broken)
    routes.register_routes()
    answers = asked(comfyui, (STORE, {"enabled": True}), (STORE, {"path": "x"}))
    assert answers[0] == (503, {"error": "The store cannot be used: the disk is full."})
    assert answers[1][0] == 400 and '"path"' in answers[1][1]["error"]
