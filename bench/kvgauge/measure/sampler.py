"""One sample to many: warm up, then sample until a stated criterion holds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from kvgauge.devices.types import Device
from kvgauge.measure.phases import Phases
from kvgauge.measure.stats import half_width
from kvgauge.schema import Criterion

_STILL_FALLING = 0.95  # warm-up goes on while a call beats the best so far by 5%


class Clock(Protocol):
    """What is read just before each sample: the bandwidth of the moment, flushing the cache."""

    def read_bytes_per_s(self) -> float:
        """Bytes a second."""
        ...


@dataclass(frozen=True, slots=True)
class Samples:
    """Seconds of each sample, the probe's bandwidth just before it, and why sampling stopped."""

    times_s: tuple[float, ...]
    read_bytes_per_s: tuple[float, ...]
    stop_reason: str


def sample(
    step: Callable[[], object],
    device: Device,
    probe: Clock,
    criterion: Criterion,
    phases: Phases,
    look: Callable[[], None] = lambda: None,
) -> Samples:
    """Sample `step` cold: before each sample the probe reads a buffer that evicts its data.

    `look` is called before the probe, outside of all that is timed. At least `min_samples` are
    taken, whatever the time budget says.
    """
    with phases("warm_up"):
        _warm_up(step, device, criterion)
    times: list[float] = []
    reads: list[float] = []
    started = time.monotonic()
    reason = None
    while reason is None:
        look()
        with phases("probe"):
            reads.append(probe.read_bytes_per_s())
        with phases("samples"):
            times.append(device.timed(step))
        reason = _stop_reason(times, time.monotonic() - started, criterion)
    return Samples(tuple(times), tuple(reads), reason)


def _warm_up(step: Callable[[], object], device: Device, criterion: Criterion) -> None:
    started = time.monotonic()
    best = device.timed(step)
    for _ in range(criterion.max_warmup - 1):
        if time.monotonic() - started > criterion.budget_s:
            return
        current = device.timed(step)
        if current > best * _STILL_FALLING:
            return
        best = min(best, current)


def _stop_reason(times: list[float], elapsed_s: float, criterion: Criterion) -> str | None:
    if len(times) < criterion.min_samples:
        return None
    if half_width(times) <= criterion.target_half_width:
        return "converged"
    if len(times) >= criterion.max_samples:
        return "max_samples"
    return "budget" if elapsed_s >= criterion.budget_s else None
