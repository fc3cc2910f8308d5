"""Winners travel: a saved picture, queued again elsewhere, is made again at the cost of one render, bit for bit."""

import copy
import io
import json
import os
from pathlib import Path

import frontend
import graphs
import numpy as np
import pytest
from graphs import node
from PIL import Image

pytest.importorskip("comfy")

import comfy.samplers
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced
from comfy_server import ComfyServer
from noise_search.host import travel
from noise_search.host.engine import Options
from noise_search.host.noise import RecipeNoise
from noise_search.host.sampling import Sampling
from noise_search.host.search import Graph, search
from noise_search.host.store import Store
from noise_search.search.log import REPLAY
from noise_search.search.paths import SearchOverPaths
from noise_search.search.recipe import Recipe, from_json
from noise_search.search.zero_order import ZeroOrderSearch
from test_store_reuse import NODES

pytestmark = pytest.mark.comfyui

STEPS, SEED, CANDIDATES = 4, 20, 6
PATHS = SearchOverPaths(paths=1, branches=2, sigma=0.3, forward=0.4, backward=0.5)
EXAMPLE = Path(__file__).resolve().parents[1] / "example_workflows" / "Search the noise (demo).json"


# In this process


class Red:
    members = ("red",)
    needs_prompt = False
    usual_range = (0.9, 1.0)  # of such small pictures of something red
    add = 0.0

    def identity(self):
        return "red"

    def score(self, images, prompts):
        return images[..., 0].float().mean(dim=(1, 2)).reshape(-1, 1) + self.add


class Lighter(Red):
    add = 0.05


class LikesStock(Red):
    """Likes the first image that it ever sees most."""

    def __init__(self):
        self.liked = None

    def score(self, images, prompts):
        self.liked = images.clone() if self.liked is None else self.liked
        return -(images - self.liked).abs().mean(dim=(1, 2, 3)).reshape(-1, 1)


def prompt_of(**inputs):
    """The graph as ComfyUI hands it over, as far as it matters here: the node, and one before it."""
    return {"1": node("Encode", text="a cat"), "7": node("NoiseSearchKSampler", positive=["1", 0], **inputs)}


class Found:
    """A result, its log, the workflow that ComfyUI would save with it, and how many rows went through the denoiser."""

    def __init__(self, result, workflow, evaluated):
        self.log, self.image, self.recipe = result.log, result.image, result.recipe
        self.top_images, self.noise, self.latent = result.top_images, result.noise, result.latent
        self.workflow, self.evaluated = workflow, evaluated


@pytest.fixture
def find(demo, tmp_path):
    stores = iter(range(100))

    @torch.inference_mode()
    def find(workflow=None, algorithm=None, batch=1, verifier=None, top_k=1, candidates=CANDIDATES, runs=1, **widgets):
        """The last of so many runs of a node in one prompt. Every prompt has an empty store."""
        latent = {"samples": torch.zeros(batch, 16, 8, 8)}
        workflow = json.loads(json.dumps({"nodes": []} if workflow is None else workflow, allow_nan=False))
        prompt = prompt_of(candidates=candidates, **widgets)
        store, extra, found = Store(tmp_path / str(next(stores))), {"workflow": workflow}, []
        for run in range(runs):
            sampling = Sampling.ksampler(
                demo.model, STEPS, 3.0, "euler", "simple", demo.encode(f"a red circle {run}"), demo.negative, latent
            )
            result = search(
                lambda sampling=sampling: sampling, demo.vae, verifier or Red(), SEED + 100 * run, candidates, "",
                top_k, Graph("7", prompt, extra), "positive", algorithm, options=Options(1), store=store,
            )  # fmt: skip
            found.append(Found(result, workflow, sampling.evaluations.rows))
        return found[0] if runs == 1 else found

    return find


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("algorithm", [None, ZeroOrderSearch()], ids=["random", "zero-order"])
def test_the_same_workflow_makes_the_picture_again_with_one_render(find, algorithm, batch):
    first = find(algorithm=algorithm, batch=batch)
    again = find(first.workflow, algorithm, batch)
    assert again.log.algorithm == REPLAY
    assert again.evaluated == batch * STEPS
    assert again.recipe == first.recipe
    assert torch.equal(again.image, first.image)
    assert again.log.warnings == []


