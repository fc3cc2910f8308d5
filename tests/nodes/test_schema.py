"""Workflows are for ever: node ids, input ids and their order never change. `schema.json` is what was promised.

After appending an input or a node, write the snapshot anew with NOISE_SEARCH_UPDATE_SCHEMA=1.
"""

import asyncio
import json
import os
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("comfy_api.latest")

from noise_search.search.algorithms import ALGORITHMS

ROOT = Path(__file__).parents[2]
SNAPSHOT = Path(__file__).with_name("schema.json")
# Their choices come from ComfyUI or the user's folders.
HOST_COMBOS = {"sampler_name", "scheduler", "model_name", "head_name"}


def describe(node) -> dict:
    schema = node.define_schema()
    return {
        "display_name": schema.display_name,
        "category": schema.category,
        "inputs": [
            {
                "id": item.id,
                "type": item.io_type,
                "optional": bool(item.optional),
                **{
                    key: value
                    for key, value in item.as_dict().items()
                    if key in ("default", "min", "max", "step", "multiline")
                    or (key == "options" and item.id not in HOST_COMBOS)
                },
            }
            for item in schema.inputs
        ],
        "outputs": [
            {"type": item.io_type, "name": item.display_name, "list": bool(item.is_output_list)}
            for item in schema.outputs
        ],
    }


@pytest.fixture(scope="module")
def nodes():
    import noise_search

    extension = asyncio.run(noise_search.comfy_entrypoint())
    return {node.define_schema().node_id: node for node in asyncio.run(extension.get_node_list())}


@pytest.fixture(scope="module")
def shown(nodes):
    """The nodes that a user can see: others stand in for ComfyUI's inside of a search."""
    return {node_id: node for node_id, node in nodes.items() if not node.define_schema().is_dev_only}


@pytest.mark.complete
def test_the_schema_is_the_snapshot(nodes):
    now = json.loads(json.dumps({node_id: describe(node) for node_id, node in nodes.items()}))
    promised = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    if os.environ.get("NOISE_SEARCH_UPDATE_SCHEMA"):
        known = [node_id for node_id in promised if node_id in now]  # a new node comes last, whatever NODES says
        promised = {node_id: now[node_id] for node_id in dict.fromkeys([*known, *now])}
        SNAPSHOT.write_text(json.dumps(promised, indent=1) + "\n", encoding="utf-8")
    changed = {node_id for node_id in {*now, *promised} if now.get(node_id) != promised.get(node_id)}
    assert changed == set(), (
        "is anything gone, renamed or moved? If not, NOISE_SEARCH_UPDATE_SCHEMA=1 writes tests/nodes/schema.json anew"
    )


@pytest.mark.complete
def test_every_node_says_what_it_is_for(nodes):
    assert [node_id for node_id, node in nodes.items() if not node.define_schema().description] == []


@pytest.mark.complete
def test_every_socket_and_widget_has_a_tooltip(shown):
    missing = [
        (node_id, item.id or item.display_name)
        for node_id, node in shown.items()
        for item in [*node.define_schema().inputs, *node.define_schema().outputs]
        if not item.tooltip
    ]
    assert missing == [], f"give each of these a tooltip: {missing}"


def test_ids_carry_the_packs_prefix(nodes):
    assert all(node_id.startswith("NoiseSearch") and node_id.isalnum() for node_id in nodes)


def test_seeds_stay_fixed_after_a_run(shown):
    widgets = [
        item.as_dict()["control_after_generate"]
        for node in shown.values()
        for item in node.define_schema().inputs
        if item.id == "seed"
    ]
    assert widgets == ["fixed"] * 3


def first_column(page: str, heading: str) -> list[str]:
    """The first cells of the table below a heading."""
    _, _, below = (ROOT / page).read_text(encoding="utf-8").partition(f"\n## {heading}\n")
    rows = below.partition("\n## ")[0].splitlines()
    return [row.split("|")[1].strip() for row in rows if row.startswith("| ")][1:]


def lacking_and_other(wanted, told) -> tuple[list[str], list[str]]:
    return sorted((Counter(wanted) - Counter(told)).elements()), sorted((Counter(told) - Counter(wanted)).elements())


@pytest.mark.complete
def test_the_readme_lists_every_node_and_no_other(shown):
    told = [name for cell in first_column("README.md", "Nodes") for name in cell.split(", ")]
    names = [node.define_schema().display_name for node in shown.values()]
    lacking, other = lacking_and_other(names, told)
    assert (lacking, other) == ([], []), f"the table Nodes of README.md lacks {lacking}, and has the unknown {other}"


@pytest.mark.complete
def test_the_map_lists_every_node_and_no_other(shown):
    told = first_column("docs/architecture.md", "Nodes")
    lacking, other = lacking_and_other([f"`{node_id}`" for node_id in shown], told)
    assert (lacking, other) == ([], []), f"the table Nodes of docs/architecture.md lacks {lacking}, and has {other}"


@pytest.mark.complete
def test_every_search_has_its_node_and_every_node_of_a_search_is_listed(nodes):
    giving = {
        node_id
        for node_id, node in nodes.items()
        if any(item.io_type == "NOISE_SEARCH_SEARCH" for item in node.define_schema().outputs)
    }
    listed = {entry.node for entry in ALGORITHMS} - {""}
    assert listed - giving == set(), "searches without a node: see NODES in nodes/searches.py"
    assert giving - listed == set(), "nodes whose search is not in search/algorithms/__init__.py"


@pytest.mark.complete
def test_the_search_input_names_every_search(nodes):
    [tooltip] = {
        item.tooltip
        for node_id in ("NoiseSearchKSampler", "NoiseSearchSamplerAdvanced")
        for item in nodes[node_id].define_schema().inputs
        if item.id == "search"
    }
    assert [entry.title for entry in ALGORITHMS if entry.title not in tooltip] == []


@pytest.mark.complete
def test_every_node_has_a_help_page(shown):
    docs = ROOT / "web" / "docs"
    missing = [f"web/docs/{node_id}.md" for node_id in shown if not (docs / f"{node_id}.md").is_file()]
    assert missing == [], f"write {missing}"
