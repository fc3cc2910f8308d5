"""An engine over an analytic landscape, on which any search algorithm can be tested without a model."""

import hashlib

import torch
from noise_search.search.engine import Rendered
from noise_search.search.recipe import Recipe

SHAPE = (4, 4, 4)  # of one latent


def smooth(noise: torch.Tensor) -> float:
    """The cosine between the noise and a fixed direction: nearby noises have nearby scores."""
    target = torch.randn(noise.numel(), generator=torch.Generator().manual_seed(1234), dtype=torch.float64)
    return float(torch.nn.functional.cosine_similarity(noise.flatten().double(), target, dim=0))


def tilted(noise: torch.Tensor) -> float:
    """As `smooth`, towards another direction."""
    return smooth(noise.flip(-1))


def white(noise: torch.Tensor) -> float:
    """A hash of the noise, 0 to 1: a nearby noise tells nothing."""
    digest = hashlib.sha256(noise.contiguous().numpy().tobytes()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


class SyntheticEngine:
    """Implements `search.engine.Engine`: "images" are the noises themselves, scored by `landscapes`.

    `rendered` lists every recipe it was asked for; a run costs `steps` evaluations per row.
    """

    def __init__(self, *landscapes, rows: int = 1, steps: int = 10):
        self.landscapes = landscapes or (smooth,)
        self.members = tuple(landscape.__name__ for landscape in self.landscapes)
        self.rows = rows
        self.steps = steps
        self.rendered: list[Recipe] = []

    def render(self, recipes):
        return [self._render(recipe.for_batch(self.rows) if self.rows > 1 else recipe) for recipe in recipes]

    def _render(self, recipe):
        self.rendered.append(recipe)
        noise = recipe.noise((self.rows, *SHAPE))
        values = [[landscape(row) for landscape in self.landscapes] for row in noise]
        return Rendered(
            recipe=recipe,
            values=torch.tensor(values),
            nfe=self.steps * self.rows,
            nfe_per_row=self.steps,
            seconds={"sample": 0.5, "score": 0.25},
            results=list(noise),
            thumbnails=torch.zeros(self.rows, 2, 2, 3, dtype=torch.uint8),
        )
