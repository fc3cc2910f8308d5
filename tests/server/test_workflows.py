"""The example workflows: well-formed, tidy, and executed for real, through the real front end where there is one."""

import json
from itertools import combinations
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote

import frontend
import pytest
from comfy_server import FOLDER
from examples import EXAMPLES, NAMES, NEED_FILES
from PIL import Image
from tiny_pictures import save_pictures

TWINS = Path(__file__).with_name("workflows")  # the same graphs in API format, as the front end makes them
FRONT_END_ONLY = {"MarkdownNote", "Note"}
TITLE_HEIGHT = 30
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
MAX_PICTURE = 200 * 1024
FILE_WIDGETS = {"ckpt_name", "model_name", "clip_name", "head_name"}

each_workflow = pytest.mark.parametrize("name", NAMES)
# They differ by the search alone, and that each search runs there is seen in test_server_searches.py.
OTHER_SEARCHES = {f"{name} (demo)" for name in ("Zero-Order Search", "Search over Paths", "Draft and Final")}
each_that_runs = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.any_host] if name in OTHER_SEARCHES else [])
        for name in NAMES
        if name not in NEED_FILES
    ],
)


def workflow(name):
    return json.loads((EXAMPLES / f"{name}.json").read_text("utf-8"))


def twin(name):
    return json.loads((TWINS / f"{name}.json").read_text("utf-8"))


def graphs(name):
    """A workflow's own graph, and those of its subgraphs, each as (nodes, links)."""
    whole = workflow(name)
    yield whole["nodes"], whole["links"]
    for inner in (whole.get("definitions") or {}).get("subgraphs", []):
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        yield inner["nodes"], [[link[key] for key in names] for link in inner["links"]]


def subgraphs(name):
    return {inner["id"] for inner in (workflow(name).get("definitions") or {}).get("subgraphs", [])}


def without_titles(prompt):
    return {key: {"class_type": node["class_type"], "inputs": node["inputs"]} for key, node in prompt.items()}


def test_there_are_a_fused_and_a_graph_native_example():
    types = [{node["type"] for nodes, _ in graphs(name) for node in nodes} for name in NAMES]
    assert any("NoiseSearchKSampler" in used for used in types)
    assert any("NoiseSearchBestOfN" in used for used in types)


@each_workflow
def test_it_has_a_picture_of_reasonable_size(name):
    assert (EXAMPLES / f"{name}.jpg").stat().st_size <= MAX_PICTURE


@each_workflow
def test_its_picture_is_a_jpeg(name):
    with Image.open(EXAMPLES / f"{name}.jpg") as picture:
        assert picture.format == "JPEG"


