"""Several verifiers as one."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...search.aggregate import METHODS, Aggregator
from ...verifiers.base import VerifierError
from ...verifiers.console import logger
from .hosted import HostedVerifier

MEAN_RANK, Z_SCORE, WEIGHTED_SUM = COMBINE = ("mean rank", "z-score", "weighted sum")
METHOD_OF = dict(zip(COMBINE, METHODS, strict=True))
SHOWN_CUTS = 8
log_to_console = logger(__name__)


@dataclass(frozen=True)
class Judge:
    """A verifier of an ensemble. weight: how much it counts, 0 only reports. gate: the least that each of its members
    must give, None for no gate. drop: if it fails it is left out for the rest of the search, else it ends that."""

    verifier: HostedVerifier
    weight: float = 1.0
    gate: float | None = None
    drop: bool = False

    @property
    def weights(self) -> tuple[float, ...]:
        """Of its members: a verifier may have some that only report."""
        own = getattr(getattr(self.verifier, "aggregator", None), "weights", None)
        return tuple(self.weight * one for one in own or (1.0,) * len(self.verifier.members))

    @property
    def gates(self) -> tuple[float | None, ...]:
        """Of its members: those that only report because the verifier says so have none."""
        own = getattr(getattr(self.verifier, "aggregator", None), "weights", None)
        return tuple(self.gate if one > 0 else None for one in own or (1.0,) * len(self.verifier.members))


class VerifierEnsemble:
    """Verifiers that score the same images, combined by an aggregator; a weight of 0 is reported and does not decide.

    judges: one or more, also as pairs (verifier, weight); an ensemble among them brings in its members, their weights
    multiplied, with their gates. combine: "mean rank", "z-score" or "weighted sum". drop_failed: whether a verifier
    that fails is left out for the rest of the search. Raises ValueError where no verifier decides.
    """

    def __init__(
        self,
        judges: Sequence[Judge | tuple[HostedVerifier | VerifierEnsemble, float]],
        combine: str = MEAN_RANK,
        drop_failed: bool = False,
    ):
        flat = [one for judge in judges for one in _flat(judge, drop_failed)]
        for judge in flat:
            if not 0 <= judge.weight < math.inf:
                raise ValueError(
                    f"the weight of {', '.join(judge.verifier.members)} must be 0 or more, not {judge.weight}"
                )
        weights = tuple(weight for judge in flat for weight in judge.weights)
        gates = tuple(gate for judge in flat for gate in judge.gates)
        if not any(weights):
            names = ", ".join(name for judge in flat for name in judge.verifier.members)
            raise ValueError(
                f"all weights are 0 ({names}), so nothing would choose the winner: give at least one verifier a weight"
            )
        if combine not in METHOD_OF:
            raise ValueError(f"unknown way to combine verifiers {combine!r}; known: {', '.join(COMBINE)}")
        self.judges = tuple(flat)
        self.aggregator = Aggregator(METHOD_OF[combine], weights, gates if any(g is not None for g in gates) else None)
        self.members = _unlike([name for judge in flat for name in judge.verifier.members])
        self.needs_prompt = any(judge.verifier.needs_prompt for judge in flat)
        limits = [judge.verifier.prompt_tokens for judge in flat if judge.verifier.prompt_tokens is not None]
        self.prompt_tokens = min(limits, default=None)

    @property
    def patchers(self) -> list[Any]:
        """ComfyUI's handles on the networks."""
        return [judge.verifier.patcher for judge in self.judges if judge.verifier.patcher is not None]

    @property
    def patcher(self) -> Any:
        """The first of them: ComfyUI's cache looks for one of this name."""
        return next(iter(self.patchers), None)

    def identity(self) -> str:
        """What determines the values; weights and gates do not."""
        return hashlib.sha256(json.dumps([judge.verifier.identity() for judge in self.judges]).encode()).hexdigest()

    def score(self, images: torch.Tensor, prompts: str | Sequence[str]) -> torch.Tensor:
        """Raw values of all members: float32 [B, members] on the CPU. Raises as the verifiers do, whatever their
        `drop` says: what is to go on without one is a search, which has a `Jury`."""
        return torch.cat([judge.verifier.score(images, prompts) for judge in self.judges], dim=1)


