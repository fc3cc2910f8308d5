"""Pieces of work: what an algorithm plans, and what a run learns the price of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from .engine import Engine, segments
from .recipe import Jump


@dataclass(frozen=True)
class Whole:
    """A whole trajectory, with these jumps on its way."""

    jumps: tuple[Jump, ...] = ()

    @property
    def name(self) -> str:
        return " ".join(f"{jump.start:.6f} to {jump.to:.6f}" for jump in self.jumps)

    def steps(self, engine: Engine) -> int:
        if not self.jumps:
            return engine.steps
        ends = [*(jump.start for jump in self.jumps), 0.0]
        starts = [1.0, *(jump.to for jump in self.jumps)]
        return sum(map(segments(engine).steps_between, starts, ends))


@dataclass(frozen=True)
class Segment:
    """Sampling from one noise level down to another."""

    start: float
    end: float

    @property
    def name(self) -> str:
        return f"from {self.start:.6f} to {self.end:.6f}"

    def steps(self, engine: Engine) -> int:
        return segments(engine).steps_between(self.start, self.end)


@dataclass(frozen=True)
class Look:
    """Scoring a state: above level 0 its x0 prediction takes one evaluation per row."""

    level: float

    @property
    def name(self) -> str:
        return "x0" if self.level > 0 else "image"

    def steps(self, engine: Engine) -> int:
        return 1 if self.level > 0 else 0


Piece: TypeAlias = Whole | Segment | Look
