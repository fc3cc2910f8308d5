"""The search log: every scored candidate, and the order among them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, islice, product
from typing import Any, cast

import torch

from .aggregate import Aggregator, check_values
from .comparisons import LOWEST, Comparing, Ladder, NoAnswer, Sight
from .engine import Engine, Recipes, Rendered
from .ledger import LEFT_OUT, Cost, Ledger
from .ranking import Ranking, ranking
from .recipe import Recipe, portable

LOG_FORMAT = "noise-search-log"
MAX_THUMBNAILS = 256
FINAL, DRAFT, PREVIEW = "final", "draft", "preview"
REPLAY = "recipe"  # the algorithm that makes a candidate again
MIN_SPREAD_SHARE = 0.01  # of a verifier's usual range: scores that spread less say nothing about the candidates
MIN_FOR_SPREAD = 4  # candidates, to judge how far they spread

Ask = Callable[[int, int, int, int], float]  # column, row, and two candidates: see `Comparing.compare`


@dataclass(frozen=True)
class Candidate:
    """One recipe and what came of it. Never changes once logged, while its rank may.

    recipes: one per item of the latent batch; values: raw verifier values [rows][members]; nfe, nfe_per_row, seconds:
    as in `Rendered`. stage: "final" can win; "draft" was made on the coarse schedule and "preview" is the x0 prediction
    of a trajectory under way, which only rank what goes on. batched: sampled in one batch with others. recalled: known
    from an earlier search.
    """

    index: int
    recipes: Recipes
    values: tuple[tuple[float, ...], ...]
    nfe: int
    nfe_per_row: int
    seconds: Mapping[str, float]
    stage: str = FINAL
    batched: bool = False
    recalled: bool = field(default=False, compare=False)

    @property
    def cost(self) -> Cost:
        return Cost(self.nfe, self.seconds)


class _Stages:
    """The rankings of a log's candidates by stage, and where each candidate stands in them."""

    def __init__(self, log: SearchLog):
        self.aggregator, self.ladders = log.aggregator, log.ladders
        self.shape = log.rows, len(log.members)
        self.rankings: dict[str, Ranking] = {}
        self.members: dict[str, list[int]] = {}  # by stage: the indices of its candidates
        self.places: list[int] = []  # of each candidate in its stage

    def fits(self, log: SearchLog) -> bool:
        """Whether these are rankings of what the log ranks by; its candidates only ever get more."""
        return self.aggregator is log.aggregator

    def add(self, candidate: Candidate, aggregator: Callable[[str], Aggregator]) -> None:
        if candidate.stage not in self.rankings:
            self.rankings[candidate.stage] = ranking(aggregator(candidate.stage), *self.shape)
            self.members[candidate.stage] = []
        values = torch.tensor(candidate.values, dtype=torch.float64).reshape(self.shape)
        for row, column in product(range(len(values)), self.aggregator.comparative):
            ladder = self.ladders.get((column, row, candidate.stage))
            values[row, column] = ladder.levels.get(candidate.index, LOWEST) if ladder is not None else LOWEST
        self.rankings[candidate.stage].add(values)
        self.places.append(len(self.members[candidate.stage]))
        self.members[candidate.stage].append(candidate.index)


