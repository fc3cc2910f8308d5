"""The one interface between the algorithms and the world."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch

from .ledger import Cost, Ledger
from .recipe import Recipe

Recipes = tuple[Recipe, ...]  # one per item of the latent batch, or a single one that makes the whole batch


@dataclass(frozen=True)
class Rendered:
    """What an engine made and scored.

    recipes: one per item of the latent batch, each of which makes its item again.
    values: raw verifier values, float32 [rows, members], higher is better; one row per item of the latent batch.
    nfe: rows through the denoiser that it took, counted inside the model call; nfe_per_row: per row, as the paper
    counts. seconds: wall time by phase ("sample", "decode", "score").
    results: one opaque full-size result per row (latent and image), which only the best keep.
    thumbnails: uint8 [rows, height, width, 3], or None.
    batched: sampled in one batch with other candidates, so that the last bits may differ from the same alone.
    error: why this candidate has no score, or None.
    recalled: known from an earlier search, so that nothing was computed; then there are no results.
    failed: members that are dropped for the whole search, by column, each with what happened; their values may be NaN.
    looks: what judges that compare keep of its pictures (`Sight`); work: its name in the memory.
    solo_values: its values when it was last made alone, float32 [rows, members], where they are remembered.
    mixed: how it differs from what it was in a batch with other candidates, where that is more than rounding.
    """

    recipes: Recipes
    values: torch.Tensor
    nfe: int
    nfe_per_row: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    results: Sequence[Any] = ()
    thumbnails: torch.Tensor | None = None
    batched: bool = False
    error: str | None = None
    recalled: bool = False
    failed: Mapping[int, str] = field(default_factory=dict)
    looks: Callable[[], Mapping[int, Sequence[Any]]] = dict
    work: str = ""
    solo_values: torch.Tensor | None = None
    mixed: str | None = None

    @property
    def cost(self) -> Cost:
        return Cost(self.nfe, self.seconds)

    def at(self, cost: Cost) -> Rendered:
        """This result at another cost."""
        nfe = round(cost.nfe)
        return replace(self, nfe=nfe, nfe_per_row=nfe // len(self.values), seconds=cost.phases)


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

    This is all that every engine has. What only some can do is a separate part; `parts` lists those that
    this one has; an algorithm that needs one asks for it (`segments`, `drafts`). With judges that compare it is
    `Comparing` as well. steps: of the schedule. chunk: how many candidates it likes to get at once.

    ledger: where it books what it spends, as it spends it; a search hands its own to the engine. `render` and `remake`
    answer for what each candidate took, `Segments.score` for all that is pending.
    """

    members: tuple[str, ...]
    rows: int
    ledger: Ledger

    @property
    def parts(self) -> Collection[type]: ...

    @property
    def steps(self) -> int: ...

    @property
    def chunk(self) -> int: ...

    def render(self, candidates: Sequence[Recipes]) -> Iterator[Rendered]:
        """Whole trajectories, decoded and scored, in order; fewer where the search was asked to finish meanwhile. The
        recipes in the answers say item and batch."""
        ...

    def remake(self, recipes: Recipes) -> Rendered:
        """One candidate whole and alone, with its results, even where it is known from before."""
        ...


# Optional parts of an engine. A new one is a protocol here, its line in LACKING and a function like `segments`.


@runtime_checkable
class Segments(Protocol):
    """Trajectories piece by piece, for what goes back up in noise."""

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
        """How many steps lead from one noise level down to another: to predict costs before any are measured. Raises
        ValueError where the schedule has no such way."""
        ...


@runtime_checkable
class Drafts(Protocol):
    """The part of an engine that makes drafts: the same trajectories on fewer steps."""

    @property
    def deterministic(self) -> bool:
        """Whether the sampler adds no noise: only then does a draft show what its final will be."""
        ...

    def drafts(self, steps: int) -> Engine:
        """This engine on a coarser schedule: `steps` of the same sigmas (see `coarser`)."""
        ...


LACKING: dict[type, str] = {
    Segments: "trajectories in segments, which go back up in noise",
    Drafts: "drafts on fewer steps of its schedule",
}


def segments(engine: Engine) -> Segments:
    """The engine as one that has segments. Raises ValueError where it has none."""
    return _part(engine, Segments)


def drafts(engine: Engine) -> Drafts:
    """The engine as one that makes drafts. Raises ValueError where it makes none."""
    return _part(engine, Drafts)


def _part(engine: Engine, part: type) -> Any:
    if part not in engine.parts:
        raise ValueError(
            f"{type(engine).__name__} does not make {LACKING[part]}; use another search, such as Random Search"
        )
    return engine


def coarser(steps: int, wanted: int) -> list[int]:
    """Indices into the steps + 1 sigmas of a schedule that make one of `wanted` steps: both ends, evenly between."""
    return sorted({round(i * steps / wanted) for i in range(wanted + 1)})
