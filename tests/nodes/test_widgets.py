"""Every input of every node, away from its default, reaches what it is for.

CHECKS has a test for each input of each node's schema: it sets the input, and looks at the far end, at what comes out,
what the log says or what a model, a verifier or a server is given. An input without one is red.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest

pytest.importorskip("comfy")

import comfy.clip_vision
import comfy.samplers
import executor
import folder_paths
import tiny_clips
import tiny_imagereward
import tiny_models
import tiny_vlms
import torch
from any_model import AnyVae
from comfy_extras import nodes_custom_sampler
from conformance import search as run_search
from noise_search.host.judging import folders
from noise_search.host.memory.store import Store
from noise_search.host.pictures import to_image
from noise_search.nodes import picture as picture_nodes
from noise_search.report.canvas import THEMES
from noise_search.report.charts import score_curve
from noise_search.report.contact_sheet import contact_sheet
from noise_search.search.algorithms.random_search import RandomSearch
from noise_search.search.algorithms.zero_order import ZeroOrderSearch
from noise_search.search.budget import Budget
from noise_search.search.recipe import Recipe, Rotate, to_json
from noise_search.verifiers.base import VerifierError
from noise_search.verifiers.clip import CLIPScore
from synthetic import SyntheticEngine, smooth
from vlm_server import VLMServer, answer, grade_brightness, grades, tokens

import nodes as comfy_nodes

EXTENSION = asyncio.run(__import__("noise_search").comfy_entrypoint())
NODES = {node.define_schema().node_id: node for node in asyncio.run(EXTENSION.get_node_list())}
INPUTS = [
    (name, item.id)
    for name, node in NODES.items()
    for item in node.define_schema().inputs
    if not node.define_schema().is_dev_only  # they have no widgets: ComfyUI's own values go into them
]
CHECKS: dict[tuple[str, str], Callable] = {}


def reaches(node: str, *inputs: str):
    """The decorated test is the one of these inputs. It is given the name of the input, if it takes several."""

    def register(check):
        for name in inputs:
            CHECKS[f"NoiseSearch{node}", name] = partial(check, name) if len(inputs) > 1 else check
        return check

    return register


@pytest.mark.complete
def test_every_input_has_a_check():
    lacking = [one for one in INPUTS if one not in CHECKS]
    assert lacking == [], (
        f"nobody has seen these inputs to reach anything: write a check of each, with @reaches: {lacking}"
    )


@pytest.mark.parametrize(("node", "name"), INPUTS, ids=["-".join(one) for one in INPUTS])
def test_it_reaches_what_it_is_for(node, name, request):
    check = CHECKS.get((node, name))
    assert check, f"{node} has an input '{name}' that nobody has seen to reach anything: add a check of it to CHECKS"
    wanted = [name for name in ("tmp_path", "monkeypatch", "models", "clip_vision") if name in parameters(check)]
    with torch.inference_mode():
        check(**{name: request.getfixturevalue(name) for name in wanted})


def parameters(check) -> set[str]:
    code = getattr(check, "func", check).__code__
    return set(code.co_varnames[: code.co_argcount])


def test_no_check_is_of_an_input_that_is_gone():
    assert set(CHECKS) <= set(INPUTS)


def execute(node: str, **inputs):
    """The outputs of a node, by their names. What is not given has the default of the schema."""
    kind = NODES[f"NoiseSearch{node}"]
    schema = kind.define_schema()
    given = {item.id: item.as_dict()["default"] for item in schema.inputs if "default" in item.as_dict()}
    out = kind.execute(**given | inputs)
    return SimpleNamespace(
        ui=out.ui, **dict(zip((item.display_name for item in schema.outputs), out.args, strict=True))
    )


class Shade:
    """A verifier without weights: the brightness, in one direction or the other. Keeps what it is given."""

    needs_prompt, prompt_tokens, usual_range, patcher, module = True, None, (-1.0, 1.0), None, None

    def __init__(self, sign=1.0, name="shade"):
        self.sign, self.members = sign, (name,)
        self.images, self.prompts = [], []

    def identity(self):
        return f"{self.members} {self.sign}"

    def score(self, images, prompts):
        self.images.append(images)
        self.prompts += prompts
        return self.sign * images.float().mean(dim=(1, 2, 3)).reshape(-1, 1)


# Both search nodes

STEPS, SEED = 4, 40
TINY = tiny_models.sd3()
SCHEDULE = partial(comfy.samplers.KSampler, TINY.model, STEPS, "cpu", "euler")


def guider(seed=1, cfg=3.0):
    return nodes_custom_sampler.CFGGuider.execute(TINY.model, TINY.conditioning(seed), TINY.conditioning(2), cfg).args[
        0
    ]


SAMPLING = {
    "KSampler": {
        "model": TINY.model,
        "steps": STEPS,
        "cfg": 3.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "positive": TINY.conditioning(1),
        "negative": TINY.conditioning(2),
        "denoise": 0.5,
    },
    "SamplerAdvanced": {
        "guider": guider(),
        "sampler": comfy.samplers.sampler_object("euler"),
        "sigmas": SCHEDULE("simple", 0.5).sigmas,
    },
}
AWAY = {
    "model": lambda: TINY.with_lora(),
    "seed": lambda: SEED + 1,
    "steps": lambda: STEPS + 1,
    "cfg": lambda: 5.0,
    "sampler_name": lambda: "heun",
    "scheduler": lambda: "karras",
    "positive": lambda: TINY.conditioning(3),
    "negative": lambda: TINY.conditioning(3),
    "latent_image": lambda: TINY.latent(1, seed=8),
    "denoise": lambda: 0.8,
    "guider": lambda: guider(3),
    "sampler": lambda: comfy.samplers.sampler_object("heun"),
    "sigmas": lambda: SCHEDULE("karras", 0.5).sigmas,
}


def inputs_of(node, **inputs):
    return {"seed": SEED, "latent_image": TINY.latent(1, seed=7)} | SAMPLING[node] | inputs


def find(node, candidates=3, **inputs):
    """What a search node gives. The verifier is in `verifier`."""
    more = {"vae": AnyVae(), "verifier": Shade(), "prompt": "a cat"} | inputs
    out = execute(node, **inputs_of(node, candidates=candidates, **more))
    out.verifier = more["verifier"]
    return out


def stock(node, **inputs) -> torch.Tensor:
    """What ComfyUI's own node makes of these inputs."""
    given = inputs_of(node, **inputs)
    seed, latent = given.pop("seed"), given.pop("latent_image")
    if node == "KSampler":
        denoise = given.pop("denoise")
        return comfy_nodes.common_ksampler(latent=latent, seed=seed, denoise=denoise, **given)[0]["samples"]
    noise = nodes_custom_sampler.Noise_RandomNoise(seed)
    return nodes_custom_sampler.SamplerCustomAdvanced.execute(noise, latent_image=latent, **given).args[0]["samples"]


