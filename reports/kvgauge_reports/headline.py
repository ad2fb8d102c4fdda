"""The figures of the report's first screen, from the records alone.

Each function defines its figure exactly, so that it can be computed again from `records.jsonl`.
"Counted" records are those of `select.comparable`: last attempt, status ok, trusted, the run's own
device. Where nothing was counted the answer is empty or None: never zero, never an estimate. Of
several counted records alike in setting, depth and backend the first of the run stands for all.
"Complete" times of a setting and depth are counted times where no flagged record was left out that may
have been the fastest: its quickest sample is as short as the least median that counts. Quotients of two
records are in `ratios`.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

from kvgauge.schema import Record, Run, Trust
from kvgauge_reports import select
from kvgauge_reports.headline_types import (
    Best,
    BytesPerToken,
    Cells,
    Footprint,
    Headline,
    Steps,
)
from kvgauge_reports.ratios import (
    complete_times,
    fastest,
    fused_speedups,
    pages_over_contiguous,
    quantized_bytes,
    quantized_speedups,
)
from kvgauge_reports.select import Setting, backend_name, setting


def headline(run: Run) -> Headline:
    """Every figure, each by its own function."""
    figures = _figures(run)
    return Headline(**figures, cells=cells(run), withheld=_withheld(run, figures))


def _figures(run: Run) -> dict[str, Any]:
    return {
        "bytes_per_token": bytes_per_token(run),
        "footprint": footprint(run),
        "fused": fused_speedups(run),
        "quantized_bytes": quantized_bytes(run),
        "quantized_time": quantized_speedups(run),
        "pages": pages_over_contiguous(run),
        "best": best_backends(run),
        "steps": whole_steps(run),
    }


def _withheld(run: Run, figures: dict[str, Any]) -> frozenset[str]:
    """Figures that are missing only because records of theirs are flagged."""
    believed = tuple(
        replace(r, trust=Trust(ok=True)) if r.status == "ok" else r for r in run.records
    )
    all_counted = _figures(replace(run, records=believed))
    names = _sayable(all_counted) - _sayable(figures)
    timed = {s.fast.cache.format for s in figures["quantized_time"]}
    of_formats = {s.fast.cache.format for s in all_counted["quantized_time"]} - timed
    return frozenset(names | {f"quantized_time {name}" for name in of_formats})


def _sayable(figures: dict[str, Any]) -> set[str]:
    """Those that hold a number: a record may count and lack its floor or its tokens a second."""
    names = {name for name, each in figures.items() if each}
    if all(best.floor_ratio is None for best in figures["best"]):
        names.discard("best")
    if not any(steps.deepest_tokens_per_s for steps in figures["steps"]):
        names.discard("steps")
    return names


def bytes_per_token(run: Run) -> tuple[BytesPerToken, ...]:
    """Of each setting's counted records of scope `memory`, the one of the largest depth_tokens:
    measured.kv_bytes and predicted.kv_bytes, each / (depth_tokens * batch).
    """
    deepest: dict[Setting, Record] = {}
    for record in _held(run):
        best = deepest.get(setting(record))
        if best is None or record.trace.depth_tokens > best.trace.depth_tokens:
            deepest[setting(record)] = record
    return tuple(
        BytesPerToken(r, _bytes(r) / tokens, r.predicted.kv_bytes / tokens)
        for r, tokens in ((r, select.tokens_held(r)) for r in deepest.values())
    )


def footprint(run: Run) -> Footprint | None:
    """Of all counted records of scope `memory`: the largest measured.kv_bytes with its
    predicted.kv_bytes and their quotient; how many of them are equal to the byte, of how many.
    """
    records = _held(run)
    if not records:
        return None
    largest = max(records, key=_bytes)
    return Footprint(
        record=largest,
        measured_bytes=_bytes(largest),
        formula_bytes=largest.predicted.kv_bytes,
        ratio=_bytes(largest) / largest.predicted.kv_bytes,
        exact=sum(_bytes(r) == r.predicted.kv_bytes for r in records),
        counted=len(records),
    )


def best_backends(run: Run) -> tuple[Best, ...]:
    """For each setting, of its complete `attention` times at their largest depth the smallest
    time_s.median, with that record's ratio.floor and ratio.bandwidth.
    """
    found = []
    for depths in complete_times(run).values():
        record = fastest(depths[max(depths)].values())
        floor = record.ratio.floor if record.ratio else None
        bandwidth = record.ratio.bandwidth if record.ratio else None
        found.append(Best(record, _finite(floor), _finite(bandwidth)))
    return tuple(found)


def whole_steps(run: Run) -> tuple[Steps, ...]:
    """For each scope (`step`, `engine`), setting and backend with counted records: those of the
    smallest and the largest depth_tokens; measured.tokens_per_s of both, and at the largest
    measured.kv_bytes and predicted.kv_bytes, each / (depth_tokens * batch).
    """
    groups: dict[tuple[str, Setting, str], list[Record]] = {}
    for record in select.of_scope(select.comparable(run), *select.STEP_SCOPES):
        if record.measured and record.trace.depth_tokens > 0:
            key = (record.scope, setting(record), backend_name(record))
            groups.setdefault(key, []).append(record)
    found = []
    for records in groups.values():
        first = min(records, key=_depth)
        deepest = max(records, key=_depth)
        tokens, held = select.tokens_held(deepest), select.held_bytes(deepest)
        found.append(
            Steps(
                first=first,
                deepest=deepest,
                bytes_per_token=held / tokens if held else None,
                formula_bytes_per_token=deepest.predicted.kv_bytes / tokens,
                first_tokens_per_s=_tokens_per_s(first),
                deepest_tokens_per_s=_tokens_per_s(deepest),
            )
        )
    return tuple(found)


def cells(run: Run) -> Cells:
    """Counts over the last attempt of each cell; `unreached` cells have no record."""
    latest = run.latest()
    return Cells(
        total=len({*run.manifest.cells, *(record.cell_id for record in latest)}),
        ok=sum(record.status == "ok" for record in latest),
        counted=len(select.comparable(run)),
        unreached=len(set(select.unreached(run))),
        by_status=dict(Counter(record.status for record in latest)),
    )


def _held(run: Run) -> tuple[Record, ...]:
    return select.with_bytes(run, "memory")


def _bytes(record: Record) -> int:
    return select.held_bytes(record) or 0


def _depth(record: Record) -> int:
    return record.trace.depth_tokens


def _tokens_per_s(record: Record) -> float | None:
    return _finite(record.measured.tokens_per_s) if record.measured else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
