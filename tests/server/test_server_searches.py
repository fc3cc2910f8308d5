"""The searches and their budget in a real ComfyUI server: one run per workflow."""

import json

import graphs
import numpy as np
import pytest
from graphs import node
from noise_search.search.algorithms import ALGORITHMS

pytestmark = pytest.mark.comfyui

STEPS = 8
CANDIDATES = 6
PATHS = {"paths": 1, "branches": 2, "sigma": 0.3, "delta_forward": 0.4, "delta_backward": 0.6}
ZERO_ORDER = {"neighbours": 2, "angle": 18.0, "no_better_neighbour": "keep the pivot"}
BUDGET = {"max_nfe": 0, "max_seconds": 0.0, "stop_at_target": False, "target_score": 0.0, "patience": 0}
SEARCHES = {
    "zero-order search": {"how": node("NoiseSearchZeroOrder", **ZERO_ORDER)},
    "search over paths": {"how": node("NoiseSearchPaths", **PATHS)},
    "draft and final (random search)": {"how": node("NoiseSearchDraftAndFinal", draft_steps=3, finals=0)},
    "draft and final (zero-order search)": {
        "inner": node("NoiseSearchZeroOrder", **ZERO_ORDER),
        "how": node("NoiseSearchDraftAndFinal", draft_steps=3, finals=0, search=["inner", 0]),
    },
}


@pytest.mark.complete
def test_every_search_in_the_list_runs_on_a_server():
    run = {nodes["how"]["class_type"] for nodes in SEARCHES.values()}
    lacking = {entry.node for entry in ALGORITHMS if entry.node and entry.searches} - run
    assert lacking == set(), "add the node of each to SEARCHES in this file"


def wired(prompt, search=None, **budget):
    """A search workflow with these nodes (`how` is the search), this budget and a report."""
    prompt = prompt | (search or {}) | {"report": node("NoiseSearchReport", log=["search", 5], theme="light")}
    if search:
        prompt["search"]["inputs"]["search"] = ["how", 0]
    if budget:
        prompt["budget"] = node("NoiseSearchBudget", **{**BUDGET, **budget})
        prompt["search"]["inputs"]["budget"] = ["budget", 0]
    return prompt


def fused(search=None, seed=16, candidates=CANDIDATES, sampler="euler", **budget):
    prompt = wired(graphs.fused(seed=seed, candidates=candidates), search, **budget)
    prompt["search"]["inputs"]["sampler_name"] = sampler
    return prompt


def log_of(run):
    assert run.status == "success", run.error
    return json.loads(run.outputs["report"]["noise_search_report"][0])


def picture(server, run):
    assert run.status == "success", run.error
    return server.images(run, "save")[0]


class Runs:
    """Runs each workflow once."""

    def __init__(self, server):
        self.server, self.done = server, {}

    def __call__(self, name):
        if name not in self.done:
            self.done[name] = self.server.run(fused(SEARCHES[name]))
        return self.done[name]


@pytest.fixture(scope="module")
def runs(server):
    return Runs(server)


@pytest.mark.parametrize("name", SEARCHES)
class TestEverySearch:
    def test_it_gives_an_image(self, runs, server, name):
        assert picture(server, runs(name)).size == (128, 128)

    def test_the_report_names_it(self, runs, name):
        assert log_of(runs(name))["algorithm"] == name

    def test_it_spends_no_more_than_its_candidates_are_worth(self, runs, name):
        assert CANDIDATES / 2 * STEPS < log_of(runs(name))["nfe"] <= CANDIDATES * STEPS

    def test_the_report_says_that_the_budget_is_spent(self, runs, name):
        assert log_of(runs(name))["stopped"].startswith(f"the budget of {CANDIDATES} candidates (48 NFE) is spent")

    def test_the_bar_never_goes_back(self, runs, name):
        values = [message["value"] for message in runs(name).of_type("progress") if message["node"] == "search"]
        assert values == sorted(values)

    def test_the_bar_ends_full_and_not_before_the_end(self, runs, name):
        bar = [message for message in runs(name).of_type("progress") if message["node"] == "search"]
        assert bar[-1]["value"] == bar[-1]["max"]
        assert sum(message["value"] == message["max"] for message in bar) == 1

    def test_the_node_says_how_far_it_is_and_why_it_ended(self, runs, name):
        texts = runs(name).of_type("text")
        assert any("of 48 NFE" in text for text in texts)
        assert "Ended because the budget of 6 candidates" in texts[-1]

    def test_what_it_says_at_the_end_stays_with_its_output(self, runs, name):
        [text] = runs(name).outputs["search"]["text"]
        assert text.split() == runs(name).of_type("text")[-1].split()

    def test_its_winner_is_saved_again_by_replay_recipe(self, runs, server, name):
        saved = picture(server, runs(name))
        recipe = json.loads(saved.text["noise_search"])["search"][0]["recipe"]
        again = server.run(fused({"how": node("NoiseSearchReplayRecipe", recipe=recipe)}, candidates=8))
        assert np.array_equal(np.asarray(saved), np.asarray(picture(server, again)))
        assert len(log_of(again)["candidates"]) == 1


