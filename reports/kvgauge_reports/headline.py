"""The figures of the report's first screen, from the records alone.

Each function defines its figure exactly, so that it can be computed again from `records.jsonl`.
"Counted" records are those of `select.comparable`: last attempt, status ok, trusted, the run's own
device. Where nothing was counted the answer is empty or None: never zero, never an estimate. Of
several counted records alike in setting, depth and backend the first of the run stands for all.
"Complete" times of a setting and depth are counted times where no ok record was left out: what is
called the fastest was compared with all that ran.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterable

from kvgauge.schema import Record, Run
from kvgauge_reports import select
from kvgauge_reports.headline_types import (
    Best,
    BytesPerToken,
    BytesSaved,
    Cells,
    Footprint,
    Headline,
    Speedup,
    Steps,
)
from kvgauge_reports.select import Setting, backend_name, setting, timing

PLAIN = "eager"
FUSED = ("sdpa-flash", "flash-attn", "cpu")
"""Backends that never write the scores to memory; the fastest that was measured speaks for them."""
QUANTIZED = "int8"
SIXTEEN_BIT = ("fp16", "bf16")
"""What int8 is held against: bytes with the first that was measured, times with the fastest."""


def headline(run: Run) -> Headline:
    """Every figure, each by its own function."""
    return Headline(
        bytes_per_token=bytes_per_token(run),
        footprint=footprint(run),
        fused=fused_speedups(run),
        int8_bytes=int8_bytes(run),
        int8_time=int8_speedups(run),
        best=best_backends(run),
        steps=whole_steps(run),
        cells=cells(run),
        untrusted_scopes=untrusted_scopes(run),
    )


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


def fused_speedups(run: Run) -> tuple[Speedup, ...]:
    """For each setting, at the largest depth with a counted `attention` time of `eager` and a fused
    backend: time_s.median of `eager` / the smallest of the fused ones there.
    """
    found = []
    for depths in _times(run).values():
        both = [d for d, at in depths.items() if PLAIN in at and not at.keys().isdisjoint(FUSED)]
        if both:
            at = depths[max(both)]
            fused = _fastest(record for name, record in at.items() if name in FUSED)
            found.append(_speedup(at[PLAIN], fused))
    return tuple(found)


def int8_bytes(run: Run) -> tuple[BytesSaved, ...]:
    """For each setting in int8 that has a 16-bit twin (fp16, else bf16), at the largest depth with
    counted records of scope `memory` of both: measured.kv_bytes of int8 / of the twin.
    """
    held: dict[Setting, dict[int, Record]] = {}
    for record in _held(run):
        held.setdefault(setting(record), {}).setdefault(record.trace.depth_tokens, record)
    found = []
    for key, depths in held.items():
        twin = next(iter(_twins(key, held)), None)
        common = depths.keys() & held[twin].keys() if twin else set[int]()
        if twin and common:
            quantized, plain = depths[max(common)], held[twin][max(common)]
            found.append(BytesSaved(quantized, plain, _bytes(quantized) / _bytes(plain)))
    return tuple(found)


def int8_speedups(run: Run) -> tuple[Speedup, ...]:
    """For each setting in int8 with a 16-bit twin (fp16, bf16), at the largest depth with complete
    `attention` times of int8 and of every twin: the smallest time_s.median of all twins and backends
    / the smallest of int8. Under 1: int8 is slower than the best that 16 bits do on this device.
    """
    times = _complete(run)
    measured = {key for key, depths in _times(run).items() if depths}
    found = []
    for key, depths in times.items():
        twins = [times.get(twin, {}) for twin in _twins(key, measured)]
        common = depths.keys() & set.intersection(*(set(t) for t in twins)) if twins else set[int]()
        if common:
            plain = _fastest(r for twin in twins for r in twin[max(common)].values())
            found.append(_speedup(plain, _fastest(depths[max(common)].values())))
    return tuple(found)


def best_backends(run: Run) -> tuple[Best, ...]:
    """For each setting, of its complete `attention` times at their largest depth the smallest
    time_s.median, with that record's ratio.floor and ratio.bandwidth.
    """
    found = []
    for depths in _complete(run).values():
        record = _fastest(depths[max(depths)].values())
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


def untrusted_scopes(run: Run) -> frozenset[str]:
    """Scopes with an ok record that does not count: "not measured" would not be true of them."""
    return frozenset(r.scope for r, _ in select.excluded(run) if r.status == "ok")


def _held(run: Run) -> tuple[Record, ...]:
    memory = select.of_scope(select.comparable(run), "memory")
    return tuple(r for r in memory if select.held_bytes(r) and r.trace.depth_tokens > 0)


def _times(run: Run) -> dict[Setting, dict[int, dict[str, Record]]]:
    """setting -> depth -> backend -> record, of the counted `attention` times."""
    found: dict[Setting, dict[int, dict[str, Record]]] = {}
    for record in select.of_scope(select.comparable(run), "attention"):
        if timing(record):
            depths = found.setdefault(setting(record), {})
            depths.setdefault(_depth(record), {}).setdefault(backend_name(record), record)
    return found


def _complete(run: Run) -> dict[Setting, dict[int, dict[str, Record]]]:
    """`_times` at the depths where no ok record is left out: else the fastest may be missing."""
    gaps = {
        (setting(record), _depth(record))
        for record, _ in select.excluded(run)
        if record.scope == "attention" and record.status == "ok"
    }
    kept = {
        key: {depth: backends for depth, backends in depths.items() if (key, depth) not in gaps}
        for key, depths in _times(run).items()
    }
    return {key: depths for key, depths in kept.items() if depths}


def _twins(key: Setting, known: Container[Setting]) -> list[Setting]:
    twins = [key.in_format(name) for name in SIXTEEN_BIT] if key.format == QUANTIZED else []
    return [twin for twin in twins if twin in known]


def _speedup(slow: Record, fast: Record) -> Speedup:
    a, b = timing(slow), timing(fast)
    if a is None or b is None:
        raise ValueError("a speed-up needs two times")
    return Speedup(
        slow=slow,
        fast=fast,
        ratio=a.median / b.median,
        low=a.low / b.high,
        high=a.high / b.low,
        normalized=_normalized(slow, fast),
    )


def _normalized(slow: Record, fast: Record) -> float | None:
    costs = []
    for record in (slow, fast):
        time, probe = timing(record), record.probe
        if time is None or probe is None or not 0 < probe.read_bytes_per_s < math.inf:
            return None
        costs.append(time.median * probe.read_bytes_per_s)
    return costs[0] / costs[1]


def _fastest(records: Iterable[Record]) -> Record:
    def median(record: Record) -> float:
        time = timing(record)
        return time.median if time else math.inf

    return min(records, key=median)


def _bytes(record: Record) -> int:
    return select.held_bytes(record) or 0


def _depth(record: Record) -> int:
    return record.trace.depth_tokens


def _tokens_per_s(record: Record) -> float | None:
    return _finite(record.measured.tokens_per_s) if record.measured else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