def values(out) -> list[float]:
    return [candidate.values[0][0] for candidate in out.log.candidates]


def sampling_is_stocks(node, name):
    changed = {name: AWAY[name]()}
    ours = find(node, candidates=1, **changed).latent["samples"]
    assert torch.equal(ours, stock(node, **changed))
    assert not torch.equal(ours, stock(node))


def pictures_are_this_vaes(node):
    class Negative(AnyVae):
        def decode(self, samples):
            return 1 - super().decode(samples)

    out = find(node, vae=Negative())
    assert torch.equal(out.image, Negative().decode(out.latent["samples"]))


def this_verifier_chooses(node):
    bright, dark = find(node), find(node, verifier=Shade(-1.0, "darkness"))
    assert dark.log.members == ("darkness",)
    assert bright.log.best().index == values(bright).index(max(values(bright)))
    assert dark.log.best().index == values(bright).index(min(values(bright)))


def as_many_candidates(node):
    assert [len(find(node, candidates=count).log.candidates) for count in (2, 5)] == [2, 5]


def the_verifier_is_told_the_prompt(node):
    out = find(node, prompt="a fox")
    assert set(out.verifier.prompts) == {"a fox"} == {out.log.settings["prompt"]}


def as_many_top_images(node):
    out = find(node, candidates=4, top_k=3)
    shades = [image.mean().item() for image in out.top_images]
    assert shades == pytest.approx(sorted(values(out), reverse=True)[:3])
    assert len(find(node, candidates=4, top_k=1).top_images) == 1


def this_search_is_made(node):
    out = find(node, search=ZeroOrderSearch(angle=30.0))
    assert out.log.algorithm == "zero-order search"
    assert [one.recipes[0].moves for one in out.log.candidates[:2]] == [(), (Rotate(SEED + 1, 30.0),)]


def this_budget_ends_it(node):
    out = find(node, candidates=9, budget=Budget(nfe=2 * STEPS))
    assert len(out.log.candidates) == 2
    assert out.log.stopped == f"the budget of {2 * STEPS} NFE is spent"


def this_many_are_sampled_at_once(node, monkeypatch):
    rows = []
    network = TINY.model.model.diffusion_model
    watch = network.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    once = {"cfg": 1.0} if node == "KSampler" else {"guider": guider(cfg=1.0)}  # no second row for the negative
    try:
        out = find(node, candidates=9, batch_size=4, **once)
        assert max(rows) == 4 and sum(one.batched for one in out.log.candidates) >= 4
        rows.clear()
        find(node, candidates=9, batch_size=1, **once)
        assert max(rows) == 1
    finally:
        watch.remove()


class Reel:
    """Decodes to a video of 9 frames, each brighter than the one before."""

    def decode(self, samples):
        return torch.linspace(0, 0.8, 9).reshape(1, 9, 1, 1, 1).expand(len(samples), 9, 4, 4, 3)


def these_frames_are_looked_at(node):
    out = find(node, candidates=1, vae=Reel(), frames=3)
    assert [frame.mean().item() for images in out.verifier.images for frame in images] == pytest.approx([0, 0.4, 0.8])
    assert len(find(node, candidates=1, vae=Reel()).verifier.images[0]) == 8


class Broken(AnyVae):
    """Its second picture has no numbers in it."""

    def __init__(self):
        self.decoded = 0

    def decode(self, samples):
        self.decoded += 1
        return super().decode(samples) * (torch.nan if self.decoded == 2 else 1)


def a_bad_candidate_is_left_out(node):
    out = find(node, vae=Broken(), bad_candidate="leave it out")
    assert [one.recipes[0].seed for one in out.log.candidates] == [SEED, SEED + 2] and len(out.log.dropped) == 1
    with pytest.raises(ValueError, match="candidate 1: .* not numbers"):
        find(node, vae=Broken())


