"""Numbers as people like to read them."""

from __future__ import annotations

import math
from collections.abc import Sequence

MISSING = "–"  # a value that is not there (NaN)


def score_digits(scores: Sequence[float]) -> int:
    """Decimals that tell these scores apart: about three significant digits of their range."""
    scores = [score for score in scores if not math.isnan(score)]
    span = max(scores) - min(scores) if scores else 0.0
    reference = span or max((abs(score) for score in scores), default=0.0)
    if not reference:
        return 3
    return min(max(2 - math.floor(math.log10(reference)), 0), 12)


def plain(value: float, digits: int) -> str:
    """The value with that many decimals; very large and very fine ones in scientific form; no minus before a zero; a
    dash for NaN."""
    if math.isnan(value):
        return MISSING
    if abs(value) >= 1e9 or digits > 8:
        return f"{value:.4g}"
    text = f"{value:,.{digits}f}"
    return text.lstrip("-") if not text.strip("-0.,") else text


def signed(value: float, digits: int) -> str:
    text = plain(value, digits)
    return text if text.startswith("-") else f"+{text}"


def count(number: int, noun: str) -> str:
    """ "1 candidate", "1,024 candidates"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """ "0.42 s", "12.3 s", "3 min 05 s", "2 h 07 min"."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def nice_ticks(low: float, high: float, wanted: int) -> list[tuple[float, str]]:
    """About `wanted` round values between low and high (low < high), each with its label."""
    rough = (high - low) / max(wanted, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if abs(round(step, decimals) - step) > step * 1e-6:
        decimals += 1  # 2.5, 0.25, ...
    values = [index * step for index in range(first, last + 1)]
    if decimals > 6 or max(map(abs, values), default=0.0) >= 1e9:
        return [(value, f"{value:.4g}") for value in values]
    return [(value, plain(value, decimals)) for value in values]
