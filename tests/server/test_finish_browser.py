"""Finish now and the stored searches in ComfyUI's real front end, on the classic canvas and in Nodes 2.0."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import frontend
import pytest
from graphs import fused

# The front end is a package of its own, the same under every ComfyUI; what the server tells it, test_server.py checks.
pytestmark = [pytest.mark.any_host, pytest.mark.comfyui, pytest.mark.slow]

EXAMPLE = Path(__file__).resolve().parents[2] / "example_workflows" / "Search the noise (demo).json"
CANDIDATES = 4096  # far more than anybody waits for: such a search ends because it is asked to
STEPS = 2
ENDS = ["execution_success", "execution_error", "execution_interrupted"]
WAIT = 180_000  # ms, for what a busy machine may take its time for
LOOKS = {"classic": {}, "nodes 2.0": frontend.NODES_2}

SEARCH_NODE = "app.rootGraph.nodes.find(node => node.type === 'NoiseSearchKSampler')"
WATCH = """types => {
    window.seen = [];
    for (const type of types) window.comfyAPI.api.api.addEventListener(type, ({ detail }) => seen.push([type, detail]));
}"""
SET = """values => {
    for (const widget of NODE.widgets) if (widget.name in values) widget.value = values[widget.name];
}""".replace("NODE", SEARCH_NODE)
# The progress of a search is the model's evaluations; candidate 0 alone has STEPS.
HAS_SCORED = """steps => {
    const told = seen.findLast(([type]) => type === 'progress_state');
    return Object.values(told[1].nodes).some(node => node.state === 'running' && node.value > steps);
}"""
SAVE_AND_LOAD = """async () => {
    const before = await app.graphToPrompt();
    await app.loadGraphData(JSON.parse(JSON.stringify(app.rootGraph.serialize())));
    return [before.output, (await app.graphToPrompt()).output];
}"""
# The search node moves into a subgraph, which is opened.
INTO_A_SUBGRAPH = """() => {
    const { subgraph } = app.rootGraph.convertToSubgraph(new Set([NODE]));
    app.canvas.setGraph(subgraph);
}""".replace("NODE", SEARCH_NODE)
THREE_SEEDS = """() => {
    const seeds = LiteGraph.createNode('NoiseSearchCandidates');
    app.rootGraph.add(seeds);
    for (const widget of seeds.widgets) if (widget.name === 'count') widget.value = 3;
    seeds.connect(1, NODE, NODE.inputs.findIndex(input => input.name === 'seed'));
}""".replace("NODE", SEARCH_NODE)
# The older front end's Nodes 2.0 follows its own resize handle only, by this variable.
MAKE_NARROW = """() => {
    const node = NODE;
    node.setSize([260, node.size[1]]);
    document.querySelector(`[data-node-id='${node.id}']`)?.style.setProperty('--node-width', '260px');
    app.canvas.setDirty(true, true);
}""".replace("NODE", SEARCH_NODE)
BUTTON = ".noise-search-finish"


@pytest.fixture(scope="module")
def front_server(tmp_path_factory):
    """A ComfyUI with a store."""
    comfy = os.environ.get("COMFYUI_PATH")
    if not comfy:
        pytest.skip("COMFYUI_PATH is not set")
    from comfy_server import ComfyServer

    with ComfyServer(Path(comfy), tmp_path_factory.mktemp("comfyui"), store=True) as running:
        yield running


class Tab:
    """One browser tab with the example open."""

    def __init__(self, chromium, server, look):
        self.server, self.look = server, look
        self.front = frontend.FrontEnd(chromium, server.url, settings=LOOKS[look])
        self.page = self.front.page
        self.page.evaluate(WATCH, [*ENDS, "executing", "progress_state"])
        self.front.load(json.loads(EXAMPLE.read_text("utf-8")))
        self.page.wait_for_selector(BUTTON, timeout=WAIT)

    def open(self):
        """Loads the example anew, with a search that does not end by itself. What an earlier test left running ends."""
        self.server.interrupt()
        self.front.load(json.loads(EXAMPLE.read_text("utf-8")))
        self.page.wait_for_selector(BUTTON, timeout=WAIT)
        self.set(candidates=CANDIDATES, steps=STEPS, batch_size=1)

    def set(self, **values):
        self.page.evaluate(SET, values)

    def queue(self):
        self.page.evaluate("() => { seen.length = 0; app.queuePrompt(0); }")

    def wait(self, state):
        self.page.wait_for_selector(f'{BUTTON}[data-state="{state}"]', timeout=WAIT)

    def wait_until_scored(self):
        """Until the running search has its first candidate."""
        self.wait("running")
        self.page.wait_for_function(HAS_SCORED, arg=STEPS, timeout=WAIT)

    def finish(self):
        self.page.click(BUTTON)

    def end(self):
        """Waits for the end of the run: how it ended, what it saved, and the search's log."""
        self.page.wait_for_function("ends => seen.some(([type]) => ends.includes(type))", arg=ENDS, timeout=WAIT)
        seen = self.page.evaluate("seen")
        [(how, detail)] = [(kind, detail) for kind, detail in seen if kind in ENDS]
        outputs = self.server.get(f"/history/{detail['prompt_id']}")[detail["prompt_id"]]["outputs"]
        [log] = [json.loads(ui["noise_search_report"][0]) for ui in outputs.values() if "noise_search_report" in ui]
        saved = [image for ui in outputs.values() for image in ui.get("images", []) if image["type"] == "output"]
        executed = [detail for kind, detail in seen if kind == "executing"]
        return SimpleNamespace(how=how, log=log, saved=saved, executed=executed)

    def buttons(self):
        return self.page.eval_on_selector_all(
            BUTTON, "all => all.map(one => ({state: one.dataset.state, text: one.textContent, off: one.disabled}))"
        )

    def results(self):
        """What the nodes say of their results, and whether the front end shows a text of a running node as well."""
        texts = self.page.eval_on_selector_all(".noise-search-result", "all => all.map(one => one.textContent)")
        both = self.page.evaluate(f"{SEARCH_NODE}.widgets.filter(one => one.name === '$$node-text-preview').length")
        return [" ".join(text.split()) for text in texts], both

    def wait_for_result(self, text):
        self.page.wait_for_selector(f".noise-search-result:has-text('{text}')", timeout=WAIT)

    def pictures(self):
        """How many pictures the search node shows, where nodes are not painted on the canvas."""
        return self.page.evaluate(f"document.querySelectorAll(`[data-node-id='${{{SEARCH_NODE}.id}}'] img`).length")

    def narrow(self):
        """What of a result's text is seen on a node that is made narrow: heights of the text and of its place."""
        self.page.evaluate(MAKE_NARROW)
        for _ in range(40):
            self.page.wait_for_timeout(250)
            measure = "one => [one.clientWidth, one.scrollHeight, one.clientHeight]"
            width, whole, seen = self.page.eval_on_selector(".noise-search-result", measure)
            if width <= 260 and seen >= whole:
                break
        return width, whole, seen

    def search_node(self):
        return self.page.evaluate(f"{SEARCH_NODE}.serialize()")


