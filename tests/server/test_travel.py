"""Winners travel: a saved picture, queued again elsewhere, is made again at the cost of one render, bit for bit."""

import copy
import io
import json
import os
from decimal import Decimal
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
from noise_search.host.graph import travel
from noise_search.host.graph.graph import Graph
from noise_search.host.memory.store import Store
from noise_search.host.sampling.engine import Options
from noise_search.host.sampling.noise import RecipeNoise
from noise_search.host.sampling.stock import Sampling
from noise_search.host.search import run_node as search
from noise_search.search.algorithms.paths import SearchOverPaths
from noise_search.search.algorithms.zero_order import ZeroOrderSearch
from noise_search.search.log import REPLAY
from noise_search.search.recipe import Recipe, from_json, to_json
from remembered import NODES

pytestmark = pytest.mark.comfyui

STEPS, SEED, CANDIDATES = 4, 20, 6
PATHS = SearchOverPaths(paths=1, branches=2, sigma=0.3, forward=0.4, backward=0.5)
EXAMPLE = Path(__file__).resolve().parents[2] / "example_workflows" / "Search the noise (demo).json"


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


class Blind(Red):
    """Scores every image alike."""

    def score(self, images, prompts):
        return torch.full((len(images), 1), 0.95)


class Reversed(Red):
    usual_range = (-1000.0, 1000.0)

    def score(self, images, prompts):
        return -super().score(images, prompts)


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
    def find(
        workflow=None, algorithm=None, batch=1, verifier=None, top_k=1, candidates=CANDIDATES, runs=1, seed=SEED,
        text="a red circle", **widgets,
    ):  # fmt: skip
        """The last of so many runs of a node in one prompt. Every prompt has an empty store. text: changes the picture
        without changing the graph."""
        latent = {"samples": torch.zeros(batch, 16, 8, 8)}
        workflow = json.loads(json.dumps({"nodes": []} if workflow is None else workflow, allow_nan=False))
        prompt = prompt_of(candidates=candidates, seed=seed, **widgets)
        store, extra, found = Store(tmp_path / str(next(stores))), {"workflow": workflow}, []
        for run in range(runs):
            sampling = Sampling.ksampler(
                demo.model, STEPS, 3.0, "euler", "simple", demo.encode(f"{text} {run}"), demo.negative, latent
            )
            result = search(
                lambda sampling=sampling: sampling, demo.vae, verifier or Red(), seed + 100 * run, candidates, "",
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


def other_picture(found):
    return [warning for warning in found.log.warnings if "not the saved picture" in warning]


def test_a_winner_that_scores_otherwise_here_is_shown_and_said_to_be_another(find):
    first = find()
    again = find(first.workflow, verifier=Lighter())
    assert (again.log.algorithm, again.evaluated) == (REPLAY, STEPS)
    assert torch.equal(again.image, first.image)
    [warning] = other_picture(again)
    assert "it scores" in warning and "change any input of this node" in warning


def test_another_picture_of_the_same_score_is_said_to_be_another(find):
    first = find(verifier=Blind())
    again = find(first.workflow, verifier=Blind(), text="a blue square")
    assert (again.log.algorithm, again.evaluated) == (REPLAY, STEPS)
    [warning] = other_picture(again)
    assert "its colours are off by" in warning and "it scores" not in warning


def test_the_saved_order_stays_where_the_scores_say_another(find):
    first = find(top_k=3)
    again = find(first.workflow, top_k=3, verifier=Reversed())
    assert [image.tolist() for image in again.top_images] == [image.tolist() for image in first.top_images]
    assert (again.recipe, again.image.tolist()) == (first.recipe, first.image.tolist())


def browser(data):
    """What JSON.parse and JSON.stringify make of it: all numbers are doubles."""
    rounded = lambda digits: int(Decimal(repr(float(digits))))  # noqa: E731
    return json.loads(json.dumps(data), parse_int=rounded)


def as_saved_before(workflow, prompt):
    """The workflow as pictures had it that say nothing of files, with all seeds as numbers."""
    workflow = copy.deepcopy(workflow)
    entry = workflow["extra"][travel.KEY]["7"]
    [run] = entry["runs"]
    recipes = [[json.loads(to_json(from_json(json.dumps(one)))) for one in rank] for rank in run["recipes"]]
    before = {"graph": travel.old_graph_hash(prompt, "7"), "runs": [{"recipes": recipes, "values": run["values"]}]}
    workflow["extra"][travel.KEY] = {"7": before}
    return workflow


LARGEST = 2**64 - CANDIDATES


def test_no_digit_of_a_seed_is_lost_in_a_browser(find):
    path = find(algorithm=PATHS, candidates=16)
    assert max(jump["seed"] for jump in json.loads(path.recipe)["jumps"]) > 2**53
    again = find(browser(path.workflow), PATHS, candidates=16)
    assert (again.log.algorithm, again.recipe) == (REPLAY, path.recipe)
    assert torch.equal(again.image, path.image)


def test_a_seed_that_a_browser_rounds_in_its_widget_is_the_same_search(find):
    for seed in (2**53 + 1, LARGEST - 2**40):
        first = find(seed=seed, top_k=2)
        again = find(browser(first.workflow), seed=browser(seed), top_k=2)
        assert browser(seed) != seed
        assert (again.log.algorithm, again.recipe) == (REPLAY, first.recipe)
        assert find(first.workflow, seed=seed + 2, top_k=2).log.algorithm == "random search"


def test_the_seed_of_a_node_may_be_the_largest(find):
    first = find(seed=LARGEST)
    assert torch.equal(find(browser(first.workflow), seed=LARGEST).image, first.image)


def test_a_picture_saved_before_files_were_written_down_is_made_again(find):
    first = find(algorithm=PATHS, candidates=16)
    before = as_saved_before(first.workflow, prompt_of(candidates=16, seed=SEED))
    again = find(before, PATHS, candidates=16)
    assert (again.log.algorithm, again.log.warnings) == (REPLAY, [])
    assert torch.equal(again.image, first.image)


def test_a_picture_that_lost_digits_says_so(find):
    first = find(algorithm=PATHS, candidates=16)
    before = as_saved_before(first.workflow, prompt_of(candidates=16, seed=SEED))
    with pytest.raises(ValueError, match="lost their last digits") as caught:
        find(browser(before), PATHS, candidates=16)
    assert "change any input of this node" in str(caught.value)


def test_numbers_are_the_same_however_they_are_written(find):
    first = find(denoise=1.0, cfg=3.5)
    assert find(first.workflow, denoise=1, cfg=3.5).log.algorithm == REPLAY
    assert find(first.workflow, denoise=1, cfg=3.0).log.algorithm == "random search"


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


class Asked(Red):
    calls = 0

    def score(self, images, prompts):
        self.calls += 1
        return super().score(images, prompts)


@pytest.mark.parametrize("strange", STRANGE)
def test_what_a_stranger_wrote_into_the_workflow_never_starts_a_search(find, strange):
    workflow, asked = copy.deepcopy(find().workflow), Asked()
    strange(entry_of(workflow))
    if strange in (other_recipe, many_scores):
        again = find(workflow, verifier=asked)
        assert (again.log.algorithm, again.evaluated) == (REPLAY, STEPS)
        assert other_picture(again) and all(len(warning) < 1000 for warning in again.log.warnings)
        return
    with pytest.raises(ValueError, match="cannot be made again") as caught:
        find(workflow, verifier=asked)
    assert "change any input of this node" in str(caught.value) and len(str(caught.value)) < 1000
    assert asked.calls == 0


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


def test_an_input_that_was_replaced_under_its_name_searches(server):
    given = server.home / "input" / "ref.png"
    prompt = small(denoise=0.6) | {
        "load": node("LoadImage", image="ref.png"),
        "encode": node("VAEEncode", pixels=["load", 0], vae=["demo", 2]),
    }
    prompt["search"]["inputs"]["latent_image"] = ["encode", 0]
    Image.new("RGB", (64, 64), (200, 30, 30)).save(given)
    data = given.read_bytes()
    first = Ran(server, prompt, {})
    Image.new("RGB", (64, 64), (201, 30, 30)).save(given)
    replaced = Ran(server, prompt, first.workflow)
    assert replaced.how == [("random search", 3 * STEPS)]
    assert any("ref.png here is not what" in warning for warning in replaced.logs[0]["warnings"])
    given.write_bytes(data)
    again = Ran(server, prompt, first.workflow)
    assert (again.how, again.logs[0]["warnings"]) == ([(REPLAY, STEPS)], [])
    assert again.pictures == first.pictures


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
LARGE = 1152921504606847000  # as a browser writes it; its neighbours it cannot tell apart
SMALL = """() => {
    for (const node of app.rootGraph.nodes)
        for (const widget of node.widgets ?? [])
            if (widget.name in VALUES) widget.value = VALUES[widget.name];
}""".replace(
    "VALUES", json.dumps({"seed": LARGE, "candidates": 3, "steps": STEPS, "width": 64, "height": 64, "top_k": 1})
)
WAIT = 180_000


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
def test_a_picture_dropped_into_the_front_end_and_queued_is_made_again(chromium, server):
    page = frontend.FrontEnd(chromium, server.url).page
    page.evaluate(WATCH)
    page.evaluate("workflow => app.loadGraphData(workflow)", json.loads(EXAMPLE.read_text("utf-8")))
    page.evaluate(SMALL)
    [searched], picture = queue(page, server)
    page.evaluate(EMPTY)
    assert page.evaluate(DROP, list(picture)) > 0
    [remade], again = queue(page, server)
    page.close()
    assert len(searched["candidates"]) == 3
    assert int(searched["winners"][0]["seed"]) > LARGE
    assert (remade["algorithm"], remade["nfe"]) == (REPLAY, STEPS)
    assert pixels(again) == pixels(picture)


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data))).tolist()
