"""One search on ComfyUI's engine: made anew where what it stood on turns out to be wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from ..search.algorithm import Algorithm
from ..search.budget import Budget
from ..search.judges import Judges
from ..search.ledger import MADE_ANEW, NOTHING, Cost, Ledger
from ..search.log import Pool, SearchLog
from ..search.remember import RememberingEngine
from ..search.run import search as run_search
from ..search.winners import BatchesMix, StaleMemory
from .memory.remembered import Remembered
from .memory.store import StoredMemory
from .progress import Sampled, SearchProgress
from .sampling.engine import Options
from .sampling.noise import let_noises_go
from .versions import host_info


class MakeEngine(Protocol):
    def __call__(
        self,
        judges: Judges,
        prompt: str,
        progress: SearchProgress,
        candidates: int,
        options: Options,
        finish: Callable[[], bool],
    ) -> Any:
        """An engine that tells `progress` what is sampled, while it is, until `on_step` is None."""
        ...


@dataclass
class Attempts:
    """A search and what it needs. sampling: what its candidates come from; make_engine: makes them. prompt, source:
    what the verifier is told, and where that came from. notes: what the user should know. kept: what an attempt that
    was given up computed and the next one is charged for, as it finds it in the memory.
    """

    sampling: Sampled
    make_engine: MakeEngine
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
    kept: Cost = NOTHING

    def run(self, algorithm: Algorithm, budget: Budget) -> Pool:
        """Searches. What is remembered and turns out to be wrong is set aside and computed anew, and so is what was
        sampled in batches that mix their candidates: one at a time."""
        try:
            return self._until_it_stands(algorithm, budget)
        finally:
            let_noises_go()

    def _until_it_stands(self, algorithm: Algorithm, budget: Budget) -> Pool:
        memory = self.remembered.memory
        self.sampling.evaluations.ledger = Ledger()  # for all attempts
        while True:
            try:
                return self._attempt(algorithm, budget, memory)
            except StaleMemory as stale:
                if not self.remembered.set_aside(stale):
                    memory = None
                    self.sampling.ledger.book(MADE_ANEW, self.kept)
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
        engine = self.make_engine(self.judges, self.prompt, self.progress, candidates, self.options, self.finish)
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
            ledger=sampling.ledger,
        )
        pool = Pool(log, keep=self.top_k)
        on_candidate = self.progress.candidate
        try:
            run_search(
                algorithm, remembering or engine, pool, self.seed, budget, on_candidate, self.drop_bad, self.finish
            )
            self.progress.finished()
        except (StaleMemory, BatchesMix) as error:
            made = [one for one in log.candidates if not one.recalled]
            kept = [one.cost for one in made if memory and not (one.batched and isinstance(error, BatchesMix))]
            self.kept = sum(kept, self.kept)
            log.ledger.start_again(sum((one.cost for one in log.candidates if one.recalled), sum(kept, NOTHING)))
            raise
        finally:
            self.progress.close()
            engine.on_step = None  # it leads back to the engine: the models would wait for the garbage collector
        self.notes += engine.notes
        return pool