def test_a_path_is_made_again_too(find):
    first = find(algorithm=PATHS, candidates=16)
    again = find(first.workflow, PATHS, candidates=16)
    assert json.loads(first.recipe)["jumps"]
    assert again.log.algorithm == REPLAY
    assert len(again.log.candidates) == 1
    assert torch.equal(again.image, first.image)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_best_k_are_made_again_in_order(find, batch):
    first = find(top_k=3, batch=batch)
    again = find(first.workflow, top_k=3, batch=batch)
    assert again.evaluated == 3 * batch * STEPS
    assert [image.tolist() for image in again.top_images] == [image.tolist() for image in first.top_images]


def test_a_picture_made_again_travels_on(find):
    first = find()
    again = find(find(first.workflow).workflow)
    assert again.log.algorithm == REPLAY
    assert torch.equal(again.image, first.image)


def test_the_best_k_are_made_again_though_all_but_the_best_are_long_paths(find):
    verifier, long = LikesStock(), SearchOverPaths(paths=1, branches=2, sigma=0.3, forward=0.4, backward=0.45)
    first = find(algorithm=long, verifier=verifier, top_k=4, candidates=30)
    again = find(first.workflow, long, verifier=verifier, top_k=4, candidates=30)
    assert again.log.candidates[1].nfe > 3 * again.log.candidates[0].nfe
    assert [image.tolist() for image in again.top_images] == [image.tolist() for image in first.top_images]


def test_each_run_of_a_node_has_its_own(find):
    first = find(runs=3)
    again = find(first[-1].workflow, runs=3)
    assert [run.log.algorithm for run in again] == [REPLAY] * 3
    assert [run.evaluated for run in again] == [STEPS] * 3
    assert [run.image.tolist() for run in again] == [run.image.tolist() for run in first]


def test_more_runs_than_the_picture_had_search(find):
    again = find(find().workflow, runs=2)
    assert [run.log.algorithm for run in again] == [REPLAY, "random search"]


def test_a_changed_widget_searches(find):
    changed = find(find().workflow, steps_of_another_kind=3)
    assert changed.log.algorithm == "random search"
    assert len(changed.log.candidates) == CANDIDATES


def test_after_a_change_the_workflow_carries_the_new_winner(find):
    first = find(candidates=1)
    changed = find(first.workflow, candidates=6)
    again = find(changed.workflow, candidates=6)
    assert again.log.algorithm == REPLAY
    assert torch.equal(again.image, changed.image)


def test_a_winner_that_scores_otherwise_here_is_searched_for_anew(find):
    first = find()
    again = find(first.workflow, verifier=Lighter())
    assert again.log.algorithm == "random search"
    assert len(again.log.candidates) == CANDIDATES
    assert [warning for warning in again.log.warnings if "searched anew" in warning]


def test_a_search_of_nothing_before_is_the_search_itself(find):
    again, plain = find(find().workflow, verifier=Lighter()), find(verifier=Lighter())
    assert torch.equal(again.image, plain.image)


def entry_of(workflow):
    return workflow["extra"][travel.KEY]["7"]["runs"][0]


def other_recipe(entry):
    entry["recipes"] = [[Recipe(999).to_dict()]]


def too_many_moves(entry):
    moves = [{"move": "rotate", "seed": i, "angle": 1.0} for i in range(4096)]
    entry["recipes"] = [[{"version": 1, "seed": 1, "moves": moves}]]


def huge_batch(entry):
    entry["recipes"] = [[{"version": 1, "seed": 1, "batch": 4096, "row": 4095}]]


def too_many_jumps(entry):
    jumps = [{"seed": i, "from": 0.5, "to": 0.6} for i in range(4096)]
    entry["recipes"] = [[{"version": 1, "seed": 1, "jumps": jumps}]]


def jumps_that_lead_nowhere(entry):
    entry["recipes"] = [[{"version": 1, "seed": 1, "jumps": [{"seed": 1, "from": 1.0, "to": 1.0}]}]]


def another_batch(entry):
    entry["recipes"] = [[{"version": 1, "seed": 1}] * 3]


def ragged_scores(entry):
    entry["values"] = [[0.5], [0.5, 0.5]]


