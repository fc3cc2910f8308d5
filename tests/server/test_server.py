"""The pack in a real ComfyUI server: queued over HTTP, watched over the websocket."""

import json
import threading
import urllib.parse

import graphs
import numpy as np
import pytest
from comfy_server import FOLDER, PACK
from graphs import node

pytestmark = pytest.mark.comfyui

SCRIPTS = list((PACK / "web").rglob("*.js"))
EXAMPLES = list((PACK / "example_workflows").glob("*.json"))
NODE_IDS = [
    "NoiseSearchCandidates",
    "NoiseSearchVerifierScore",
    "NoiseSearchBestOfN",
    "NoiseSearchKSampler",
    "NoiseSearchSamplerAdvanced",
    "NoiseSearchCLIPScore",
    "NoiseSearchPickScore",
    "NoiseSearchHPS",
    "NoiseSearchAesthetic",
    "NoiseSearchImageReward",
    "NoiseSearchVQAScore",
    "NoiseSearchVLMGrader",
    "NoiseSearchVLMFolder",
    "NoiseSearchVLMClip",
    "NoiseSearchVLMEndpoint",
    "NoiseSearchReport",
    "NoiseSearchNoiseFromRecipe",
    "NoiseSearchDemoCheckpoint",
]


@pytest.fixture(scope="module")
def object_info(server):
    return server.get("/object_info")


def pixels(server, prompt, name="save"):
    """The first saved picture of a prompt that has to succeed."""
    run = server.run(prompt)
    assert run.status == "success", run.error
    return np.asarray(server.images(run, name)[0])


def report(run):
    """What Search Report sent to the client."""
    return json.loads(run.outputs["report"]["noise_search_report"][0])


def with_report(prompt):
    return prompt | {"report": node("NoiseSearchReport", log=["search", 5])}


class TestRegistration:
    @pytest.mark.parametrize("node_id", NODE_IDS)
    def test_every_node_is_there(self, object_info, node_id):
        assert object_info[node_id]["category"] == "Noise Search"

    @pytest.mark.parametrize("node_id", NODE_IDS)
    def test_every_input_has_a_tooltip(self, object_info, node_id):
        groups = object_info[node_id]["input"]
        inputs = groups.get("required", {}) | groups.get("optional", {})
        assert [name for name, spec in inputs.items() if not spec[1].get("tooltip")] == []

    @pytest.mark.parametrize("node_id", NODE_IDS)
    def test_every_output_has_a_tooltip(self, object_info, node_id):
        assert all(object_info[node_id]["output_tooltips"])

    @pytest.mark.parametrize("node_id", NODE_IDS)
    def test_every_node_has_a_description(self, object_info, node_id):
        assert object_info[node_id]["description"]

    def test_every_node_has_its_help_page(self, server, object_info):
        """At the address where the front end asks for it, in the pack as the registry packs it."""
        ours = {name: info for name, info in object_info.items() if info["category"] == "Noise Search"}
        ours = {name: info for name, info in ours.items() if not info.get("dev_only")}  # these are in no menu
        assert set(NODE_IDS) <= set(ours)
        for name, info in ours.items():
            page = server.get_bytes(f"/extensions/{info['python_module'].split('.')[1]}/docs/{name}.md")
            assert page == (PACK / "web" / "docs" / f"{name}.md").read_bytes()

    def test_every_script_and_every_example_is_served(self, server):
        scripts = {f"/extensions/{FOLDER}/{file.relative_to(PACK / 'web').as_posix()}" for file in SCRIPTS}
        assert scripts == {path for path in server.get("/extensions") if path.startswith(f"/extensions/{FOLDER}/")}
        styles = {f"/extensions/{FOLDER}/css/{file.name}" for file in (PACK / "web" / "css").iterdir()}
        assert all(server.get_bytes(path) for path in scripts | styles)
        assert set(server.get("/workflow_templates")[FOLDER]) == {file.stem for file in EXAMPLES}
        for file in (*EXAMPLES, *(file.with_suffix(".jpg") for file in EXAMPLES)):
            path = f"/api/workflow_templates/{FOLDER}/{urllib.parse.quote(file.name)}"
            assert server.get_bytes(path) == file.read_bytes()

    def test_nothing_went_wrong_while_loading(self, server):
        assert [line for line in server.log.splitlines() if "noise-search" in line and "FAILED" in line] == []


