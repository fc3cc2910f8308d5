"""One search under way: what the algorithms hold on to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

import torch

from .budget import NOTHING, Budget, BudgetSpent, Cost, Spending
from .engine import Engine, Recipes, Rendered, State
from .log import FINAL, PREVIEW, Candidate, Pool, SearchLog
from .recipe import Jump, Recipe

VALUE_APART = 1e-4  # of a score: where nothing else is known, rounding alone
RANGE_APART = 0.01  # of a verifier's usual range: so far may the scores of a run alone and in a batch be apart
SPREAD_APART = 0.05  # the same of the spread of its scores, where it has no usual range
PICTURE_APART = 4.0  # of 255, on average: so far may the small pictures of one candidate be apart
OnCandidate = Callable[["Run", Candidate], None]
Reserve = Callable[[int], Sequence[Cost]]


class StaleMemory(Exception):
    """What is remembered of a search is not what it gives now: something changed that nobody could see."""


class BatchesMix(Exception):
    """A candidate alone is another than in its batch: what was sampled in batches says nothing sure."""


class Algorithm(Protocol):
    """A way to search. Renders stock first, then goes on until its run says that the budget is spent."""

    @property
    def name(self) -> str:
        """For people, such as "random search"."""
        ...

    def __call__(self, run: Run, seed: int) -> None: ...

    def settings(self) -> Mapping[str, Any]:
        """What the log should say of it."""
        ...

    def path(self) -> Sequence[Jump]:
        """The jumps of a typical candidate of its: what it takes to make one again."""
        ...


class Run:
    """Makes candidates within the budget and writes each into the pool as it comes.

    stage: of the finished candidates ("final", or "draft" inside Draft and Final). reserve: what has to stay unspent
    once so many more are there.
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
                    self.spending.waste(rendered)
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
            cost = sum((self.cost(jumps) for jumps in ways(recipes)), NOTHING)
            if not self.affords(*costs, cost, coming=len(costs) + 1):
                break
            costs.append(cost)
            if not cost.nfe:  # then they are counted, one by one
                break
        if not costs:
            raise self.spending.refuse(cost, *self.reserve(1))
        return len(costs)

    def start(self, recipes: Recipes) -> State:
        """The noise of these recipes."""
        return self.engine.start(recipes)

    def denoise(self, state: State, level: float) -> State:
        """Samples down to a noise level."""
        nfe, seconds = self.engine.pending()
        there = self.engine.denoise(state, level)
        now = self.engine.pending()
        self.spending.book(self._segment(state.level, level), now[0] - nfe, now[1] - seconds)
        return there

    def renoise(self, state: State, level: float, seed: int) -> State:
        """Back up to a noise level."""
        return self.engine.renoise(state, level, seed)

    def join(self, states: Sequence[State]) -> State:
        """Item r of the batch from states[r]."""
        return states[0] if self.rows == 1 else self.engine.join(states)

    def score(self, state: State, closing: bool = False) -> Candidate | None:
        """Scores the x0 prediction of a state, or at level 0 the finished candidate; None if it was dropped.

        Raises as `render` does.
        """
        pending = self.engine.pending()
        stage = PREVIEW if state.level > 0 else self.stage
        candidate = self._log(self.engine.score(state), stage, self._look(state.level), Cost(*pending))
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
        merits = self.log.merits(row)
        return max(candidates, key=lambda candidate: merits[candidate.index])

    def affords(self, *costs: Cost, coming: int = 1) -> bool:
        """Whether this, which makes so many candidates, still fits beside what is reserved."""
        return self.spending.affords(*costs, *self.reserve(coming))

    def left(self) -> float:
        """NFE left beside what is reserved."""
        return max(self.spending.left() - sum(cost.nfe for cost in self.reserve(1)), 0.0)

    def cost(self, jumps: Sequence[Jump] = ()) -> Cost:
        """Of a whole trajectory, with these jumps on its way."""
        steps, level = self.engine.steps, 1.0
        if jumps:
            steps = 0
            for jump in jumps:
                steps, level = steps + self.engine.steps_between(level, jump.start), jump.to
            steps += self.engine.steps_between(level, 0.0)
        return self.spending.predict(self._whole((jumps,)), steps)

    def segment_cost(self, start: float, end: float) -> Cost:
        """Of sampling from one noise level down to another."""
        return self.spending.predict(self._segment(start, end), self.engine.steps_between(start, end))

    def score_cost(self, level: float) -> Cost:
        """Of scoring a state: above level 0 it takes one evaluation per item."""
        return self.spending.predict(self._look(level), 1 if level > 0 else 0)

    def drafts(self, steps: int, stage: str, reserve: Reserve) -> Run:
        """The same search on a coarser schedule, which leaves `reserve` unspent."""
        return Run(self.engine.drafts(steps), self.pool, self.spending, self.on_candidate, stage, reserve, self.drop)

    def _whole(self, ways: Sequence[Sequence[Jump]]) -> str:
        each = [" ".join(f"{jump.start:.6f} to {jump.to:.6f}" for jump in jumps) for jumps in ways]
        return f"{self.stage} " + " and ".join(each)

    def _segment(self, start: float, end: float) -> str:
        return f"{self.stage} from {start:.6f} to {end:.6f}"

    def _look(self, level: float) -> str:
        return f"{self.stage} {'x0' if level > 0 else 'image'}"

    def _add(self, rendered: Rendered) -> Candidate | None:
        return self._log(rendered, self.stage, self._whole(ways(rendered.recipes)))

    def _log(self, rendered: Rendered, stage: str, work: str, booked: Cost = NOTHING) -> Candidate | None:
        """Writes a candidate down, and what it cost beyond what is booked already as that kind of work."""
        if rendered.error is not None and not self.drop:
            raise ValueError(f"candidate {len(self.log.candidates)}: {rendered.error}")
        seconds = sum(rendered.seconds.values())
        candidate = None
        if rendered.error is None:
            candidate = self.pool.add(rendered, stage, self.engine)
        else:
            self.log.drop(rendered)
        self.spending.book(work, rendered.nfe - booked.nfe, seconds - booked.seconds)
        if candidate is not None:
            self.spending.seen(candidate)
            if self.on_candidate is not None:
                self.on_candidate(self, candidate)
        return candidate


