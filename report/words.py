"""What a log says about itself, in words for titles and headings."""

from __future__ import annotations

from ..search.log import SearchLog
from .canvas import one_line
from .numbers import count, duration


def prompt_of(log: SearchLog) -> str:
    """The text the verifier judged by, "" where the log has none; several texts are joined."""
    prompt = log.settings.get("prompt") or ""
    return prompt if isinstance(prompt, str) else " | ".join(map(str, prompt))


def quoted_prompt(log: SearchLog) -> list[str]:
    """The prompt as a line for a picture; no line where there is none, or none that the embedded font can write."""
    prompt = one_line(prompt_of(log))
    return [f"“{prompt}”"] if any(map(str.isalnum, prompt)) else []


def deciding(log: SearchLog) -> list[str]:
    """Names of the members that decide (weight 0 is reported only)."""
    weights = log.aggregator.weights or (1.0,) * len(log.members)
    return [member for member, weight in zip(log.members, weights, strict=False) if weight > 0]


def score_name(log: SearchLog) -> str:
    """What the score is: the verifier's name, or how several were combined."""
    members = deciding(log)
    if len(members) == 1:
        return members[0]
    names = " + ".join(members)
    return {
        "mean_rank": f"mean rank, 0 worst to 1 best: {names}",
        "z_score": f"mean z-score: {names}",
        "weighted_sum": f"weighted sum: {names}",
    }[log.aggregator.method]


def caption(log: SearchLog) -> str:
    """One line: the algorithm, how many candidates, what they cost."""
    parts = [log.algorithm.replace("_", " ")] if log.algorithm else []
    parts.append(count(len(log.candidates), "candidate"))
    if log.rows > 1:
        parts.append(count(log.rows, "image"))
    parts.append(f"{log.nfe:,} NFE")
    if log.seconds:
        parts.append(duration(log.seconds))
    return "  ·  ".join(parts)