class TestTwoWays:
    """Search KSampler and the search built from stock nodes find the same picture."""

    def test_fused_and_graph_native_pick_the_same_winner_bit_for_bit(self, server):
        assert np.array_equal(pixels(server, graphs.fused()), pixels(server, graphs.native()))

    def test_advanced_and_graph_native_pick_the_same_winner_bit_for_bit(self, server):
        assert np.array_equal(pixels(server, graphs.fused_advanced()), pixels(server, graphs.native_advanced()))

    def test_the_stock_ksampler_makes_the_winner_with_the_reported_seed(self, server):
        run = server.run(with_report(graphs.fused(candidates=6)))
        seed = report(run)["winners"][0]["seed"]
        assert seed != 16, "choose a seed whose stock image does not win, or this test shows nothing"
        assert np.array_equal(np.asarray(server.images(run, "save")[0]), pixels(server, graphs.stock(seed)))

    def test_the_recipe_makes_the_winner_again(self, server):
        run = server.run(graphs.fused_advanced(candidates=6))
        [picture] = server.images(run, "save")
        again = graphs.stock_advanced()
        recipe = json.loads(picture.text["noise_search"])["search"][0]["recipe"]
        again["noise"] = node("NoiseSearchNoiseFromRecipe", recipe=recipe)
        assert np.array_equal(np.asarray(picture), pixels(server, again))

    def test_one_candidate_is_the_stock_ksampler(self, server):
        assert np.array_equal(pixels(server, graphs.fused(candidates=1)), pixels(server, graphs.stock()))

    def test_top_images_come_best_first(self, server):
        prompt = graphs.fused(candidates=4, top_k=3)
        prompt["save"] = graphs.save(["search", 6])
        run = server.run(prompt)
        native = server.run(graphs.native(candidates=4, k=3))
        shown = [np.asarray(image) for image in server.images(run, "save")]
        assert np.array_equal(shown, [np.asarray(image) for image in server.images(native, "save")])


@pytest.fixture(scope="module")
def reported(server):
    return server.run(with_report(graphs.fused(candidates=3)))


class TestReport:
    def test_it_has_every_candidate(self, reported):
        assert [candidate["recipes"][0]["seed"] for candidate in report(reported)["candidates"]] == [16, 17, 18]

    def test_it_counts_the_evaluations_of_every_candidate(self, reported):
        assert [candidate["nfe_per_row"] for candidate in report(reported)["candidates"]] == [graphs.STEPS] * 3

    def test_it_says_which_text_the_verifier_read(self, reported):
        assert report(reported)["settings"]["prompt"] == graphs.PROMPT

    def test_its_two_pictures_are_shown(self, reported, server):
        assert len(server.images(reported, "report")) == 2


@pytest.fixture(scope="module")
def entry(server):
    """What the text of a saved winner says of the search."""
    run = server.run(graphs.fused(candidates=3))
    return json.loads(server.images(run, "save")[0].text["noise_search"])["search"][0]


class TestMetadata:
    def test_a_saved_picture_says_its_recipe(self, entry):
        assert json.loads(entry["recipe"])["seed"] == entry["seed"]

    def test_a_saved_picture_says_the_verifiers_prompt(self, entry):
        assert entry["prompt"] == graphs.PROMPT


@pytest.fixture(scope="module")
def watched(server):
    return server.run(graphs.fused(seed=1000, candidates=6))


@pytest.fixture(scope="module")
def bar(watched):
    return [message for message in watched.of_type("progress") if message["node"] == "search"]


class TestProgress:
    def test_the_bar_never_goes_back(self, bar):
        values = [message["value"] for message in bar]
        assert values == sorted(values)

    def test_the_bar_ends_full(self, bar):
        assert bar[-1]["value"] == bar[-1]["max"]

    def test_the_bar_has_one_length(self, bar):
        assert len({message["max"] for message in bar}) == 1

    def test_previews_come_while_it_runs(self, watched):
        kinds = [message.type for message in watched.messages]
        assert "preview" in kinds[: max(index for index, kind in enumerate(kinds) if kind == "progress")]

    def test_a_preview_is_not_enlarged(self, watched):
        assert watched.of_type("preview")[-1].size == (128, 128)

    def test_the_last_preview_is_the_winner(self, watched, server):
        shown = watched.of_type("preview")[-1].convert("RGB")
        assert np.array_equal(np.asarray(shown), np.asarray(server.images(watched, "save")[0]))

    def test_the_node_says_how_far_it_is(self, watched):
        assert any(text.startswith("6 candidates · ") for text in watched.of_type("text"))

    def test_another_browser_hears_nothing_of_it(self, server):
        """Nor does any of what was queued without a client."""
        for queue in (server.run, server.run_without_client):
            heard = server.overheard(lambda queue=queue: queue(graphs.fused(seed=70, candidates=2)))
            assert {message.type for message in heard} & {"text", "preview", "executed"} == set()

    def test_the_log_says_which_text_the_verifier_read(self, watched, server):
        assert f"{graphs.PROMPT!r} (from node positive, CLIPTextEncode)" in server.log


