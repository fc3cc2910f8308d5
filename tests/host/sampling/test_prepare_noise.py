"""A recipe of a seed draws what ComfyUI's own `prepare_noise` draws, bit for bit."""

import pytest
import torch

pytest.importorskip("comfy")

import comfy.model_management
import comfy.nested_tensor
import comfy.sample
from noise_search.host.sampling import noise as host_noise
from noise_search.host.sampling.noise import RecipeNoise, generate, initial_noise
from noise_search.search.recipe import Recipe, Rotate, from_json

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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("index", [None, [7, 2, 5]])
def test_rows_of_several_draws_are_those_of_the_whole_batches(dtype, index):
    """Also turned ones, in the latent's type; the last recipe's seed is the one that the global generator is left with,
    as samplers without a generator of their own see it."""
    latent = {"samples": torch.zeros(3, 4, 5, 7, dtype=dtype), "batch_index": index}
    stock = None if index is None else tuple(index)
    moves = (Rotate(5, 20.0), Rotate(6, 30.0))
    items = [Recipe(9, moves, 2, 3, stock), Recipe(42, (), 0, 3, stock), Recipe(9, moves[:1], 1, 3, stock)]
    nine, other = (comfy.sample.prepare_noise(latent["samples"], seed, index) for seed in (9, 42))
    once = moves[0](nine)
    comfy.sample.prepare_noise(latent["samples"], 9, index)
    left = torch.get_rng_state()
    found = initial_noise(items, latent)
    assert found.dtype == dtype
    assert torch.equal(found, torch.cat([moves[1](once)[2:], other[:1], once[1:2]]))
    assert torch.equal(torch.get_rng_state(), left)


@pytest.mark.parametrize("index", [None, tuple(range(40, 0, -1))])
def test_rows_of_a_batch_too_large_to_hold_are_stocks(index, monkeypatch):
    monkeypatch.setattr(host_noise, "MAX_WHOLE_DRAW", 1000)
    whole = comfy.sample.prepare_noise(torch.zeros(40, 4, 5, 7), 42, index)
    monkeypatch.setattr(comfy.sample, "prepare_noise", lambda *args: pytest.fail("drawn whole"))
    for row in (0, 17, 39):
        found = generate(Recipe(42, (), row, 40, index), {"samples": torch.zeros(1, 4, 5, 7)})
        assert torch.equal(found, whole[row : row + 1])
    with pytest.raises(ValueError, match=r"batch of 40 noises of shape \(4, 5, 7\), which is too large"):
        generate(Recipe(42, (), 3, 40, index), {"samples": torch.zeros(1, 4, 5, 7, dtype=torch.float16)})


@pytest.mark.parametrize(
    ("recipe", "made"), [('{"seed": 1, "batch": 4096}', 4096), ('{"seed": 1, "batch_index": [5, 6, 7]}', 3)]
)
@pytest.mark.parametrize("nested", [False, True])
def test_another_number_of_items_is_refused_before_anything_is_drawn(recipe, made, nested, monkeypatch):
    monkeypatch.setattr(comfy.sample, "prepare_noise", lambda *args: pytest.fail("drawn"))
    samples = torch.zeros(2, 16, 128, 128)
    samples = comfy.nested_tensor.NestedTensor([samples, samples[..., 0]]) if nested else samples
    with pytest.raises(ValueError, match=f"a batch of {made} noises, but the latent has 2 items"):
        RecipeNoise(from_json(recipe)).generate_noise({"samples": samples})


def test_cancel_ends_a_long_recipe():
    recipe = Recipe(1, tuple(Rotate(seed, 9.0) for seed in range(4096)))
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        generate(recipe, {"samples": torch.zeros(1, 4, 64, 64)})


def test_a_nested_latent_is_stocks():
    nested = comfy.nested_tensor.NestedTensor([torch.zeros(2, 16, 3, 4, 4), torch.zeros(2, 8, 9)])
    whole = comfy.sample.prepare_noise(nested, 42)
    for items in ([Recipe(42)], list(Recipe(42).for_items(2))):
        found = initial_noise(items, {"samples": nested})
        assert all(map(torch.equal, found.unbind(), whole.unbind()))
    for items in ([Recipe(42, (Rotate(1, 9.0),))], [Recipe(42), Recipe(43)]):
        with pytest.raises(ValueError, match="cannot be done for a latent made of several tensors"):
            initial_noise(items, {"samples": nested})
