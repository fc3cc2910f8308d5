"""An engine over an analytic landscape, on which any search algorithm can be tested without a model."""

import copy
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from noise_search.search.comparisons import Sight
from noise_search.search.engine import Drafts, Engine, Recipes, Rendered, Segments, State
from noise_search.search.kernels import fresh_noise
from noise_search.search.ledger import Cost, Ledger
from noise_search.search.recipe import Jump, Recipe, draw

SHAPE = (4, 4, 4)  # of one latent


def smooth(image: torch.Tensor) -> float:
    """The cosine between the image and a fixed direction: nearby noises have nearby scores."""
    target = torch.randn(image.numel(), generator=torch.Generator().manual_seed(1234), dtype=torch.float64)
    return float(torch.nn.functional.cosine_similarity(image.flatten().double(), target, dim=0))


def tilted(image: torch.Tensor) -> float:
    """As `smooth`, towards another direction."""
    return smooth(image.flip(-1))


def white(image: torch.Tensor) -> float:
    """A hash of the image, 0 to 1: a nearby noise tells nothing."""
    digest = hashlib.sha256(image.contiguous().numpy().tobytes()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def flat(image: torch.Tensor) -> float:
    """All images are alike, but for a thousandth."""
    return 50 + white(image) / 1000


class Nearness:
    """Which of two images is nearer to a set of images: a judge that compares. `asked` counts its answers."""

    question = "Which of the two is nearer to the set?"

    def __init__(self, count: int = 5, seed: int = 99) -> None:
        self.__name__ = "nearness"
        self.set = torch.randn(count, math.prod(SHAPE), generator=torch.Generator().manual_seed(seed))
        self.asked: list[tuple[torch.Tensor, torch.Tensor]] = []

    def look(self, image: torch.Tensor) -> torch.Tensor:
        return image.flatten().clone()

    def distance(self, look: torch.Tensor) -> float:
        return float((self.set - look).norm(dim=1).double().mean())

    def compare(self, first: torch.Tensor, second: torch.Tensor) -> float:
        self.asked.append((first, second))
        apart = self.distance(second) - self.distance(first)
        return 0.5 + 0.5 * (apart > 0) - 0.5 * (apart < 0)


def shy(image: torch.Tensor) -> float:
    """As `tilted`, for finished images only."""
    return tilted(image)


shy.previews = False  # type: ignore[attr-defined]


def levels(recipe: Recipe) -> tuple[tuple[float, float], ...]:
    return tuple((jump.start, jump.to) for jump in recipe.jumps)


def deviation(level: float) -> float:
    """The standard deviation of x = (1 - level) x0 + level noise, where images are standard normal as well."""
    return math.hypot(1 - level, level)


class SyntheticEngine:
    """Implements `search.engine.Engine` with an exact flow: images are standard normal, so that the probability flow
    only scales: sampled from a noise, the image is the noise itself, and an x0 prediction is a scaled x.

    `landscapes` score the images; those like `Nearness` compare them. A trajectory costs `steps` evaluations per row; a
    draft is off the more the coarser it is. `rendered` lists the recipes of whole trajectories.
    """

    deterministic = True
    chunk = 1
    parts = (Segments, Drafts)

    def __init__(self, *landscapes: Any, rows: int = 1, steps: int = 10):
        self.landscapes: tuple[Any, ...] = landscapes or (smooth,)
        self.members = tuple(landscape.__name__ for landscape in self.landscapes)
        self.comparative = tuple(n for n, one in enumerate(self.landscapes) if hasattr(one, "compare"))
        self.finals_only = tuple(n for n, one in enumerate(self.landscapes) if not getattr(one, "previews", True))
        self.rows = rows
        self.steps = steps
        self.error = 0.0
        self.ledger = Ledger()
        self.rendered: list[Recipes] = []  # shared with the drafts

    def drafts(self, steps: int) -> Engine:
        draft = copy.copy(self)
        draft.steps, draft.error = steps, 1 / steps - 1 / self.steps
        return draft

    def render(self, candidates: Sequence[Recipes]) -> Iterator[Rendered]:
        for recipes in candidates:
            whole = recipes[0].for_items(self.rows) if len(recipes) == 1 else recipes
            self.rendered.append(whole)
            # Items that jump at other levels take a run of the batch of their own.
            ends = {like: self.follow(whole, like) for like in dict.fromkeys(map(levels, whole))}
            yield self.score(self.join([ends[levels(recipe)] for recipe in whole]))

    def remake(self, recipes: Recipes) -> Rendered:
        return next(self.render([recipes]))

    def follow(self, recipes: Recipes, like: tuple[tuple[float, float], ...]) -> State:
        """The whole batch on the jumps of those items that jump at these levels."""
        [jumps, *_] = (recipe.jumps for recipe in recipes if levels(recipe) == like)
        recipes = tuple(recipe if levels(recipe) == like else replace(recipe, jumps=jumps) for recipe in recipes)
        state = self.start(tuple(replace(recipe, jumps=()) for recipe in recipes))
        for step in zip(*(recipe.jumps for recipe in recipes), strict=True):
            state = self.denoise(state, step[0].start)
            state = self.join([self.renoise(state, jump.to, jump.seed) for jump in step])
        return self.denoise(state, 0.0)

    def start(self, recipes: Recipes) -> State:
        if len(recipes) == 1:
            recipes = recipes[0].for_items(self.rows)
        return State(recipes, 1.0, torch.cat([recipe.noise((1, *SHAPE)) for recipe in recipes]))

    def denoise(self, state: State, level: float) -> State:
        self.spend(self.steps_between(state.level, level))
        return replace(state, level=level, latent=state.latent * (deviation(level) / deviation(state.level)))

    def renoise(self, state: State, level: float, seed: int) -> State:
        share = fresh_noise(1 - state.level, state.level, 1 - level, level)
        fresh = draw(tuple(state.latent.shape), seed)
        latent = (1 - level) / (1 - state.level) * state.latent + level * share * fresh
        jump = Jump(seed, state.level, level)
        return State(tuple(recipe.jump(jump) for recipe in state.recipes), level, latent)

    def score(self, state: State) -> Rendered:
        images, unfinished = state.latent, state.level > 0 or self.error > 0
        if state.level > 0:
            self.spend(1)
            images = images * (1 - state.level) / deviation(state.level) ** 2
        images = math.cos(self.error) * images + math.sin(self.error) * images.roll(1, dims=-1)
        self.ledger.spend(Cost(0, {"score": 0.25}))
        cost = self.ledger.answer()
        return Rendered(
            recipes=state.recipes,
            values=torch.tensor([self.values(image, unfinished) for image in images]),
            nfe=round(cost.nfe),
            nfe_per_row=round(cost.nfe) // self.rows,
            seconds=cost.phases,
            results=list(images),
            thumbnails=torch.zeros(self.rows, 2, 2, 3, dtype=torch.uint8),
            looks=lambda: {n: list(map(self.landscapes[n].look, images)) for n in self.comparative},
        )

    def values(self, image: torch.Tensor, unfinished: bool) -> list[float]:
        unasked = {*self.comparative, *(self.finals_only if unfinished else ())}
        return [math.nan if n in unasked else landscape(image) for n, landscape in enumerate(self.landscapes)]

    def asks(self, column: int) -> tuple[str, str]:
        return self.members[column], self.landscapes[column].question

    def compare(self, column: int, row: int, first: Sight, second: Sight) -> float:
        return self.landscapes[column].compare(first.look(column, row), second.look(column, row))

    def join(self, states: Sequence[State]) -> State:
        recipes = tuple(state.recipes[row] for row, state in enumerate(states))
        return State(recipes, states[0].level, torch.stack([state.latent[row] for row, state in enumerate(states)]))

    def steps_between(self, start: float, end: float) -> int:
        return max(round((start - end) * self.steps), min(self.steps, 1))

    def spend(self, steps: int) -> None:
        self.ledger.spend(Cost(steps * self.rows, {"sample": 0.05 * steps}))


def parts_of(engine: SyntheticEngine) -> tuple[Engine, Segments, Drafts]:
    """What it is, for the type checker."""
    return engine, engine, engine
