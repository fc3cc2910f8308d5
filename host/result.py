"""What a search hands on: the winners of every row as one batch, and what there is to say of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..search.log import Pool, SearchLog
from ..search.recipe import Recipe, to_json
from .progress import outcome
from .sampling.engine import Result, join_rows
from .sampling.noise import RecipeNoise
from .sampling.stock import Sampling


@dataclass(frozen=True)
class Found:
    """What every search hands on. images: of the winners, batches [B, H, W, C]; top_images: of rank 1, 2, ...;
    top_recipes: a recipe per item each; text: what the node says of it."""

    images: list[torch.Tensor]
    seed: int
    recipe: str
    log: SearchLog
    top_images: list[torch.Tensor]
    top_recipes: tuple[tuple[Recipe, ...], ...]
    text: str


@dataclass(frozen=True)
class SearchResult(Found):
    """latent, denoised: LATENT of the winners; noise: NOISE that makes the winners again."""

    latent: dict[str, Any]
    denoised: dict[str, Any]
    noise: RecipeNoise

    @property
    def image(self) -> torch.Tensor:
        return self.images[0]


def collect(pool: Pool, sampling: Sampling) -> SearchResult:
    """The winners of every row, put together as one batch."""
    log = pool.log
    ranks: list[list[Result]] = [list(pool.top(rank)) for rank in range(min(pool.keep, len(log.of_stage())))]
    best = ranks[0]
    recipes = log.winners()
    return SearchResult(
        latent={**sampling.latent, "samples": join_rows([result.samples for result in best])},
        denoised={**sampling.latent, **sampling.ratios, "samples": join_rows([result.denoised for result in best])},
        images=[join_images([result.image for result in best])],
        noise=RecipeNoise(recipes),
        seed=recipes[0].seed,
        recipe=to_json(recipes),
        log=log,
        top_images=[join_images([result.image for result in rank]) for rank in ranks],
        top_recipes=ranked_recipes(log, len(ranks)),
        text=outcome(log),
    )


def ranked_recipes(log: SearchLog, count: int) -> tuple[tuple[Recipe, ...], ...]:
    """Of the best, the second best and so on: the recipe of each row."""
    return tuple(
        tuple(log.candidates[log.order(row)[rank]].recipes[row] for row in range(log.rows)) for rank in range(count)
    )


def join_images(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """One batch; a single image is not copied."""
    return images[0] if len(images) == 1 else torch.cat(list(images))
