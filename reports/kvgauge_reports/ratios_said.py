"""Words for the quotients that a run has one of for each format: quantized caches, and pages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from kvgauge.schema import Record
from kvgauge_reports import say
from kvgauge_reports.headline_types import BytesSaved, Headline, Speedup
from kvgauge_reports.say import Names
from kvgauge_reports.text import number, plural

MAX_FORMATS = 6
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Quantized:
    """One quantized format beside 16 bits, each figure of its deepest setting."""

    name: str
    saved: BytesSaved | None
    time: Speedup | None


def quantized(head: Headline) -> tuple[Quantized, ...]:
    """One a format, in the run's order."""
    saved = _deepest((b.quantized, b) for b in head.quantized_bytes)
    time = _deepest((s.fast, s) for s in head.quantized_time)
    return tuple(Quantized(f, saved.get(f), time.get(f)) for f in dict.fromkeys((*saved, *time)))


def quantized_text(head: Headline, names: Names) -> str:
    """`int8 0.51 of the bytes, 1.7 times as fast; int4 ...`, and against what."""
    found = quantized(head)
    times = [each.time for each in found if each.time]
    top = max(times, key=lambda s: _order(s.fast), default=None)
    parts = []
    for each in found[:MAX_FORMATS]:
        said = []
        if each.saved:
            said.append(f"{number(each.saved.ratio, 2)} of the bytes")
        if each.time:
            same = top and say.backend(each.time.fast) == say.backend(top.fast)
            where = "" if same else f" with {say.backend(each.time.fast)}"
            if top and _where(each.time, names) != _where(top, names):
                where += f" ({_where(each.time, names)})"
            said.append(say.pace(each.time) + where)
        elif top:
            said.append(f"time {say.absent(head, f'quantized_time {each.name}')}")
        parts.append(f"{each.name} {', '.join(said)}")
    if len(found) > MAX_FORMATS:
        parts.append(f"{plural(len(found) - MAX_FORMATS, 'format')} more in the table")
    if top:
        against = (
            f"{say.backend(top.fast)} against {say.fmt(top.slow)} with {say.backend(top.slow)}"
        )
        parts.append(f"times are those of attention, {_where(top, names)}, {against}")
    else:
        parts.append(f"time {say.absent(head, 'quantized_time')}")
    return "; ".join(parts)


def pages_text(head: Headline, names: Names) -> str:
    """What pages cost, format by format: empty where no pair was measured."""
    if not head.pages:
        return ""
    top = max(head.pages, key=lambda s: _order(s.fast))
    size = top.fast.cache.page_size
    alike = [s for s in head.pages if s.fast.cache.page_size == size]
    found = _deepest((s.fast, s) for s in alike)
    first = say.backend(top.fast)
    parts = []
    for name, each in found.items():
        other = "" if say.backend(each.fast) == first else f" with {say.backend(each.fast)}"
        parts.append(f"{name} {say.pace(each)}{other}")
    more = len(parts) - MAX_FORMATS
    if more > 0:
        parts[MAX_FORMATS:] = [f"{plural(more, 'format')} more in the table"]
    return (
        f"Pages of {size} over a contiguous cache, attention of {names.place(top.slow)} "
        f"{say.at_depth(top.slow)} with {first}: {'; '.join(parts)}"
    )


def _where(time: Speedup, names: Names) -> str:
    return f"{names.place(time.fast)} {say.at_depth(time.fast)}"


def _deepest(found: Iterable[tuple[Record, T]]) -> dict[str, T]:
    best: dict[str, tuple[Record, T]] = {}
    for record, figure in found:
        before = best.get(say.fmt(record))
        if before is None or _order(record) > _order(before[0]):
            best[say.fmt(record)] = record, figure
    return {name: figure for name, (_, figure) in best.items()}


def _order(record: Record) -> tuple[int, int, int, bool]:
    return (*say.deepest(record), record.cache.layout == "contiguous")
