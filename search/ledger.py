"""The ledger of one search: every evaluation of the denoiser (NFE) and every second, booked once.

Work is booked where it is done (`spend`, `clock`) and is pending until somebody says whose it was: a candidate's
(`answer`), or nobody's, which makes it extra (`as_extra`). The run charges the answers to its candidates, or books them
as extra, by kind. `measure` tells what a piece of work took.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

SAMPLE, DECODE, SCORE = "sample", "decode", "score"  # phases

# Kinds of extra work
SAMPLER_TRIAL = "trial of the sampler"
BATCH_TRIAL = "trial of batches"
OUT_OF_MEMORY = "out of memory"
LEFT_OUT = "left out"  # candidates without a score; the budget is charged for these alone
TOO_LATE = "made too late"  # by an engine that takes several candidates at once
RESUMED_PATHS = "resumed paths"
RENDERED_AGAIN = "rendered again"
SEEN_AGAIN = "seen again"  # by judges that compare, whose view of a picture is not remembered
MADE_ANEW = "made anew"  # the search itself, as what it had turned out to be wrong
UNFINISHED = "unfinished"

ROUNDING = 1e-6  # seconds: what rounding may leave where sums are subtracted again


@dataclass(frozen=True)
class Cost:
    """What some work takes: rows through the denoiser, and wall time by phase."""

    nfe: float = 0
    phases: Mapping[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return sum(self.phases.values())

    def __add__(self, other: Cost) -> Cost:
        phases = dict(self.phases)
        for phase, seconds in other.phases.items():
            phases[phase] = phases.get(phase, 0.0) + seconds
        return Cost(self.nfe + other.nfe, phases)

    def __sub__(self, other: Cost) -> Cost:
        phases = (self + other.times(-1)).phases
        return Cost(self.nfe - other.nfe, {phase: seconds for phase, seconds in phases.items() if seconds})

    def times(self, count: float) -> Cost:
        return Cost(self.nfe * count, {phase: seconds * count for phase, seconds in self.phases.items()})

    def shared(self, count: int) -> Cost:
        """The share of each of the `count` candidates that the work was for."""
        return Cost(self.nfe // count, {phase: seconds / count for phase, seconds in self.phases.items()})

    def __bool__(self) -> bool:
        return self.nfe != 0 or abs(self.seconds) > ROUNDING


NOTHING = Cost()


class Measure:
    """What the search has spent since this was made, without what was set apart."""

    def __init__(self, ledger: Ledger):
        self._ledger, self._before = ledger, ledger.spent

    @property
    def cost(self) -> Cost:
        return self._ledger.spent - self._before


class Ledger:
    """spent: all work of the search itself, which the `pending` part of is not answered for. candidates: what those in
    the log took. extra: the rest, by kind."""

    def __init__(self) -> None:
        self.spent = NOTHING
        self.pending = NOTHING
        self.candidates = NOTHING
        self.extra: dict[str, Cost] = {}

    @property
    def total(self) -> Cost:
        """All that is booked, without what is pending."""
        return self.candidates + self.all_extra

    @property
    def all_extra(self) -> Cost:
        return sum(self.extra.values(), NOTHING)

    @property
    def budgeted(self) -> Cost:
        """What counts against the budget."""
        return self.candidates + self.extra.get(LEFT_OUT, NOTHING) + self.pending

    # For whoever does the work

    def spend(self, cost: Cost) -> None:
        """Books some work, or what it took when it was done in an earlier search."""
        self.spent = self.spent + cost
        self.pending = self.pending + cost

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        """Books the wall time of its block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spend(Cost(0, {phase: time.perf_counter() - start}))

    def measure(self) -> Measure:
        """Measures from here on."""
        return Measure(self)

    def answer(self, cost: Cost | None = None) -> Cost:
        """Moves a candidate's cost out of what is pending: all of it, if no cost is given."""
        cost = self.pending if cost is None else cost
        self.pending = self.pending - cost
        return cost

    def set_apart(self, kind: str, cost: Cost) -> None:
        """Books pending work that turned out to be no candidate's."""
        self.spent = self.spent - cost
        self.book(kind, self.answer(cost))

    @contextmanager
    def as_extra(self, kind: str) -> Iterator[None]:
        """Books the work of its block as extra."""
        work = self.measure()
        try:
            yield
        finally:
            self.set_apart(kind, work.cost)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Keeps what is pending out of the answers in its block: that belongs to candidates under way."""
        others = self.answer()
        try:
            yield
        finally:
            self.pending = self.pending + others

    # For whoever decides what becomes of it

    def charge(self, cost: Cost) -> None:
        """Charges an answer that became a candidate."""
        self.candidates = self.candidates + cost

    def book(self, kind: str, cost: Cost) -> None:
        """Books an answer that became no candidate."""
        if cost:
            self.extra[kind] = self.extra.get(kind, NOTHING) + cost

    def start_again(self, known: Cost) -> None:
        """The search is made anew. What it took so far is extra, without what is `known`: that is charged again."""
        so_far = self.candidates + self.answer() + self.extra.pop(LEFT_OUT, NOTHING)
        self.candidates = NOTHING
        self.book(MADE_ANEW, so_far - known)