for node in SAMPLING:
    for name in ("seed", "latent_image", *SAMPLING[node]):
        CHECKS[f"NoiseSearch{node}", name] = partial(sampling_is_stocks, node, name)
    for name, check in {
        "vae": pictures_are_this_vaes,
        "verifier": this_verifier_chooses,
        "candidates": as_many_candidates,
        "prompt": the_verifier_is_told_the_prompt,
        "top_k": as_many_top_images,
        "search": this_search_is_made,
        "budget": this_budget_ends_it,
        "batch_size": this_many_are_sampled_at_once,
        "frames": these_frames_are_looked_at,
        "bad_candidate": a_bad_candidate_is_left_out,
    }.items():
        CHECKS[f"NoiseSearch{node}", name] = partial(check, node)


@pytest.mark.parametrize("node", SAMPLING)
def test_both_nodes_remember(node, tmp_path, monkeypatch):
    """No input of theirs, and yet what the user set: storing searches."""
    monkeypatch.setattr(folder_paths, "get_system_user_directory", lambda name: str(tmp_path / name))
    Store(tmp_path / "noise_search").configure(enabled=True)
    with torch.inference_mode():
        first, again = find(node, top_k=1), find(node, top_k=1)
        assert len(first.verifier.images) == 3 and len(again.verifier.images) == 1  # the winner's, rendered once more
        assert [one.recalled for one in again.log.candidates] == [True] * 3
        Store(tmp_path / "noise_search").configure(enabled=False)
        assert not find(node).log.recalled


# The searches, on an engine of 10 steps without a model


def better(image):
    """Every picture is better than all before it."""
    better.count += 1
    return float(better.count)


def worse(image):
    """No picture is better than one before it."""
    better.count += 1
    return -float(better.count)


def searched(node, landscape=better, candidates=9, budget=None, **inputs):
    better.count = 0
    algorithm = execute(node, **inputs).search
    return run_search(algorithm, SyntheticEngine(landscape), SEED, budget or Budget(candidates)).log


def moves(log) -> list[int]:
    return [len(one.recipes[0].moves) for one in log.candidates]


@reaches("ZeroOrder", "neighbours")
def neighbours_of_each_pivot():
    assert moves(searched("ZeroOrder", neighbours=3)) == [0, 1, 1, 1, 2, 2, 2, 3, 3]
    assert moves(searched("ZeroOrder")) == [0, 1, 1, 2, 2, 3, 3, 4, 4]


@reaches("ZeroOrder", "angle")
def angle_to_the_pivot():
    log = searched("ZeroOrder", angle=33.0)
    assert {move.angle for one in log.candidates for move in one.recipes[0].moves} == {33.0}


@reaches("ZeroOrder", "no_better_neighbour")
def what_happens_where_none_is_better():
    def found(choice):
        recipes = [one.recipes[0] for one in searched("ZeroOrder", worse, no_better_neighbour=choice).candidates]
        return recipes, [recipe.moves[-1].angle for recipe in recipes if recipe.moves]

    kept, drawn, shrunk = map(found, ("keep the pivot", "draw a new pivot", "shrink the angle"))
    assert {recipe.seed for recipe in kept[0]} == {SEED} == {recipe.seed for recipe in shrunk[0]}
    assert len({recipe.seed for recipe in drawn[0]}) > 2
    assert set(kept[1]) == {18.0} and shrunk[1][:4] == pytest.approx([18.0, 18.0, 12.6, 12.6])


PATHS = {"paths": 1, "branches": 2, "sigma": 0.2, "delta_forward": 0.5, "delta_backward": 0.6}


def jumps(**inputs):
    """(start, to) of every jump of the first path that ends as a picture."""
    log = searched("Paths", candidates=30, **PATHS | inputs)
    recipe = next(one.recipes[0] for one in log.candidates if one.stage == "final" and one.recipes[0].jumps)
    return [(round(jump.start, 6), round(jump.to, 6)) for jump in recipe.jumps]


@reaches("Paths", "sigma", "delta_forward", "delta_backward")
def levels_of_the_jumps(name):
    changed = {
        "sigma": (0.3, [(0.3, 0.8), (0.2, 0.7), (0.1, 0.6)]),
        "delta_forward": (0.4, [(0.2, 0.6)]),
        "delta_backward": (0.55, [(0.2, 0.7), (0.15, 0.65), (0.1, 0.6), (0.05, 0.55)]),
    }
    value, expected = changed[name]
    assert jumps() == [(0.2, 0.7), (0.1, 0.6)]
    assert jumps(**{name: value}) == expected


@reaches("Paths", "paths", "branches")
def paths_and_their_branches(name):
    def first_round(**inputs):
        """How many paths were tried before any went on to its second round, and how often each."""
        log = searched("Paths", candidates=60, **PATHS | inputs)
        second = next(one.index for one in log.candidates if len(one.recipes[0].jumps) == 2)
        seeds = Counter(one.recipes[0].seed for one in log.candidates[1:second])
        return len(seeds), set(seeds.values())

    assert first_round() == (1, {2})
    assert first_round(**{name: 3}) == {"paths": (3, {2}), "branches": (1, {3})}[name]


@reaches("DraftAndFinal", "draft_steps")
def steps_of_a_draft():
    def steps(**inputs):
        return {one.nfe for one in searched("DraftAndFinal", **inputs).candidates if one.stage == "draft"}

    assert steps(draft_steps=5) == {5} and steps() == {3}


