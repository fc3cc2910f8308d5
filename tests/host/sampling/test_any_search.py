"""Every search on every kind of latent and setting that a user may bring: it finds something, or says why it cannot."""

import dataclasses

import pytest
import torch

pytest.importorskip("comfy")

from any_model import AnyVae, Contrast, made
from noise_search.host.graph.graph import Graph
from noise_search.host.sampling.engine import Options
from noise_search.host.sampling.stock import Sampling
from noise_search.host.search import run_node as search
from noise_search.search.algorithms import ALGORITHMS
from noise_search.search.algorithms.draft_and_final import DraftAndFinal
from noise_search.search.algorithms.paths import SearchOverPaths
from noise_search.search.algorithms.random_search import RandomSearch
from noise_search.search.algorithms.replay import ReplayRecipe
from noise_search.search.algorithms.zero_order import ZeroOrderSearch
from noise_search.search.ledger import SAMPLER_TRIAL
from noise_search.search.recipe import Jump, Recipe
from tiny_models import BUILDERS

SEED, STEPS, CANDIDATES = 40, 5, 5
SEARCHES = {
    "random": RandomSearch(),
    "zero-order": ZeroOrderSearch(),
    "paths": SearchOverPaths(paths=1, branches=2, sigma=0.3, forward=0.4, backward=0.6),
    "drafts": DraftAndFinal(draft_steps=2),
    "replay": ReplayRecipe((Recipe(3, jumps=(Jump(1, 0.3, 0.8),)),)),
}
UNTESTED = {entry.kind.__name__ for entry in ALGORITHMS} - {type(search).__name__ for search in SEARCHES.values()}
with_every_search = pytest.mark.parametrize("how", SEARCHES)


@torch.inference_mode()
def find(how, name="sd3", steps=STEPS, candidates=CANDIDATES, denoise=1.0, batch=1, top_k=1, image=False, **latent):
    setup = made(name)
    if batch > 1 or image:
        setup = dataclasses.replace(setup, latent=BUILDERS[name]().latent(batch, 7 if image else None))

    def sampling():
        return Sampling.ksampler(
            setup.model, steps, setup.cfg, "euler", "simple", setup.positive, setup.negative,
            {**setup.latent, **latent}, denoise,
        )  # fmt: skip

    return search(
        sampling, AnyVae(), Contrast(), SEED, candidates, "", top_k, Graph(), "positive",
        SEARCHES[how], options=Options(batch_size=1),
    )  # fmt: skip


@pytest.mark.complete
def test_every_search_in_the_list_is_tested():
    assert set() == UNTESTED, "add a case of each to SEARCHES in this file"


def spent(result) -> int:
    return result.log.nfe - result.log.extra_nfe


@with_every_search
@pytest.mark.parametrize("name", ["sd15", "sd3", "wan"])
def test_it_searches(name, how):
    result = find(how, name)
    assert result.latent["samples"].isfinite().all()
    assert (len(result.log.candidates) > 1) == (how != "replay")


@with_every_search
def test_it_searches_a_batch_of_videos(how):
    result = find(how, "wan", batch=2)
    assert result.latent["samples"].shape == (2, 16, 2, 8, 8)
    assert len(result.image) == 2 * 2
    assert how == "replay" or spent(result) <= CANDIDATES * STEPS * 2


@with_every_search
def test_it_searches_items_that_were_taken_from_a_larger_batch(how):
    result = find(how, batch=2, batch_index=[1, 3])
    assert all(recipe.batch_index == (1, 3) for recipe in result.log.candidates[0].recipes)
    assert result.latent["samples"].isfinite().all()


@with_every_search
def test_no_steps_give_the_latent_back(how):
    for candidates in (1, 5):
        result = find(how, denoise=0.0, candidates=candidates, image=True)
        assert (len(result.log.candidates), result.log.nfe) == (1, 0)


@pytest.mark.parametrize("how", [how for how in SEARCHES if how != "replay"])
def test_one_candidate_is_stock(how):
    result = find(how, candidates=1, steps=3)
    assert torch.equal(result.latent["samples"], plain(3))
    assert [candidate.index for candidate in result.log.candidates] == [0]
    assert result.log.warnings == []


def plain(steps):
    setup = made("sd3")
    with torch.inference_mode():
        sampling = Sampling.ksampler(
            setup.model, steps, setup.cfg, "euler", "simple", setup.positive, setup.negative, setup.latent
        )
        return sampling.sample((Recipe.from_seed(SEED),))[0]["samples"]


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("how", ["random", "zero-order", "paths", "replay"])
def test_it_searches_with_hardly_any_steps(how, steps):
    result = find(how, steps=steps)
    assert result.latent["samples"].isfinite().all()
    assert how == "replay" or spent(result) <= CANDIDATES * steps


@with_every_search
def test_more_top_images_than_there_are_give_all(how):
    result = find(how, top_k=64)
    assert len(result.top_images) == len(result.log.of_stage())


@with_every_search
def test_it_searches_from_an_image(how):
    result = find(how, denoise=0.5, image=True)
    assert result.latent["samples"].isfinite().all()


def test_paths_say_that_the_sampling_starts_below_them():
    with pytest.raises(
        ValueError, match=r"noise level 0\.3 .* is not below where the sampling starts .* Raise denoise"
    ):
        find("paths", denoise=0.1, image=True)


def test_random_search_takes_latents_of_several_tensors():
    assert len(find("random", "ltxav").log.candidates) == CANDIDATES


@pytest.mark.parametrize("how", ["zero-order", "paths", "replay"])
def test_others_say_that_they_cannot_take_latents_of_several_tensors(how):
    with pytest.raises(ValueError, match=r"several tensors \(audio with video\).*[uU]se Random Search"):
        find(how, "ltxav")


def test_a_replay_has_a_budget_of_one_candidate():
    assert find("replay").log.settings["candidates"] == 1


def test_a_budget_without_room_for_paths_says_so():
    [warning] = find("paths", candidates=2).log.warnings
    assert warning.startswith("The budget has no room for a round of Search over Paths (1 paths with 2 branches each)")


def test_paths_refuse_before_anything_is_sampled(monkeypatch):
    calls = []
    monkeypatch.setattr(Sampling, "run", lambda *args, **named: calls.append(1))
    with pytest.raises(ValueError, match="several tensors"):
        find("paths", "ltxav")
    assert calls == []


def test_the_time_that_trying_the_sampler_takes_is_none_of_the_searchs():
    """Draft and Final asks whether the sampler adds noise, which is tried out; Random Search does not."""
    assert find("drafts").log.ledger.extra.keys() == {SAMPLER_TRIAL}
    assert find("random").log.ledger.extra == {}