@pytest.fixture(scope="module")
def cancelled(server):
    """A long search that is interrupted in its second candidate; `seen` counts the steps told until then."""
    prompt = graphs.fused(seed=50, candidates=8, steps=20)
    prompt["latent"]["inputs"]["batch_size"] = 16  # slow steps, so that the count below is sharp
    seen = []
    once = threading.Event()

    def watch(message):
        if message.type == "progress":
            seen.append(message.data["value"])
            if message.data["value"] > 22 and not once.is_set():
                once.set()
                server.interrupt()

    run = server.run(prompt, on_message=watch)
    return run, seen


class TestCancel:
    def test_the_server_says_that_it_was_interrupted(self, cancelled):
        assert cancelled[0].status == "interrupted"

    def test_it_stops_within_one_step(self, cancelled):
        seen = cancelled[1]
        asked = next(value for value in seen if value > 22)
        assert max(seen) - asked <= 1

    def test_the_next_search_gives_what_it_always_gives(self, cancelled, server):
        assert np.array_equal(pixels(server, graphs.fused(seed=60)), pixels(server, graphs.native(seed=60)))


def zeroed_positive():
    prompt = graphs.fused(seed=2)
    prompt["zero"] = node("ConditioningZeroOut", conditioning=["positive", 0])
    prompt["search"]["inputs"]["positive"] = ["zero", 0]
    return prompt


def two_positives():
    prompt = graphs.fused(seed=2)
    prompt["other"] = node("CLIPTextEncode", clip=["demo", 1], text="a green triangle")
    prompt["both"] = node("ConditioningCombine", conditioning_1=["positive", 0], conditioning_2=["other", 0])
    prompt["search"]["inputs"]["positive"] = ["both", 0]
    return prompt


def large_latent():
    prompt = graphs.fused(seed=2)
    prompt["latent"] = graphs.base(size=1024)["latent"]
    return prompt


def recipe(text):
    prompt = graphs.stock_advanced()
    prompt["noise"] = node("NoiseSearchNoiseFromRecipe", recipe=text)
    return prompt


BAD = {
    "k larger than N": (graphs.native(candidates=2, k=5), "k is 5, but there are 2 candidates"),
    "no text": (zeroed_positive(), "there is no text behind 'positive'"),
    "two texts": (two_positives(), 'node other, CLIPTextEncode: "a green triangle"'),
    "a latent too large": (large_latent(), "1024x1024"),
    "a recipe that is no JSON": (recipe("{seed: 42"), "{seed: 42"),
    "a recipe without a seed": (recipe('{"moves": []}'), "seed"),
    "an empty recipe": (recipe(""), "recipe"),
}


class TestBadInput:
    @pytest.mark.parametrize("case", BAD)
    def test_the_error_says_what_is_wrong(self, server, case):
        """Without the path of a class in front: the front end shows the type, then the message."""
        prompt, message = BAD[case]
        run = server.run(prompt)
        assert message in run.error
        assert [error["exception_type"] for error in run.of_type("execution_error")] == ["ValueError"]

    def test_an_unplugged_verifier_is_refused_before_anything_runs(self, server):
        prompt = graphs.fused()
        del prompt["search"]["inputs"]["verifier"]
        run = server.run(prompt)
        assert (run.status, "verifier" in run.error) == ("rejected", True)

    @pytest.mark.parametrize("name", ["(none found: put a CLIP model into models/verifiers)", "gone.safetensors"])
    def test_a_file_that_is_not_there_is_refused_with_where_to_get_it(self, server, name):
        prompt = graphs.fused()
        inputs = {"model_name": name, "precision": "auto", "architecture": ""}
        prompt["clip_score"] = {"class_type": "NoiseSearchCLIPScore", "inputs": inputs}
        prompt["search"]["inputs"]["verifier"] = ["clip_score", 0]
        run = server.run(prompt)
        assert (run.status, "laion/CLIP-ViT-B-32" in run.error) == ("rejected", True)

    def test_the_server_goes_on_after_each_of_them(self, server):
        for prompt, _ in BAD.values():
            server.run(prompt)
        assert server.run(graphs.fused(seed=3, candidates=1)).status == "success"


class TestNothingToSample:
    """Where the stock nodes define what no steps mean, a search does the same."""

    def test_denoise_0_is_the_stock_ksamplers(self, server):
        assert np.array_equal(pixels(server, graphs.fused(denoise=0.0)), pixels(server, graphs.stock(denoise=0.0)))

    def test_empty_sigmas_are_the_stock_samplers(self, server):
        searched = pixels(server, graphs.fused_advanced(denoise=0.0))
        assert np.array_equal(searched, pixels(server, graphs.stock_advanced(denoise=0.0)))
