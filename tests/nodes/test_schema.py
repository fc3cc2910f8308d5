"""Workflows are for ever: node ids, input ids and their order never change. `schema.json` is what was promised.

After appending an input or a node, write the snapshot anew with NOISE_SEARCH_UPDATE_SCHEMA=1.
"""

import asyncio
import json
import os
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


def test_the_schema_is_the_snapshot(nodes):
    now = {node_id: describe(node) for node_id, node in nodes.items()}
    if os.environ.get("NOISE_SEARCH_UPDATE_SCHEMA"):
        SNAPSHOT.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
    assert json.loads(json.dumps(now)) == json.loads(SNAPSHOT.read_text(encoding="utf-8"))


def test_every_node_says_what_it_is_for(nodes):
    assert [node_id for node_id, node in nodes.items() if not node.define_schema().description] == []


def test_every_socket_and_widget_has_a_tooltip(nodes):
    missing = [
        (node_id, item.id or item.display_name)
        for node_id, node in nodes.items()
        for item in [*node.define_schema().inputs, *node.define_schema().outputs]
        if not item.tooltip
    ]
    assert missing == []


def test_ids_carry_the_packs_prefix(nodes):
    assert all(node_id.startswith("NoiseSearch") and node_id.isalnum() for node_id in nodes)


def test_seeds_stay_fixed_after_a_run(nodes):
    widgets = [
        item.as_dict()["control_after_generate"]
        for node in nodes.values()
        for item in node.define_schema().inputs
        if item.id == "seed"
    ]
    assert widgets == ["fixed"] * 3


def first_column(page: str, heading: str) -> list[str]:
    """The first cells of the table below a heading."""
    _, _, below = (ROOT / page).read_text(encoding="utf-8").partition(f"\n## {heading}\n")
    rows = below.partition("\n## ")[0].splitlines()
    return [row.split("|")[1].strip() for row in rows if row.startswith("| ")][1:]


def test_the_readme_lists_every_node_and_no_other(nodes):
    told = [name for cell in first_column("README.md", "Nodes") for name in cell.split(", ")]
    assert sorted(told) == sorted(node.define_schema().display_name for node in nodes.values())


def test_the_map_lists_every_node_and_no_other(nodes):
    assert sorted(first_column("docs/architecture.md", "Nodes")) == sorted(f"`{node_id}`" for node_id in nodes)


def test_every_search_has_its_node_and_every_node_of_a_search_is_listed(nodes):
    giving = {
        node_id
        for node_id, node in nodes.items()
        if any(item.io_type == "NOISE_SEARCH_SEARCH" for item in node.define_schema().outputs)
    }
    assert giving == {entry.node for entry in ALGORITHMS} - {""}


def test_the_search_input_names_every_search(nodes):
    [tooltip] = {
        item.tooltip
        for node_id in ("NoiseSearchKSampler", "NoiseSearchSamplerAdvanced")
        for item in nodes[node_id].define_schema().inputs
        if item.id == "search"
    }
    assert [entry.title for entry in ALGORITHMS if entry.title not in tooltip] == []


def test_every_node_has_a_help_page(nodes):
    docs = ROOT / "web" / "docs"
    assert [node_id for node_id in nodes if not (docs / f"{node_id}.md").is_file()] == []
