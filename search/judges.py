"""What the VERIFIER socket carries, and the judges that a search makes of it, once, where a node receives it."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch

from .aggregate import METHODS, Aggregator

MEAN_RANK, Z_SCORE, WEIGHTED_SUM = COMBINE = ("mean rank", "z-score", "weighted sum")
METHOD_OF = dict(zip(COMBINE, METHODS, strict=True))
SHOWN_CUTS = 8


class Absolute(Protocol):
    """A verifier on the socket that gives every picture its own values, which can be stored.

    members: a name for each column of its values. needs_prompt: whether an empty prompt is an error. What else it may
    say of itself is in `MAY_SAY`.
    """

    members: tuple[str, ...]
    needs_prompt: bool

    def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Raw values, [B, members], higher is better, of images [B, H, W, 3] in 0..1 and a text for each."""
        ...


class Comparative(Protocol):
    """A verifier on the socket that gives no picture a value, but says which of two is better: a person, a tournament,
    nearness to a set. Answers are stored, with the question; the order is made from them.

    members: one name. question: what it is asked of two pictures, in words that tell it from another question.
    """

    members: tuple[str, ...]
    needs_prompt: bool
    question: str

    def look(self, images: torch.Tensor, prompt: str) -> Any:
        """What it keeps of a picture to compare it with others later, and to compare it by: of a video [frames, H, W,
        3], of an image with one frame, in 0..1. It stays in memory for every candidate, so it should be small."""
        ...

    def compare(self, first: Any, second: Any, prompt: str) -> float:
        """From 1, the first is better, to 0, the second is; 0.5 for neither. first, second: what `look` gave."""
        ...


# What a verifier on the socket may say of itself, and what holds where it does not.
MAY_SAY: dict[str, Any] = {
    "usual_range": None,  # (low, high) of typical values
    "prompt_tokens": None,  # how many tokens of a prompt it reads, None without a limit
    "previews": True,  # whether it may be shown drafts and previews too: people should see finished pictures only
    "repeatable": True,  # whether the same picture gets the same value each time
    "member_weights": None,  # of its members: those of weight 0 only report
    "patcher": None,  # ComfyUI's handle on its network
    "identity": None,  # a function: what determines its values; without it, they are not remembered
    "cut": None,  # a function: where it cuts a prompt, in a sentence, or None
}


def said(verifier: Any, name: str) -> Any:
    """What a verifier says of itself, one of `MAY_SAY`."""
    return getattr(verifier, name, MAY_SAY[name])


