"""The verifiers by name."""

from __future__ import annotations

import difflib
from typing import Any

from . import aesthetic, clip, hps, imagereward, pickscore, vlm
from .base import VerifierError
from .descriptor import Descriptor

# Adding a verifier is one file and one line here; tests name what else it lacks.
DESCRIPTORS: dict[str, Descriptor] = {
    one.id: one
    for one in (
        clip.DESCRIPTOR,
        pickscore.DESCRIPTOR,
        hps.DESCRIPTOR,
        aesthetic.DESCRIPTOR,
        imagereward.DESCRIPTOR,
        vlm.VQA_SCORE,
        vlm.GRADER,
    )
}


def names() -> list[str]:
    return sorted(DESCRIPTORS)


def describe(name: str) -> Descriptor:
    """What there is to know of a verifier. Raises VerifierError on an unknown name, with the closest known one."""
    if name not in DESCRIPTORS:
        close = difflib.get_close_matches(name, DESCRIPTORS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names())}"
        raise VerifierError(f"unknown verifier {name!r}; {hint}")
    return DESCRIPTORS[name]


def files_table() -> str:
    """What to get for each verifier, as the table in docs/verifiers.md."""
    rows = [f"| {one.title} | {f'{one.entry.files}.' if one.entry else one.reads} |" for one in DESCRIPTORS.values()]
    return "\n".join(["| verifier | files |", "| --- | --- |", *rows])


def get(name: str) -> Any:
    """The class of a verifier. Raises VerifierError on an unknown name."""
    return describe(name).kind
