"""Models whose latent batch is one video, such as SVD: its frames are searched together, never one by one."""

import json
from functools import cache

import pytest
import torch

pytest.importorskip("comfy")

import comfy.supported_models
import tiny_models
from any_model import AnyVae
from comfy.model_patcher import ModelPatcher
from noise_search.host.graph.graph import Graph
from noise_search.host.sampling.stock import Sampling
from noise_search.host.search import run_node as search
from noise_search.search.algorithms.draft_and_final import DraftAndFinal
from noise_search.search.algorithms.paths import SearchOverPaths
from noise_search.search.algorithms.random_search import RandomSearch
from noise_search.search.algorithms.replay import ReplayRecipe
from noise_search.search.algorithms.zero_order import ZeroOrderSearch
from noise_search.search.recipe import from_json

import nodes as comfy_nodes

FRAMES, STEPS, SEED, WIDTH = 3, 4, 30, 32
ALGORITHMS = {
    "random": RandomSearch(),
    "zero-order": ZeroOrderSearch(),
    "paths": SearchOverPaths(paths=1, branches=2, sigma=0.3, forward=0.4, backward=0.5),
    "drafts": DraftAndFinal(draft_steps=2),
}


@cache
def svd():
    """Stable Video Diffusion: a UNet that mixes the items of a batch, which are its frames."""
    config = tiny_models.unet_config(WIDTH, linear=True, adm=768) | {
        "in_channels": 8,
        "use_temporal_attention": True,
        "use_temporal_resblock": True,
        "extra_ff_mix_layer": True,
        "use_spatial_context": True,
        "merge_strategy": "learned_with_images",
        "merge_factor": 0.0,
        "video_kernel_size": [3, 1, 1],
        "disable_temporal_crossattention": False,
    }
    return tiny_models.unet(comfy.supported_models.SVD_img2vid, config, seed=11)


def conditioning(seed):
    generator = torch.Generator().manual_seed(seed)
    values = {"motion_bucket_id": 127, "fps": 6, "augmentation_level": 0.0}
    picture = torch.randn(1, 4, 8, 8, generator=generator)
    return [[torch.randn(1, 1, WIDTH, generator=generator), {**values, "concat_latent_image": picture}]]


def latent(**more):
    return {"samples": torch.zeros(FRAMES, 4, 8, 8), **more}


def sampling_of(model=None, sampler="euler", **more):
    positive, negative = conditioning(1), conditioning(2)
    return Sampling.ksampler(model or svd(), STEPS, 2.5, sampler, "karras", positive, negative, latent(**more))


@torch.inference_mode()
def stock(seed, sampler="euler", **more):
    made = comfy_nodes.common_ksampler(
        svd(), seed, STEPS, 2.5, sampler, "karras", conditioning(1), conditioning(2), latent(**more)
    )
    return made[0]["samples"]


@torch.inference_mode()
def searched(verifier, algorithm=None, candidates=4, **more):
    sampling = sampling_of(**more)
    return search(lambda: sampling, AnyVae(), verifier, SEED, candidates, "", 2, Graph(), "positive", algorithm)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m_sde"])
@pytest.mark.parametrize("index", [None, [2, 3, 4]], ids=["plain", "batch_index"])
def test_the_winner_is_one_whole_stock_video(brightness, sampler, index):
    more = {} if index is None else {"batch_index": index}
    result = searched(brightness, sampler=sampler, **more)
    assert torch.equal(result.latent["samples"], stock(result.seed, sampler, **more))


def test_the_best_videos_are_whole(brightness):
    result = searched(brightness)
    assert [len(video) for video in result.top_images] == [FRAMES, FRAMES]
    assert torch.equal(result.top_images[0], result.image)


def test_a_video_is_one_row_of_the_report_and_costs_what_other_videos_cost(brightness):
    log = searched(brightness).log
    assert (log.rows, log.nfe) == (1, 4 * STEPS)


def test_videos_never_share_a_batch(brightness):
    log = searched(brightness, candidates=40).log
    assert not any(candidate.batched for candidate in log.candidates)
    assert log.extra_nfe == 0


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_every_search_finds_a_video_that_its_recipe_makes_again(brightness, algorithm):
    result = searched(brightness, algorithm, candidates=6)
    again = searched(brightness, ReplayRecipe(tuple(from_json(result.recipe))))
    assert torch.equal(again.latent["samples"], result.latent["samples"])
    assert len(result.latent["samples"]) == FRAMES


def test_with_a_batch_index_the_recipe_makes_it_again(brightness):
    result = searched(brightness, batch_index=[2, 3, 4])
    assert json.loads(result.recipe)["batch_index"] == [2, 3, 4]
    again = searched(brightness, ReplayRecipe(tuple(from_json(result.recipe))), batch_index=[2, 3, 4])
    assert torch.equal(again.latent["samples"], result.latent["samples"])


def test_the_noise_of_the_winner_makes_the_whole_video(brightness):
    result = searched(brightness)
    assert result.noise.generate_noise(latent()).shape == (FRAMES, 4, 8, 8)


def test_a_motion_model_of_animatediff_makes_a_video_of_the_batch():
    """Only its mark is here: the pack keeps its motion models under this name."""
    tiny = tiny_models.sd15()
    with_motion = tiny.model.clone()
    module = torch.nn.Linear(1, 1)
    motion = ModelPatcher(module, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))
    with_motion.set_additional_models("ADE", [motion])
    made = [
        Sampling.ksampler(model, 2, 1.0, "euler", "simple", tiny.conditioning(1), tiny.conditioning(2), latent())
        for model in (tiny.model, with_motion)
    ]
    assert [sampling.rows for sampling in made] == [FRAMES, 1]