def gated(verifier: Any, least: float) -> VerifierEnsemble:
    """The verifier with a gate: a candidate that it gives less than `least` loses to every one that passes.

    Of two gates on one verifier the higher counts. Raises ValueError on an ensemble of several.
    """
    if not math.isfinite(least):
        raise ValueError(f"a gate must be a number that a score can reach, not {least}")
    if not isinstance(verifier, VerifierEnsemble):
        return VerifierEnsemble([Judge(verifier, gate=least)])
    if len(verifier.judges) > 1:
        raise ValueError(
            f"a gate is for one verifier, and this is an ensemble of {', '.join(verifier.members)}: put the gate "
            "between a verifier and the ensemble"
        )
    [judge] = verifier.judges
    gate = least if judge.gate is None else max(least, judge.gate)
    return VerifierEnsemble([replace(judge, gate=gate)])


def verifiers_in(verifier: Any) -> list[Any]:
    """The verifiers of an ensemble, or the one that it is."""
    return [judge.verifier for judge in getattr(verifier, "judges", ())] or [verifier]


def noisy_members(verifier: Any) -> tuple[int, ...]:
    """The members that need not give the same value twice, by column."""
    repeatable = [getattr(one, "repeatable", True) for one in verifiers_in(verifier) for _ in one.members]
    return tuple(column for column, one in enumerate(repeatable) if not one)


def usual_ranges(verifier: Any) -> tuple[tuple[float, float] | None, ...]:
    """What scores each member usually gives."""
    return tuple(getattr(one, "usual_range", None) for one in verifiers_in(verifier) for _ in one.members)


def cuts(verifier: Any, prompts: Sequence[str]) -> list[str]:
    """Which of the prompts a verifier, or one of an ensemble, does not read to the end: a sentence each."""
    readers = [one.cut for one in verifiers_in(verifier) if hasattr(one, "cut")]
    found = [sentence for prompt in dict.fromkeys(prompts) for cut in readers if (sentence := cut(prompt))]
    found = list(dict.fromkeys(found))
    more = [f"and {len(found) - SHOWN_CUTS} more like this"] if len(found) > SHOWN_CUTS else []
    return found[:SHOWN_CUTS] + more


class Jury:
    """The judges of a verifier during one search, and which of them have failed and are left out since."""

    def __init__(self, verifier: Any):
        self.judges: tuple[Judge, ...] = getattr(verifier, "judges", None) or (Judge(verifier),)
        self._causes: dict[int, str] = {}  # by judge

    @property
    def failed(self) -> dict[int, str]:
        """The members that are left out, by column, each with what happened."""
        causes = [self._causes.get(number) for number, judge in enumerate(self.judges) for _ in judge.verifier.members]
        return {column: cause for column, cause in enumerate(causes) if cause is not None}

    def seats(self) -> Iterator[tuple[int, HostedVerifier]]:
        """Number and verifier of each judge."""
        return ((number, judge.verifier) for number, judge in enumerate(self.judges))

    @property
    def deciding(self) -> dict[int, Judge]:
        """The judges that decide and have not failed, by number."""
        judges = enumerate(self.judges)
        return {number: judge for number, judge in judges if any(judge.weights) and number not in self._causes}

    def ask(self, number: int, rows: int, score: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The judge's values [rows, members], all NaN where it is left out.

        Raises what `score` raises. Only a judge that may be dropped is, for a VerifierError or a value that is no
        number; running out of memory and Cancel are not its failure. Raises VerifierError where it was the last one
        that decides.
        """
        judge = self.judges[number]
        blank = torch.full((rows, len(judge.verifier.members)), math.nan)
        if number in self._causes:
            return blank
        try:
            values = score()
            if judge.drop and not torch.isfinite(values).all():
                raise VerifierError(f"verifier {', '.join(judge.verifier.members)} gave a score that is not a number")
        except VerifierError as error:
            if not judge.drop:
                raise
            if not self.deciding.keys() - {number}:
                raise VerifierError(f"{error}. No other verifier that decides is left") from error
            self._causes[number] = f"{error}."
            log_to_console.warning("Noise Search: dropped for the whole search: %s", self._causes[number])
            return blank
        return values


def _flat(judge: Any, drop: bool) -> list[Judge]:
    """One judge, or the judges of the ensemble that it is."""
    judge = judge if isinstance(judge, Judge) else Judge(*judge)
    drop = drop or judge.drop
    if isinstance(judge.verifier, VerifierEnsemble):
        return [
            replace(member, weight=judge.weight * member.weight, drop=drop or member.drop)
            for member in judge.verifier.judges
        ]
    return [replace(judge, drop=drop)]


def _unlike(names: Sequence[str]) -> tuple[str, ...]:
    """The names, numbered where two are the same."""
    seen: Counter[str] = Counter()
    out = []
    for name in names:
        seen[name] += 1
        out.append(f"{name} ({seen[name]})" if names.count(name) > 1 else name)
    return tuple(out)
