"""Tries "Search this" and "Search this picture" on every sampler of ComfyUI's official templates, in its front end.

    COMFYUI_PATH=/path/to/ComfyUI python benchmarks/search_this.py [--templates FOLDER] [--only WORD] [--json FILE]

For each sampler of each template of the installed package `comfyui-workflow-templates-json` (or of a folder of
workflows): the template is loaded, the entry of the node's menu is taken, and Undo follows. What is compared: the graph
that would be queued before and after, where nothing but the replaced node may differ; the names and values of the
widgets on the faces of subgraphs; and both again after one Undo. NOISE_SEARCH_FRONT_END=<folder> names another front
end than the installed one. Needs Playwright and a Chromium. Some minutes on two cores; ends with 1 where something is
not as it should be.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import _server
import frontend

THIS, PICTURE = "Search this", "Search this picture"
SEARCHES = {"KSampler": "NoiseSearchKSampler"}  # the others become NoiseSearchSamplerAdvanced
SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
HELPERS = {"CFGGuider", "KSamplerSelect", "BasicScheduler", "SplitSigmas", "NoiseSearchImageReward"}
RENAMED = {"noise_seed": "seed"}
GONE = {"add_noise", "end_at_step", "return_with_leftover_noise", "start_at_step", "noise"}
MOVED = {"model", "positive", "negative", "cfg", "steps", "sampler_name", "scheduler"}  # to the helpers

SETUP = """() => {
  window.told = [];
  app.extensionManager.toast.add = message => told.push(message);
  window.look = async () => ({
    prompt: (await app.graphToPrompt()).output,
    promoted: [app.rootGraph, ...app.rootGraph.subgraphs.values()].flatMap(graph => graph.nodes)
      .filter(node => node.isSubgraphNode?.())
      .map(node => [String(node.id), node.widgets.map(widget => [widget.name, widget.value])]),
  });
  window.steps = () => app.extensionManager.workflow.activeWorkflow.changeTracker;
  window.capture = () => steps().captureCanvasState ? steps().captureCanvasState() : steps().checkState();
}"""
# Loaded twice: front ends bring old workflows up to date as they load them, some of it only when they load it again.
LOAD = """async workflow => {
  await app.loadGraphData(workflow);
  await app.loadGraphData(JSON.parse(JSON.stringify(app.rootGraph.serialize())), true, false, 'template');
  const found = [];
  for (const graph of [app.rootGraph, ...app.rootGraph.subgraphs.values()])
    for (const node of graph.nodes)
      if (SAMPLERS.includes(node.type)) found.push([graph === app.rootGraph ? null : graph.id, node.id, node.type]);
  return found;
}""".replace("SAMPLERS", json.dumps(SAMPLERS))
TRY = """async ([place, id, entry]) => {
  const graph = place ? app.rootGraph.subgraphs.get(place) : app.rootGraph;
  app.canvas.setGraph(graph);
  capture();
  told.length = 0;
  const [before, depth] = [await look(), steps().undoQueue.length];
  const item = app.collectNodeMenuItems(graph.getNodeById(id)).find(one => one?.content === entry);
  if (!item) return { missing: true };
  await item.callback();
  const after = await look();
  const done = { told: told.map(({ severity, detail }) => [severity, detail]), before, after };
  done.steps = steps().undoQueue.length - depth;
  done.place = (app.canvas.graph === app.rootGraph ? null : app.canvas.graph.id) === place;
  if (done.steps) await steps().undo();
  done.undone = await look();
  return done;
}"""


def in_place(sampler: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What is wrong with the graph after Search this."""
    wrong = []
    replaced = {
        key
        for key in before
        if before[key]["class_type"] == sampler
        and after.get(key, {}).get("class_type") == SEARCHES.get(sampler, "NoiseSearchSamplerAdvanced")
    }
    outputs = {1: 7} if sampler.startswith("SamplerCustom") else {}
    for key in before.keys() | after.keys():
        old, new = before.get(key), after.get(key)
        if key in replaced:
            wrong += [f"{key}: {text}" for text in same_inputs(old["inputs"], new["inputs"], after)]
        elif old is None:
            if new["class_type"] not in HELPERS:
                wrong.append(f"{key}: a new {new['class_type']}")
        elif new is None:
            if old["class_type"] != "RandomNoise":
                wrong.append(f"{key}: {old['class_type']} is gone")
        else:
            wanted = {name: moved_output(value, replaced, outputs) for name, value in old["inputs"].items()}
            if new["class_type"] != old["class_type"] or new["inputs"] != wanted:
                wrong.append(f"{key}: {old['class_type']} is another")
    return wrong


