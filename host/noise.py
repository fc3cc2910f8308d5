"""NOISE objects: what SamplerCustomAdvanced calls to get the initial noise of a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import comfy.sample
import torch

from ..search.recipe import Recipe, Rotate, one_draw


def generate(recipe: Recipe, latent: Mapping[str, Any]) -> Any:
    """The noise of `recipe` for this LATENT, drawn by ComfyUI's own function, so that it is stock's bit for bit.

    Nested (audio-video) latents are drawn whole; a move or a single row of one raises ValueError.
    """
    samples = latent["samples"]
    index = latent.get("batch_index") if recipe.batch is None and recipe.batch_index is None else recipe.batch_index
    if samples.is_nested:
        if recipe.moves or recipe.row is not None:
            raise ValueError(
                "this recipe turns a noise or picks one item of a batch, which cannot be done for a latent made of "
                "several tensors (audio with video). Use Random Search, or a recipe that is a seed alone."
            )
        return comfy.sample.prepare_noise(samples, recipe.seed, index)

    def draw(shape: tuple[int, ...], seed: int, batch_index: tuple[int, ...] | None) -> torch.Tensor:
        like = samples.new_empty(1).expand(shape)
        return comfy.sample.prepare_noise(like, seed, index)

    return recipe.noise(tuple(samples.shape), samples.dtype, draw)


def initial_noise(recipes: Sequence[Recipe], latent: Mapping[str, Any]) -> Any:
    """The noise of a whole LATENT from one recipe for the batch, or from one for each of its items.

    Raises ValueError where they make another number of items than the latent has.
    """
    whole = one_draw(recipes)
    if whole is not None:
        recipes = [whole]
    elif len(recipes) > 1:  # one per item: a recipe that names no batch makes a single one
        recipes = [recipe if recipe.batch is not None else recipe.for_batch(1) for recipe in recipes]
    noises = [generate(recipe, latent) for recipe in recipes]
    if len(noises) == 1 and noises[0].is_nested:
        return noises[0]
    made, items = sum(noise.shape[0] for noise in noises), latent["samples"].shape[0]
    if made != items:
        raise ValueError(
            f"the recipe makes a batch of {made} noises, but the latent has {items} items. "
            f"Connect a latent with a batch size of {made}."
        )
    return torch.cat(noises) if len(noises) > 1 else noises[0]


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
    """NOISE at `move.angle` degrees from another NOISE that has no recipe of its own."""

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
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    if isinstance(noise, RecipeNoise):
        return noise.recipes
    return (Recipe.from_seed(noise.seed),) if isinstance(noise, Noise_RandomNoise) else None


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
