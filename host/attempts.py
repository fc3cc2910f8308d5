"""One search on ComfyUI's engine: made anew where what it stood on turns out to be wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..search.budget import Budget
from ..search.judges import Judges
from ..search.log import Pool, SearchLog
from ..search.remember import RememberingEngine
from ..search.run import Algorithm, BatchesMix, StaleMemory
from ..search.run import search as run_search
from .memory.remembered import Remembered
from .memory.store import StoredMemory
from .progress import SearchProgress
from .sampling.engine import ComfyEngine, Options
from .sampling.noise import let_noises_go
from .sampling.stock import Sampling
from .versions import host_info


@dataclass
class Attempts:
    """A search and what it needs. prompt, source: what the verifier is told, and where that came from. notes: what the
    user should know. untrusted: the evaluations and seconds of a search in batches that was made again one at a time.
    """

    sampling: Sampling
    vae: Any
    judges: Judges
    prompt: str
    source: str
    seed: int
    top_k: int
    node_id: str | None
    options: Options
    drop_bad: bool
    finish: Callable[[], bool]
    remembered: Remembered
    notes: list[str] = field(default_factory=list)
    progress: SearchProgress = field(init=False)
    untrusted: tuple[int, float] = (0, 0.0)

    def run(self, algorithm: Algorithm, budget: Budget) -> Pool:
        """Searches. What is remembered and turns out to be wrong is set aside and computed anew, and so is what was
        sampled in batches that mix their candidates: one at a time."""
        try:
            return self._until_it_stands(algorithm, budget)
        finally:
            let_noises_go()

    def _until_it_stands(self, algorithm: Algorithm, budget: Budget) -> Pool:
        memory = self.remembered.memory
        while True:
            try:
                return self._attempt(algorithm, budget, memory)
            except StaleMemory as stale:
                if not self.remembered.set_aside(stale):
                    memory = None
            except BatchesMix as mixed:
                self.options = replace(self.options, batch_size=1)
                self.remembered.set_aside_batches()
                self.notes.append(
                    f"{mixed}. So nothing that was sampled in batches was trusted, and the search made anew, one "
                    "candidate at a time. Set batch_size to 1."
                )

    def _attempt(self, algorithm: Algorithm, budget: Budget, memory: StoredMemory | None) -> Pool:
        sampling = self.sampling
        candidates = budget.candidates
        self.progress = SearchProgress(sampling, candidates, self.node_id)
        engine = ComfyEngine(
            sampling, self.vae, self.judges, self.prompt, self.progress.step, candidates, self.options, self.finish
        )
        remembering = None if memory is None else RememberingEngine(engine, memory)
        limits = {key: value for key, value in asdict(budget).items() if value is not None}
        settings = {**sampling.settings, "seed": self.seed, **limits, "prompt": self.prompt, "prompt_from": self.source}
        log = SearchLog(
            engine.members,
            engine.rows,
            self.judges.aggregator,
            algorithm=algorithm.name,
            settings={**settings, **algorithm.settings()},
            host=host_info(),
            usual_ranges=self.judges.usual_ranges,
            noisy=self.judges.noisy,
            finals_only=self.judges.finals_only,
        )
        pool = Pool(log, keep=self.top_k)
        before, started = sampling.evaluations.rows, time.perf_counter()
        on_candidate = self.progress.candidate
        try:
            run_search(
                algorithm, remembering or engine, pool, self.seed, budget, on_candidate, self.drop_bad, self.finish
            )
            self.progress.finished()
        except BatchesMix:
            again = [one for one in log.candidates if memory is not None and not one.together and not one.recalled]
            self.untrusted = (
                sampling.evaluations.rows - before - sum(one.nfe for one in again),
                max(time.perf_counter() - started - sum(sum(one.seconds.values()) for one in again), 0.0),
            )
            raise
        finally:
            self.progress.close()
            engine.on_step = None  # it leads back to the engine: the models would wait for the garbage collector
        log.extra_nfe += engine.batches.extra_nfe + (remembering.extra_nfe if remembering else 0)
        log.extra_nfe += self.untrusted[0]
        log.extra_seconds += engine.batches.extra_seconds + self.untrusted[1]
        self.notes += engine.batches.notes
        return pool