def moved_output(value: Any, replaced: set[str], outputs: dict[int, int]) -> Any:
    is_link = isinstance(value, list) and len(value) == 2 and value[0] in replaced
    return [value[0], outputs.get(value[1], value[1])] if is_link else value


def same_inputs(old: dict[str, Any], new: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What of a sampler's inputs the search in its place does not have, or one of its helpers."""
    helpers = [after[value[0]]["inputs"] for value in new.values() if isinstance(value, list) and value[0] in after]
    helpers += [
        after[value[0]]["inputs"]
        for one in helpers
        for value in one.values()
        if isinstance(value, list) and value[0] in after
    ]
    wrong = [f"no {name}" for name in ("vae", "verifier", "latent_image") if name not in new]
    for name, value in old.items():
        here = RENAMED.get(name, name)
        if here in new:
            wrong += [f"{name} is {new[here]}, was {value}"] * (new[here] != value)
        elif name not in GONE and not (name in MOVED and any(one.get(name) == value for one in helpers)):
            wrong.append(f"{name} is gone")
    return wrong


def on_the_wire(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What is wrong with the graph after Search this picture."""
    new = {key: after[key] for key in after.keys() - before.keys()}
    kind = "NoiseSearchPicture"
    pictures = {key: node["inputs"].get("image") for key, node in new.items() if node["class_type"] == kind}
    wrong = [f"a new {node['class_type']}" for node in new.values() if node["class_type"] not in {kind, *HELPERS}]
    wrong += [f"{len(pictures)} nodes for pictures"] * (len(pictures) != 1)
    for key, source in pictures.items():
        wrong += [f"{key} has no {name}" for name in ("image", "verifier") if name not in new[key]["inputs"]]
        wrong += [f"{key} is inside a subgraph"] * (":" in key and ":" not in str((source or [""])[0]))
    for key, node in before.items():
        now = {
            name: pictures.get(value[0], value) if isinstance(value, list) and value else value
            for name, value in after.get(key, {"inputs": {}})["inputs"].items()
        }
        if now != node["inputs"]:
            wrong.append(f"{key}: {node['class_type']} is another")
    return wrong


def faces(promoted: list[Any]) -> list[Any]:
    """Widgets on the faces of subgraphs, without what older front ends say of the inner node in a name."""
    control = {"fixed": "control_after_generate"}
    plain = lambda name: control.get(name.split(": ")[-1], RENAMED.get(name.split(": ")[-1], name.split(": ")[-1]))  # noqa: E731
    return [[place, [[plain(name), value] for name, value in widgets]] for place, widgets in promoted]


def judged(sampler: str, entry: str, done: dict[str, Any]) -> tuple[str, list[str]]:
    """What became of one try: "done", "refused", "not queued" (what nobody would run), and what is wrong with it."""
    if done.get("missing"):
        return "no entry", ["the menu has no such entry"]
    before, after, undone = done["before"], done["after"], done["undone"]
    wrong = [f"after Undo the {name} differ" for name in ("prompt", "promoted") if undone[name] != before[name]]
    [(severity, text)] = done["told"] or [("", "")]
    if not done["steps"]:
        return "refused", wrong if severity == "warn" else [f"nothing happened: {text}", *wrong]
    wrong += [f"{done['steps']} steps to undo"] * (done["steps"] != 1)
    wrong += ["another graph is open"] * (not done["place"])
    wrong += [text] * (severity != "success")
    if faces(after["promoted"]) != faces(before["promoted"]):
        wrong.append(f"promoted widgets: {before['promoted']} -> {after['promoted']}")
    if after["prompt"] == before["prompt"]:
        return "not queued", wrong  # of a node that is off, or that nothing shown needs
    compare = (lambda *both: in_place(sampler, *both)) if entry == THIS else on_the_wire
    return "done", wrong + compare(before["prompt"], after["prompt"])


def templates(folder: Path) -> list[Path]:
    """The workflows in a folder that have a sampler."""
    quoted = [f'"{sampler}"' for sampler in SAMPLERS]
    found = [path for path in sorted(folder.glob("*.json")) if any(one in path.read_text("utf-8") for one in quoted)]
    return [path for path in found if "nodes" in _workflow(path)]


def _workflow(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text("utf-8"))
    return content if isinstance(content, dict) else {}


def tried(page: Any, path: Path) -> list[dict[str, Any]]:
    """Every sampler of one template with each entry."""
    rows = []
    for place, node, sampler in page.evaluate(LOAD, _workflow(path)):
        for entry in (THIS, PICTURE):
            done = page.evaluate(TRY, [place, node, entry])
            what, wrong = judged(sampler, entry, done)
            said = " ".join(text for _, text in done.get("told", []))
            rows.append(
                {
                    "template": path.stem,
                    "sampler": sampler,
                    "node": node,
                    "inside": place is not None,
                    "entry": entry,
                    "what": what,
                    "wrong": wrong,
                    "said": said,
                }
            )
    return rows


def report(rows: list[dict[str, Any]]) -> int:
    """Prints the tables; how many tries are not as they should be."""
    bad = [row for row in rows if row["wrong"]]
    for row in bad:
        print(f"\n{row['template']}, {row['sampler']} {row['node']}, {row['entry']}: {row['what']}")
        for text in row["wrong"][:5]:
            print(f"    {text[:600]}")
    print(f"\n{'sampler':24}{'entry':22}{'done':>6}{'refused':>9}{'not queued':>12}{'wrong':>7}")
    for sampler in SAMPLERS:
        for entry in (THIS, PICTURE):
            these = [row for row in rows if (row["sampler"], row["entry"]) == (sampler, entry)]
            count = Counter(row["what"] for row in these)
            wrong = sum(bool(row["wrong"]) for row in these)
            numbers = f"{count['done']:6}{count['refused']:9}{count['not queued']:12}{wrong:7}"
            print(f"{sampler:24}{entry:22}{numbers}")
    for text, number in Counter(row["said"] for row in rows if row["what"] == "refused").most_common():
        print(f"{number:5}  {text}")
    names = {row["template"] for row in rows}
    sound = {row["template"] for row in rows if row["what"] == "refused" and "becomes no picture" in row["said"]}
    sound -= {row["template"] for row in rows if row["what"] != "refused"}
    bad_names = {row["template"] for row in bad}
    print(f"\n{len(names)} templates with samplers, {len(sound)} of them make no picture.")
    for entry in (THIS, PICTURE):
        good = {row["template"] for row in rows if row["entry"] == entry and row["what"] in ("done", "not queued")}
        fine, other = len(good - bad_names), len(bad_names & names)
        print(f"{entry}: {fine} templates, all as it should be; {other} where something is not.")
    return len(bad)


def with_a_verifier(home: Path) -> None:
    """A file that the list of ImageReward offers; it is never loaded here."""
    folder = home / "models" / "image_reward"
    folder.mkdir(parents=True)
    (folder / "ImageReward.safetensors").write_bytes(b"")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--templates", type=Path, help="a folder of workflows")
    parser.add_argument("--only", default="", help="templates with this in their name")
    parser.add_argument("--json", type=Path, help="a file for all rows")
    options = parser.parse_args()
    folder = options.templates
    if folder is None:
        import comfyui_workflow_templates_json as package

        folder = Path(package.__path__[0]) / "templates"
    rows: list[dict[str, Any]] = []
    with frontend.browser() as chromium, _server.comfy_server(prepare=with_a_verifier) as server:
        page = frontend.FrontEnd(chromium, server.url).page
        page.evaluate(SETUP)
        for path in templates(folder):
            if options.only in path.stem:
                rows += tried(page, path)
                print(".", end="", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), "utf-8")
    return 1 if report(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