@pytest.mark.parametrize("name", ["search over paths", "draft and final (random search)"])
def test_search_sampler_advanced_finds_the_same(runs, server, name):
    prompt = wired(graphs.fused_advanced(seed=16, candidates=CANDIDATES), SEARCHES[name])
    run = server.run(prompt)
    assert np.array_equal(np.asarray(picture(server, run)), np.asarray(picture(server, runs(name))))
    assert run.outputs["search"]["text"] == runs(name).outputs["search"]["text"]


def test_a_search_that_comes_from_the_cache_says_what_it_said(server):
    """On hosts that send again what a node showed, also where nothing has to run."""
    if "has_intermediate_output" not in server.get("/object_info/NoiseSearchKSampler")["NoiseSearchKSampler"]:
        pytest.skip("this ComfyUI sends nothing again")
    prompt = fused(seed=400)
    first = server.run(prompt)
    prompt["save"]["inputs"]["filename_prefix"] = "again"
    again, whole = server.run(prompt), server.run(prompt)
    assert "search" in again.of_type("execution_cached")[0]["nodes"]
    for run in (again, whole):
        assert run.outputs["search"]["text"] == first.outputs["search"]["text"]
        assert len(run.outputs["search"]["images"]) == 1


LIMITS = {
    "evaluations": ({"max_nfe": 20}, "the budget of 20 NFE is spent"),
    "seconds": ({"max_seconds": 0.1}, "the budget of 0.1 seconds is spent"),
    "target": ({"stop_at_target": True, "target_score": -1000.0}, "the target score of -1000 is reached"),
    "patience": ({"patience": 1}, "patience is at its end: 1 candidates in a row were no better"),
}


class TestBudget:
    @pytest.mark.parametrize("name", LIMITS)
    def test_the_report_says_which_limit_ended_the_search(self, server, name):
        budget, reason = LIMITS[name]
        log = log_of(server.run(fused(seed=200, candidates=64, **budget)))
        assert log["stopped"] == reason
        assert len(log["candidates"]) < 64

    @pytest.mark.parametrize("name", SEARCHES)
    def test_the_bar_ends_full_where_the_target_is_reached_early(self, server, name):
        run = server.run(fused(SEARCHES[name], seed=300, stop_at_target=True, target_score=-1000.0))
        bar = [message for message in run.of_type("progress") if message["node"] == "search"]
        assert log_of(run)["stopped"] == "the target score of -1000 is reached"
        assert len(log_of(run)["candidates"]) == 1
        assert bar[-1]["value"] == bar[-1]["max"]


def paths(**settings):
    return {"how": node("NoiseSearchPaths", **{**PATHS, **settings})}


def drafts(steps=3, **inputs):
    return {"how": node("NoiseSearchDraftAndFinal", draft_steps=steps, finals=0, **inputs)}


def noise_from(recipe):
    prompt = graphs.stock_advanced()
    prompt["noise"] = node("NoiseSearchNoiseFromRecipe", recipe=recipe)
    return prompt


PATH = '{"version": 1, "seed": 3, "jumps": [{"seed": 1, "from": 0.1, "to": 0.9}]}'
BAD = {
    "rounds that gain nothing": (fused(paths(delta_backward=0.4)), "delta_backward (0.4) must be larger than"),
    "a level above noise": (fused(paths(sigma=0.7)), "sigma (0.7) and delta_forward (0.4)"),
    "a draft of all steps": (fused(drafts(8)), "a draft of 8 steps is no cheaper than the sampler's 8"),
    "an ancestral sampler": (fused(drafts(), sampler="euler_ancestral"), "With euler_ancestral "),
    "drafts of drafts": (
        fused(drafts(search=["inner", 0]) | {"inner": node("NoiseSearchDraftAndFinal", draft_steps=3, finals=0)}),
        "Draft and Final cannot search by Draft and Final",
    ),
    "the noise of a path": (noise_from(PATH), "Connect a Replay Recipe node"),
    "an empty recipe": (fused({"how": node("NoiseSearchReplayRecipe", recipe="")}), "a recipe is JSON such as"),
    "a recipe of another batch": (
        fused({"how": node("NoiseSearchReplayRecipe", recipe='[{"seed": 1}, {"seed": 2}]')}),
        "2 recipes for a latent of 1",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_the_error_says_what_is_wrong(server, case):
    prompt, message = BAD[case]
    assert message in server.run(prompt).error
