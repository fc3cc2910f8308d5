"""Search Picture on the official templates: how far it comes on each, and whether its candidates are the workflow's.

    COMFYUI_PATH=/path/to/ComfyUI python benchmarks/templates.py
    COMFYUI_PATH=/path/to/ComfyUI python benchmarks/templates.py --package 0.1.27 --graphs FOLDER --details
    COMFYUI_PATH=/path/to/ComfyUI python benchmarks/templates.py --graphs FOLDER --kinds

The funnel: every workflow of the package comfyui-workflow-templates-json (the installed one, or a version of it that
pip fetches, or a folder) is loaded in ComfyUI's front end and turned into what the Run button would queue. Needs
Playwright and a Chromium; with --graphs the graphs are kept in that folder, and taken from there the next time. Search
Picture is put on the wire of the picture or video that the workflow shows, the last where it shows several that come
from noise, and the node's own code plans the part that is run again and looks for the prompt, with the classes of nodes
that this ComfyUI has. Nothing is sampled. Every workflow that falls out is listed with the reason; --details lists all,
with the text that was found.

What is no search for a picture is left out first: workflows without a sampler of their own (paid services, tools), and
those whose result is sound or a 3D model.

--kinds runs parts of these graphs (`_kinds.py`): workflows whose parts have the same samplers, stages, latents and
conditioning are one kind, and of each kind the smallest part runs on this ComfyUI with tiny models. Nodes of the part
are ComfyUI's own, with the template's settings but for sizes and steps; what loads files or encodes text before the
part is stood in for. Every candidate of Search Picture is compared, bit for bit, with the workflow itself queued with
seed, seed + 1, seed + 2. With --noises the same noises are put in as Zero-Order Search puts in its own, which are no
seeds: by samplers of this pack in the place of ComfyUI's.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

PACKAGE = "comfyui-workflow-templates-json"
SEARCH = "search"  # the id of the node that is put in
Link = tuple[str, int]
Graph = dict[str, dict[str, Any]]


@dataclass
class Planned:
    """How far one workflow comes. lost: why it is no further than its `stage`."""

    name: str
    graph: Graph
    stage: str = "workflows"
    lost: str = ""
    picture: Link | None = None
    part: Any = None
    prompt: str = ""
    read_from: str = ""


STAGES = (
    "workflows",
    "sample with a model of their own",
    "show a picture or video that comes from it",
    "planned, and the finished picture is judged",
    "the prompt is found",
)
READ_LATER = "read while the workflow runs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", help="a version of the templates, or a folder with their files")
    parser.add_argument("--graphs", type=Path, help="keeps the converted graphs here, and takes those that are there")
    parser.add_argument("--details", action="store_true", help="lists every workflow, with the text that was found")
    parser.add_argument("--kinds", action="store_true", help="runs every kind of part, too")
    parser.add_argument("--noises", action="store_true", help="with --kinds: put seeds in as noises that are none")
    parser.add_argument("--only", default="", help="only workflows whose name has this in it")
    options = parser.parse_args()
    load_comfyui()
    with TemporaryDirectory() as folder:
        templates = files_of(options.package, Path(folder))
        templates = {name: file for name, file in templates.items() if options.only in name}
        graphs = dict(converted(templates, options.graphs or Path(folder) / "graphs"))
    found = [plan(name, graph) for name, graph in graphs.items()]
    print_funnel(found, options.details)
    if options.kinds:
        import _kinds

        _kinds.run_all([one for one in found if one.part is not None], options.noises)


def load_comfyui() -> None:
    """ComfyUI in this process, on the CPU, with its own nodes, those for paid services too, and the pack's."""
    if "COMFYUI_PATH" not in os.environ:
        raise SystemExit("Set COMFYUI_PATH to a ComfyUI folder: the benchmark runs inside it.")
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    importlib.import_module("utils.install_util")  # before a module of ComfyUI's nodes brings another `utils`
    from comfy.cli_args import args

    args.cpu = True
    import folder_paths

    folder_paths.set_user_directory(mkdtemp(prefix="noise-search-templates-"))
    import _pack
    import torch

    import nodes

    sys.path.append(str(_pack.ROOT / "tests" / "support"))
    from noise_search.host.memory import store

    torch.set_num_threads(1)
    store.configure(enabled=False)
    asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False))


