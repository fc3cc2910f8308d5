"""The entries "Search this" and "Search this picture" of a node's menu, in ComfyUI's real front end, on both canvases.

`benchmarks/search_this.py` tries them on every official template.
"""

import os
from pathlib import Path
from types import SimpleNamespace

import frontend
import pytest

# The front end is a package of its own, the same under every ComfyUI.
pytestmark = [pytest.mark.any_host, pytest.mark.comfyui, pytest.mark.slow]

WAIT = 180_000  # ms, for what a busy machine may take its time for
LOOKS = {"classic": {}, "nodes 2.0": frontend.NODES_2}
ENDS = ["execution_success", "execution_error", "execution_interrupted"]
VALUES = {"seed": 7, "steps": 2, "cfg": 3, "sampler_name": "euler", "scheduler": "simple", "denoise": 1}

# KSampler (5) and VAE Decode (6) on the demo model, as a person lays them out.
BUILD = """values => {
  app.rootGraph.clear();
  const put = (type, x, y, values = {}) => {
    const node = LiteGraph.createNode(type);
    node.pos = [x, y];
    app.rootGraph.add(node);
    for (const widget of node.widgets ?? []) if (widget.name in values) widget.value = values[widget.name];
    return node;
  };
  const join = (from, slot, to, name) => from.connect(slot, to, to.inputs.findIndex(input => input.name === name));
  const demo = put('NoiseSearchDemoCheckpoint', 40, 150);
  const yes = put('CLIPTextEncode', 320, 100, { text: 'a red circle' });
  const no = put('CLIPTextEncode', 320, 340);
  const latent = put('EmptySD3LatentImage', 320, 580, { width: 128, height: 128 });
  const sampler = put('KSampler', 760, 100, { ...values, control_after_generate: 'fixed' });
  const decode = put('VAEDecode', 1120, 100);
  const save = put('SaveImage', 1120, 300);
  for (const text of [yes, no]) join(demo, 1, text, 'clip');
  join(demo, 0, sampler, 'model');
  join(yes, 0, sampler, 'positive');
  join(no, 0, sampler, 'negative');
  join(latent, 0, sampler, 'latent_image');
  join(sampler, 0, decode, 'samples');
  join(demo, 2, decode, 'vae');
  join(decode, 0, save, 'images');
}"""
# Sampler and decode move into a subgraph, whose face shows two widgets of the sampler; it is opened.
INTO_A_SUBGRAPH = """async () => {
  const nodes = app.rootGraph.nodes.filter(node => ['KSampler', 'VAEDecode'].includes(node.type));
  const { node } = app.rootGraph.convertToSubgraph(new Set(nodes));
  const saved = JSON.parse(JSON.stringify(app.rootGraph.serialize()));
  const face = saved.nodes.find(one => String(one.id) === String(node.id));
  face.properties.proxyWidgets = ['seed', 'steps'].map(name => [String(nodes[0].id), name]);
  await app.loadGraphData(saved);
  app.canvas.setGraph([...app.rootGraph.subgraphs.values()][0]);
}"""
SHOWN = """async () => ({
  prompt: (await app.graphToPrompt()).output,
  promoted: app.rootGraph.nodes.filter(node => node.isSubgraphNode?.())
    .map(node => node.widgets.map(widget => [widget.name, widget.value])),
  inside: app.canvas.graph !== app.rootGraph,
})"""
TITLE = """type => {
  const node = app.canvas.graph.nodes.find(one => one.type === type);
  const [scale, offset] = [app.canvas.ds.scale, app.canvas.ds.offset];
  const box = app.canvas.canvas.getBoundingClientRect();
  return [box.x + (node.pos[0] + offset[0] + 60) * scale, box.y + (node.pos[1] + offset[1] - 15) * scale];
}"""
LOOK_AT_IT_ALL = """() => {
  const nodes = app.canvas.graph.nodes;
  const least = axis => Math.min(...nodes.map(node => node.pos[axis]));
  app.canvas.ds.scale = 0.7;
  app.canvas.ds.offset = [150 - least(0), 200 - least(1)];
  app.canvas.setDirty(true, true);
}"""
WATCH = """types => {
  window.seen = [];
  for (const type of types) window.comfyAPI.api.api.addEventListener(type, ({ detail }) => seen.push([type, detail]));
}"""


@pytest.fixture(scope="module")
def front_server(tmp_path_factory):
    comfy = os.environ.get("COMFYUI_PATH")
    if not comfy:
        pytest.skip("COMFYUI_PATH is not set")
    from comfy_server import ComfyServer

    home = tmp_path_factory.mktemp("comfyui")
    with ComfyServer(Path(comfy), home) as running:
        yield running


