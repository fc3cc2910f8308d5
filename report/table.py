"""The search as text: a table for people, and CSV for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

from ..search.log import SearchLog
from .numbers import count, duration, plain, score_digits
from .words import prompt_of, score_name


def table(log: SearchLog) -> str:
    """Markdown, aligned so that it also reads well as plain text: settings, then every candidate, best first.

    One table per item of the latent batch. NFE is per item and seconds per candidate, as measured.
    """
    lines = [f"# Noise Search: {log.algorithm.replace('_', ' ') or 'search'}", ""]
    if prompt := prompt_of(log):
        lines.append(f"- prompt: {' '.join(prompt.split())}")
    lines.append(f"- score: {score_name(log)}")
    lines += [f"- {key}: {_value(value)}" for key, value in log.settings.items() if key != "prompt"]
    lines += [f"- {key}: {_value(value)}" for key, value in log.host.items()]
    lines.append(
        f"- total: {count(len(log.candidates), 'candidate')}, {log.nfe:,} NFE, {duration(log.seconds)}"
        + (f" (of which {log.extra_nfe:,} NFE to render winners again)" if log.extra_nfe else "")
    )
    for row in range(log.rows if log.candidates else 0):
        lines.append("")
        if log.rows > 1:
            lines += [f"## Image {row + 1} of {log.rows}", ""]
        lines += _rows(log, row)
    return "\n".join(lines) + "\n"


def to_csv(log: SearchLog) -> str:
    """One line per candidate and item of the batch, in the order they were made; full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["candidate", "image", "rank", "seed", "recipe", "score", *log.members]
    writer.writerow([*head, "nfe_per_image", "nfe", "seconds"])
    scores = [log.scores(row).tolist() for row in range(log.rows)]
    ranks = [{index: rank for rank, index in enumerate(log.order(row), start=1)} for row in range(log.rows)]
    for candidate in log.candidates:
        for row in range(log.rows):
            recipe = json.dumps(candidate.recipes[row].to_dict())
            start = [candidate.index, row + 1, ranks[row][candidate.index], candidate.recipes[row].seed, recipe]
            spent = [candidate.nfe_per_row, candidate.nfe, sum(candidate.seconds.values())]
            writer.writerow([*start, scores[row][candidate.index], *candidate.values[row], *spent])
    return out.getvalue()


def _rows(log: SearchLog, row: int) -> list[str]:
    scores = log.scores(row).tolist()
    digits = score_digits(scores)
    columns = [log.values(row)[:, member].tolist() for member in range(len(log.members))]
    member_digits = [score_digits(column) for column in columns]
    moved = any(candidate.recipes[row].moves for candidate in log.candidates)
    # With one verifier, its raw value is the score: no need to say it twice.
    members = log.members if len(log.members) > 1 else ()
    head = ["rank", "candidate", "seed", *(["moves"] if moved else []), "score", *members, "NFE", "seconds", ""]
    body = []
    for rank, index in enumerate(log.order(row), start=1):
        candidate = log.candidates[index]
        marks = [word for word, is_so in (("best", rank == 1), ("stock", index == 0)) if is_so]
        body.append(
            [
                str(rank),
                str(index),
                str(candidate.recipes[row].seed),
                *([str(len(candidate.recipes[row].moves))] if moved else []),
                plain(scores[index], digits),
                *(plain(columns[m][index], member_digits[m]) for m in range(len(members))),
                str(candidate.nfe_per_row),
                f"{sum(candidate.seconds.values()):.2f}",
                ", ".join(marks),
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
