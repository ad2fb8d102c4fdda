"""An axis of a sweep, as people write it: `think=1k:128k`, `batch=1:64`, `think=500,2k,50000`.

`low:high` doubles from low and ends with high. k is 1,024 tokens and m 1,024 k, as in the presets.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvgauge.errors import UserError, short
from kvgauge.traces.types import MAX_TOKENS

AXES = ("prompt", "think", "answer", "batch", "tp")
MAX_POINTS = 64
_UNITS = {"k": 1024, "m": 1024 * 1024}


@dataclass(frozen=True, slots=True)
class Axis:
    """One option of a plan and the values that it takes in turn."""

    name: str
    values: tuple[int, ...]


def parse_axis(text: str) -> Axis:
    """Raises UserError for an unknown option, an empty or falling range, or too many points."""
    name, equals, spec = text.partition("=")
    if not equals or name not in AXES:
        raise UserError(
            f"sweep '{short(text)}': must be one of {', '.join(AXES)} with its values, "
            "like think=1k:128k or batch=1,8,64"
        )
    values = _doubled(text, spec) if ":" in spec else [parse_count(v) for v in spec.split(",")]
    if len(values) > MAX_POINTS:
        raise UserError(f"sweep '{short(text)}': {len(values)} points, at most {MAX_POINTS}")
    return Axis(name, tuple(values))


def parse_count(text: str) -> int:
    """`8k` -> 8192; raises UserError for what is not a whole number."""
    body, unit = text.strip().lower(), 1
    if body[-1:] in _UNITS:
        body, unit = body[:-1], _UNITS[body[-1]]
    if not (body.isascii() and body.isdigit() and len(body) <= 20) or int(body) * unit > MAX_TOKENS:
        raise UserError(
            f"'{short(text)}': must be a whole number up to {MAX_TOKENS}, like 500 or 8k"
        )
    return int(body) * unit


def _doubled(text: str, spec: str) -> list[int]:
    ends = spec.split(":")
    low, high = parse_count(ends[0]), parse_count(ends[-1])
    if len(ends) != 2 or not 1 <= low <= high:
        raise UserError(f"sweep '{short(text)}': must be low:high with 1 <= low <= high")
    values = []
    while low < high:
        values.append(low)
        low *= 2
    return [*values, high]