def many_scores(entry):
    entry["values"] = [[0.5] * 10**5]


def huge_score(entry):
    entry["values"] = [[10**400]]


def no_score(entry):
    entry["values"] = [[None]]


STRANGE = [
    other_recipe, too_many_moves, huge_batch, too_many_jumps, jumps_that_lead_nowhere, another_batch, ragged_scores,
    many_scores, huge_score, no_score,
]  # fmt: skip


@pytest.mark.parametrize("strange", STRANGE)
def test_what_a_stranger_wrote_into_the_workflow_does_no_more_than_a_search(find, strange):
    first = find()
    workflow = copy.deepcopy(first.workflow)
    strange(entry_of(workflow))
    again = find(workflow)
    assert again.log.algorithm == "random search"
    tried = strange in (other_recipe, many_scores)  # of the others nothing is even sampled
    assert again.evaluated == (CANDIDATES + tried) * STEPS
    assert torch.equal(again.image, first.image)
    assert all(len(warning) < 1000 for warning in again.log.warnings)


def test_a_verifier_that_was_dropped_leaves_no_nan_in_the_picture():
    workflow, prompt = {}, prompt_of()
    winners = travel.Winners(((Recipe(1),),), ((0.5, float("nan")),))
    travel.leave(workflow, prompt, "7", 0, winners)
    text = json.dumps(workflow, allow_nan=False)
    found = travel.find(json.loads(text), prompt, "7", 0)
    assert found.recipes == winners.recipes
    assert str(found.scores) == str(winners.scores)


@pytest.mark.parametrize("metadata", ["text", 5, [1], {"7": 5}, None])
def test_whatever_a_client_sends_as_metadata_is_no_error(demo, metadata):
    graph = Graph("7", prompt_of(), {"noise_search": metadata, "workflow": metadata})
    assert graph.winners() is None


def test_noise_from_recipe_makes_the_winner_in_the_stock_sampler(find, demo):
    """Whatever travels: `noise` is what Noise from Recipe makes of the `recipe` output."""
    found = find(algorithm=ZeroOrderSearch())
    guider = comfy.samplers.CFGGuider(demo.model)
    guider.set_conds(demo.encode("a red circle 0"), demo.negative)
    guider.set_cfg(3.0)
    sampler = comfy.samplers.sampler_object("euler")
    sigmas = comfy.samplers.calculate_sigmas(demo.model.get_model_object("model_sampling"), "simple", STEPS)
    latent = {"samples": torch.zeros(1, 16, 8, 8)}
    with torch.inference_mode():
        made = SamplerCustomAdvanced.execute(RecipeNoise(from_json(found.recipe)), guider, sampler, sigmas, latent)
    assert torch.equal(made.args[0]["samples"], found.latent["samples"])


# On a real server, over HTTP


def start(home, *arguments):
    """A server without a store and without ComfyUI's own cache: nothing is known but what the picture says."""
    (home / "custom_nodes").mkdir(parents=True)
    (home / "custom_nodes" / "test-nodes").symlink_to(NODES, target_is_directory=True)
    return ComfyServer(Path(os.environ["COMFYUI_PATH"]), home, "--cache-none", *arguments)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with start(tmp_path_factory.mktemp("travel") / "home") as running:
        yield running


def small(seed=16, **inputs):
    prompt = graphs.fused(seed=seed, candidates=3, steps=STEPS)
    prompt["latent"]["inputs"] |= {"width": 64, "height": 64}
    prompt["search"]["inputs"] |= inputs
    return prompt | {"report": node("NoiseSearchReport", log=["search", 5])}


class Ran:
    """A run of a prompt with a workflow: its logs, its pictures, and the workflow that the first picture carries."""

    def __init__(self, server, prompt, workflow):
        run = server.run(prompt, extra_pnginfo={"workflow": workflow})
        assert run.status == "success", run.error
        pictures = server.images(run, "save")
        self.logs = [json.loads(text) for text in run.outputs["report"]["noise_search_report"]]
        self.pictures = [np.asarray(picture).tolist() for picture in pictures]
        self.workflow = json.loads(pictures[0].text["workflow"])
        self.recipe = json.loads(pictures[0].text["noise_search"])["search"][0]["recipe"]

    @property
    def how(self):
        return [(log["algorithm"], log["nfe"]) for log in self.logs]