@reaches("DraftAndFinal", "finals")
def finals_of_the_best_drafts():
    def finals(**inputs):
        log = searched("DraftAndFinal", smooth, 12, **inputs)
        return [one.recipes[0] for one in log.candidates if one.stage == "final"][1:], log

    many, log = finals(finals=7)
    assert len(many) >= 7 > len(finals(finals=2)[0])
    drafts = [log.candidates[index].recipes[0] for index in log.order(0, "draft")]
    assert many[:7] == [recipe for recipe in drafts if recipe != Recipe.from_seed(SEED)][:7]


@reaches("DraftAndFinal", "search")
def search_among_the_drafts():
    log = searched("DraftAndFinal", search=ZeroOrderSearch(angle=20.0))
    assert any(one.recipes[0].moves for one in log.candidates if one.stage == "draft")


@reaches("ReplayRecipe", "recipe")
def recipe_that_is_made_again():
    recipe = Recipe.from_seed(77).then(Rotate(3, 20.0))
    assert [one.recipes for one in searched("ReplayRecipe", recipe=to_json([recipe])).candidates] == [(recipe,)]


@reaches("Budget", "max_nfe", "max_seconds", "stop_at_target", "target_score", "patience")
def limits_of_the_budget(name):
    """A candidate takes 10 NFE and 0.75 seconds; the landscape gives -1, -2, ... or 1, 2, ..."""

    def ended(landscape, **limits):
        better.count = 0
        budget = dataclasses.replace(execute("Budget", **limits).budget, candidates=9)
        log = run_search(RandomSearch(), SyntheticEngine(landscape), SEED, budget).log
        return len(log.candidates), log.stopped

    assert ended(better) == (9, "the budget of 9 candidates (90 NFE) is spent")
    assert ended(better, target_score=4.0) == ended(better)
    expected = {
        "max_nfe": (better, {"max_nfe": 45}, 4, "the budget of 45 NFE is spent"),
        "max_seconds": (better, {"max_seconds": 4.0}, 5, "the budget of 4 seconds is spent"),
        "stop_at_target": (better, {"stop_at_target": True}, 1, "the target score of 0 is reached"),
        "target_score": (
            better,
            {"stop_at_target": True, "target_score": 4.0},
            4,
            "the target score of 4 is reached",
        ),
        "patience": (worse, {"patience": 3}, 4, "patience is at its end: 3 candidates in a row were no better"),
    }
    landscape, limits, count, why = expected[name]
    assert ended(landscape, **limits) == (count, why)


# The search in the graph

LATENT = {"samples": torch.zeros(1, 4, 8, 8)}


def drawn(seed):
    return comfy_nodes.comfy.sample.prepare_noise(LATENT["samples"], seed)


@reaches("Candidates", "seed", "count")
def seeds_of_the_noises(name):
    out = execute("Candidates", seed=5, count=3)
    assert out.seed == [5, 6, 7]
    assert all(
        torch.equal(one.generate_noise(LATENT), drawn(seed)) for one, seed in zip(out.noise, out.seed, strict=True)
    )
    assert len(execute("Candidates").noise) == 8 and execute("Candidates").seed[0] == 0


@reaches("Candidates", "near", "angle")
def noises_near_another(name):
    centre = nodes_custom_sampler.Noise_RandomNoise(11)
    first, *others = execute("Candidates", count=3, near=centre, angle=30.0).noise
    assert torch.equal(first.generate_noise(LATENT), drawn(11))
    wide = {"samples": torch.zeros(1, 16, 64, 64)}  # where two noises are all but at right angles
    middle = centre.generate_noise(wide).flatten()
    for one in others:
        turned = one.generate_noise(wide).flatten()
        cosine = torch.nn.functional.cosine_similarity(middle, turned, dim=0)
        assert torch.rad2deg(torch.acos(cosine)) == pytest.approx(30.0, abs=1.0)


def shades(*levels):
    return [torch.full((1, 8, 8, 3), level) for level in levels]


@reaches("VerifierScore", "image", "verifier", "prompt")
def what_is_scored(name):
    verifier = Shade(-2.0, "darkness")
    out = execute("VerifierScore", image=shades(0.25, 0.5), verifier=[verifier], prompt=["a fox", "a dog"])
    assert out.score == [-0.5, -1.0] and out.scores.members == ("darkness",)
    assert verifier.prompts == ["a fox", "a dog"]


def scores_of(*levels, verifier=None, prompt="a cat"):
    return execute("VerifierScore", image=shades(*levels), verifier=[verifier or Shade()], prompt=[prompt]).scores


@reaches("BestOfN", "scores", "k", "image", "latent", "noise")
def the_best_of_all_that_came(name):
    given = {
        "image": shades(0.1, 0.2, 0.3, 0.4),
        "latent": [{"samples": torch.full((1, 4, 8, 8), float(index))} for index in range(4)],
        "noise": [object() for _ in range(4)],
    }
    out = execute("BestOfN", scores=[scores_of(0.25, 1.0, 0.75, 0.5)], k=[2], **given)
    assert out.index == [1, 2] and out.score == [1.0, 0.75]
    for one in given:
        assert [any(item is kept for kept in getattr(out, one)) for item in given[one]] == [False, True, True, False]
    assert out.rejects[0] is given["image"][3] and out.rejects[1] is given["image"][0]
    assert execute("BestOfN", scores=[scores_of(0.1, 0.2)], k=[1]).index == [1]


