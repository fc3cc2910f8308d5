"""What a search leaves for the pictures that are saved after it: in their text, and in the workflow inside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...search.recipe import METADATA, RECIPE, portable
from ..pictures import coarse, pixels_sha256
from . import travel
from .graph import Graph


def write(
    graph: Graph,
    recipe: str,
    seed: int,
    score: Sequence[Any],
    prompt: str,
    images: Sequence[torch.Tensor],
    ranks: travel.Ranks,
    values: travel.Values,
) -> None:
    """Puts the winner's recipe where ComfyUI's image savers find it: in the PNG's text, beside the workflow.

    ComfyUI writes it into every picture that is saved after the search, so `sha256` says which one is meant: that of
    the winner's 8-bit RGB pixels, one per image. A node that runs several times in one prompt adds an entry each time.
    images: the winners', a batch or several. ranks, values: of `travel.Winners`.
    """
    if graph.extra_pnginfo is None or graph.user_id is None:
        return
    entry = {
        RECIPE: recipe,
        "seed": seed,
        "score": list(score),
        "prompt": prompt,
        "sha256": [pixels_sha256(one) for batch in images for one in batch],
    }
    runs, winners = graph.runs, travel.Winners(ranks, values, coarse(images))
    travel.leave(graph.workflow, graph.prompt, graph.user_id, len(runs), winners, lambda: graph.files)
    graph.extra_pnginfo[METADATA] = {**graph.searches, graph.user_id: [*runs, portable(entry)]}
