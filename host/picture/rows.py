"""What is searched side by side: which pictures of a list of batches belong to which noises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...search.engine import Recipes
from ...search.recipe import SEED_RANGE, Recipe
from ..pictures import in_colour
from ..sampling.engine import join_rows, take_row


@dataclass(frozen=True)
class Batch:
    """One latent batch among those that a part samples. rows: that are searched side by side, its items or 1 (a video,
    or pictures that cannot be told apart); offset: of its seed from that of the first batch."""

    rows: int = 1
    items: int = 1
    index: tuple[int, ...] | None = None
    offset: int = 0

    def whole(self, recipe: Recipe) -> Recipes:
        """The recipes of its rows that one recipe for all batches makes."""
        own = shifted(recipe, self.offset)
        if self.rows == self.items:
            return own.for_items(self.items, self.index)
        return (own.for_batch(self.items, self.index),)


@dataclass(frozen=True)
class Layout:
    """The batches of a part's pictures, in order. together: all of them are one row, as it cannot be told which noise
    is behind which picture."""

    batches: tuple[Batch, ...]
    together: bool = False

    @property
    def rows(self) -> int:
        return 1 if self.together else sum(batch.rows for batch in self.batches)

    def complete(self, recipes: Recipes) -> Recipes:
        """One recipe for each row, with all that it takes to make it again. Raises ValueError."""
        if len(recipes) == 1:
            [recipe] = recipes
            if recipe.row is None and recipe.batch is None and not self.together:
                return tuple(one for batch in self.batches for one in batch.whole(recipe))
        if len(recipes) != self.rows:
            raise ValueError(f"{len(recipes)} recipes for a picture of {self.rows} items; give one for each")
        return tuple(recipes)

    def by_batch(self, recipes: Recipes) -> list[Recipes]:
        """The recipes of the rows of each batch; of a single recipe, what each batch makes of it."""
        recipes = self.complete(recipes)
        if self.together:
            return [(shifted(recipes[0], batch.offset),) for batch in self.batches]
        found, at = [], 0
        for batch in self.batches:
            found.append(tuple(recipes[at : at + batch.rows]))
            at += batch.rows
        return found

    def split(self, values: Sequence[Any]) -> list[Any]:
        """What of a value that comes with the pictures belongs to each row. values: a list, as a node gives it."""
        if self.together:
            return [list(values)]
        alike = len(values) == len(self.batches)
        return [
            take(values[number if alike else 0], row, batch.rows)
            for number, batch in enumerate(self.batches)
            for row in range(batch.rows)
        ]

    def join(self, values: Sequence[Any]) -> list[Any]:
        """A list for ComfyUI out of what `split` made, row by row: one entry for each batch."""
        if self.together:
            return list(values[0])
        found, at = [], 0
        for batch in self.batches:
            found.append(join(values[at : at + batch.rows]))
            at += batch.rows
        return found


def layout_of(pictures: Sequence[torch.Tensor], batches: Sequence[Batch], rows_are_frames: bool) -> Layout:
    """How the pictures that came out belong to the batches that went in. rows_are_frames: the items of a batch are the
    frames of one video."""
    if len(pictures) != len(batches):
        return Layout(tuple(batches), together=True)
    found = []
    for picture, batch in zip(pictures, batches, strict=True):
        apart = not rows_are_frames and len(picture) % batch.items == 0
        found.append(Batch(batch.items if apart else 1, batch.items, batch.index, batch.offset))
    return Layout(tuple(found))


def layout_behind(recipes: Recipes, offsets: Sequence[int]) -> Layout | None:
    """The layout that complete recipes say of themselves, or None where they do not. offsets: of the batches' seeds,
    one for all where they are the same."""
    batches: list[Batch] = []
    at = 0
    while at < len(recipes):
        first = recipes[at]
        items = first.batch or 1
        rows = 1 if first.row is None else items
        rest = recipes[at : at + rows]
        if len(rest) != rows or any(one.batch != first.batch for one in rest):
            return None
        batches.append(
            Batch(rows, items, first.batch_index, offsets[len(batches)] if len(batches) < len(offsets) else 0)
        )
        at += rows
    return Layout(tuple(batches))


def picture_of(value: Any) -> torch.Tensor:
    """An IMAGE in colour. Raises ValueError where a value is none."""
    if not isinstance(value, torch.Tensor) or value.ndim != 4 or value.shape[-1] not in (1, 3, 4) or 0 in value.shape:
        what = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise ValueError(f"'image' is {what} and not an IMAGE [images, height, width, 3]. Connect a picture.")
    return in_colour(value)


def rows_of(layout: Layout, pictures: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The picture of each row, [frames, H, W, C]. Raises ValueError where one row would have several sizes."""
    if not layout.together:
        return layout.split(pictures)
    if len({picture.shape[1:] for picture in pictures}) > 1:
        raise ValueError(
            "'image' is a list of pictures of several sizes that do not come one from each latent, so they cannot be "
            "judged as one. Search each of them with a node of its own."
        )
    return [pictures[0] if len(pictures) == 1 else torch.cat(list(pictures))]


def batch_of(latent: Any, offset: int = 0) -> Batch:
    """What a LATENT says of its batch."""
    samples = latent["samples"] if isinstance(latent, Mapping) else latent
    first = samples.unbind()[0] if getattr(samples, "is_nested", False) else samples
    index = latent.get("batch_index") if isinstance(latent, Mapping) else None
    return Batch(items=first.shape[0], index=None if index is None else tuple(map(int, index)), offset=offset)


def shifted(recipe: Recipe, offset: int) -> Recipe:
    """The same moves from the noise of another seed."""
    return replace(recipe, seed=(recipe.seed + offset) % SEED_RANGE) if offset else recipe


def take(value: Any, row: int, rows: int) -> Any:
    """Row `row` of a value that has something for each of `rows` rows; the whole value where it has not."""
    if rows == 1:
        return value
    if isinstance(value, Mapping):
        return {key: take(part, row, rows) for key, part in value.items()}
    if getattr(value, "is_nested", False):
        return take_row(value, row)
    if not isinstance(value, torch.Tensor) or not value.ndim or value.shape[0] % rows:
        return value
    each = value.shape[0] // rows
    return value[row * each : (row + 1) * each].clone()


def join(values: Sequence[Any]) -> Any:
    """One value out of those of the rows of a batch."""
    first = values[0]
    if len(values) == 1:
        return first
    if isinstance(first, Mapping):
        return {key: join([value[key] for value in values]) for key in first}
    if getattr(first, "is_nested", False) or isinstance(first, torch.Tensor) and first.ndim:
        return join_rows(values)
    return first
