"""One search under way: what the algorithms hold on to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

from .algorithm import Algorithm
from .budget import Budget, BudgetSpent, Spending
from .engine import Engine, Recipes, Rendered, Segments, State, drafts, segments
from .ledger import NOTHING, TOO_LATE, UNFINISHED, Cost, Ledger
from .log import FINAL, PREVIEW, Candidate, Pool, SearchLog
from .recipe import Recipe
from .winners import render_winners_again
from .work import Look, Piece, Segment, Whole

OnCandidate = Callable[["Run", Candidate], None]
Reserve = Callable[[int], Sequence[Cost]]


class Run:
    """Makes candidates within the budget and writes each into the pool as it comes.

    stage: of the finished candidates ("final", or "draft" inside Draft and Final). reserve: what has to stay unspent
    once this many more are there.
    drop: candidates without a score are left out and counted; otherwise they are an error.
    """

    def __init__(
        self,
        engine: Engine,
        pool: Pool,
        spending: Spending,
        on_candidate: OnCandidate | None = None,
        stage: str = FINAL,
        reserve: Reserve = lambda coming: (),
        drop: bool = False,
    ):
        self.engine = engine
        self.pool = pool
        self.spending = spending
        self.on_candidate = on_candidate
        self.stage = stage
        self.reserve = reserve
        self.drop = drop

    @property
    def log(self) -> SearchLog:
        return self.pool.log

    @property
    def ledger(self) -> Ledger:
        return self.log.ledger

    @property
    def rows(self) -> int:
        """Items of the latent batch. They are searched side by side, each with its own pivot, order and winner."""
        return self.engine.rows

    def stock(self, seed: int) -> Candidate:
        """The run without any search. In a new search its cost is the unit of the budget."""
        return self.first((Recipe.from_seed(seed),))

    def first(self, recipes: Recipes) -> Candidate:
        """The first candidate comes whatever the budget is: a search always has an image."""
        if self.spending.unit is not None:
            made = self.render([recipes])
            if made:
                return made[0]
            raise ValueError(f"the first {self.stage} cannot be left out: {self.log.dropped[-1]}")
        [rendered] = self.engine.render([recipes])
        candidate = self._add(rendered)
        if candidate is None:
            raise ValueError(rendered.error)
        if self.spending.satisfied():
            raise BudgetSpent
        return candidate

    def render(self, candidates: Sequence[Recipes], closing: bool = False) -> list[Candidate]:
        """Whole trajectories, in order; without those that were dropped.

        closing: they only finish what was decided, so patience does not count. Raises BudgetSpent at the first that
        does not fit, and as soon as the target is reached or patience is at its end. What the engine made beyond that
        is thrown away, so that a search does not depend on how many candidates the engine takes at once; but asked to
        finish, it keeps what there is.
        """
        made: list[Candidate] = []
        while candidates:
            count, over = self._fitting(candidates), False
            chunk, candidates = candidates[:count], candidates[count:]
            for rendered in self.engine.render(chunk):
                if over and not self.finishing:
                    self.ledger.book(TOO_LATE, rendered.cost)
                else:
                    made += filter(None, [self._add(rendered)])
                    over = self.spending.satisfied(patient=closing)
            if over:
                raise BudgetSpent
        return made

    def _fitting(self, candidates: Sequence[Recipes]) -> int:
        """How many of these the engine may make at once. Raises BudgetSpent where the first does not fit."""
        costs: list[Cost] = []
        for recipes in candidates[: self.engine.chunk]:
            cost = self.price(ways(recipes))
            if not self.affords(*costs, cost, coming=len(costs) + 1):
                break
            costs.append(cost)
            if not cost.nfe:  # then they are counted, one by one
                break
        if not costs:
            raise self.spending.refuse(cost, *self.reserve(1))
        return len(costs)

    @property
    def segments(self) -> Segments:
        return segments(self.engine)

    def start(self, recipes: Recipes) -> State:
        """The noise of these recipes."""
        return self.segments.start(recipes)

    def denoise(self, state: State, level: float) -> State:
        """Samples down to a noise level."""
        spent = self.ledger.measure()
        there = self.segments.denoise(state, level)
        self.spending.learn(self._kind(Segment(state.level, level)), spent.cost)
        return there

    def renoise(self, state: State, level: float, seed: int) -> State:
        """Back up to a noise level."""
        return self.segments.renoise(state, level, seed)

    def join(self, states: Sequence[State]) -> State:
        """Item r of the batch from states[r]."""
        return states[0] if self.rows == 1 else self.segments.join(states)

    def score(self, state: State, closing: bool = False) -> Candidate | None:
        """Scores the x0 prediction of a state, or at level 0 the finished candidate; None if it was dropped.

        Raises as `render` does.
        """
        stage = PREVIEW if state.level > 0 else self.stage
        spent = self.ledger.measure()
        rendered = self.segments.score(state)
        candidate = self._log(rendered, stage, self._kind(Look(state.level)), spent.cost)
        if self.spending.satisfied(patient=closing) and not (stage == PREVIEW and self.finishing):
            raise BudgetSpent
        return candidate

    @property
    def finishing(self) -> bool:
        """Whether the search was asked to end. Finished candidates then raise BudgetSpent; what is under way may be
        brought to its end first."""
        return self.spending.finishing

    def best(self, candidates: Sequence[Candidate], row: int = 0) -> Candidate:
        """The best of these for one item of the batch, by its place among all so far; of equal ones the first."""
        return max(candidates, key=lambda candidate: self.log.merit(candidate.index, row))

    def affords(self, *costs: Cost, coming: int = 1) -> bool:
        """Whether this, which makes `coming` candidates, still fits beside what is reserved."""
        return self.spending.affords(*costs, *self.reserve(coming))

    def has_room(self, work: Sequence[Piece]) -> bool:
        """Whether all of this still fits beside what is reserved."""
        return self.affords(self.price(work))

    def how_often(self, work: Sequence[Piece]) -> int | None:
        """How many times what is left beside the reserve holds this; None where it costs nothing."""
        left = max(self.spending.left() - sum(cost.nfe for cost in self.reserve(1)), 0.0)
        each = self.price(work).nfe
        return int(left / each) if each else None

    def price(self, work: Sequence[Piece]) -> Cost:
        """What all of this will cost."""
        price = NOTHING
        for piece, times in Counter(work).items():
            price = price + self.spending.predict(self._kind(piece), piece.steps(self.engine)).times(times)
        return price

    def drafts(self, steps: int, stage: str, reserve: Reserve) -> Run:
        """This search on a coarser schedule, which leaves `reserve` unspent."""
        return Run(
            drafts(self.engine).drafts(steps), self.pool, self.spending, self.on_candidate, stage, reserve, self.drop
        )

    def _kind(self, *pieces: Piece) -> str:
        return f"{self.stage} " + " and ".join(piece.name for piece in pieces)

    def _add(self, rendered: Rendered) -> Candidate | None:
        return self._log(rendered, self.stage, self._kind(*ways(rendered.recipes)), rendered.cost)

    def _log(self, rendered: Rendered, stage: str, work: str, cost: Cost) -> Candidate | None:
        """Logs a candidate, and what its last piece of work cost."""
        if rendered.error is not None and not self.drop:
            raise ValueError(f"candidate {len(self.log.candidates)}: {rendered.error}")
        candidate = None
        if rendered.error is None:
            candidate = self.pool.add(rendered, stage, self.engine)
        else:
            self.log.drop(rendered)
        self.spending.learn(work, cost)
        if candidate is not None:
            self.spending.seen(candidate)
            if self.on_candidate is not None:
                self.on_candidate(self, candidate)
        return candidate


def ways(recipes: Recipes) -> list[Whole]:
    """The trajectories that a batch of these takes: items that jump at other levels are sampled in another run."""
    unlike = {tuple((jump.start, jump.to) for jump in recipe.jumps): recipe.jumps for recipe in recipes}
    return list(map(Whole, unlike.values()))


def search(
    algorithm: Algorithm,
    engine: Engine,
    pool: Pool,
    seed: int,
    budget: Budget | None = None,
    on_candidate: OnCandidate | None = None,
    drop: bool = False,
    finish: Callable[[], bool] = lambda: False,
) -> Pool:
    """Runs an algorithm until its budget is spent; the pool then holds its candidates and the results of the best.

    drop: leave out candidates without a score (NaN images) instead of raising ValueError. finish: whether somebody
    asked to end with the best so far; looked at after every candidate. Winners that were sampled in
    a batch are rendered again alone, and so are candidates that a rank-based order brought back among the best after
    their results were let go, or that are only remembered: StaleMemory says that those no longer score what they did,
    and BatchesMix that a winner alone is another than in its batch.
    Raises ValueError for a budget or an algorithm that does not fit the engine.
    """
    log = pool.log
    engine.ledger = log.ledger
    run = Run(engine, pool, Spending(budget or Budget(), log, engine, finish), on_candidate, drop=drop)
    with suppress(BudgetSpent):
        algorithm(run, seed)
    log.stopped = run.spending.reason
    log.ended_early = run.finishing
    log.ledger.book(UNFINISHED, log.ledger.answer())
    render_winners_again(engine, pool, strict=not run.finishing)
    if log.dropped:
        log.warnings.append(f"{len(log.dropped)} candidates were dropped. The last: {log.dropped[-1]}")
    log.warnings += log.gate_warnings()
    copies = log.same_picture()
    if copies is not None:
        log.warnings.append(_of_copies(*copies))
    elif any(log.hardly_varies(row) for row in range(log.rows)):
        log.warnings.append(
            "The scores hardly vary between candidates (by less than 1 % of the verifier's usual range), so there is "
            "little that a search can find. Distilled models give nearly the same image for every seed; else denoise, "
            "or in Zero-Order Search the angle, may be too low."
        )
    return pool


def _of_copies(first: Candidate, second: Candidate) -> str:
    """What to tell the user of two candidates with other noises and one picture."""
    text = f"Another noise gave the same picture (candidates {first.index} and {second.index}): "
    told = zip(first.recipes, second.recipes, strict=False)
    if all((one.seed, one.jumps) == (other.seed, other.jumps) for one, other in told):
        return text + (
            "something before or inside the sampler draws its own noise from the seed instead, as AnimateDiff does "
            "with a seed offset or a noise type. This search keeps the seed and cannot find anything so; use Random "
            "Search, which takes another seed each time, or switch that noise off. (Else denoise is close to 0, or the "
            "mask is empty.)"
        )
    return text + (
        "something before or inside the sampler draws its own noise from a seed of its own instead, or starts without "
        "any (a schedule or denoise close to 0). No search can find anything so; switch that off, or raise denoise."
    )
