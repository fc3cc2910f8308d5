"""NOISE objects: what SamplerCustomAdvanced calls to get the initial noise of a recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.model_management
import comfy.sample
import torch

from ...search.recipe import Kept, Recipe, Rotate, draw, noises, one_draw
from ..known import RANDOM_NOISE, home

MAX_WHOLE_DRAW = 2**26  # numbers of one draw that is held whole where the latent is smaller: 256 MB
KEPT_NOISES = Kept(2**27)  # bytes: 128 noises of FLUX's usual size


def let_noises_go() -> None:
    """Between searches nothing is kept: the next one turns other noises."""
    KEPT_NOISES.noises.clear()
    KEPT_NOISES.bytes = 0


def check_cancel() -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()


def generate(recipe: Recipe, latent: Mapping[str, Any]) -> Any:
    """The noise of `recipe` for this LATENT, drawn by ComfyUI's own function, so that it is stock's bit for bit.

    Nested (audio-video) latents are drawn whole; a move or a single row of one raises ValueError.
    """
    return _generate([recipe], latent)


def _generate(recipes: Sequence[Recipe], latent: Mapping[str, Any]) -> Any:
    samples, index = latent["samples"], latent.get("batch_index")
    if samples.is_nested:
        recipe = recipes[0]
        if len(recipes) > 1 or recipe.moves or recipe.row is not None:
            raise ValueError(
                "this recipe turns a noise or picks one item of a batch, which cannot be done for a latent made of "
                "several tensors (audio with video). Use Random Search, or a recipe that is a seed alone."
            )
        own = recipe.batch is None and recipe.batch_index is None
        return comfy.sample.prepare_noise(samples, recipe.seed, index if own else recipe.batch_index)
    stock = None if index is None else tuple(map(int, index))
    if stock is not None:
        recipes = [r.for_batch(len(stock), stock) if r.batch is None and r.batch_index is None else r for r in recipes]

    def source(shape: tuple[int, ...], seed: int, batch_index: tuple[int, ...] | None, rows: Sequence[int]) -> Any:
        drawn = shape[0] if batch_index is None else max(batch_index) + 1
        if (shape[0], batch_index) != (samples.shape[0], stock) and drawn * math.prod(shape[1:]) > MAX_WHOLE_DRAW:
            return _draw_rows(shape, seed, batch_index, rows, samples.dtype)
        noise = comfy.sample.prepare_noise(samples.new_empty(1).expand(shape), seed, batch_index)
        return noise if list(rows) == list(range(shape[0])) else noise[list(rows)]

    return noises(recipes, tuple(samples.shape), samples.dtype, source, check_cancel, KEPT_NOISES)


def _draw_rows(
    shape: tuple[int, ...], seed: int, index: tuple[int, ...] | None, rows: Sequence[int], dtype: torch.dtype
) -> torch.Tensor:
    """Rows of a batch that is far larger than the latent, as ComfyUI's function draws it but for the memory and the
    time without Cancel."""
    if dtype != torch.float32:  # which versions of ComfyUI draw differently
        raise ValueError(
            f"the recipe picks items of a batch of {shape[0]} noises of shape {shape[1:]}, which is too large to be "
            f"drawn whole, as it has to be for a latent of type {dtype}. Connect a latent of 32-bit numbers."
        )
    torch.manual_seed(seed)  # as ComfyUI's function does: some samplers go on with it
    return draw(shape, seed, index, rows, check_cancel)


def initial_noise(recipes: Sequence[Recipe], latent: Mapping[str, Any]) -> Any:
    """The noise of a whole LATENT from one recipe for the batch, or from one for each of its items.

    Raises ValueError where they make another number of items than the latent has, before anything is drawn.
    """
    whole = one_draw(recipes)
    if whole is not None:
        recipes = [whole]
    elif len(recipes) > 1:  # one per item: a recipe that names no batch makes a single one
        recipes = [recipe if recipe.batch is not None else recipe.for_batch(1) for recipe in recipes]
    samples = latent["samples"]
    items = samples.unbind()[0].shape[0] if samples.is_nested else samples.shape[0]
    made = sum(recipe.drawn_in(items) if recipe.row is None else 1 for recipe in recipes)
    if made != items:
        raise ValueError(
            f"the recipe makes a batch of {made} noises, but the latent has {items} items. "
            f"Connect a latent with a batch size of {made}."
        )
    return _generate(recipes, latent)


class RecipeNoise:
    """NOISE made from recipes, one per item of the batch or one for the whole batch. Immutable.

    `seed` is the first recipe's and is what the sampler's own randomness is seeded with.
    """

    def __init__(self, recipes: list[Recipe]):
        self.recipes = tuple(recipes)
        self.seed = self.recipes[0].seed

    def generate_noise(self, latent: Mapping[str, Any]) -> Any:
        if any(recipe.jumps for recipe in self.recipes):
            raise ValueError(
                "this recipe is a path: it goes back up in noise while it is sampled, so there is no initial noise "
                "that makes its image. Connect a Replay Recipe node to the 'search' input of Search KSampler instead."
            )
        return initial_noise(self.recipes, latent)


class NearNoise:
    """NOISE at `move.angle` degrees from another NOISE that has no recipe."""

    def __init__(self, base: Any, move: Rotate):
        self.base = base
        self.move = move
        self.seed = base.seed

    def generate_noise(self, latent: Mapping[str, Any]) -> Any:
        noise = self.base.generate_noise(latent)
        if noise.is_nested:
            raise ValueError("'near' cannot turn the noise of a latent made of several tensors (audio with video)")
        return self.move(noise)


def recipes_of(noise: Any) -> tuple[Recipe, ...] | None:
    """The recipes behind a NOISE, or None where it came from a node that does not say how it was made."""
    if isinstance(noise, RecipeNoise):
        return noise.recipes
    kind = type(noise)
    return (Recipe.from_seed(noise.seed),) if (home(kind), kind.__qualname__) == RANDOM_NOISE else None


def candidates(seed: int, count: int, near: Any = None, angle: float = 18.0) -> tuple[list[Any], list[int]]:
    """`count` noises and the seeds to sample them with.

    Without `near`: the noises of seed, seed + 1, ... (modulo 2**64), as Random Search takes them. With it: `near`
    itself, then neighbours at `angle` degrees from it, all sampled with the same seed (common random numbers).
    """
    recipes = [Recipe.from_seed(seed + j) for j in range(count)]
    if near is None:
        return [RecipeNoise([recipe]) for recipe in recipes], [recipe.seed for recipe in recipes]
    noises: list[Any] = [near]
    known = recipes_of(near)
    for recipe in recipes[1:]:
        move = Rotate(recipe.seed, angle)
        noises.append(RecipeNoise([base.then(move) for base in known]) if known else NearNoise(near, move))
    return noises, [noise.seed for noise in noises]