@reaches("NoiseFromRecipe", "recipe")
def noise_of_the_recipe():
    recipe = Recipe.from_seed(9).then(Rotate(4, 25.0))
    noise = execute("NoiseFromRecipe", recipe=to_json([recipe])).noise
    assert torch.equal(noise.generate_noise(LATENT), recipe.noise((1, 4, 8, 8))) and noise.seed == 9


# Verifiers with weights


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models of our own, as the only ones that ComfyUI knows; two of each kind."""
    root = tmp_path_factory.mktemp("models")
    plain, quick = tiny_clips.OPEN_CLIP_CONFIG, tiny_clips.OPEN_CLIP_CONFIG | {"quick_gelu": True}
    with pytest.MonkeyPatch.context() as patch, tiny_clips.open_clip_architectures(root, plain=plain, quick=quick):
        patch.setattr(folder_paths, "models_dir", str(root))
        for name in (folders.FOLDER, folders.HEADS, folders.LLM, folders.REWARDS, *folders.HOST_FOLDERS):
            (root / name).mkdir()
            patch.setitem(folder_paths.folder_names_and_paths, name, ([str(root / name)], set()))
            folder_paths.filename_list_cache.pop(name, None)
        for number, name in enumerate(("one", "two")):
            model = tiny_clips.save_open_clip_folder(root / "verifiers" / name, tiny_clips.open_clip_model(seed=number))
            torch.save(model.state_dict(), root / "verifiers" / f"{name}.pt")
            tiny_clips.save_head(root / "aesthetic" / f"{name}.pth", "v2", 24, seed=number)
            tiny_imagereward.save(root / "verifiers" / f"reward-{name}", tiny_imagereward.state_dict(number))
            tiny_vlms.save_vlm(root / "LLM" / name, seed=number)
        for kind in ("pickscore.PickScore", "hps.HPS"):
            patch.setattr(f"noise_search.verifiers.{kind}.architecture", "plain")
            patch.setattr(f"noise_search.verifiers.{kind}.weights", 0)
        yield root
    for name in (folders.FOLDER, folders.HEADS, folders.LLM, folders.REWARDS, *folders.HOST_FOLDERS):
        folder_paths.filename_list_cache.pop(name, None)


PICTURES = tiny_clips.images(2, 32, 32)
PROMPT = "a red circle"
PRECISIONS = {"auto": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LOADERS = {  # the entries of one model and another
    "CLIPScore": ("one", "two"),
    "PickScore": ("one", "two"),
    "HPS": ("one.pt", "two.pt"),
    "ImageReward": ("reward-one/ImageReward.pt", "reward-two/ImageReward.pt"),
}


def scored(verifier) -> list:
    return verifier.score(PICTURES, PROMPT).tolist()


def this_model_scores(node, models):
    one, two = (execute(node, model_name=name, precision="auto").verifier for name in LOADERS[node])
    assert scored(one) != scored(two) and one.identity() != two.identity()
    assert all(
        scored(execute(node, model_name=name).verifier) == scored(hosted)
        for name, hosted in zip(LOADERS[node], (one, two), strict=True)
    )


def the_towers_have_this_precision(node, models):
    for name, dtype in PRECISIONS.items():
        hosted = execute(node, model_name=LOADERS[node][0], precision=name).verifier
        assert {
            tensor.dtype for tensor in hosted.patcher.model.state_dict().values() if tensor.is_floating_point()
        } == {dtype}


for node in LOADERS:
    CHECKS[f"NoiseSearch{node}", "model_name"] = partial(this_model_scores, node)
    CHECKS[f"NoiseSearch{node}", "precision"] = partial(the_towers_have_this_precision, node)


@reaches("CLIPScore", "architecture")
def architecture_of_a_single_file(models):
    quick = execute("CLIPScore", model_name="one.pt", architecture="quick").verifier
    exact = CLIPScore.load(models / "verifiers" / "one.pt", architecture="quick")
    assert scored(quick) == exact.score(PICTURES, [PROMPT] * 2).tolist()
    assert scored(quick) != scored(execute("CLIPScore", model_name="one.pt", architecture="plain").verifier)


@pytest.fixture(scope="module")
def clip_vision(models):
    """Makes a tiny CLIP_VISION as ComfyUI's loader gives it."""
    settings = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    settings |= {"image_size": 32, "patch_size": 8, "num_channels": 3, "projection_dim": 24, "hidden_act": "quick_gelu"}
    settings |= {"model_type": "clip_vision_model", "torch_dtype": "float32"}
    (models / "config.json").write_text(json.dumps(settings))

    def make(seed):
        loaded = comfy.clip_vision.ClipVisionModel(str(models / "config.json"))
        tiny_clips.randomise(loaded.model, seed)
        return loaded

    return make


@reaches("Aesthetic", "clip_vision", "head_name")
def tower_and_head(name, models, clip_vision):
    one, two = clip_vision(1), clip_vision(2)
    first = execute("Aesthetic", clip_vision=one, head_name="one.pth").verifier
    other = {"clip_vision": one, "head_name": "one.pth"} | {name: {"clip_vision": two, "head_name": "two.pth"}[name]}
    second = execute("Aesthetic", **other).verifier
    assert first.patcher is one.patcher and second.patcher is other["clip_vision"].patcher
    assert scored(first) != scored(second) and first.identity() != second.identity()


# Several verifiers