@dataclass(frozen=True)
class Judge:
    """One verifier of a search and all that there is to know of it.

    weight: how much it counts, 0 only reports. gate: the least that each of its members must give, None for no gate.
    drop: if it fails it is left out for the rest of the search, else it ends that. question: what a judge that compares
    is asked, None of one that gives values. The rest is the verifier's own.
    """

    verifier: Any
    members: tuple[str, ...]
    needs_prompt: bool
    usual_range: tuple[float, float] | None = None
    prompt_tokens: int | None = None
    repeatable: bool = True
    own_weights: tuple[float, ...] | None = None
    patcher: Any = None
    previews: bool = True
    question: str | None = None
    weight: float = 1.0
    gate: float | None = None
    drop: bool = False

    @classmethod
    def of(cls, verifier: Any) -> Judge:
        """Reads a verifier on the socket. Raises ValueError on what is none."""
        compares = not hasattr(verifier, "score") and hasattr(verifier, "compare")
        does = ("question", "look", "compare") if compares else ("score",)
        lacking = [name for name in ("members", "needs_prompt", *does) if not hasattr(verifier, name)]
        if compares and not lacking and len(verifier.members) != 1:
            raise ValueError(f"'verifier' {', '.join(verifier.members)} compares, so it must have one member")
        if lacking:
            raise ValueError(
                f"'verifier' is {type(verifier).__name__}, which has no {' and no '.join(lacking)}: connect a "
                "verifier, such as CLIP Score"
            )
        weights = said(verifier, "member_weights")
        return cls(
            verifier,
            members=tuple(verifier.members),
            needs_prompt=bool(verifier.needs_prompt),
            usual_range=said(verifier, "usual_range"),
            prompt_tokens=said(verifier, "prompt_tokens"),
            repeatable=bool(said(verifier, "repeatable")),
            own_weights=None if weights is None else tuple(weights),
            patcher=said(verifier, "patcher"),
            previews=bool(said(verifier, "previews")),
            question=str(verifier.question) if compares else None,
        )

    @property
    def name(self) -> str:
        """What errors call it."""
        return ", ".join(self.members)

    @property
    def weights(self) -> tuple[float, ...]:
        """The members' weights: 0 for those that only report."""
        return tuple(self.weight * own for own in self.own_weights or (1.0,) * len(self.members))

    @property
    def gates(self) -> tuple[float | None, ...]:
        """The members' gates: None for those that only report because the verifier says so."""
        return tuple(self.gate if own > 0 else None for own in self.own_weights or (1.0,) * len(self.members))

    def identity(self) -> str:
        """What determines the values. Raises ValueError where the verifier does not say."""
        own = said(self.verifier, "identity")
        if own is None:
            raise ValueError(f"the verifier {self.name} does not say what determines its values")
        return own()

    def cut(self, prompt: str) -> str | None:
        """Where the verifier cuts a prompt that is too long, in a sentence; None if it reads all of it."""
        own = said(self.verifier, "cut")
        return None if own is None else own(prompt)


@dataclass(frozen=True)
class Judges:
    """The verifiers of a search, flat, and how they choose together. combined: by Verifier Ensemble or a gate."""

    judges: tuple[Judge, ...]
    aggregator: Aggregator
    combined: bool = False

    @cached_property
    def members(self) -> tuple[str, ...]:
        """The names of all columns, numbered where two are the same."""
        return _unlike([name for judge in self.judges for name in judge.members])

    @property
    def needs_prompt(self) -> bool:
        return any(judge.needs_prompt for judge in self.judges)

    @property
    def prompt_tokens(self) -> int | None:
        """How many tokens of a prompt all of them read."""
        return min((judge.prompt_tokens for judge in self.judges if judge.prompt_tokens is not None), default=None)

    @property
    def usual_ranges(self) -> tuple[tuple[float, float] | None, ...]:
        """What scores each member usually gives."""
        return tuple(judge.usual_range for judge in self.judges for _ in judge.members)

    @property
    def comparative(self) -> tuple[int, ...]:
        """The members whose judges compare, by column."""
        compares = [judge.question is not None for judge in self.judges for _ in judge.members]
        return tuple(column for column, one in enumerate(compares) if one)

    @property
    def scored(self) -> bool:
        """Whether any of them gives scores."""
        return len(self.comparative) < len(self.members)

    @property
    def finals_only(self) -> tuple[int, ...]:
        """The members whose judges are shown finished pictures only, by column."""
        previews = [judge.previews for judge in self.judges for _ in judge.members]
        return tuple(column for column, one in enumerate(previews) if not one)

    def at(self, column: int) -> tuple[int, Judge]:
        """The number of a member's judge, and the judge."""
        return [(number, judge) for number, judge in enumerate(self.judges) for _ in judge.members][column]

    @property
    def noisy(self) -> tuple[int, ...]:
        """The members that need not give the same value twice, by column."""
        repeatable = [judge.repeatable for judge in self.judges for _ in judge.members]
        return tuple(column for column, one in enumerate(repeatable) if not one)

    @property
    def patchers(self) -> list[Any]:
        """ComfyUI's handles on the networks."""
        return [judge.patcher for judge in self.judges if judge.patcher is not None]

    @property
    def patcher(self) -> Any:
        """The first of them: ComfyUI's cache looks for one of this name."""
        return next(iter(self.patchers), None)

    def identity(self) -> str:
        """What determines the values; weights and gates do not. Raises ValueError where a verifier does not say."""
        each = [judge.identity() for judge in self.judges]
        return hashlib.sha256(json.dumps(each).encode()).hexdigest() if self.combined else each[0]

    def cuts(self, prompts: Sequence[str]) -> list[str]:
        """Which of the prompts one of them does not read to the end: a sentence each."""
        said = [sentence for prompt in dict.fromkeys(prompts) for one in self.judges if (sentence := one.cut(prompt))]
        found = list(dict.fromkeys(said))
        more = [f"and {len(found) - SHOWN_CUTS} more like this"] if len(found) > SHOWN_CUTS else []
        return found[:SHOWN_CUTS] + more


