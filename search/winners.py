"""What happens once a search is over: winners are rendered again where they must be, and compared with what they were.

A winner that was sampled in a batch, that is only remembered, or whose result was let go is made once more, alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .engine import Engine, Rendered
from .ledger import RENDERED_AGAIN
from .log import Candidate, Pool, SearchLog

# How far apart the scores of one image may be.
RANGE_SHARE = 0.01  # of the verifier's usual range, where it has one; else
SPREAD_SHARE = 0.05  # of the spread of its scores in this search, but at least
ROUNDING_SHARE = 1e-4  # of the scores themselves
ELSEWHERE_SHARE = 0.01  # of the score, of an image from another machine, where nobody knows the spread
PICTURE_LIMIT = 4.0  # of 255, on average: how far apart two small pictures of one candidate may be


class StaleMemory(Exception):
    """What is remembered of a search is not what it gives now: something changed that nobody could see."""


class BatchesMix(Exception):
    """A candidate alone is another than in its batch: what was sampled in batches says nothing sure."""


def render_winners_again(engine: Engine, pool: Pool, strict: bool) -> None:
    """Renders alone what is among the best and was let go or is only remembered, and the best sampled in a batch.

    strict: raise StaleMemory where something remembered is no longer so, and BatchesMix where a winner differs from the
    one in its batch; else only warn.
    """
    log = pool.log
    in_batch = pool.to_compare()
    differences = []
    failed: dict[int, str] = {}  # since the search
    for index in pool.again():
        candidate = log.candidates[index]
        rendered = engine.remake(candidate.recipes)
        log.ledger.book(RENDERED_AGAIN, rendered.cost)
        if rendered.error is not None:
            raise ValueError(f"candidate {index}, when it was rendered again: {rendered.error}")
        failed |= {member: cause for member, cause in rendered.failed.items() if member not in log.failed}
        if candidate.recalled:
            _compare_with_memory(log, candidate, rendered, strict)
        pool.restore(index, rendered)
        if index in in_batch:
            differences.append(_compare_with_batch(log, candidate, rendered, strict))
    if failed:
        log.warnings += _failures(log, failed)
    if differences:
        log.findings["batch_difference"] = max(differences)  # of the best ones' values from those of their runs alone


def score_limits(log: SearchLog, elsewhere: bool = False) -> torch.Tensor:
    """How far apart the scores of one image may be, float64 [rows, members]: more than rounding ever makes.

    Between a run alone and one in a batch, or between then and now. elsewhere: the log's first candidate was made
    on another machine, from the same files.
    """
    finals = torch.tensor([final.values for final in log.of_stage()], dtype=torch.float64)
    if elsewhere:
        winner = finals[0]
        limits = ELSEWHERE_SHARE * winner.abs().amax(dim=0).repeat(len(winner), 1)
    else:
        spread, size = finals.amax(dim=0) - finals.amin(dim=0), finals.abs().amax(dim=0)
        limits = torch.maximum(SPREAD_SHARE * spread, ROUNDING_SHARE * size)
    for member, usual in enumerate(log.usual_ranges or ()):
        if usual is not None:
            limits[:, member] = RANGE_SHARE * (usual[1] - usual[0])
    limits[:, [*log.noisy, *log.comparative]] = torch.inf
    return limits


def _compare_with_memory(log: SearchLog, candidate: Candidate, rendered: Rendered, strict: bool) -> None:
    """Warns, or raises StaleMemory, where a remembered candidate is no longer what it was."""
    if not _is_stale(log, candidate, rendered):
        return
    then = candidate.values if rendered.solo_values is None else rendered.solo_values.tolist()
    text = f"candidate {candidate.index} scored {then} before and {rendered.values.tolist()} now"
    if strict:
        raise StaleMemory(text)
    log.warnings.append(f"What was remembered of this search no longer fits ({text}): the order may be wrong.")


def _is_stale(log: SearchLog, candidate: Candidate, rendered: Rendered) -> bool:
    """Whether a remembered candidate, made again, is another: by its scores, or where no verifier gives the same score
    twice by its picture."""
    then = torch.tensor(candidate.values) if rendered.solo_values is None else rendered.solo_values
    if bool((_difference(rendered.values, then) > score_limits(log)).any()):
        return True
    if len({*log.noisy, *log.comparative}) < len(log.members) or rendered.thumbnails is None:
        return False
    pictures = [(log.thumbnails.get((candidate.index, row)), now) for row, now in enumerate(rendered.thumbnails)]
    return any(
        old is not None and (old.shape != now.shape or float((old.float() - now.float()).abs().mean()) > PICTURE_LIMIT)
        for old, now in pictures
    )


def _compare_with_batch(log: SearchLog, candidate: Candidate, rendered: Rendered, strict: bool) -> float:
    """How far the values of a candidate alone are from those in its batch: no more than rounding."""
    difference = _difference(rendered.values, torch.tensor(candidate.values))
    apart, how = float(difference.max()), rendered.mixed
    if bool((difference > score_limits(log)).any()):
        how = f"scores {apart:.3g} otherwise"
    if how is not None:
        text = (
            f"Candidate {candidate.index} {how} alone than in its batch: something in the model or the sampler mixes "
            "the candidates of a batch"
        )
        if strict:
            raise BatchesMix(text)
        log.warnings.append(
            f"{text}. The image is the one made alone, but the order may be wrong. Set batch_size to 1."
        )
    return apart


def _difference(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The absolute difference; 0 where a verifier was dropped, whose values are NaN."""
    return (first - second).abs().nan_to_num(0.0)


def _failures(log: SearchLog, failed: Mapping[int, str]) -> list[str]:
    """What to tell the user of verifiers that failed after the search, by member."""
    texts = []
    for cause in dict.fromkeys(failed.values()):
        names = ", ".join(log.members[member] for member in failed if failed[member] == cause)
        texts.append(
            f"{names} failed when the best was rendered once more: {cause} (Its scores from before decide; whether "
            "they still hold could not be checked.)"
        )
    return texts