class Favourite(Shade):
    """Likes one level most, and 0.5 half as much."""

    def __init__(self, level):
        super().__init__(name=f"likes {level}")
        self.level = level

    def score(self, images, prompts):
        level = images.mean(dim=(1, 2, 3)).reshape(-1, 1)
        return 1.0 * (level - self.level).abs().lt(0.01) + 0.5 * (level - 0.5).abs().lt(0.01)


LIKED = {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}


def ensemble(combine="weighted sum", places=LIKED, **inputs):
    given = {f"verifier_{place}": Favourite(LIKED[place]) for place in places}
    return execute("VerifierEnsemble", combine=combine, **given | inputs).verifier


def winner(verifier) -> float:
    levels = (*LIKED.values(), 0.5)
    return levels[scores_of(*levels, verifier=verifier).order(0)[0]]


for place in LIKED:

    def weight_of(place=place):
        assert winner(ensemble()) == 0.5
        assert winner(ensemble(**{f"weight_{place}": 20.0})) == LIKED[place]

    def verifier_of(place=place):
        with_it = ensemble(**{f"verifier_{place}": Shade()})
        assert [name for name in with_it.members if not name.startswith("likes")] == ["shade"]
        values = scores_of(*LIKED.values(), verifier=with_it).values[:, 0, with_it.members.index("shade")]
        assert values.tolist() == pytest.approx(list(LIKED.values()))

    CHECKS["NoiseSearchVerifierEnsemble", f"weight_{place}"] = weight_of
    CHECKS["NoiseSearchVerifierEnsemble", f"verifier_{place}"] = verifier_of


@reaches("VerifierEnsemble", "combine")
def how_they_choose_together():
    class Listed(Shade):
        def __init__(self, *levels):
            super().__init__(name=str(levels))
            self.levels = levels

        def score(self, images, prompts):
            return torch.tensor([[self.levels[round(10 * image.mean().item())]] for image in images])

    given = {"verifier_1": Listed(3.0, 2.0, 1.0, 0.0), "verifier_2": Listed(1.0, 0.0, 0.5, 100.0)}
    found = {}
    for combine in ("mean rank", "z-score", "weighted sum"):
        verifier = execute("VerifierEnsemble", combine=combine, **given).verifier
        found[combine] = scores_of(0.0, 0.1, 0.2, 0.3, verifier=verifier).row(0).tolist()
    assert found["weighted sum"] == [4.0, 2.0, 1.5, 100.0]
    assert sum(found["z-score"]) == pytest.approx(0.0, abs=1e-6) and max(found["z-score"]) == found["z-score"][0]
    assert max(found["mean rank"]) == found["mean rank"][0] and sum(found["mean rank"]) > 1


@reaches("VerifierEnsemble", "failed_verifier")
def what_happens_to_one_that_fails():
    class Failing(Shade):
        def score(self, images, prompts):
            raise VerifierError("no network")

    both = {"verifier_1": Shade(), "verifier_2": Failing(name="failing")}
    with pytest.raises(ValueError, match="failing failed: no network|no network"):
        find("KSampler", verifier=execute("VerifierEnsemble", combine="mean rank", **both).verifier)
    dropping = execute("VerifierEnsemble", combine="mean rank", failed_verifier="drop it", **both).verifier
    log = find("KSampler", verifier=dropping).log
    assert list(log.failed) == [1] and len(log.candidates) == 3


@reaches("VerifierGate", "verifier", "at_least")
def who_fails_the_gate_comes_last(name):
    judge = Shade(-1.0)
    gate = execute("VerifierGate", verifier=judge, at_least=-0.45).verifier
    beside = execute(
        "VerifierEnsemble", combine="weighted sum", verifier_1=Shade(), verifier_2=gate, weight_2=0.0
    ).verifier
    assert scores_of(0.2, 0.4, 0.6, 0.8, verifier=beside).order(0) == [1, 0, 3, 2]
    assert gate.members == judge.members and judge.images
    assert scores_of(0.2, 0.4, verifier=execute("VerifierGate", verifier=judge).verifier).order(0) == [0, 1]


# Vision-language models


@reaches("VLMFolder", "model_name", "precision")
def folder_and_precision(name, models):
    def vlm(**inputs):
        return execute("VLMFolder", **{"model_name": "one", "precision": "auto"} | inputs).vlm

    changed = vlm(**{name: {"model_name": "two", "precision": "bf16"}[name]})
    assert changed.name == ("two" if name == "model_name" else "one")
    assert next(changed.module.parameters()).dtype == (torch.bfloat16 if name == "precision" else torch.float32)
    assert changed.identity() != vlm().identity()
    judges = [execute("VQAScore", vlm=one).verifier for one in (vlm(), changed)]
    assert scored(judges[0]) != scored(judges[1])


class Clip:
    """Not a model: says what it is told to, by the interface of ComfyUI's CLIP."""

    patcher = None
    tokenizer = SimpleNamespace(state_dict=dict)

    def __init__(self, grade):
        self.grade = grade
        self.cond_stage_model = torch.nn.Module()
        self.cond_stage_model.preprocess_embed = None

    def tokenize(self, text, image=None, **options):
        return {"fake": [[(1, 1.0), ({"type": "image", "data": image}, 1.0)]]}

    def generate(self, tokens, **options):
        return [3]

    def decode(self, ids):
        return grades(self.grade)


