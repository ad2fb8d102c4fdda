"""A time by several clocks: in seconds, and against what the machine gave at that moment.

A machine changes under a run, and a shared one changes a lot. A cell got slower only if it did so by
every clock: in seconds, in bytes that the memory could have read meanwhile, and in operations that
the arithmetic units could have done.
"""

from __future__ import annotations

from kvgauge.measure.stats import median, median_interval
from kvgauge.schema import Record

Interval = tuple[float, float, float]  # median, low, high

CLOCKS = ("seconds", "read_bytes", "flops")


def clock_values(record: Record) -> dict[str, Interval] | None:
    """Each clock's median and 95% interval; None where the record has no time."""
    measured, probe = record.measured, record.probe
    if measured is None or measured.time_s is None or probe is None:
        return None
    times = measured.time_s.samples
    reads = probe.read_samples_bytes_per_s
    if not times or len(reads) != len(times):
        return None
    by_clock = {
        "seconds": list(times),
        "read_bytes": [t * r for t, r in zip(times, reads, strict=True)],
        "flops": [t * probe.flops_per_s for t in times],
    }
    return {name: (median(v), *median_interval(v)) for name, v in by_clock.items()}