def test_the_saved_picture_is_made_again_with_one_render(server):
    first = Ran(server, small(), {"nodes": [], "version": 0.4})
    again = Ran(server, small(), first.workflow)
    assert first.how == [("random search", 3 * STEPS)]
    assert again.how == [(REPLAY, STEPS)]
    assert (again.pictures, again.recipe) == (first.pictures, first.recipe)
    assert again.workflow["version"] == 0.4


def test_a_changed_prompt_searches(server):
    first = Ran(server, small(), {})
    other = small()
    other["positive"]["inputs"]["text"] = "a blue square"
    assert Ran(server, other, first.workflow).how == [("random search", 3 * STEPS)]


def test_of_a_prompt_list_each_picture_is_made_again(server):
    prompt = small() | {"texts": node("NoiseSearchTestTexts", text="a red circle\na blue square")}
    prompt["positive"]["inputs"]["text"] = prompt["search"]["inputs"]["prompt"] = ["texts", 0]
    first = Ran(server, prompt, {})
    again = Ran(server, prompt, first.workflow)
    assert again.how == [(REPLAY, STEPS)] * 2
    assert again.pictures == first.pictures


# In ComfyUI's own front end

QUEUE = "() => { ended.length = 0; app.queuePrompt(0); }"
WATCH = """() => {
    window.ended = [];
    for (const type of ['execution_success', 'execution_error', 'execution_interrupted'])
        window.comfyAPI.api.api.addEventListener(type, ({ detail }) => ended.push([type, detail.prompt_id]));
}"""
DROP = """async bytes => {
    await app.handleFile(new File([new Uint8Array(bytes)], 'picture.png', { type: 'image/png' }));
    return app.rootGraph.nodes.length;
}"""
EMPTY = "() => app.rootGraph.clear()"
SMALL = """() => {
    for (const node of app.rootGraph.nodes)
        for (const widget of node.widgets ?? [])
            if (widget.name in VALUES) widget.value = VALUES[widget.name];
}""".replace("VALUES", json.dumps({"candidates": 3, "steps": STEPS, "width": 64, "height": 64, "top_k": 1}))
WAIT = 180_000


@pytest.fixture(scope="module", params=["this front end", "the older front end"])
def front_server(request, tmp_path_factory):
    if request.param == "this front end":
        yield request.getfixturevalue("server")
        return
    pages = os.environ.get(frontend.OTHER)
    if not pages:
        pytest.skip(f"{frontend.OTHER}, a folder with another front end, is not set; `dev.py test` sets it")
    with start(tmp_path_factory.mktemp("older") / "home", "--front-end-root", pages) as running:
        yield running


def queue(page, server):
    """Queues what is open and waits: (logs, bytes of the saved picture)."""
    page.evaluate(QUEUE)
    page.wait_for_function("ended.length", timeout=WAIT)
    [[how, prompt_id]] = page.evaluate("ended")
    assert how == "execution_success"
    outputs = server.get(f"/history/{prompt_id}")[prompt_id]["outputs"].values()
    logs = [json.loads(ui["noise_search_report"][0]) for ui in outputs if "noise_search_report" in ui]
    [saved] = [image for ui in outputs for image in ui.get("images", []) if image["type"] == "output"]
    return logs, server.get_bytes("/view", **saved)


@pytest.mark.slow
def test_a_picture_dropped_into_the_front_end_and_queued_is_made_again(chromium, front_server):
    page = frontend.FrontEnd(chromium, front_server.url).page
    page.evaluate(WATCH)
    page.evaluate("workflow => app.loadGraphData(workflow)", json.loads(EXAMPLE.read_text("utf-8")))
    page.evaluate(SMALL)
    [searched], picture = queue(page, front_server)
    page.evaluate(EMPTY)
    assert page.evaluate(DROP, list(picture)) > 0
    [remade], again = queue(page, front_server)
    page.close()
    assert len(searched["candidates"]) == 3
    assert (remade["algorithm"], remade["nfe"]) == (REPLAY, STEPS)
    assert pixels(again) == pixels(picture)


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data))).tolist()