@reaches("VLMClip", "clip")
def clip_that_is_asked():
    judges = [execute("VLMGrader", vlm=execute("VLMClip", clip=Clip(grade)).vlm).verifier for grade in (3, 8)]
    assert [scored(judge)[0][0] for judge in judges] == [3.0, 8.0]


def endpoint(server, **inputs):
    vlm = execute("VLMEndpoint", **{"url": server.url, "model": "tiny"} | inputs).vlm
    vlm.tries = 1
    return vlm


def graded(vlm, count=1, **inputs):
    verifier = execute("VLMGrader", vlm=vlm, **inputs).verifier
    return verifier.score(torch.stack([torch.full((8, 8, 3), index / count) for index in range(count)]), "a cat")


@reaches("VLMEndpoint", "url", "model", "key_variable")
def what_a_server_is_sent(name, monkeypatch):
    monkeypatch.setenv("A_KEY", "sk-for-this-server")
    monkeypatch.setenv("A_KEY_HOST", "127.0.0.1")
    with VLMServer() as server:
        graded(endpoint(server, model="large", key_variable="A_KEY"))
        graded(endpoint(server))
    keyed, plain = server.requests
    assert keyed.path == "/v1/chat/completions"
    assert [request.json["model"] for request in (keyed, plain)] == ["large", "tiny"]
    assert keyed.headers["Authorization"] == "Bearer sk-for-this-server" and "Authorization" not in plain.headers


@reaches("VLMEndpoint", "concurrency")
def requests_at_once():
    gate = threading.Barrier(6)  # opens for six that are there together

    def all_at_once(request):
        gate.wait(5)
        return grade_brightness(request)

    with VLMServer(all_at_once) as server:
        graded(endpoint(server, concurrency=6), 6)
    with VLMServer() as server:
        graded(endpoint(server, concurrency=1), 6)
    assert server.most == 1


@reaches("VLMEndpoint", "timeout")
def seconds_for_an_answer():
    with VLMServer(lambda request: None) as server, pytest.raises(VerifierError, match="no answer in 1 seconds"):
        graded(endpoint(server, timeout=1))


@reaches("VLMEndpoint", "max_calls")
def most_calls_of_a_search():
    with VLMServer() as server:
        with pytest.raises(VerifierError, match="has made 3 calls .* its limit"):
            graded(endpoint(server, max_calls=3, concurrency=1), 4)
        assert len(server.requests) == 3


@reaches("VQAScore", "vlm", "question")
def question_that_is_asked(name):
    def asked(**inputs):
        with VLMServer(lambda request: tokens(Yes=-0.1, No=-2.5)) as server:
            execute("VQAScore", vlm=endpoint(server), **inputs).verifier.score(PICTURES[:1], "a cat")
        [request] = server.requests
        return request.text

    assert asked(question="Is there {prompt} in it?") == "Is there a cat in it?"
    assert asked() == 'Does this figure show "a cat"? Please answer yes or no.'


@reaches("VLMGrader", "vlm", "samples", "temperature")
def gradings_that_are_drawn(name):
    with VLMServer(lambda request: answer(grades(request.json["seed"]))) as server:
        values = graded(endpoint(server), samples=3, temperature=1.2)
        assert {(one.json["seed"], one.json["temperature"]) for one in server.requests} == {
            (0, 1.2),
            (1, 1.2),
            (2, 1.2),
        }
        assert values[0, 0] == 1.0
        server.requests.clear()
        graded(endpoint(server), samples=2)
    assert {(one.json["seed"], one.json["temperature"]) for one in server.requests} == {(0, 0.7), (1, 0.7)}


# The report


def report(log=None, **inputs):
    return execute("Report", log=log or LOG(), **inputs)


def LOG():
    return run_search(RandomSearch(), SyntheticEngine(smooth), SEED, Budget(5)).log


@reaches("Picture", *(f"also_{number}" for number in range(1, 17)))
def check_more_of_the_winner(name, monkeypatch):
    """What goes in comes out under the same name, the winner's own. One search for all."""
    if not more_of_the_winner:
        links = {f"also_{number}": ["k" if number % 2 else "decode", 0] for number in range(1, 17)}
        more_of_the_winner.update(search_picture(monkeypatch, **links))
    [value], number = more_of_the_winner[name], int(name.removeprefix("also_"))
    if number % 2:
        assert torch.equal(value["samples"], more_of_the_winner["latent"])
    else:
        assert torch.equal(value, more_of_the_winner["image"][0])


more_of_the_winner: dict[str, list] = {}


@reaches("Picture", "image")
def check_the_picture(monkeypatch):
    assert search_picture(monkeypatch, image=["twice", 0])["image"][0].shape[1:3] == (128, 128)


@reaches("Picture", "verifier", "candidates", "prompt", "top_k", "frames", "bad_candidate", "vary")
def check_a_picture(name, monkeypatch):
    ways = {
        "verifier": (["shade", 0], lambda found: found["log"][0].members, ("shade",)),
        "candidates": (3, lambda found: len(found["log"][0].candidates), 3),
        "prompt": ("a blue square", lambda found: found["log"][0].settings["prompt"], "a blue square"),
        "top_k": (1, lambda found: len(found["top_images"]), 1),
        "frames": (1, lambda found: picture_options[-1].frames, 1),
        "bad_candidate": ("leave it out", lambda found: picture_drops[-1], True),
        "vary": ("all stages", lambda found: found["log"][0].settings["seeds of"].count("KSampler"), 2),
    }
    value, seen, expected = ways[name]
    picture_options, picture_drops = [], []
    module = picture_nodes
    whole = module.search_picture

    def watched(*args, drop_bad=False, **kwargs):
        picture_options.append(args[8])
        picture_drops.append(drop_bad)
        return whole(*args, drop_bad=drop_bad, **kwargs)

    monkeypatch.setattr(module, "search_picture", watched)
    assert seen(search_picture(monkeypatch, **{name: value})) == expected
    assert seen(search_picture(monkeypatch)) != expected


