"""The search as text: a table for people, and CSV for programs."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence

from ..search.log import FINAL, SearchLog
from ..search.recipe import portable
from .numbers import duration, plain, score_digits
from .words import counted, failed_gates, member_title, prompt_of, score_name, stages


def table(log: SearchLog) -> str:
    """Markdown, aligned so that it also reads well as plain text: settings, findings, warnings, every candidate.

    One table per item of the latent batch, best first; drafts and previews follow the finals, each ranked among their
    own. NFE is per item and seconds per candidate, as measured. Verifiers that do not decide are marked, and so are
    candidates that fail a gate.
    """
    lines = [f"# Noise Search: {log.algorithm.replace('_', ' ') or 'search'}", ""]
    if prompt := prompt_of(log):
        lines.append(f"- prompt: {' '.join(prompt.split())}")
    lines.append(f"- score: {score_name(log)}")
    lines += [f"- {key}: {_value(value)}" for key, value in log.settings.items() if key != "prompt"]
    lines += [f"- {key}: {_value(value)}" for key, value in log.host.items()]
    lines.append(
        f"- total: {counted(log)}, {log.nfe:,} NFE, {duration(log.seconds)}"
        + (
            f" (of which {log.extra_nfe:,} NFE extra, for trials, repeats and what was left out)"
            if log.extra_nfe
            else ""
        )
    )
    if log.recalled:
        count, nfe = len(log.recalled), sum(candidate.nfe for candidate in log.recalled)
        lines.append(
            f"- known from an earlier search: {count} candidate{'s' * (count > 1)}, {nfe:,} NFE not spent again"
        )
    if log.stopped:
        lines.append(f"- ended because: {' '.join(log.stopped.split())}")
    lines += [f"- {key.replace('_', ' ')}: {_value(value)}" for key, value in log.findings.items()]
    lines += [f"- warning: {' '.join(text.split())}" for text in log.warnings]
    for row in range(log.rows if log.candidates else 0):
        lines.append("")
        if log.rows > 1:
            lines += [f"## Image {row + 1} of {log.rows}", ""]
        lines += _rows(log, row)
    return "\n".join(lines) + "\n"


def to_csv(log: SearchLog) -> str:
    """One line per candidate and item of the batch, in the order they were made; full precision (RFC 4180).

    A rank is among the candidates of the same stage. Where a verifier has a gate, a last column says which ones a
    candidate fails. A verifier that was dropped has empty cells.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    head = ["candidate", "image", "stage", "rank", "seed", "recipe", "score", *log.members]
    gates = ["fails_gates"] if log.gates() else []
    writer.writerow([*head, "nfe_per_image", "nfe", "seconds", *gates])
    scores = [log.scores(row).tolist() for row in range(log.rows)]
    ranks = [_ranks(log, row) for row in range(log.rows)]
    for candidate in log.candidates:
        for row, recipe in enumerate(candidate.recipes):
            start = [candidate.index, row + 1, candidate.stage, ranks[row][candidate.index]]
            start += [recipe.seed, json.dumps(portable(recipe.to_dict()))]
            spent = [candidate.nfe_per_row, candidate.nfe, sum(candidate.seconds.values())]
            values = ["" if math.isnan(value) else value for value in candidate.values[row]]
            failing = [failed_gates(log, candidate.index, row)] * len(gates)
            writer.writerow([*start, scores[row][candidate.index], *values, *spent, *failing])
    return out.getvalue()


def _ranks(log: SearchLog, row: int) -> dict[int, int]:
    """The place of each candidate among those of its stage; in order: finals, drafts, previews, each best first."""
    return {index: rank for stage in stages(log) for rank, index in enumerate(log.order(row, stage), start=1)}


def _rows(log: SearchLog, row: int) -> list[str]:
    scores = log.scores(row).tolist()
    digits = score_digits(scores)
    columns = [log.values(row)[:, member].tolist() for member in range(len(log.members))]
    member_digits = [score_digits(column) for column in columns]
    recipes = [candidate.recipes[row] for candidate in log.candidates]
    staged = len(stages(log)) > 1
    moved, jumped = any(recipe.moves for recipe in recipes), any(recipe.jumps for recipe in recipes)
    # With one verifier, its raw value is the score: no need to say it twice.
    members = range(len(log.members) if len(log.members) > 1 else 0)
    names = [member_title(log, m) for m in members]
    head = ["rank", "candidate", *["stage"] * staged, "seed", *["moves"] * moved, *["jumps"] * jumped, "score"]
    head += [*names, "NFE", "seconds", ""]
    body = []
    for index, rank in _ranks(log, row).items():
        candidate, recipe = log.candidates[index], recipes[index]
        marks = {"best": rank == 1 and candidate.stage == FINAL, "stock": index == 0 and log.has_stock}
        marks["known"] = candidate.recalled
        failing = failed_gates(log, index, row)
        body.append(
            [
                str(rank),
                str(index),
                *[candidate.stage] * staged,
                str(recipe.seed),
                *[str(len(recipe.moves))] * moved,
                *[str(len(recipe.jumps))] * jumped,
                plain(scores[index], digits),
                *(plain(columns[m][index], member_digits[m]) for m in members),
                str(candidate.nfe_per_row),
                f"{sum(candidate.seconds.values()):.2f}",
                ", ".join([*(word for word, is_so in marks.items() if is_so), *[f"fails {failing}"] * bool(failing)]),
            ]
        )
    return _aligned(head, body)


def _aligned(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table whose columns line up; numbers to the right, the last column (marks) to the left."""
    head = [cell.replace("|", "/") for cell in head]
    widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
    widths = [max(width, 3) for width in widths]

    def line(cells: Sequence[str]) -> str:
        right = [cell.rjust(width) for cell, width in zip(cells[:-1], widths[:-1], strict=True)]
        return "| " + " | ".join([*right, cells[-1].ljust(widths[-1])]) + " |"

    rule = ["-" * (width - 1) + ":" for width in widths[:-1]] + ["-" * widths[-1]]
    return [line(head), "| " + " | ".join(rule) + " |", *map(line, body)]


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
