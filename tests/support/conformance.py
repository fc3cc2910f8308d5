"""Cases for the conformance tests of the search algorithms: each is an algorithm on an engine.

Another engine joins by taking over the tests with cases of its own:

    from conformance_suite import *  # noqa: F403

    CASES = cases({"the engine": make_engine}, candidates=8)
"""

import dataclasses
import functools
import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from noise_search.search.aggregate import Aggregator
from noise_search.search.algorithms import ALGORITHMS as LISTED
from noise_search.search.algorithms.draft_and_final import DraftAndFinal
from noise_search.search.algorithms.paths import SearchOverPaths
from noise_search.search.algorithms.random_search import RandomSearch
from noise_search.search.algorithms.zero_order import STUCK, ZeroOrderSearch
from noise_search.search.budget import Budget
from noise_search.search.comparisons import comparative_members, finals_only_members
from noise_search.search.log import Pool, SearchLog
from noise_search.search.remember import Notes, RememberingEngine
from noise_search.search.run import search as run_search

SEED = 7
OF_CASES, LAST = 100, 2**64 - 1  # seeds: of every case's search, and the last there is, far from it
ALGORITHMS = {
    "random": RandomSearch(),
    **{f"zero-order, {stuck}": ZeroOrderSearch(stuck=stuck) for stuck in STUCK},
    "paths, 2 branches": SearchOverPaths(branches=2),
    "paths": SearchOverPaths(),
}
ALGORITHMS |= {
    f"drafts, {name}": DraftAndFinal(ALGORITHMS[name]) for name in ("random", f"zero-order, {STUCK[0]}", "paths")
}
UNTESTED = {entry.kind for entry in LISTED if entry.searches} - set(map(type, ALGORITHMS.values()))
STEADY = ("random", *(name for name in ALGORITHMS if name.startswith("zero-order")))  # spend candidate by candidate


class Spy:
    """Passes everything on to an engine, and records the recipes of what it answered and what its judges were
    asked."""

    def __init__(self, engine, answered=None, asked=None):
        self.engine = engine
        self.answered = [] if answered is None else answered
        self.asked = [] if asked is None else asked

    def __getattr__(self, name):
        return getattr(self.engine, name)

    @property
    def ledger(self):
        return self.engine.ledger

    @ledger.setter
    def ledger(self, ledger):
        self.engine.ledger = ledger

    def drafts(self, steps):
        return Spy(self.engine.drafts(steps), self.answered, self.asked)

    def render(self, candidates):
        return map(self.note, self.engine.render(candidates))

    def remake(self, recipes):
        return self.note(self.engine.remake(recipes))

    def score(self, state):
        return self.note(self.engine.score(state))

    def compare(self, *asked):
        self.asked.append(asked)
        return self.engine.compare(*asked)

    def note(self, rendered):
        self.answered.append(rendered.recipes)
        return rendered


@dataclasses.dataclass(frozen=True)
class Found:
    """A finished search."""

    pool: Pool
    engine: Spy

    @property
    def log(self) -> SearchLog:
        return self.pool.log

    @property
    def stock_nfe(self) -> int:
        return self.log.candidates[0].nfe


@dataclasses.dataclass(frozen=True)
class Case:
    engine: str
    name: str
    make: Callable[[], Any]
    candidates: int = 16
    marks: tuple = ()

    def __str__(self):
        return f"{self.name} on {self.engine}"

    @property
    def algorithm(self):
        return ALGORITHMS[self.name]

    @functools.cached_property
    def found(self) -> Found:
        """The search that most tests look at."""
        return self.search()

    @functools.cached_property
    def remembered(self) -> tuple[Found, Notes]:
        """The same with a memory that is empty, and what was remembered."""
        notes = Notes()
        return self.search(memory=notes), notes

    @functools.cached_property
    def another(self) -> Found:
        """One with another seed, close to the end of their range."""
        return self.search(seed=LAST - 1)

    def search(self, seed: int = OF_CASES, budget: Budget | None = None, memory=None) -> Found:
        return search(self.algorithm, self.make(), seed, budget or Budget(self.candidates), memory=memory)


def cases(engines, candidates: int = 16, only=tuple(ALGORITHMS), marks=()) -> list[Case]:
    return [Case(engine, name, make, candidates, marks) for engine, make in engines.items() for name in only]


def search(
    algorithm, engine, seed=SEED, budget=None, method="mean_rank", on_candidate=None, memory=None, **log
) -> Found:
    spy = Spy(engine)
    finals_only = finals_only_members(engine)
    aggregator = Aggregator(method, comparative=comparative_members(engine))
    pool = Pool(
        SearchLog(engine.members, engine.rows, aggregator, algorithm=algorithm.name, finals_only=finals_only, **log)
    )
    whole = spy if memory is None else RememberingEngine(spy, memory)
    return Found(run_search(algorithm, whole, pool, seed, budget or Budget(16), on_candidate), spy)


def same(first, second) -> bool:
    """Whether two results are equal, bit for bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first.nan_to_num(), second.nan_to_num())  # a judge that compares gives no values
    if dataclasses.is_dataclass(first):
        names = [field.name for field in dataclasses.fields(first)]
        return all(same(getattr(first, name), getattr(second, name)) for name in names)
    return first == second


def plain(values):
    """Values that can be compared: a judge that compares gives none."""
    return [None if math.isnan(value) else value for value in values]


@functools.cache
def replay_benchmark():
    """benchmarks/replay.py as a module."""
    folder = Path(__file__).resolve().parents[2] / "benchmarks"
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location("noise_search_replay", folder / "replay.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module
