"""Budgets: how much a search may spend, and what it has spent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .aggregate import Aggregator
from .engine import Engine
from .ledger import Cost, Ledger
from .log import FINAL, PREVIEW, Candidate, SearchLog

SLACK = 1e-9


class BudgetSpent(Exception):
    """The search may not go on. Algorithms let it pass, or catch it to finish what they deliver."""


@dataclass(frozen=True)
class Budget:
    """Limits; whichever is reached first ends the search.

    candidates: stock images' worth of compute, 1 or more; the unit is the NFE of candidate 0, the stock run.
    nfe: rows through the denoiser for the whole search. seconds: of sampling, decoding and scoring. target: a score at
    which every item of the batch is good enough, where it also passes all gates. patience: finished candidates in a row
    (drafts count, previews do not) that improve nothing. None: no limit.
    """

    candidates: int = 8
    nfe: int | None = None
    seconds: float | None = None
    target: float | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        for name in ("candidates", "nfe", "seconds", "patience"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"a budget's {name} must be above 0, not {value}")
        if self.target is not None and not math.isfinite(self.target):
            raise ValueError(f"a budget's target must be a score that can be reached, not {self.target}")

    def check(self, aggregator: Aggregator, members: Sequence[str]) -> None:
        """Raises ValueError where a target score means nothing: the score is a place in the pool."""
        if self.target is None or not aggregator.relative(len(members)):
            return
        deciding = [
            name
            for name, weight in zip(members, aggregator.weights or (1.0,) * len(members), strict=True)
            if weight > 0
        ]
        comparing = [members[member] for member in aggregator.comparative if members[member] in deciding]
        if comparing:
            raise ValueError(
                f"a target score of {self.target:g} means nothing with {', '.join(comparing)}, which compares images "
                "and gives none a score of its own. Remove the target, or let it only report (weight 0)."
            )
        raise ValueError(
            f"a target score of {self.target:g} means nothing with several verifiers combined by "
            f"{aggregator.method.replace('_', ' ')}: such a score says how a candidate compares with the others "
            "and moves with them. Remove the target, use one verifier, or combine them by weighted sum."
        )


class Spending:
    """The budget of one search: what each kind of work costs, what is left, and why the search ended.

    finish: whether somebody asked the search to end with the best so far.
    """

    def __init__(self, budget: Budget, log: SearchLog, engine: Engine, finish: Callable[[], bool] = lambda: False):
        budget.check(log.aggregator, log.members)
        self.budget = budget
        self.log = log
        self.engine = engine
        self.finish = finish
        self.pieces = 0
        self.costs: dict[str, tuple[int, float, Cost]] = {}  # by kind: how often, NFE in total, the fastest
        self.unit: Cost | None = None  # the stock run
        self.since_better = 0
        self.reason = ""

    @property
    def ledger(self) -> Ledger:
        return self.log.ledger

    @property
    def nfe(self) -> int:
        """Rows through the denoiser so far, without extra work."""
        return round(self.ledger.budgeted.nfe)

    @property
    def seconds(self) -> float:
        return self.ledger.budgeted.seconds

    @property
    def finishing(self) -> bool:
        """Whether to end after the candidate under way, whatever the budget."""
        return self.finish()

    @property
    def limit(self) -> float:
        """NFE that may be spent; endless until the stock run is measured."""
        by_candidates = self.budget.candidates * self.unit.nfe if self.unit else math.inf
        return min(by_candidates, self.budget.nfe or math.inf)

    def fraction(self, sampling: float = 1.0, again: int = 0) -> float:
        """How much of the work is done, 0 to 1, by whichever limit is nearest.

        sampling: how much of a candidate's work is its sampling, so that what is sampled and not judged counts for as
        much. again: how many have to be rendered once more when the budget is spent.
        """
        pending = self.ledger.pending.nfe
        unit = self.unit.nfe if self.unit else 0.0
        nfe = (self.nfe - pending + sampling * pending) / ((self.limit or math.inf) + again * unit)
        return min(max(nfe, self.seconds / (self.budget.seconds or math.inf)), 1.0)

    def learn(self, kind: str, cost: Cost) -> None:
        """Records the cost of one piece of work. The first is the stock run, which sets the unit."""
        if self.unit is None:
            self.unit = cost
        self.pieces += 1
        times, total, fastest = self.costs.get(kind, (0, 0.0, cost))
        self.costs[kind] = times + 1, total + cost.nfe, min(fastest, cost, key=lambda one: one.seconds)

    def seen(self, candidate: Candidate) -> None:
        """Counts candidates since the last improvement, for `patience`. Previews do not count."""
        if candidate.stage == PREVIEW:
            return
        better = any(self.log.best(row, candidate.stage) is candidate for row in range(self.log.rows))
        self.since_better = 0 if better else self.since_better + 1

    def predict(self, kind: str, steps: int) -> Cost:
        """What one more will cost: as those measured, or before that as many of the stock run's steps.

        The first run of a search loads the models: its seconds predict nothing.
        """
        if kind in self.costs:
            times, nfe, fastest = self.costs[kind]
            return Cost(nfe / times, fastest.phases if self.pieces > 1 else {})  # slower ones had to load a model first
        if self.unit is None or not steps:
            return Cost()
        # A higher-order sampler takes several evaluations a step, fewer in its last: rather too much than too little.
        rows, stock = self.engine.rows, max(self.engine.steps, 1)
        phases = self.unit.times(steps / stock).phases if self.pieces > 1 else {}
        return Cost(math.ceil(self.unit.nfe / (rows * stock)) * rows * steps, phases)

    def affords(self, *costs: Cost) -> bool:
        """Whether all of this together still fits."""
        return self._lacking(costs) is None

    def refuse(self, *costs: Cost) -> BudgetSpent:
        """Records which limit this does not fit."""
        self.reason = self._lacking(costs) or self.reason
        return BudgetSpent(self.reason)

    def left(self) -> float:
        """NFE that still may be spent, as far as the seconds allow at the speed so far."""
        nfe = self.limit - self.nfe
        if self.budget.seconds is not None and self.nfe:
            nfe = min(nfe, (self.budget.seconds - self.seconds) * self.nfe / max(self.seconds, SLACK))
        return max(nfe, 0.0)

    def satisfied(self, patient: bool = False) -> bool:
        """Whether to end although there is budget left: the target is reached, somebody asked to finish, or (unless
        `patient`) patience is at its end."""
        target, patience, log = self.budget.target, self.budget.patience, self.log
        target = None if log.rescaled else target  # a verifier that decided was dropped: scores are other numbers now
        if target is not None and log.count(FINAL) and all(best >= target for best in self._best_scores()):
            self.reason = f"the target score of {target:g} is reached"
            return True
        if self.finishing:
            self.reason = "it was asked to finish"
            return True
        if not patient and patience is not None and self.since_better >= patience:
            self.reason = f"patience is at its end: {patience} candidates in a row were no better"
            return True
        return False

    def _best_scores(self) -> list[float]:
        """The best score of each batch item, -inf where it fails a gate."""
        merits = [self.log.merit(self.log.best(row).index, row) for row in range(self.log.rows)]
        return [-math.inf if vetoes else score for vetoes, score in merits]

    def _lacking(self, costs: Sequence[Cost]) -> str | None:
        """The limit that these costs do not fit, in words."""
        nfe, seconds = sum(cost.nfe for cost in costs), sum(cost.seconds for cost in costs)
        candidates, made = self.budget.candidates, len(self.log.candidates) + len(self.log.dropped)
        if self.unit is not None and not self.unit.nfe and made + len(costs) > candidates:
            return f"the budget of {candidates} candidates is spent"  # a schedule without steps
        if self.nfe + nfe > self.limit + SLACK:
            of = (
                f"{candidates} candidate{'s' * (candidates > 1)} ("
                if self.unit and self.limit == candidates * self.unit.nfe
                else ""
            )
            return f"the budget of {of}{self.limit:,.0f} NFE{')' if of else ''} is spent"
        if self.budget.seconds is not None and self.seconds + seconds > self.budget.seconds:
            return f"the budget of {self.budget.seconds:g} seconds is spent"
        return None
