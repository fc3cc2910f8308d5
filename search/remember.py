"""Never computing a candidate twice: an engine on top of another that looks into a memory first."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar, cast

from .comparisons import Comparing, Comparison, Sight, comparative_members, finals_only_members
from .engine import Engine, Recipes, Rendered, State, drafts, segments
from .ledger import RESUMED_PATHS, SEEN_AGAIN, Cost, Ledger
from .recipe import Jump, to_json

T = TypeVar("T")


class Memory(Protocol):
    """What is known from earlier searches in which all but the seed, the budget and the algorithm was the same.

    `work` names a piece of work, such as a candidate on a schedule. What is remembered costs what it did then.
    """

    def candidate(self, work: str) -> Rendered | None:
        """A scored candidate, without its results."""
        ...

    def segment(self, work: str) -> Cost | None:
        """What sampling a segment of a trajectory took."""
        ...

    def keep_candidate(self, work: str, rendered: Rendered) -> None: ...

    def keep_segment(self, work: str, cost: Cost) -> None: ...

    def comparisons(self, works: Sequence[str], judge: str, question: str) -> list[Comparison]:
        """See `Comparisons`."""
        ...

    def keep_comparison(self, comparison: Comparison) -> None: ...


class Notes:
    """A `Memory` that lasts as long as this object."""

    def __init__(self) -> None:
        self.candidates: dict[str, Rendered] = {}
        self.segments: dict[str, Cost] = {}
        self.compared: list[Comparison] = []

    def candidate(self, work: str) -> Rendered | None:
        return self.candidates.get(work)

    def segment(self, work: str) -> Cost | None:
        return self.segments.get(work)

    def keep_candidate(self, work: str, rendered: Rendered) -> None:
        self.candidates[work] = replace(rendered, results=(), looks=dict, recalled=True)

    def keep_segment(self, work: str, cost: Cost) -> None:
        self.segments[work] = cost

    def comparisons(self, works: Sequence[str], judge: str, question: str) -> list[Comparison]:
        asked = (judge, question)
        return [
            one for one in self.compared if {one.first, one.second} <= {*works} and (one.judge, one.question) == asked
        ]

    def keep_comparison(self, comparison: Comparison) -> None:
        self.compared.append(comparison)


class _Lazy:
    """A state of the engine below, made when it is needed and then kept."""

    def __init__(self, make: Callable[[], State]):
        self._make: Callable[[], State] | None = make
        self._state: State | None = None

    def get(self) -> State:
        if self._state is None:
            assert self._make is not None
            self._state, self._make = self._make(), None  # the states before it are no longer needed
        return self._state


class RememberingEngine:
    """An `Engine` that answers from a memory what is known, and has the engine below make the rest.

    What is known is charged as it was when it was made, so a search goes the way that it went before, and on from where
    it ended. States of trajectories are not remembered: they are made again where the search goes on from one, as extra
    work. What a dropped verifier did not score serves only while it is dropped. Candidates that fail are
    not remembered.
    """

    def __init__(self, engine: Engine, memory: Memory):
        self.engine, self.memory = engine, memory
        self.members, self.rows = engine.members, engine.rows
        self.comparative, self.finals_only = comparative_members(engine), finals_only_members(engine)
        self.finished = True  # what it renders: drafts are not
        self.failed: dict[int, str] = {}  # members that are dropped, with what happened; shared with the drafts

    @property
    def ledger(self) -> Ledger:
        return self.engine.ledger

    @ledger.setter
    def ledger(self, ledger: Ledger) -> None:
        self.engine.ledger = ledger

    @property
    def steps(self) -> int:
        return self.engine.steps

    @property
    def parts(self) -> Collection[type]:
        return self.engine.parts

    @property
    def deterministic(self) -> bool:
        return drafts(self.engine).deterministic

    @property
    def chunk(self) -> int:
        return self.engine.chunk

    def drafts(self, steps: int) -> RememberingEngine:
        other = copy.copy(self)
        other.engine, other.finished = drafts(self.engine).drafts(steps), False
        return other

    def render(self, candidates: Sequence[Recipes]) -> Iterator[Rendered]:
        works = [self._work("whole", recipes) for recipes in candidates]
        known = [self._known(work, self.finished) for work in works]
        missing = [recipes for recipes, one in zip(candidates, known, strict=True) if one is None]
        made = iter(self.engine.render(missing) if missing else ())
        for work, one in zip(works, known, strict=True):
            if one is not None:
                self.ledger.spend(one.cost)
                self.ledger.answer(one.cost)
                look_again = partial(self._look_again, self.engine.remake, one.recipes)
                yield replace(one, looks=look_again, work=work)
                continue
            one = next(made, None)
            if one is None:  # the search was asked to finish
                return
            self._keep(work, one, self.finished)
            yield replace(one, work=work)

    def remake(self, recipes: Recipes) -> Rendered:
        made = self.engine.remake(recipes)
        whole = self.memory.candidate(self._work("whole", recipes))
        if whole is None or not whole.batched:
            return made
        # In its batch it may have scored otherwise, so what it scores alone is remembered apart.
        alone = self._work("alone", recipes)
        solo = self._known(alone, self.finished)
        if solo is None:
            self._keep(alone, made, self.finished)
        return replace(made, solo_values=None if solo is None else solo.values)

    def start(self, recipes: Recipes) -> State:
        return self._state(segments(self.engine).start(recipes))

    def denoise(self, state: State, level: float) -> State:
        work = self._work(f"from {state.level!r} to {level!r}", state.recipes)
        known = self.memory.segment(work)
        if known is not None:
            self.ledger.spend(known)
            return replace(state, level=level, latent=_Lazy(lambda: self._again(state, level)))
        below = state.latent.get()
        spent = self.ledger.measure()
        there = segments(self.engine).denoise(below, level)
        self.memory.keep_segment(work, spent.cost)
        return self._state(there)

    def renoise(self, state: State, level: float, seed: int) -> State:
        jump = Jump(seed, state.level, level)
        recipes = tuple(recipe.jump(jump) for recipe in state.recipes)
        return State(recipes, level, _Lazy(lambda: segments(self.engine).renoise(state.latent.get(), level, seed)))

    def score(self, state: State) -> Rendered:
        work = self._work(f"at {state.level!r}", state.recipes)
        finished = self.finished and state.level == 0
        known = self._known(work, finished)
        if known is not None:
            self.ledger.spend(known.cost)
            look_again = partial(self._look_again, lambda state: segments(self.engine).score(state.latent.get()), state)
            return replace(known.at(self.ledger.answer()), looks=look_again, work=work)
        below = state.latent.get()
        spent = self.ledger.measure()
        made = segments(self.engine).score(below)
        self._keep(work, made.at(spent.cost), finished)
        return replace(made, work=work)

    def asks(self, column: int) -> tuple[str, str]:
        return cast(Comparing, self.engine).asks(column)

    def compare(self, column: int, row: int, first: Sight, second: Sight) -> float:
        judge, question = self.asks(column)
        if self.rows > 1:
            question += f" (item {row} of the batch)"
        for known in reversed(self.memory.comparisons([first.work, second.work], judge, question)):
            return known.answer if known.first == first.work else 1 - known.answer
        answer = cast(Comparing, self.engine).compare(column, row, first, second)
        self.memory.keep_comparison(Comparison(first.work, second.work, question, answer, judge))
        return answer

    def _look_again(self, make: Callable[[T], Rendered], of: T) -> Mapping[int, Sequence[Any]]:
        """What judges that compare keep of a candidate that is known: that is not stored, so it is made once more."""
        with self.ledger.beside():
            made = make(of)
        self.ledger.book(SEEN_AGAIN, made.cost)
        if made.error is not None:
            raise ValueError(f"a candidate, when it was made again to be compared: {made.error}")
        return made.looks()

    def join(self, states: Sequence[State]) -> State:
        recipes = tuple(state.recipes[row] for row, state in enumerate(states))
        make = lambda: segments(self.engine).join([state.latent.get() for state in states])  # noqa: E731
        return State(recipes, states[0].level, _Lazy(make))

    def steps_between(self, start: float, end: float) -> int:
        return segments(self.engine).steps_between(start, end)

    def _work(self, what: str, recipes: Recipes) -> str:
        return work_name(self.engine.steps, what, recipes)

    def _without(self, finished: bool) -> set[int]:
        """The members that never give this candidate a value."""
        return {*self.comparative, *(() if finished else self.finals_only)}

    def _known(self, work: str, finished: bool) -> Rendered | None:
        """The remembered candidate, if it has the values that this search needs."""
        known = self.memory.candidate(work)
        if known is None or known.values.shape != (self.rows, len(self.members)):
            return None
        blank = set(known.values.isnan().any(dim=0).nonzero().flatten().tolist()) - self._without(finished)
        return replace(known, failed=dict(self.failed)) if blank <= set(self.failed) else None

    def _state(self, below: State) -> State:
        return State(below.recipes, below.level, _Lazy(lambda: below))

    def _again(self, state: State, level: float) -> State:
        """Samples a segment that is known and charged once more, for its state."""
        below = state.latent.get()
        with self.ledger.as_extra(RESUMED_PATHS):
            return segments(self.engine).denoise(below, level)

    def _keep(self, work: str, made: Rendered, finished: bool) -> None:
        self.failed.update(made.failed)
        without = {*made.failed, *self._without(finished)}
        scored = [column for column in range(len(self.members)) if column not in without]
        if made.error is None and bool(made.values[:, scored].isfinite().all()):
            self.memory.keep_candidate(work, made)


def work_name(steps: int, what: str, recipes: Recipes) -> str:
    """How a memory names a piece of work: on a schedule of so many steps, with these recipes."""
    return f"{steps} steps, {what}: {to_json(list(recipes))}"
