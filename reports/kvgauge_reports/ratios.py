"""Quotients of two counted records: fused over eager, quantized over 16 bits, pages over contiguous.

"Counted" and "complete" mean what they mean in `headline`.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from dataclasses import replace

from kvgauge.schema import Record, Run
from kvgauge_reports import select
from kvgauge_reports.headline_types import BytesSaved, Speedup
from kvgauge_reports.select import Setting, backend_name, setting, timing

PLAIN = "eager"
FUSED = ("sdpa-flash", "flash-attn", "cpu")
"""Backends that never write the scores to memory; the fastest that was measured speaks for them."""
SIXTEEN_BIT = ("fp16", "bf16")
"""What a quantized format is held against: bytes with the first measured, times with the fastest."""

Times = dict[Setting, dict[int, dict[str, Record]]]
"""setting -> depth -> backend -> record."""


def fused_speedups(run: Run) -> tuple[Speedup, ...]:
    """For each setting, at the largest depth with a counted `attention` time of `eager` and complete ones
    of the fused backends: time_s.median of `eager` / the smallest of the fused ones there.
    """
    found = []
    counted, fused_times = counted_times(run), complete_times(run, FUSED)
    for key, depths in counted.items():
        fused = fused_times.get(key, {})
        both = [d for d, at in depths.items() if PLAIN in at and d in fused]
        if both:
            at = max(both)
            found.append(speedup(depths[at][PLAIN], fastest(fused[at].values())))
    return tuple(found)


def quantized_bytes(run: Run) -> tuple[BytesSaved, ...]:
    """For each setting in a quantized format that has a 16-bit twin (fp16, else bf16), at the largest
    depth with counted records of scope `memory` of both: measured.kv_bytes of it / of the twin. Where
    scope `memory` has no such pair, the same of scope `attention`, whose bytes are the timed layers'.
    """
    found: dict[Setting, BytesSaved] = {}
    for scope in ("memory", "attention"):
        held: dict[Setting, dict[int, Record]] = {}
        for record in select.with_bytes(run, scope):
            held.setdefault(setting(record), {}).setdefault(record.trace.depth_tokens, record)
        for key, depths in held.items():
            twin = next(iter(_twins(key, held)), None)
            common = depths.keys() & held[twin].keys() if twin else set[int]()
            if twin and common:
                saved = _saved(depths[max(common)], held[twin][max(common)])
                # A footprint holds all layers and has no cache state.
                found.setdefault(replace(key, layers_timed=0, cache_state=None), saved)
    return tuple(found.values())


def quantized_speedups(run: Run) -> tuple[Speedup, ...]:
    """For each setting in a quantized format with a 16-bit twin (fp16, bf16), at the largest depth with
    complete `attention` times of it and of every twin: the smallest time_s.median of all twins and
    backends / the smallest of the format. Under 1: slower than the best that 16 bits do here. A twin
    whose times are all flagged has no complete ones.
    """
    complete = complete_times(run)
    measured = {*counted_times(run)}
    measured |= {setting(r) for r in select.of_scope(select.flagged(run), "attention") if timing(r)}
    found = []
    for key, depths in complete.items():
        twins = [complete.get(twin, {}) for twin in _twins(key, measured)]
        common = depths.keys() & set.intersection(*(set(t) for t in twins)) if twins else set[int]()
        if common:
            plain = fastest(r for twin in twins for r in twin[max(common)].values())
            found.append(speedup(plain, fastest(depths[max(common)].values())))
    return tuple(found)


def pages_over_contiguous(run: Run) -> tuple[Speedup, ...]:
    """For each paged setting whose contiguous twin has a counted `attention` time of the same backend
    and format, at the largest such depth: time_s.median contiguous / paged, of the backend whose paged
    time is the smallest there. Under 1: pages are slower.
    """
    measured = counted_times(run)
    found = []
    for key, depths in measured.items():
        if key.layout != "paged":
            continue
        twin = measured.get(replace(key, layout="contiguous", page_size=None), {})
        both = [d for d in depths if not depths[d].keys().isdisjoint(twin.get(d, {}))]
        if both:
            paged, whole = depths[max(both)], twin[max(both)]
            best = fastest(record for name, record in paged.items() if name in whole)
            found.append(speedup(whole[backend_name(best)], best))
    return tuple(found)


def _saved(quantized: Record, plain: Record) -> BytesSaved:
    share = (select.held_bytes(quantized) or 0) / (select.held_bytes(plain) or 1)
    return BytesSaved(quantized, plain, share)


def counted_times(run: Run) -> Times:
    """setting -> depth -> backend -> record, of the counted `attention` times."""
    found: Times = {}
    for record in select.of_scope(select.comparable(run), "attention"):
        if timing(record):
            depths = found.setdefault(setting(record), {})
            depths.setdefault(record.trace.depth_tokens, {}).setdefault(
                backend_name(record), record
            )
    return found


def complete_times(run: Run, backends: Container[str] | None = None) -> Times:
    """`counted_times` of those backends (None: all) at the depths where none that may be the fastest is
    left out: no flagged record with a sample as short as the least median that counts.
    """
    quickest: dict[tuple[Setting, int], float] = {}
    for record in select.of_scope(select.flagged(run), "attention"):
        time = timing(record)
        if time and (backends is None or backend_name(record) in backends):
            at = setting(record), record.trace.depth_tokens
            quickest[at] = min(quickest.get(at, math.inf), time.median, *time.samples)
    kept: Times = {}
    for key, depths in counted_times(run).items():
        for depth, every in depths.items():
            chosen = {n: r for n, r in every.items() if backends is None or n in backends}
            if chosen and quickest.get((key, depth), math.inf) > _median(fastest(chosen.values())):
                kept.setdefault(key, {})[depth] = chosen
    return kept


def _twins(key: Setting, known: Container[Setting]) -> list[Setting]:
    names = SIXTEEN_BIT if select.is_quantized(key.format) else ()
    return [twin for twin in map(key.in_format, names) if twin in known]


def speedup(slow: Record, fast: Record) -> Speedup:
    """The quotient of two times with its interval."""
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


def fastest(records: Iterable[Record]) -> Record:
    """The record of the smallest median."""
    return min(records, key=_median)


def _median(record: Record) -> float:
    time = timing(record)
    return time.median if time else math.inf