def ways(recipes: Recipes) -> list[Sequence[Jump]]:
    """The jumps of each run of the batch that these take: items that jump at other levels are sampled in another."""
    return list({tuple((jump.start, jump.to) for jump in recipe.jumps): recipe.jumps for recipe in recipes}.values())


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
    run = Run(engine, pool, Spending(budget or Budget(), log, engine, finish), on_candidate, drop=drop)
    with suppress(BudgetSpent):
        algorithm(run, seed)
    log.stopped = run.spending.reason
    log.early = run.finishing
    _render_again(engine, pool, strict=not run.finishing)
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


def _render_again(engine: Engine, pool: Pool, strict: bool) -> None:
    """Renders alone what is among the best and was let go or is only remembered, and the best sampled in a batch.

    strict: whether something remembered that is no longer so is a StaleMemory, and a winner that is another alone
    BatchesMix, or only a warning.
    """
    log = pool.log
    in_batch = pool.to_compare()
    apart = 0.0
    failed: dict[int, str] = {}  # since the search
    for index in pool.again():
        candidate = log.candidates[index]
        rendered = engine.remake(candidate.recipes)
        if rendered.error is not None:
            raise ValueError(f"candidate {index}, when it was rendered again: {rendered.error}")
        failed.update({member: cause for member, cause in rendered.failed.items() if member not in log.failed})
        difference = (rendered.values - torch.tensor(candidate.values)).abs()
        difference = difference.nan_to_num(0.0)  # of a verifier that was dropped
        if candidate.recalled and _is_stale(log, candidate, rendered):
            then = candidate.values if rendered.before is None else rendered.before.tolist()
            text = f"candidate {index} scored {then} before and {rendered.values.tolist()} now"
            if strict:
                raise StaleMemory(text)
            log.warnings.append(f"What was remembered of this search no longer fits ({text}): the order may be wrong.")
        pool.restore(index, rendered)
        if index in in_batch:
            apart = max(apart, float(difference.max()))
            how = rendered.mixed
            if bool((difference > tolerance(log)).any()):
                how = f"scores {float(difference.max()):.3g} otherwise"
            if how is not None:
                text = (
                    f"Candidate {index} {how} alone than in its batch: something in the model or the sampler mixes the "
                    "candidates of a batch"
                )
                if strict:
                    raise BatchesMix(text)
                log.warnings.append(
                    f"{text}. The image is the one made alone, but the order may be wrong. Set batch_size to 1."
                )
    for cause in dict.fromkeys(failed.values()):
        names = ", ".join(log.members[member] for member in failed if failed[member] == cause)
        log.warnings.append(
            f"{names} failed when the best was rendered once more: {cause} (Its scores from before decide; whether "
            "they still hold could not be checked.)"
        )
    if in_batch:
        log.findings["batch_difference"] = apart  # of the best ones' values from those of their runs alone


def _is_stale(log: SearchLog, candidate: Candidate, rendered: Rendered) -> bool:
    """Whether a remembered candidate, made again, is another: by its scores, or where no verifier gives the same score
    twice by its picture."""
    then = torch.tensor(candidate.values) if rendered.before is None else rendered.before
    if bool(((rendered.values - then).abs().nan_to_num(0.0) > tolerance(log)).any()):
        return True
    if len({*log.noisy, *log.comparative}) < len(log.members) or rendered.thumbnails is None:
        return False
    pictures = [(log.thumbnails.get((candidate.index, row)), now) for row, now in enumerate(rendered.thumbnails)]
    return any(
        old is not None and (old.shape != now.shape or float((old.float() - now.float()).abs().mean()) > PICTURE_APART)
        for old, now in pictures
    )


def tolerance(log: SearchLog) -> torch.Tensor:
    """How far scores alone and in a batch, or then and now, may be apart, float64 [rows, members]: more than rounding
    ever makes."""
    finals = torch.tensor([candidate.values for candidate in log.of_stage()], dtype=torch.float64)
    spread, size = finals.amax(dim=0) - finals.amin(dim=0), finals.abs().amax(dim=0)
    limits = torch.maximum(SPREAD_APART * spread, VALUE_APART * size)
    for member, usual in enumerate(log.usual_ranges or ()):
        if usual is not None:
            limits[:, member] = RANGE_APART * (usual[1] - usual[0])
    limits[:, [*log.noisy, *log.comparative]] = torch.inf
    return limits
