"""Which pictures, and what comes with them, belong to which noise."""

import pytest
import torch

pytest.importorskip("comfy")

from comfy.nested_tensor import NestedTensor
from noise_search.host.picture.rows import Batch, Layout, batch_of, join, layout_behind, layout_of, take
from noise_search.search.recipe import Recipe, Rotate

VALUES = {
    "a latent": {"samples": torch.rand(2, 4, 8, 8), "noise_mask": torch.rand(2, 1, 8, 8), "type": "x"},
    "sound and picture": {"samples": NestedTensor([torch.rand(2, 4, 3, 8, 8), torch.rand(2, 8, 20)])},
    "sound": {"waveform": torch.rand(2, 1, 100), "sample_rate": 44100},
    "pictures": torch.rand(6, 8, 8, 3),
    "a mask for all": torch.rand(1, 8, 8),
    "a number": 3,
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_rows_put_together_again_are_the_value(value):
    again = join([take(value, row, 2) for row in range(2)])

    def same(one, other):
        if isinstance(one, dict):
            return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
        if getattr(one, "is_nested", False):
            return all(map(torch.equal, one.unbind(), other.unbind()))
        if isinstance(one, torch.Tensor) and one.shape[0] == 1:  # for all: it is there for each
            return torch.equal(one, other[:1])
        return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other

    assert same(value, again)


@pytest.mark.parametrize(
    ("pictures", "items", "frames", "rows"),
    [
        ([1], [1], False, 1),
        ([3], [3], False, 3),
        ([17], [1], False, 1),  # a video
        ([34], [2], False, 2),  # two videos
        ([14], [14], True, 1),  # Stable Video Diffusion
        ([3], [2], False, 1),  # something put them together
        ([1, 2], [1, 2], False, 3),
        ([1], [1, 1], False, 1),  # a list became one picture
    ],
)
def test_pictures_are_told_apart_where_that_can_be_seen(pictures, items, frames, rows):
    images = [torch.zeros(count, 4, 4, 3) for count in pictures]
    assert layout_of(images, [Batch(items=count) for count in items], frames).rows == rows


@pytest.mark.parametrize(
    "layout",
    [
        Layout((Batch(),)),
        Layout((Batch(3, 3),)),
        Layout((Batch(1, 14),)),
        Layout((Batch(2, 2, (4, 5)), Batch(1, 1))),
    ],
)
def test_complete_recipes_say_the_layout(layout):
    recipes = layout.complete((Recipe.from_seed(7),))
    assert len(recipes) == layout.rows
    assert layout_behind(recipes, [0]) == layout


def test_lists_of_seeds_keep_their_distance():
    layout = Layout((Batch(), Batch(offset=2**64 - 5)))
    assert [one.seed for one in layout.complete((Recipe.from_seed(3),))] == [3, 2**64 - 2]
    moved = tuple(one.then(Rotate(9, 20.0)) for one in layout.complete((Recipe.from_seed(3),)))
    assert layout.by_batch(moved) == [(moved[0],), (moved[1],)]


def test_a_latents_batch_index_is_in_the_recipes():
    batch = batch_of({"samples": torch.zeros(2, 4, 8, 8), "batch_index": [3, 1]})
    assert batch == Batch(1, 2, (3, 1))


def test_recipes_of_another_size_are_refused():
    with pytest.raises(ValueError, match="2 recipes for a picture of 3 items"):
        Layout((Batch(3, 3),)).complete((Recipe(1), Recipe(2)))