@pytest.fixture(scope="module", params=LOOKS)
def tab(request, chromium, front_server):
    opened = Tab(chromium, front_server, request.param)
    yield opened
    opened.page.close()


@pytest.fixture(scope="module")
def story(tab):
    """One search that is finished by the button, then the same one queued again."""
    told = SimpleNamespace(loaded=tab.search_node(), prompt=tab.page.evaluate("app.graphToPrompt()")["output"])
    told.idle = tab.buttons()
    told.height = tab.page.eval_on_selector(BUTTON, "one => one.offsetHeight")
    tab.set(candidates=CANDIDATES, steps=STEPS, batch_size=1)
    tab.queue()
    tab.wait_until_scored()
    told.running = tab.buttons()
    told.running_height = tab.page.eval_on_selector(BUTTON, "one => one.offsetHeight")
    tab.finish()
    told.first = tab.end()
    tab.wait("idle")
    told.after = tab.buttons()
    tab.queue()
    tab.wait_until_scored()
    told.results_while_running, told.pictures_while_running = tab.results()[0], tab.pictures()
    tab.finish()
    told.second = tab.end()
    tab.wait("idle")
    tab.wait_for_result("asked to finish")
    told.results = tab.results()
    tab.page.wait_for_timeout(500)  # front ends from 1.58 on take texts away after the end
    told.results_later, told.pictures = tab.results(), tab.pictures()
    told.narrow = tab.narrow()
    tab.set(candidates=16, steps=20, batch_size=0)
    told.saved = tab.search_node()
    told.saved_prompt, told.loaded_prompt = tab.page.evaluate(SAVE_AND_LOAD)
    return told


