"""What a log says about itself, in words for titles and headings."""

from __future__ import annotations

from ..search.log import DRAFT, FINAL, PREVIEW, SearchLog, told_apart
from ..search.recipe import Recipe
from .canvas import one_line
from .numbers import count, duration

STAGES = (FINAL, DRAFT, PREVIEW)  # in the order of how much they say


def prompt_of(log: SearchLog) -> str:
    """The text the verifier judged by, "" where the log has none; several texts are joined."""
    prompt = log.settings.get("prompt") or ""
    return prompt if isinstance(prompt, str) else " | ".join(map(str, prompt))


def quoted_prompt(log: SearchLog) -> list[str]:
    """The prompt as a line for a picture; no line where there is none, or none that the embedded font can write."""
    prompt = one_line(prompt_of(log))
    return [f"“{prompt}”"] if any(map(str.isalnum, prompt)) else []


def report_only(log: SearchLog) -> list[int]:
    """The members that neither decide nor veto: their weight is 0. Without those that were dropped."""
    members = [member for member, weight in enumerate(log.aggregator.weights or ()) if weight == 0]
    return [member for member in members if member not in log.gates() and member not in log.failed]


def deciding(log: SearchLog) -> list[str]:
    """Names of the members that decide."""
    weights = log.aggregator.weights or (1.0,) * len(log.members)
    return [member for member, weight in zip(log.members, weights, strict=True) if weight > 0]


def member_title(log: SearchLog, member: int) -> str:
    """A member's name and its part: "PickScore", "Aesthetic (at least 5)", "HPS (report only)", "HPS (dropped)"."""
    parts = ["dropped"] * (member in log.failed) + ["report only"] * (member in report_only(log))
    parts += [f"at least {gate:g}" for gated, gate in log.gates().items() if gated == member]
    return log.members[member] + (f" ({', '.join(parts)})" if parts else "")


def failed_gates(log: SearchLog, index: int, row: int, numbers_first: bool = False) -> str:
    """The gates that a candidate fails: "Aesthetic 4.21 < 5, HPS 20.3 < 25"; "" where it passes."""
    values, gates = log.candidates[index].values[row], log.gates()
    failing = [(log.members[m], " < ".join(told_apart(values[m], gates[m]))) for m in log.vetoed_by(index, row)]
    return ", ".join(f"{numbers} {name}" if numbers_first else f"{name} {numbers}" for name, numbers in failing)


def stages(log: SearchLog) -> list[str]:
    """The stages that the log has candidates of, finals first."""
    return [stage for stage in STAGES if log.of_stage(stage)]


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


def recipe_name(recipe: Recipe) -> str:
    """ "seed 42", "seed 42  ·  3 moves"."""
    return "  ·  ".join([f"seed {recipe.seed}", *steps_of(recipe)])


def steps_of(recipe: Recipe) -> list[str]:
    """What happens to the noise of the seed: "3 moves", "2 jumps"."""
    steps = ((len(recipe.moves), "move"), (len(recipe.jumps), "jump"))
    return [count(number, noun) for number, noun in steps if number]


def counted(log: SearchLog) -> str:
    """ "12 candidates", or by stage: "8 finals, 60 drafts"."""
    made = stages(log)
    if made in ([], [FINAL]):
        return count(len(log.candidates), "candidate")
    return ", ".join(count(len(log.of_stage(stage)), stage) for stage in made)


def caption(log: SearchLog) -> str:
    """One line: the algorithm, how many candidates, what they cost."""
    parts = [log.algorithm.replace("_", " ")] if log.algorithm else []
    parts.append(counted(log))
    if log.rows > 1:
        parts.append(count(log.rows, "image"))
    parts.append(f"{log.nfe - log.extra_nfe:,} NFE" + (f" (+{log.extra_nfe:,} extra)" if log.extra_nfe else ""))
    if log.seconds:
        parts.append(duration(log.seconds))
    return "  ·  ".join(parts)


def warning(log: SearchLog) -> str:
    """The first warning, and how many more there are; "" without any."""
    if not log.warnings:
        return ""
    more = len(log.warnings) - 1
    return log.warnings[0] + (f" ({count(more, 'more warning')} in the table)" if more else "")