@dataclass
class SearchLog:
    """All candidates of one search over a latent batch of `rows` items, with `members` verifier columns.

    algorithm, settings, host: what the search ran with, written into every report. usual_ranges: what scores each
    member usually gives, where it says so. stopped: why the search ended; ended_early: because somebody asked for it,
    with budget left. findings: what the algorithm measured, such as the rank correlation of drafts and finals;
    warnings: what the user should know. dropped: what was wrong with each candidate that has no score. ledger: what the
    search spent on its candidates, on those without a score, on trials, and on what had to be rendered again. noisy:
    members that need not give the same value twice. failed: members dropped for the whole search, by column, each with
    what happened; where they gave no value there is NaN. finals_only: members whose judges are shown finished pictures
    only. ladders: by column, row and stage the orders of judges that compare, in whose columns there are no values.
    rescaled: one of those dropped decided, so that scores are no longer what they were.
    """

    members: tuple[str, ...]
    rows: int = 1
    aggregator: Aggregator = field(default_factory=Aggregator)
    algorithm: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    host: Mapping[str, Any] = field(default_factory=dict)
    candidates: list[Candidate] = field(default_factory=list)
    thumbnails: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger, repr=False, compare=False)
    usual_ranges: tuple[tuple[float, float] | None, ...] | None = None
    stopped: str = ""
    ended_early: bool = False
    findings: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    noisy: tuple[int, ...] = ()
    failed: dict[int, str] = field(default_factory=dict)
    rescaled: bool = False
    finals_only: tuple[int, ...] = ()
    ladders: dict[tuple[int, int, str], Ladder] = field(default_factory=dict, repr=False, compare=False)
    _stages: _Stages | None = field(default=None, init=False, repr=False, compare=False)
    # The pictures that may go: by stage and row, the candidates and when each came.
    _held: dict[tuple[str, int], dict[int, int]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _came: int = field(default=0, init=False, repr=False, compare=False)

    def add(self, rendered: Rendered, stage: str = FINAL, ask: Ask | None = None) -> Candidate:
        """Logs one candidate. ask: answers for judges that compare. Raises ValueError, naming verifier and
        candidate, on a value that cannot rank, and where the last verifier that decides has failed."""
        self.drop_members(rendered.failed)
        index = len(self.candidates)
        self.aggregator_of(stage)
        unasked = () if stage == FINAL else self.finals_only
        without = {*self.failed, *self.comparative, *unasked}
        values = check_values(rendered.values, self.members, self.rows, index, without)
        candidate = Candidate(
            index=index,
            recipes=tuple(rendered.recipes),
            values=tuple(tuple(row) for row in values.tolist()),
            nfe=rendered.nfe,
            nfe_per_row=rendered.nfe_per_row,
            seconds=dict(rendered.seconds),
            stage=stage,
            batched=rendered.batched,
            recalled=rendered.recalled,
        )
        places = self._places(candidate, ask)  # before it is there: answers may take long, and somebody may look in
        self.candidates.append(candidate)
        for ladder, place in places:
            if not ladder.put(index, place):
                self._stages = None  # the levels of others are new
        self.ledger.charge(rendered.cost)
        self.keep_thumbnails(index, rendered)
        return candidate

    @property
    def comparative(self) -> tuple[int, ...]:
        """The members whose judges compare."""
        return self.aggregator.comparative

    def _places(self, candidate: Candidate, ask: Ask | None) -> list[tuple[Ladder, tuple[int, bool]]]:
        """The places that the judges that compare find for a candidate among those of its stage; none for
        replayed recipes, which keep the order they came in."""
        found = []
        columns = self.comparative if self.has_stock else ()
        for column, row in product(columns, range(self.rows)):
            if column in self.failed or ask is None or (column in self.finals_only and candidate.stage != FINAL):
                continue
            ladder = self.ladders.setdefault((column, row, candidate.stage), Ladder())
            try:
                found.append((ladder, ladder.find(candidate.index, partial(ask, column, row))))
            except NoAnswer as failed:
                self.drop_members({failed.column: failed.cause})
        return found

    def drop_members(self, failed: Mapping[int, str]) -> None:
        """Leaves members out, by column, each with what happened: from now on none of their values decides or vetoes,
        not even those of candidates already there. Raises ValueError where no other member decides."""
        new = {member: cause for member, cause in failed.items() if member not in self.failed}
        if not new:
            return
        weights = self.aggregator.weights or (1.0,) * len(self.members)
        gates = self.aggregator.gates or (None,) * len(self.members)
        self.aggregator = self.aggregator.without(new, len(self.members))
        self.failed.update(new)
        self.rescaled = self.rescaled or any(weights[member] > 0 for member in new)
        for cause in dict.fromkeys(new.values()):
            members = [member for member in new if new[member] == cause]
            also = " and its gate no longer vetoes" if any(gates[member] is not None for member in members) else ""
            self.warnings.append(
                f"{', '.join(self.members[member] for member in members)} was dropped for the whole search: {cause} "
                f"(Its earlier scores no longer decide either{also}.)"
            )

    def drop(self, rendered: Rendered) -> None:
        """Counts a candidate that has no score."""
        self.drop_members(rendered.failed)
        self.dropped.append(rendered.error or "")
        self.ledger.book(LEFT_OUT, rendered.cost)

    def keep_thumbnails(self, index: int, rendered: Rendered) -> None:
        """Keeps the pictures of a candidate, if it has any, as long as there is room."""
        if rendered.thumbnails is None:
            return
        for row, thumbnail in enumerate(rendered.thumbnails):
            if index != 0 and (index, row) not in self.thumbnails:
                stages, stage = self._ranked(), self.candidates[index].stage
                stages.rankings[stage].mark(row, stages.places[index])
                self._held.setdefault((stage, row), {})[index] = self._came
                self._came += 1
            # A copy: a slice would keep the pictures of the whole batch in memory.
            self.thumbnails[index, row] = thumbnail.clone()
        self._forget_thumbnails()

    def values(self, row: int = 0) -> torch.Tensor:
        """Raw values of one item of the batch: float64 [candidates, members]."""
        data = [candidate.values[row] for candidate in self.candidates]
        return torch.tensor(data, dtype=torch.float64).reshape(len(data), len(self.members))

    def scores(self, row: int = 0) -> torch.Tensor:
        """The aggregated score of every candidate, among those of its stage, for one item: float64 [candidates]."""
        stages = self._ranked()
        scores = torch.zeros(len(self.candidates), dtype=torch.float64)
        for stage, of_stage in stages.rankings.items():
            scores[torch.tensor(stages.members[stage])] = of_stage.scores(row)
        return scores

    def order(self, row: int = 0, stage: str = FINAL) -> list[int]:
        """Indices of a stage's candidates from best to worst for one item; of equal ones the earlier is better.

        Those that fail gates come after all that pass, the fewer the better.
        """
        return self.top(self.count(stage), row, stage)

    def top(self, count: int, row: int = 0, stage: str = FINAL) -> list[int]:
        """The first `count` of the order."""
        stages = self._ranked()
        if stage not in stages.rankings:
            return []
        if not self.has_stock:  # replayed recipes keep the order they came in
            return stages.members[stage][:count]
        return [stages.members[stage][place] for place in stages.rankings[stage].best(row, count)]

    def merits(self, row: int = 0) -> list[tuple[int, float]]:
        """What decides the order for one item, larger is better: (0 or minus the number of failed gates, score)
        per candidate."""
        stages = self._ranked()
        columns = {stage: of_stage.merits(row) for stage, of_stage in stages.rankings.items()}
        return [columns[one.stage][place] for one, place in zip(self.candidates, stages.places, strict=True)]

    def merit(self, index: int, row: int = 0) -> tuple[int, float]:
        """As `merits`, for one candidate."""
        stages = self._ranked()
        return stages.rankings[self.candidates[index].stage].merit(row, stages.places[index])

    def vetoed_by(self, index: int, row: int = 0) -> list[int]:
        """The members whose gates a candidate fails for one item."""
        values = torch.tensor([self.candidates[index].values[row]], dtype=torch.float64)
        return self.aggregator.fails(values)[0].nonzero().flatten().tolist()

    def gates(self) -> dict[int, float]:
        """The least value that passes, of every member with a gate."""
        return {member: gate for member, gate in enumerate(self.aggregator.gates or ()) if gate is not None}

    def best(self, row: int = 0, stage: str = FINAL) -> Candidate:
        """The best candidate of one item of the batch. IndexError while there is none."""
        return self.candidates[self.top(1, row, stage)[0]]

    @property
    def has_stock(self) -> bool:
        """Whether candidate 0 is the image without a search; a replayed recipe is not."""
        return self.algorithm != REPLAY

    def of_stage(self, stage: str = FINAL) -> list[Candidate]:
        """The candidates of one stage, as they were made."""
        return [self.candidates[index] for index in self._ranked().members.get(stage, ())]

    def count(self, stage: str = FINAL) -> int:
        """How many candidates a stage has."""
        return len(self._ranked().members.get(stage, ()))

    def winners(self) -> list[Recipe]:
        """The recipe of each item's best candidate: what makes the winning batch again."""
        return [self.winner(row) for row in range(self.rows)]

    def winner(self, row: int) -> Recipe:
        """The recipe of one item's best candidate."""
        return self.best(row).recipes[row]

    @property
    def nfe(self) -> int:
        """Rows through the denoiser for the whole search, all items of the batch together."""
        return round(self.ledger.total.nfe)

    @property
    def seconds(self) -> float:
        """Wall time of sampling, decoding and scoring, for the whole search."""
        return self.ledger.total.seconds

    @property
    def extra_nfe(self) -> int:
        """The NFE of the search that no candidate in the log took."""
        return round(self.ledger.all_extra.nfe)

    @property
    def recalled(self) -> list[Candidate]:
        """The candidates known from an earlier search, with the NFE and seconds that they took then."""
        return [candidate for candidate in self.candidates if candidate.recalled]

    def spent(self) -> list[tuple[int, float]]:
        """(NFE per item of the batch, seconds) spent on the search once each candidate was there."""
        nfe = accumulate(candidate.nfe_per_row for candidate in self.candidates)
        seconds = accumulate(sum(candidate.seconds.values()) for candidate in self.candidates)
        return list(zip(nfe, seconds, strict=True))

    def curve(self, row: int = 0, stage: str = FINAL) -> list[tuple[int, float, float]]:
        """The paper's scaling curve: (NFE spent per item, seconds, score of the best so far) after each of a stage's.

        The score falls where the first candidate that passes the gates takes the place of a higher one that fails.
        """
        merits, spent = self.merits(row), self.spent()
        made = [candidate.index for candidate in self.of_stage(stage)]
        best = accumulate((merits[index] for index in made), max)
        return [(*spent[index], score) for index, (_, score) in zip(made, best, strict=True)]

    def hardly_varies(self, row: int = 0) -> bool:
        """Whether no verifier that decides or has a gate tells the candidates apart: their values spread over less than
        1 % of its range.

        So it is with distilled models, whose seeds look alike: no search can help there. False where there are too few
        candidates to say, or a verifier has no usual range. The largest stage speaks for all: the finals of a path are
        alike because they come from the best of its previews.
        """
        made = max((self.of_stage(stage) for stage in (FINAL, DRAFT, PREVIEW)), key=len)
        if len(made) < MIN_FOR_SPREAD or self.usual_ranges is None:
            return False
        weights = self.aggregator.weights or (1.0,) * len(self.members)
        for member, (usual, weight) in enumerate(zip(self.usual_ranges, weights, strict=True)):
            if weight == 0 and member not in self.gates():
                continue
            values = torch.tensor([candidate.values[row][member] for candidate in made], dtype=torch.float64)
            if (
                usual is None
                or bool(values.isnan().any())
                or float(values.std(correction=0)) >= MIN_SPREAD_SHARE * (usual[1] - usual[0])
            ):
                return False
        return True

    def same_picture(self) -> tuple[Candidate, Candidate] | None:
        """Two candidates of one stage with other noises and the same picture, to the last digit of their values."""
        for stage in (FINAL, DRAFT, PREVIEW):
            seen: dict[Any, list[Candidate]] = {}
            for candidate, row in product(self.of_stage(stage), range(self.rows)):
                picture = self.thumbnails.get((candidate.index, row))
                if picture is None or picture.amin() == picture.amax():  # those that are all black say nothing
                    continue
                look = repr(candidate.values[row]), tuple(picture.shape), picture.numpy().tobytes()
                alike = seen.setdefault((row, look), [])
                for other in alike:
                    if _noises(other.recipes[row]) != _noises(candidate.recipes[row]):
                        return other, candidate
                alike.append(candidate)
        return None

    def gate_warnings(self) -> list[str]:
        """What to tell the user where an item of the batch has no final that passes all gates; at most one text."""
        rows = [row for row in range(self.rows) if self.count() and self.merit(self.best(row).index, row)[0] < 0]
        if not rows:
            return []
        finals = torch.stack([self.values(row)[[final.index for final in self.of_stage()]] for row in rows], dim=1)
        each = []
        for member, gate in self.gates().items():
            most, least = told_apart(float(finals[..., member].max()), gate)
            each.append(f"{self.members[member]} must be at least {least} and was {most} at most")
        where = "" if self.rows == 1 else f" for {len(rows)} of {self.rows} images"
        gates = "the gate" if len(each) == 1 else "all gates"
        return [
            f"No candidate passes {gates}{where}: {'; '.join(each)}. The winner is the best of those that fail"
            + (" the fewest" if len(each) > 1 else "")
            + ". Lower the gate, or search longer."
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, ready for JSON that a browser reads: seeds beyond 2**53 are texts."""
        scores = [self.scores(row).tolist() for row in range(self.rows)]
        data = {
            "format": LOG_FORMAT,
            "version": 1,
            "host": dict(self.host),
            "algorithm": self.algorithm,
            "settings": dict(self.settings),
            "aggregator": {
                "method": self.aggregator.method,
                "weights": self.aggregator.weights,
                "gates": self.aggregator.gates,
                **({"comparative": [self.members[column] for column in self.comparative]} if self.comparative else {}),
            },
            "members": list(self.members),
            "failed": {self.members[member]: cause for member, cause in self.failed.items()},
            "rows": self.rows,
            "nfe": self.nfe,
            "seconds": self.seconds,
            "extra": {kind: cost.nfe for kind, cost in self.ledger.extra.items() if cost.nfe},
            "stopped": self.stopped,
            "recalled": {"candidates": len(self.recalled), "nfe": sum(one.nfe for one in self.recalled)},
            "findings": dict(self.findings),
            "warnings": list(self.warnings),
            "dropped": list(self.dropped),
            "winners": [
                {
                    "row": row,
                    "candidate": self.best(row).index,
                    "seed": self.winner(row).seed,
                    "recipe": self.winner(row).to_dict(),
                    "score": scores[row][self.best(row).index],
                }
                for row in range(self.rows if self.of_stage() else 0)
            ],
            "candidates": [
                {
                    "index": candidate.index,
                    "stage": candidate.stage,
                    "recipes": [recipe.to_dict() for recipe in candidate.recipes],
                    "values": [[None if math.isnan(v) else v for v in row] for row in candidate.values],
                    "scores": [scores[row][candidate.index] for row in range(self.rows)],
                    "vetoed_by": [
                        [self.members[member] for member in self.vetoed_by(candidate.index, row)]
                        for row in range(self.rows)
                    ],
                    "nfe": candidate.nfe,
                    "nfe_per_row": candidate.nfe_per_row,
                    "seconds": dict(candidate.seconds),
                }
                for candidate in self.candidates
            ],
        }
        return portable(data)

    def aggregator_of(self, stage: str) -> Aggregator:
        """What puts a stage's candidates in order. Raises ValueError where nobody who decides may see them."""
        if stage == FINAL or not self.finals_only:
            return self.aggregator
        weights = self.aggregator.weights or (1.0,) * len(self.members)
        if not any(weight > 0 for member, weight in enumerate(weights) if member not in self.finals_only):
            names = ", ".join(self.members[member] for member in self.finals_only if weights[member] > 0)
            raise ValueError(
                f"{names} is shown finished images only, and this search has to choose among unfinished ones: use "
                "Random Search or Zero-Order Search, or add a verifier that may see them, by Verifier Ensemble"
            )
        return self.aggregator.without(self.finals_only, len(self.members))

    def _forget_thumbnails(self) -> None:
        """Bounded memory: beyond MAX_THUMBNAILS, the lowest-ranked pictures go first; stock (candidate 0) stays."""
        excess = len(self.thumbnails) - MAX_THUMBNAILS
        if excess <= 0:
            return
        stages = self._ranked()
        lasts = {stage: of_stage.last_marked(excess) for stage, of_stage in stages.rankings.items()}
        held = (self._last_held(stage, row, lasts[stage][row]) for stage, row in self._held)
        for *_, index, row in list(islice(heapq.merge(*held, reverse=True), excess)):
            stage = self.candidates[index].stage
            stages.rankings[stage].unmark(row, stages.places[index])
            del self.thumbnails[index, row], self._held[stage, row][index]

    def _last_held(self, stage: str, row: int, last: Iterable[int]) -> Iterator[tuple[bool, int, int, int, int]]:
        """What has a picture, the last first: (whether it is no final, its position, when it came, its index, row).
        last: their places in the stage. Their positions are found as they are asked for."""
        stages, came = self._ranked(), self._held[stage, row]
        members = stages.members[stage]
        position: Callable[[int], int] = partial(stages.rankings[stage].position, row)
        if not self.has_stock:  # replayed recipes keep the order they came in
            last, position = (place for place in range(len(members))[::-1] if members[place] in came), int
        for place in last:
            yield stage != FINAL, position(place), came[members[place]], members[place], row

    def _ranked(self) -> _Stages:
        """The rankings of all candidates so far."""
        stages, anew = self._stages, False
        if stages is None or not stages.fits(self):
            self._stages, anew = (stages := _Stages(self)), True
        for candidate in self.candidates[len(stages.places) :]:
            stages.add(candidate, self.aggregator_of)
        for (stage, row), numbers in self._held.items() if anew else ():
            for index in numbers:
                stages.rankings[stage].mark(row, stages.places[index])
        return stages


def _noises(recipe: Recipe) -> tuple[Any, ...]:
    """All draws behind a recipe. A pause on the way adds none."""
    return recipe.seed, recipe.moves, tuple(jump for jump in recipe.jumps if jump.to > jump.start)


def told_apart(value: float, gate: float) -> tuple[str, str]:
    """A value and its gate as text, with as many digits as it takes to see whether it passes: ("4.21", "5"),
    ("4.9996", "5")."""
    fails = Aggregator(gates=(gate,)).fails(torch.tensor([[value]], dtype=torch.float64)).item()
    for digits in range(4, 18):  # 17 digits tell any two doubles apart
        texts = f"{value:.{digits}g}", f"{gate:.{max(digits, 6)}g}"
        if (float(texts[0]) < float(texts[1])) == fails:
            break
    return texts


class Pool:
    """A log plus the full-size results of the best `keep` (0 or more) candidates of each item; the rest keep none."""

    def __init__(self, log: SearchLog, keep: int = 1):
        self.log = log
        self.keep = keep
        self.results: dict[tuple[int, int], Any] = {}
        self.sights: dict[int, Sight] = {}  # of all candidates, where judges compare

    def add(self, rendered: Rendered, stage: str = FINAL, engine: Engine | None = None) -> Candidate:
        """Writes one candidate down and lets go of results no longer among the best. engine: whose judges compare.
        Raises as the log does."""
        ask = None
        if self.log.comparative and engine is not None:
            self.sights[len(self.log.candidates)] = Sight(rendered.work, rendered.looks)
            ask = partial(self._ask, cast(Comparing, engine))
        candidate = self.log.add(rendered, stage, ask)
        if stage != FINAL:
            return candidate
        for row, result in enumerate(rendered.results):
            self.results[candidate.index, row] = result
        wanted = self.wanted()
        self.results = {key: result for key, result in self.results.items() if key in wanted}
        return candidate

    def _ask(self, engine: Comparing, column: int, row: int, first: int, second: int) -> float:
        return engine.compare(column, row, self.sights[first], self.sights[second])

    def wanted(self) -> set[tuple[int, int]]:
        """(candidate, row) of each item's best `keep`."""
        return {(index, row) for row in range(self.log.rows) for index in self.log.top(self.keep, row)}

    def missing(self) -> list[int]:
        """Candidates among the best whose results are gone: a rank-based order may return to an earlier one."""
        return sorted({index for index, row in self.wanted() if (index, row) not in self.results})

    def again(self) -> list[int]:
        """Candidates to render alone at the end: those missing, and those to compare with what a batch made of them."""
        return sorted({*self.missing(), *self.to_compare()})

    def to_compare(self) -> list[int]:
        """The winners that were sampled in a batch, and unless the search was ended early what comes next after them: a
        batch that left the winner alone may have changed others."""
        log = self.log
        best = {log.best(row).index for row in range(log.rows)}
        rows = range(0 if log.ended_early else log.rows)
        next_best = {index for row in rows for index in log.top(2, row)[1:]}
        next_best = {index for index in next_best if not log.candidates[index].recalled}
        return sorted(index for index in best | next_best if log.candidates[index].batched)

    def restore(self, index: int, rendered: Rendered) -> None:
        """Puts back the results of a candidate that was rendered again."""
        wanted = self.wanted()
        for row, result in enumerate(rendered.results):
            if (index, row) in wanted:
                self.results[index, row] = result
        self.log.keep_thumbnails(index, rendered)

    def top(self, rank: int) -> Sequence[Any]:
        """The results of rank `rank` (0 = best), one per item of the batch, each item by its own order."""
        return [self.results[self.log.order(row)[rank], row] for row in range(self.log.rows)]