@each_workflow
def test_no_two_nodes_overlap(name):
    boxes = {}
    for node in workflow(name)["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        boxes[node.get("title", node["type"])] = (x, y - TITLE_HEIGHT, x + width, y + height)
    overlapping = [
        (a, b)
        for a, b in combinations(boxes, 2)
        if boxes[a][0] < boxes[b][2]
        and boxes[b][0] < boxes[a][2]
        and boxes[a][1] < boxes[b][3]
        and boxes[b][1] < boxes[a][3]
    ]
    assert overlapping == []


@each_workflow
def test_a_note_explains_it(name):
    assert any(node["type"] == "MarkdownNote" for node in workflow(name)["nodes"])


def widgets(info):
    """(name, specification) of a node's widgets in order, with the seed's second one."""
    groups, order = info["input"], info["input_order"]
    for group in ("required", "optional"):
        for name in order.get(group, []):
            kind, options = (*groups[group][name], {})[:2]
            if isinstance(kind, list):
                kind, options = "COMBO", {**options, "options": kind}
            if kind in WIDGET_TYPES and not options.get("forceInput"):
                yield name, kind, options
                if options.get("control_after_generate"):
                    yield (
                        "control_after_generate",
                        "COMBO",
                        {"options": ["fixed", "increment", "decrement", "randomize"]},
                    )


def fits(widget, value, kind, options):
    if widget in FILE_WIDGETS:  # a list of what is on this machine
        return isinstance(value, str) and bool(value)
    if kind == "COMBO":
        return value in options["options"]
    if kind == "STRING":
        return isinstance(value, str)
    if kind == "BOOLEAN":
        return isinstance(value, bool)
    return options.get("min", value) <= value <= options.get("max", value)


def accepted(object_info, node, entry):
    """The types that an input takes."""
    if node["type"] not in object_info:  # a subgraph
        return [entry["type"]]
    groups = object_info[node["type"]]["input"]
    kind = {**groups.get("required", {}), **groups.get("optional", {})}[entry["name"]][0]
    return ["COMBO"] if isinstance(kind, list) else [entry["type"]] if kind == "*" else kind.split(",")


@pytest.fixture(scope="module")
def pictures(server):
    save_pictures(server.home / "input" / FOLDER)


@pytest.fixture(scope="module")
def object_info(server, pictures):
    return server.get("/object_info")


@pytest.mark.comfyui
class TestOnAServer:
    @each_workflow
    def test_every_widget_has_a_value_that_fits(self, name, object_info):
        wrong = []
        for node in [node for nodes, _ in graphs(name) for node in nodes]:
            if node["type"] in FRONT_END_ONLY | subgraphs(name):
                continue
            values = node.get("widgets_values", [])
            specified = list(widgets(object_info[node["type"]]))
            if len(values) != len(specified):
                wrong.append((node["type"], values))
            wrong += [
                (node["type"], widget, value)
                for (widget, kind, options), value in zip(specified, values, strict=False)
                if not fits(widget, value, kind, options)
            ]
        assert wrong == []

    @each_workflow
    def test_its_links_join_what_fits(self, name, object_info):
        for listed, links in graphs(name):
            nodes = {node["id"]: node for node in listed}
            for link, source, slot, target, place, kind in links:
                giving, taking = nodes.get(source), nodes.get(target)  # none at the edge of a subgraph
                if giving is not None:
                    given = object_info.get(giving["type"])
                    assert given is None or given["output"][slot] in (kind, "*"), (name, link)
                    assert link in giving["outputs"][slot]["links"]
                if taking is not None:
                    entry = taking["inputs"][place]
                    assert entry["link"] == link and {kind, "*"} & {*accepted(object_info, taking, entry)}, (name, link)

    @pytest.mark.parametrize("name", sorted(NEED_FILES))
    def test_a_server_misses_nothing_but_the_files(self, name, server):
        with pytest.raises(HTTPError) as refused:
            server.post("/prompt", {"prompt": twin(name)})
        errors = json.loads(refused.value.read())["node_errors"].values()
        missing = [error for node in errors for error in node["errors"]]
        assert missing and {error["type"] for error in missing} <= {"value_not_in_list", "custom_validation_failed"}
        assert {error["extra_info"]["input_name"] for error in missing} <= FILE_WIDGETS

    @pytest.mark.parametrize("name", sorted(NEED_FILES))
    def test_its_note_names_every_file(self, name):
        [note] = [node["widgets_values"][0] for node in workflow(name)["nodes"] if node["type"] == "MarkdownNote"]
        for node in twin(name).values():
            for widget in FILE_WIDGETS & set(node["inputs"]):
                chosen = node["inputs"][widget]
                assert f"/{chosen}" in note and any(chosen in file for file in NEED_FILES[name])

    @each_that_runs
    def test_its_twin_runs_and_saves_a_winner(self, name, server, pictures):
        prompt = twin(name)
        run = server.run(prompt)
        assert run.status == "success", run.error
        savers = [key for key, node in prompt.items() if node["class_type"] == "SaveImage"]
        side = 192 if "two stages" in name else 128
        assert [image.size for key in savers for image in server.images(run, key)] == [(side, side)]

    @each_workflow
    def test_comfyuis_template_browser_offers_it(self, name, server):
        assert name in server.get("/api/workflow_templates")["noise-search"]

    @each_workflow
    def test_the_template_browser_gets_its_picture(self, name, server):
        path = quote(f"/api/workflow_templates/noise-search/{name}.jpg")
        assert server.get_bytes(path) == (EXAMPLES / f"{name}.jpg").read_bytes()


@pytest.fixture(scope="module")
def converted(server, pictures):
    """Every example as the real front end would queue it. The browser is closed then: while Playwright runs, the client
    of the server cannot."""
    try:
        with frontend.browser() as running:
            page = frontend.FrontEnd(running, server.url)
            return {name: page.convert(workflow(name)) for name in NAMES}
    except frontend.NoBrowser as reason:
        frontend.do_without(reason)


@pytest.mark.comfyui
class TestThroughTheFrontEnd:
    @each_workflow
    def test_it_converts_to_its_twin(self, name, converted):
        assert without_titles(converted[name]) == without_titles(twin(name))