class Tab:
    def __init__(self, chromium, server, look):
        self.server = server
        self.page = frontend.FrontEnd(chromium, server.url, settings=LOOKS[look]).page
        self.page.evaluate(WATCH, ENDS)
        self.page.evaluate(BUILD, VALUES)

    def shown(self):
        return SimpleNamespace(**self.page.evaluate(SHOWN))

    def choose(self, node, entry):
        """Right-clicks the title of a node and takes an entry of its menu; waits until the workflow has changed."""
        before = self.shown().prompt
        item = self.page.get_by_text(entry, exact=True)
        for _ in range(20):  # a busy browser may not have drawn the node yet
            self.page.evaluate(LOOK_AT_IT_ALL)
            self.page.wait_for_timeout(500)
            self.page.mouse.click(*self.page.evaluate(TITLE, node), button="right")
            self.page.wait_for_timeout(500)
            if item.count():
                break
            self.page.keyboard.press("Escape")
        item.first.click()
        return self.changed(before)

    def undo(self):
        before = self.shown().prompt
        self.page.keyboard.press("Control+z")
        return self.changed(before)

    def changed(self, before):
        for _ in range(120):
            if (now := self.shown()).prompt != before:
                self.page.wait_for_timeout(500)  # until all steps of the change are done
                return self.shown()
            self.page.wait_for_timeout(250)
        return now

    def run(self):
        """Queues what is shown: how it ended, and what its nodes gave the front end."""
        self.page.evaluate("() => { seen.length = 0; app.queuePrompt(0); }")
        self.page.wait_for_function("() => seen.length", timeout=WAIT)
        [(how, detail)] = self.page.evaluate("seen")
        return how, self.server.get(f"/history/{detail['prompt_id']}")[detail["prompt_id"]]["outputs"]


@pytest.fixture(scope="module", params=LOOKS)
def story(request, chromium, front_server):
    """Each entry is taken, run, and taken back; then again in a subgraph."""
    tab, told = Tab(chromium, front_server, request.param), SimpleNamespace()
    told.plain = tab.shown()
    told.searching = tab.choose("KSampler", "Search this")
    told.back = tab.undo()
    told.picture = tab.choose("VAEDecode", "Search this picture")
    told.picture_back = tab.undo()
    tab.choose("KSampler", "Search this")
    told.searched = tab.run()  # which makes its node larger: a change of its own
    tab.page.evaluate(BUILD, VALUES)
    tab.choose("VAEDecode", "Search this picture")
    told.picture_run = tab.run()
    tab.page.evaluate(BUILD, VALUES)
    tab.page.evaluate(INTO_A_SUBGRAPH)
    told.nested = tab.shown()
    told.nested_search = tab.choose("KSampler", "Search this")
    told.nested_back = tab.undo()
    told.nested_picture = tab.choose("VAEDecode", "Search this picture")
    tab.page.close()
    return told


def of_type(shown, kind):
    [found] = [(key, node["inputs"]) for key, node in shown.prompt.items() if node["class_type"] == kind]
    return found


def others(shown, *but):
    return {key: (node["class_type"], node["inputs"]) for key, node in shown.prompt.items() if key not in but}


def test_the_search_is_in_the_samplers_place_with_all_that_it_had(story):
    key, before = of_type(story.plain, "KSampler")
    now, after = of_type(story.searching, "NoiseSearchKSampler")
    assert now == key and before.items() <= after.items() and VALUES.items() <= after.items()
    assert others(story.searching, key) == others(story.plain, key)


def test_it_has_the_vae_that_decodes_and_the_verifier_that_is_there(story):
    demo, _ = of_type(story.plain, "NoiseSearchDemoCheckpoint")
    _, after = of_type(story.searching, "NoiseSearchKSampler")
    assert (after["vae"], after["verifier"]) == ([demo, 2], [demo, 3])


def test_it_runs(story):
    how, outputs = story.searched
    assert how == "execution_success"
    assert any("8 candidates" in text for ui in outputs.values() for text in ui.get("text", []))


def test_the_picture_is_searched_on_its_wire(story):
    key, inputs = of_type(story.picture, "NoiseSearchPicture")
    decode, _ = of_type(story.plain, "VAEDecode")
    save, _ = of_type(story.plain, "SaveImage")
    demo, _ = of_type(story.plain, "NoiseSearchDemoCheckpoint")
    assert (inputs["image"], inputs["verifier"]) == ([decode, 0], [demo, 3])
    assert story.picture.prompt[save]["inputs"]["images"] == [key, 0]
    assert others(story.picture, key, save) == others(story.plain, save)


def test_the_searched_picture_runs(story):
    assert story.picture_run[0] == "execution_success"


def test_one_undo_takes_the_search_back(story):
    assert story.back.prompt == story.plain.prompt


def test_one_undo_takes_the_searched_picture_back(story):
    assert story.picture_back.prompt == story.plain.prompt


def test_in_a_subgraph_the_widgets_on_its_face_stay(story):
    assert len(story.nested.promoted[0]) == 2
    assert story.nested_search.promoted == story.nested_back.promoted == story.nested.promoted


def test_in_a_subgraph_the_search_has_what_the_sampler_had(story):
    key, before = of_type(story.nested, "KSampler")
    now, after = of_type(story.nested_search, "NoiseSearchKSampler")
    demo, _ = of_type(story.nested, "NoiseSearchDemoCheckpoint")
    assert now == key and ":" in key and before.items() <= after.items()
    assert (after["vae"], after["verifier"]) == ([demo, 2], [demo, 3])
    assert others(story.nested_search, key) == others(story.nested, key)
    assert story.nested_back.prompt == story.nested.prompt


def test_the_subgraph_stays_open(story):
    assert story.nested.inside and story.nested_search.inside


def test_a_picture_that_leaves_a_subgraph_is_searched_outside(story):
    key, inputs = of_type(story.nested_picture, "NoiseSearchPicture")
    decode, _ = of_type(story.nested, "VAEDecode")
    assert ":" not in key and inputs["image"] == [decode, 0]
