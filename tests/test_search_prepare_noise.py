"""A recipe of a seed draws what ComfyUI's own `prepare_noise` draws, bit for bit."""

import pytest
import torch

pytest.importorskip("comfy")

import comfy.sample
from noise_search.host.noise import generate
from noise_search.search.recipe import Recipe

pytestmark = pytest.mark.comfyui

SHAPES = [(1, 4, 8, 8), (1, 16, 16, 16), (3, 4, 64, 48), (1, 3, 5, 5), (2, 3, 5, 5), (5, 1, 1, 1), (1, 7, 3, 1)]
VIDEO = [(1, 16, 3, 8, 8), (2, 16, 5, 7, 9), (1, 8, 64)]  # frames; and audio, which has one axis
SEEDS = [0, 1, 42, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]


@pytest.mark.parametrize("shape", SHAPES + VIDEO, ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_equals_prepare_noise(shape, seed):
    assert torch.equal(Recipe.from_seed(seed).noise(shape), comfy.sample.prepare_noise(torch.zeros(shape), seed))


@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (3, 3, 5, 5), (3, 16, 2, 5, 7)], ids=str)
@pytest.mark.parametrize("index", [(0, 1, 2), (4, 5, 6), (1, 3, 9), (9, 3, 1), (2, 2, 5), (0, 0, 0)], ids=str)
def test_equals_prepare_noise_with_batch_index(shape, index):
    recipe = Recipe.from_seed(42).for_batch(3, index)
    expected = comfy.sample.prepare_noise(torch.zeros(shape), 42, list(index))
    assert torch.equal(recipe.noise(shape), expected)


@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_row_equals_that_row_of_prepare_noise(row):
    expected = comfy.sample.prepare_noise(torch.zeros(3, 4, 8, 8), 42)[row : row + 1]
    assert torch.equal(Recipe.from_seed(42).for_batch(3).for_row(row).noise((3, 4, 8, 8)), expected)


def test_a_negative_seed_is_the_wrapped_one():
    expected = comfy.sample.prepare_noise(torch.zeros(1, 4, 8, 8), 2**64 - 1)
    assert torch.equal(Recipe.from_seed(-1).noise((1, 4, 8, 8)), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_hosts_noise_is_stock_for_every_type_of_latent(dtype):
    """ComfyUI 0.16 draws in the latent's type, later versions in float32; the host layer asks ComfyUI itself."""
    latent = torch.zeros(2, 4, 8, 8, dtype=dtype)
    expected = comfy.sample.prepare_noise(latent, 42)
    drawn = generate(Recipe.from_seed(42), {"samples": latent})
    assert drawn.dtype == dtype
    assert torch.equal(drawn, expected)
