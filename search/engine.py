"""The one interface between the algorithms and the world."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from .recipe import Recipe

Recipes = tuple[Recipe, ...]  # one per item of the latent batch, or a single one that makes the whole batch


@dataclass(frozen=True)
class Rendered:
    """What an engine made and scored.

    recipes: one per item of the latent batch, each of which makes its item again.
    values: raw verifier values, float32 [rows, members], higher is better; one row per item of the latent batch.
    nfe: rows through the denoiser since the engine's previous answer, counted inside the model call;
    nfe_per_row: per row, as the paper counts.
    seconds: wall time since then by phase ("sample", "decode", "score").
    results: one opaque full-size result per row (latent and image), which only the best keep.
    thumbnails: uint8 [rows, height, width, 3], or None.
    together: sampled in one batch with other candidates, so that the last bits may differ from the same alone.
    error: why this candidate has no score, or None.
    recalled: known from an earlier search, so that nothing was computed; then there are no results.
    failed: members that are dropped for the whole search, by column, each with what happened; their values may be NaN.
    looks: what judges that compare keep of its pictures (`Sight`); work: its name in the memory.
    before: the values of an earlier time when it was made alone, where that is known.
    mixed: how it differs from what it was in a batch with other candidates, where that is more than rounding.
    """

    recipes: Recipes
    values: torch.Tensor
    nfe: int
    nfe_per_row: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    results: Sequence[Any] = ()
    thumbnails: torch.Tensor | None = None
    together: bool = False
    error: str | None = None
    recalled: bool = False
    failed: Mapping[int, str] = field(default_factory=dict)
    looks: Callable[[], Mapping[int, Sequence[Any]]] = dict
    work: str = ""
    before: torch.Tensor | None = None
    mixed: str | None = None


@dataclass(frozen=True)
class State:
    """A trajectory that stands at noise level `level`: 1 is where sampling starts, 0 is clean.

    recipes: how to get here, one per item of the batch. latent: the engine's own.
    """

    recipes: Recipes
    level: float
    latent: Any


class Engine(Protocol):
    """Makes candidates. `members` names the columns of their values, `rows` is the size of the latent batch.

    steps: of the schedule. deterministic: whether the sampler adds no noise of its own. chunk: how many candidates it
    likes to get at once. start, renoise, denoise and score are the segments of a trajectory, for what goes back up in
    noise. With judges that compare it is `Comparing` as well.
    """

    members: tuple[str, ...]
    rows: int

    @property
    def steps(self) -> int: ...

    @property
    def deterministic(self) -> bool: ...

    @property
    def chunk(self) -> int: ...

    def pending(self) -> tuple[int, float]:
        """(NFE, seconds) since the last answer, of this engine and its drafts: spent on a candidate under way."""
        ...

    def render(self, candidates: Sequence[Recipes]) -> Iterator[Rendered]:
        """Whole trajectories, decoded and scored, in order; fewer where the search was asked to finish meanwhile. The
        recipes in the answers say item and batch."""
        ...

    def remake(self, recipes: Recipes) -> Rendered:
        """One candidate whole and alone, with its results, even where it is known from before."""
        ...

    def drafts(self, steps: int) -> Engine:
        """The same on every so many of the schedule's own sigmas (see `coarser`)."""
        ...

    def start(self, recipes: Recipes) -> State:
        """The noise of these recipes; nothing is evaluated."""
        ...

    def denoise(self, state: State, level: float) -> State:
        """Samples from the state's noise level down to `level`."""
        ...

    def renoise(self, state: State, level: float, seed: int) -> State:
        """Adds noise drawn from `seed` up to `level` (none if it is the same), by the forward process; nothing is
        evaluated."""
        ...

    def score(self, state: State) -> Rendered:
        """Decodes and scores the x0 prediction (one more evaluation per row), or at level 0 the finished image."""
        ...

    def join(self, states: Sequence[State]) -> State:
        """Item r of the batch from states[r]; all at one level."""
        ...

    def steps_between(self, start: float, end: float) -> int:
        """How many steps lead from one noise level down to another: to predict costs before any are measured."""
        ...


def coarser(steps: int, wanted: int) -> list[int]:
    """Indices into the steps + 1 sigmas of a schedule that make one of `wanted` steps: both ends, evenly between."""
    return sorted({round(i * steps / wanted) for i in range(wanted + 1)})