@reaches("Picture", "search")
def check_the_search_of_a_picture(monkeypatch):
    found = search_picture(monkeypatch, search=["search", 0])
    assert all(one.recipes[0].moves for one in found["log"][0].candidates[1:])


@reaches("Picture", "budget")
def check_the_budget_of_a_picture(monkeypatch):
    assert len(search_picture(monkeypatch, candidates=4, budget=["budget", 0])["log"][0].candidates) == 2


def search_picture(monkeypatch, **inputs):
    """What Search Picture gives in a workflow of two stages, by output."""
    host = executor.host(monkeypatch)
    found = {}

    class Keep:
        CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE, INPUT_IS_LIST = "test", "keep", (), True, True

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"value": ("*",), "name": ("STRING",)}}

        def keep(self, value, name):
            found[name[0]] = value
            return ()

    class ShadeLoader:
        CATEGORY, FUNCTION, RETURN_TYPES = "test", "load", ("NOISE_SEARCH_VERIFIER",)

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {}}

        def load(self):
            return (Shade(),)

    for kind in (Keep, ShadeLoader):
        monkeypatch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, kind.__name__, kind)
    demo, latent = {"model": ["demo", 0], "positive": ["pos", 0], "negative": ["pos", 0]}, ["empty", 0]
    schedule = {"steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    nodes = {
        "demo": ("NoiseSearchDemoCheckpoint", {}),
        "shade": ("ShadeLoader", {}),
        "search": ("NoiseSearchZeroOrder", {"neighbours": 2, "angle": 20.0, "no_better_neighbour": "keep the pivot"}),
        "budget": ("NoiseSearchBudget", {"max_nfe": 8, "max_seconds": 0.0, "stop_at_target": False,
                                         "target_score": 0.0, "patience": 0}),
        "pos": ("CLIPTextEncode", {"clip": ["demo", 1], "text": "a red circle"}),
        "empty": ("EmptySD3LatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "first": ("KSampler", {**demo, **schedule, "seed": 1, "latent_image": latent, "denoise": 1.0}),
        "k": ("KSampler", {**demo, **schedule, "seed": 9, "latent_image": ["first", 0], "denoise": 0.5}),
        "decode": ("VAEDecode", {"samples": ["k", 0], "vae": ["demo", 2]}),
        "twice": ("ImageScaleBy", {"image": ["decode", 0], "upscale_method": "area", "scale_by": 2.0}),
        "picture": ("NoiseSearchPicture", {"image": ["decode", 0], "verifier": ["demo", 3], "candidates": 2,
                                           "prompt": "", "top_k": 4, "vary": "the first stage", **inputs}),
    }  # fmt: skip
    names = ["image", "seed", "recipe", "log", "top_images", *(f"also_{number}" for number in range(1, 17))]
    for slot, name in enumerate(names):
        if slot < 5 or name in inputs:
            nodes[f"keep {name}"] = ("Keep", {"value": ["picture", slot], "name": name})
    host.run(api_graph(nodes), *(name for name in nodes if name.startswith("keep")))
    if not any(name.startswith("also") for name in inputs):
        return found
    first, _ = nodes["first"], nodes.pop("picture")
    nodes = {name: one for name, one in nodes.items() if not name.startswith("keep")}
    nodes["first"] = (first[0], {**first[1], "seed": found["seed"][0]})
    nodes["keep latent"] = ("Keep", {"value": ["k", 0], "name": "latent"})
    host.run(api_graph(nodes), "keep latent")
    return {**found, "latent": found["latent"][0]["samples"]}


def api_graph(nodes):
    return {name: {"class_type": kind, "inputs": dict(given)} for name, (kind, given) in nodes.items()}


@reaches("Report", "log")
def log_that_is_shown():
    other = searched("ZeroOrder")
    out = report(other)
    assert json.loads(out.ui["noise_search_report"][0])["candidates"][1]["recipes"][0]["moves"]
    assert out.table != report().table and out.csv.count("\r\n") == len(other.candidates) + 1


@reaches("Report", "theme")
def colours_of_the_pictures():
    for theme, colours in THEMES.items():
        out, corner = report(theme=theme), []
        for picture in (out.score_curve, out.contact_sheet):
            corner.append((255 * picture[0, 0, 0]).round().int().tolist())
        assert corner == [list(bytes.fromhex(colours.background[1:]))] * 2


@reaches("Report", "axis")
def what_counts_as_spent():
    log = LOG()
    for choice, axis in (("NFE", "nfe"), ("seconds", "seconds"), ("both", "both")):
        assert torch.equal(report(log, axis=choice).score_curve, to_image(score_curve(log, "light", axis)))
    shown = {choice: report(log, axis=choice).score_curve for choice in ("NFE", "seconds", "both")}
    assert not torch.equal(shown["NFE"], shown["seconds"])
    assert torch.equal(report(log).contact_sheet, to_image(contact_sheet(log, "light")))