def judges_of(verifier: Any) -> Judges:
    """What the VERIFIER socket carries, as judges: an ensemble, or a verifier. Raises ValueError on anything else."""
    if isinstance(verifier, Judges):
        return verifier
    judge = Judge.of(verifier)
    return Judges((judge,), Aggregator(weights=judge.own_weights, comparative=() if judge.question is None else (0,)))


def combined(verifiers: Sequence[tuple[Any, float]], combine: str = MEAN_RANK, drop_failed: bool = False) -> Judges:
    """Verifiers that score the same images, combined by an aggregator; a weight of 0 is reported and does not decide.

    verifiers: one or more, each with its weight; an ensemble among them brings in its judges, their weights multiplied,
    with their gates. combine: "mean rank", "z-score" or "weighted sum". drop_failed: whether a verifier that fails is
    left out for the rest of the search. Raises ValueError where no verifier decides.
    """
    if combine not in METHOD_OF:
        raise ValueError(f"unknown way to combine verifiers {combine!r}; known: {', '.join(COMBINE)}")
    flat = []
    for verifier, weight in verifiers:
        for judge in judges_of(verifier).judges:
            if not 0 <= weight < math.inf:
                raise ValueError(f"the weight of {judge.name} must be 0 or more, not {weight}")
            flat.append(replace(judge, weight=weight * judge.weight, drop=drop_failed or judge.drop))
    return _together(flat, METHOD_OF[combine])


def gated(verifier: Any, least: float) -> Judges:
    """The verifier with a gate: a candidate that it gives less than `least` loses to every one that passes.

    Of two gates on one verifier the higher counts. Raises ValueError on an ensemble of several.
    """
    if not math.isfinite(least):
        raise ValueError(f"a gate must be a number that a score can reach, not {least}")
    judges = judges_of(verifier)
    if len(judges.judges) > 1:
        raise ValueError(
            f"a gate is for one verifier, and this is an ensemble of {', '.join(judges.members)}: put the gate "
            "between a verifier and the ensemble"
        )
    [judge] = judges.judges
    if judge.question is not None:
        raise ValueError(f"a gate is a least score, and {judge.name} gives none: it compares images with each other")
    gate = least if judge.gate is None else max(least, judge.gate)
    return _together([replace(judge, gate=gate)], METHODS[0])


def _together(judges: Sequence[Judge], method: str) -> Judges:
    weights = tuple(weight for judge in judges for weight in judge.weights)
    gates = tuple(gate for judge in judges for gate in judge.gates)
    if not any(weights):
        names = ", ".join(name for judge in judges for name in judge.members)
        raise ValueError(
            f"all weights are 0 ({names}), so nothing would choose the winner: give at least one verifier a weight"
        )
    vetoes = gates if any(gate is not None for gate in gates) else None
    plain = Judges(tuple(judges), Aggregator(), combined=True)
    return replace(plain, aggregator=Aggregator(method, weights, vetoes, plain.comparative))


def _unlike(names: Sequence[str]) -> tuple[str, ...]:
    """The names, numbered where two are the same."""
    seen: Counter[str] = Counter()
    out = []
    for name in names:
        seen[name] += 1
        out.append(f"{name} ({seen[name]})" if names.count(name) > 1 else name)
    return tuple(out)