def test_at_rest_the_button_cannot_be_pressed(story):
    assert story.idle == [{"state": "idle", "text": "Finish now", "off": True}]


def test_while_the_node_runs_it_can(story):
    assert story.running == [{"state": "running", "text": "Finish now", "off": False}]


def test_afterwards_it_is_at_rest_again(story):
    assert story.after == story.idle


def test_it_keeps_its_height(story):
    assert story.running_height == story.height >= 16


def test_the_run_ends_well(story):
    assert story.first.how == "execution_success"


def test_the_graph_goes_on_with_the_best_so_far(story):
    assert len(story.first.saved) == 1


def test_the_search_says_that_it_was_asked(story):
    assert "asked to finish" in story.first.log["stopped"]


def test_it_made_far_fewer_candidates(story):
    assert 1 <= len(story.first.log["candidates"]) < CANDIDATES // 4


def test_queued_again_it_does_not_come_from_the_cache(story):
    assert story.second.how == "execution_success"
    assert str(story.loaded["id"]) in story.second.executed


def test_queued_again_it_goes_on(story):
    """What the first search scored is known and not computed again."""
    assert story.second.log["recalled"]["candidates"] >= 1


def test_the_result_stands_on_the_node_once_and_for_good(story):
    for texts, running in (story.results, story.results_later):
        [text] = texts
        assert "Ended because it was asked to finish." in text and "known from before" in text and not running


def test_the_result_of_before_is_gone_while_the_node_runs(story):
    assert story.results_while_running == []


def test_the_node_shows_one_picture(story, tab):
    one = 1 if tab.look == "nodes 2.0" else 0  # the classic canvas paints it
    assert story.pictures == story.pictures_while_running == one


def test_on_a_narrow_node_the_whole_result_is_seen(story):
    width, whole, seen = story.narrow
    assert width <= 260 and seen >= whole > 0


def test_saved_after_a_run_every_value_is_where_it_was(story):
    assert story.saved["widgets_values"][: len(story.loaded["widgets_values"])] == story.loaded["widgets_values"]


def test_saved_after_a_run_and_loaded_it_is_the_same_workflow(story):
    assert story.loaded_prompt == story.saved_prompt


def test_the_button_is_no_value_of_the_node(story):
    kept = json.loads(EXAMPLE.read_text("utf-8"))
    [values] = [node["widgets_values"] for node in kept["nodes"] if node["type"] == "NoiseSearchKSampler"]
    assert story.loaded["widgets_values"] == values


def test_the_button_is_no_input_of_the_node(story):
    [node] = [node for node in story.prompt.values() if node["class_type"] == "NoiseSearchKSampler"]
    assert not [name for name in node["inputs"] if "finish" in name]


def test_in_a_subgraph_it_finishes_its_own_node(tab):
    tab.open()
    tab.page.evaluate(INTO_A_SUBGRAPH)
    tab.page.wait_for_selector(BUTTON, timeout=WAIT)
    tab.queue()
    tab.wait_until_scored()
    tab.finish()
    ended = tab.end()
    tab.wait("idle")
    assert "asked to finish" in ended.log["stopped"]


def test_of_a_list_each_search_has_its_own_finish(tab):
    """Three seeds are three searches in one run of the node."""
    tab.open()
    tab.page.evaluate(THREE_SEEDS)
    tab.queue()
    for _ in range(3):
        tab.wait_until_scored()
        tab.finish()
    assert tab.end().how == "execution_success"


def test_a_run_that_is_cancelled_leaves_no_button_behind(tab):
    tab.open()
    tab.queue()
    tab.wait_until_scored()
    tab.server.interrupt()
    assert tab.page.wait_for_function("ends => seen.find(([type]) => ends.includes(type))", arg=ENDS, timeout=WAIT)
    tab.wait("idle")
    tab.wait_for_result("Cancelled. Nothing is lost:")
    assert len(tab.results()[0]) == 1 and not tab.results()[1]