# The graphs


def files_of(package: str | None, folder: Path) -> dict[str, Path]:
    """The files of the templates, by name. Fetches a version that is not installed."""
    if package and Path(package).is_dir():
        found = Path(package)
    elif package and package != installed():
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--no-deps",
            "--target",
            str(folder),
            f"{PACKAGE}=={package}",
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found = folder
    else:
        found = Path(str(metadata.distribution(PACKAGE).locate_file("")))
        package = installed()
    under = found / PACKAGE.replace("-", "_")
    found = under if under.is_dir() else found
    files = {file.stem: file for file in sorted(found.rglob("*.json")) if not file.name.startswith("index")}
    print(f"{len(files)} files of {PACKAGE} {package}")
    return files


def installed() -> str:
    return metadata.version(PACKAGE)


def converted(files: Mapping[str, Path], folder: Path) -> Iterator[tuple[str, Graph]]:
    """The workflows among these files, as the API sends them, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    workflows = {name: json.loads(file.read_text("utf-8")) for name, file in files.items()}
    workflows = {name: one for name, one in workflows.items() if isinstance(one, dict) and "nodes" in one}
    missing = {name: one for name, one in workflows.items() if not (folder / f"{name}.json").is_file()}
    if missing:
        convert(missing, folder)
    for name in workflows:
        file = folder / f"{name}.json"
        if file.is_file():
            yield name, json.loads(file.read_text("utf-8"))


def convert(workflows: Mapping[str, Any], folder: Path) -> None:
    from comfy_server import ComfyServer
    from frontend import FrontEnd, browser

    with TemporaryDirectory() as home, browser() as running:
        server = ComfyServer(Path(os.environ["COMFYUI_PATH"]), Path(home))
        server.command.remove("--disable-api-nodes")  # templates of paid services are to be recognised as such
        with server:
            page = FrontEnd(running, server.url)
            for name, workflow in workflows.items():
                try:
                    (folder / f"{name}.json").write_text(json.dumps(page.convert(workflow)), "utf-8")
                except Exception as error:  # whatever the front end says of it
                    print(f"{name}: the front end does not convert it: {str(error).splitlines()[0]}", flush=True)


# The funnel


def plan(name: str, graph: Graph) -> Planned:
    """What Search Picture does on a workflow: its own code, on the graph that the Run button would queue."""
    from noise_search.host.graph import classes, part

    found = Planned(name, graph)
    kinds = {node_id: classes.node_class(str(node.get("class_type"))) for node_id, node in graph.items()}
    sampling = {node_id for node_id, kind in kinds.items() if samples(kind)}
    if not sampling:
        unknown = any(not kind.inputs and not kind.outputs for kind in kinds.values())
        paid = any(kind.is_paid for kind in kinds.values())
        found.lost = "a paid service" if paid else "nodes that this ComfyUI has not" if unknown else "no sampler"
        return found
    found.stage = STAGES[1]
    links = pictures(graph, kinds) or open_pictures(graph, kinds)
    shown = [link for link in links if sampling & {*part.upstream(graph, link[0])}]
    if not shown:
        found.lost = "its result is sound or a 3D model"
        return found
    found.stage = STAGES[2]
    for link in shown[::-1]:
        try:
            found.part = part.find_part(graph, [link], classes.node_class)
        except ValueError as error:
            found.lost = found.lost or str(error)
            continue
        found.picture, found.stage, found.lost = link, STAGES[3], ""
        find_prompt(found)
        break
    return found


def samples(kind: Any) -> bool:
    """Whether a class samples latents or pictures with a model of this ComfyUI."""
    return kind.takes({"MODEL", "GUIDER"}) and kind.gives({"LATENT", "IMAGE"}) and not kind.is_paid


def pictures(graph: Graph, kinds: Mapping[str, Any]) -> list[Link]:
    """The links of what output nodes show: pictures, and the frames of videos."""
    from noise_search.host.graph.links import links_of

    def frames(link: Sequence[Any], seen: tuple[str, ...] = ()) -> Iterator[Link]:
        source, slot = link
        outputs = kinds[source].outputs if source in kinds else ()
        kind = outputs[slot] if slot < len(outputs) else ""
        if kind == "IMAGE":
            yield source, slot
        elif kind == "VIDEO" and source not in seen:
            for before in links_of(graph, source).values():
                yield from frames(before, (*seen, source))

    outputs = [node_id for node_id, kind in kinds.items() if kind.is_output]
    return [
        *dict.fromkeys(one for node_id in outputs for link in links_of(graph, node_id).values() for one in frames(link))
    ]


def open_pictures(graph: Graph, kinds: Mapping[str, Any]) -> list[Link]:
    """Pictures that nothing takes: of workflows that leave it to the user what to do with them."""
    from noise_search.host.graph.links import links_of

    taken = {(link[0], link[1]) for node_id in graph for link in links_of(graph, node_id).values()}
    made = [
        (node_id, slot) for node_id, kind in kinds.items() for slot, one in enumerate(kind.outputs) if one == "IMAGE"
    ]
    return [link for link in made if link not in taken]


def find_prompt(found: Planned) -> None:
    """Looks for the prompt as the node does, with a verifier that needs one."""
    from noise_search.host.graph import asked
    from noise_search.host.graph.graph import Graph as Seen
    from noise_search.host.graph.prompt_text import PromptComputed
    from noise_search.host.graph.verifier_prompt import verifier_prompt
    from noise_search.search.judges import judges_of

    node = {"class_type": "NoiseSearchPicture", "inputs": {"image": [*found.picture], "prompt": ""}}
    seen = Seen(SEARCH, {**found.graph, SEARCH: node})
    try:
        told = verifier_prompt("", judges_of(Reads()), seen, "image")
        found.prompt, found.read_from, found.stage = told.text, told.source, STAGES[4]
    except PromptComputed as computed:
        if computed.link and not asked.leads_to(seen.prompt, computed.link, SEARCH):
            found.prompt, found.read_from, found.stage = READ_LATER, computed.found.source, STAGES[4]
        else:
            found.lost = str(computed)
    except ValueError as error:
        found.lost = str(error)


class Reads:
    """A verifier that needs a prompt."""

    members, needs_prompt, usual_range = ("any",), True, (0.0, 1.0)

    def score(self, images, prompts):
        raise NotImplementedError


def print_funnel(found: Sequence[Planned], details: bool) -> None:
    for number, stage in enumerate(STAGES):
        here = [one for one in found if STAGES.index(one.stage) >= number]
        print(f"{len(here):5}  {stage}")
        for reason, count in Counter(one.lost for one in here if one.stage == stage and number < 2).most_common():
            print(f"         {count} x {reason}")
        for one in here:
            if one.stage == stage and one.lost and number >= 2:
                print(f"         {one.name}: {' '.join(one.lost.split())}")
    later = sum(one.prompt == READ_LATER for one in found)
    print(f"       of these {later} {READ_LATER}")
    sizes = sorted(len(one.part.nodes) for one in found if one.part is not None)
    if sizes:
        print(f"nodes run again: median {sizes[len(sizes) // 2]}, at most {sizes[-1]}")
    wrong = [one for one in found if is_suspicious(one)]
    print(f"{len(wrong)} texts from a node that is called negative, or with the words of a negative prompt")
    for one in wrong if not details else found:
        if one.part is not None:
            print(f"  {one.name} | {one.read_from} | {' '.join(one.prompt.split())[:160]}")


def is_suspicious(found: Planned) -> bool:
    words = ("worst quality", "low quality", "bad anatomy", "deformed", "watermark")
    text = found.prompt.lower()
    return "negative" in found.read_from.lower() or sum(word in text for word in words) > 1


if __name__ == "__main__":
    main()