def test_a_workflow_that_is_opened_again_while_it_runs_has_its_button(tab):
    tab.open()
    tab.queue()
    tab.wait_until_scored()
    tab.page.evaluate("async () => app.loadGraphData(app.rootGraph.serialize())")
    tab.wait("running")
    tab.finish()
    assert tab.end().how == "execution_success"


def test_a_request_that_fails_is_told(tab):
    tab.open()
    tab.queue()
    tab.wait_until_scored()
    tab.page.route("**/noise_search/finish", lambda route: route.fulfill(status=400, json={"error": "Not today."}))
    tab.finish()
    tab.page.wait_for_selector("text=The search could not be asked to finish. Not today.", timeout=WAIT)
    tab.wait("running")
    tab.page.unroute("**/noise_search/finish")
    tab.finish()
    assert tab.end().how == "execution_success"


def test_the_command_finishes_what_runs(tab):
    tab.open()
    tab.queue()
    tab.wait_until_scored()
    tab.page.evaluate("app.extensionManager.command.execute('NoiseSearch.FinishNow')")
    assert tab.end().how == "execution_success"


def test_the_command_says_that_nothing_runs(tab):
    tab.open()
    tab.page.evaluate("app.extensionManager.command.execute('NoiseSearch.FinishNow')")
    tab.page.wait_for_selector("text=No search is running.", timeout=WAIT)


# ---- the stored searches ---------------------------------------------------------------------------------------

ROWS = ".noise-search-stored tbody tr"
EVIL = "<img src=x onerror='window.broken = 1'><b>bold</b>"


@pytest.fixture
def dialog(tab):
    """The dialog with two searches in it; one's prompt is HTML."""
    tab.server.interrupt()  # what an earlier test left running
    with ThreadPoolExecutor() as thread:  # in this one Playwright's event loop runs
        for prompt in ("a red circle", EVIL):
            run = thread.submit(tab.server.run, fused(candidates=2, steps=1, prompt=prompt)).result()
            assert run.status == "success", run.error
    tab.page.evaluate("app.extensionManager.command.execute('NoiseSearch.StoredSearches')")
    tab.page.wait_for_selector(ROWS, timeout=WAIT)
    yield tab.page
    if tab.page.query_selector(".noise-search-stored"):
        tab.page.click(".noise-search-stored > .noise-search-actions >> text=Close")
    tab.page.wait_for_selector(".noise-search-stored", state="detached", timeout=WAIT)
    tab.server.post("/noise_search/store", {"enabled": True, "limit_mb": 512})
    tab.server.post("/noise_search/store/delete", {"all": True})


def stored(tab):
    return tab.server.get("/noise_search/store")


def prompts(page):
    return page.eval_on_selector_all(f"{ROWS} .noise-search-prompt", "all => all.map(one => one.textContent)")


def answer(page, text):
    page.click(f".noise-search-confirm >> button:text-is('{text}')")
    page.wait_for_selector(".noise-search-confirm", state="detached", timeout=WAIT)


@pytest.mark.parametrize("tab", ["classic"], indirect=True)
class TestTheDialog:
    """It has nothing to do with how nodes are drawn."""

    def test_the_dialog_lists_the_searches_last_used_first(self, dialog):
        assert prompts(dialog)[:2] == [EVIL, "a red circle"]

    def test_a_prompt_is_text_and_never_markup(self, dialog):
        assert dialog.query_selector(".noise-search-stored img, .noise-search-stored b") is None
        assert dialog.evaluate("window.broken") is None

    def test_the_dialog_says_where_the_file_is(self, dialog, tab):
        assert stored(tab)["path"] in dialog.text_content(".noise-search-place")

    def test_one_search_is_deleted_after_a_question(self, dialog, tab):
        dialog.click(f"{ROWS}:first-child >> text=Delete")
        answer(dialog, "Delete")
        dialog.wait_for_function(
            "evil => ![...document.querySelectorAll('.noise-search-prompt')].some(one => one.textContent === evil)",
            arg=EVIL,
            timeout=WAIT,
        )
        left = [search["prompt"] for search in stored(tab)["searches"]]
        assert EVIL not in left and "a red circle" in left

    def test_no_is_no(self, dialog):
        sent = []
        dialog.on("request", lambda request: sent.append(request.url))
        dialog.click("text=Delete all")
        answer(dialog, "Cancel")
        stored_now = dialog.evaluate("fetch('/noise_search/store').then(answer => answer.json())")
        assert [url for url in sent if "delete" in url] == [] and stored_now["searches"]

    def test_all_searches_are_deleted_after_a_question(self, dialog, tab):
        dialog.click("text=Delete all")
        answer(dialog, "Delete all")
        dialog.wait_for_selector("text=Nothing is stored yet.", timeout=WAIT)
        assert stored(tab)["searches"] == []

    def test_storing_can_be_switched_off(self, dialog, tab):
        with dialog.expect_response("**/noise_search/store"):
            dialog.uncheck("text=Store searches")
        assert stored(tab)["enabled"] is False

    def test_the_limit_can_be_set(self, dialog, tab):
        with dialog.expect_response("**/noise_search/store"):
            dialog.fill("#noise-search-limit", "77")
            dialog.press("#noise-search-limit", "Enter")
        assert stored(tab)["limit_mb"] == 77

    def test_a_limit_that_cannot_be_is_refused_and_shown_as_it_was(self, dialog, tab):
        with dialog.expect_response("**/noise_search/store"):
            dialog.fill("#noise-search-limit", "3")
            dialog.press("#noise-search-limit", "Enter")
        dialog.wait_for_selector(
            "text=The size limit (limit_mb) is a whole number from 16 to 1000000, not 3.", timeout=WAIT
        )
        assert dialog.input_value("#noise-search-limit") == str(stored(tab)["limit_mb"])

    def test_escape_closes_it(self, dialog):
        dialog.press("#noise-search-limit", "Escape")
        dialog.wait_for_selector(".noise-search-stored", state="detached", timeout=WAIT)

    def test_the_menu_has_both_commands(self, tab):
        """The tree under ComfyUI's own menu button."""
        tab.page.click("[class*='comfyui-logo'], .comfy-menu-button-wrapper")
        item = lambda name: tab.page.get_by_role("menuitem", name=name, exact=True).first  # noqa: E731
        for name, inside in (("Extensions", "Noise Search"), ("Noise Search", "Stored searches")):
            for _ in range(30):  # a busy browser may miss that the mouse came
                item(name).hover()
                tab.page.wait_for_timeout(500)
                if item(inside).is_visible():
                    break
                tab.page.mouse.move(800, 500)
        for name in ("Stored searches", "Finish now"):
            tab.page.get_by_role("menuitem", name=name, exact=True).wait_for(timeout=WAIT)


SLOTS = """() => {
    const node = app.rootGraph.nodes.find(node => node.type === 'NoiseSearchPicture');
    return [node.inputs, node.outputs].map(slots => slots.filter(slot => slot.name.startsWith('also_')).length);
}"""
ADD_PICTURE = """() => {
    const node = LiteGraph.createNode('NoiseSearchPicture');
    app.rootGraph.add(node);
    return [node.size[0], node.widgets.some(widget => widget.name === 'candidates')];
}"""
LINK_MORE = """number => {
    const node = app.rootGraph.nodes.find(node => node.type === 'NoiseSearchPicture');
    const source = app.rootGraph.nodes.find(node => node.type === 'EmptySD3LatentImage');
    source.connect(0, node, node.inputs.findIndex(input => input.name === `also_${number}`));
}"""
UNLINK_MORE = """number => {
    const node = app.rootGraph.nodes.find(node => node.type === 'NoiseSearchPicture');
    node.disconnectInput(node.inputs.findIndex(input => input.name === `also_${number}`));
}"""


def test_slots_for_more_of_the_winner_come_as_they_are_used(tab):
    """Search Picture has sixteen pairs; one is free at any time."""
    tab.open()
    page = tab.page
    width, made = page.evaluate(ADD_PICTURE)
    assert made and width >= 300
    shown = lambda: page.evaluate(SLOTS)  # noqa: E731
    assert shown() == [1, 1]
    for number in (1, 2):
        page.evaluate(LINK_MORE, number)
        page.wait_for_function(f"({SLOTS})().every(count => count === {number + 1})", timeout=WAIT)
    before, after = page.evaluate(SAVE_AND_LOAD)
    assert before == after
    page.wait_for_function(f"({SLOTS})().every(count => count === 3)", timeout=WAIT)
    page.evaluate(UNLINK_MORE, 2)
    page.wait_for_function(f"({SLOTS})().every(count => count === 2)", timeout=WAIT)
