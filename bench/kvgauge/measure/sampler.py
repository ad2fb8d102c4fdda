"""One sample to many: warm up, then sample until a stated criterion holds.

Differences from its models. `triton.testing.do_bench` takes as many samples as fit a time and tells
their mean; nvbench stops when the noise stops falling; `torch.utils.benchmark` averages over a block
of back-to-back calls. Here each sample is one call between two readings of a clock, after a flush and on
the next input set, and sampling stops when the interval of the median is narrow enough.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kvgauge.devices.types import Device
from kvgauge.measure.phases import Phases
from kvgauge.measure.stats import half_width, median, median_interval, relative_noise
from kvgauge.schema import CacheState, Criterion, Timing

_STILL_FALLING = 0.95  # warm-up goes on while a call beats the best so far by 5%
# Twice the samples should narrow the interval by 0.71; where they hardly do, more will not help.
_STILL_NARROWING = 0.95
_MIN_SAMPLES_TO_GIVE_UP = 3  # the least number, past the criterion's patience

Step = Callable[[], object]


class Clock(Protocol):
    """What is read just before each sample: the bandwidth of the moment, flushing the cache."""

    def read_bytes_per_s(self) -> float:
        """Bytes a second."""
        ...


@dataclass(frozen=True, slots=True)
class Samples:
    """Seconds of each sample, the probe's bandwidth just before it, and why each loop ended."""

    times_s: tuple[float, ...]
    read_bytes_per_s: tuple[float, ...]
    stop_reason: str
    warm_up_calls: int
    warm_up_reason: str

    def timing(self) -> Timing:
        """All samples with their median, interval and noise."""
        low, high = median_interval(self.times_s)
        return Timing(
            median=median(self.times_s),
            low=low,
            high=high,
            n=len(self.times_s),
            noise=relative_noise(self.times_s),
            samples=self.times_s,
            stop_reason=self.stop_reason,
            warm_up_calls=self.warm_up_calls,
            warm_up_reason=self.warm_up_reason,
        )


def sample(
    steps: Sequence[Step],
    device: Device,
    probe: Clock,
    criterion: Criterion,
    phases: Phases,
    cache_state: CacheState = "cold",
    look: Callable[[], None] = lambda: None,
) -> Samples:
    """Sample `steps` in turn: the same work on different inputs, so that none is still in a cache.

    Cold: before each sample the probe reads a buffer that evicts the caches. Hot: the step runs once more
    in between, untimed. At least `min_samples` are taken, unless the criterion's patience ends first.
    `look` is called before the probe, outside of all that is timed.
    """
    with phases("warm_up"):
        warm_up_calls, warm_up_reason = warm_up(steps, device, criterion)
    times: list[float] = []
    reads: list[float] = []
    started = time.monotonic()
    reason = None
    while reason is None:
        look()
        step = steps[len(times) % len(steps)]
        with phases("probe"):
            reads.append(probe.read_bytes_per_s())
        if cache_state == "hot":
            with phases("warm_up"):
                device.timed(step)
        with phases("samples"):
            times.append(device.timed(step))
        reason = stop_reason(times, time.monotonic() - started, criterion)
    return Samples(tuple(times), tuple(reads), reason, warm_up_calls, warm_up_reason)


def warm_up(steps: Sequence[Step], device: Device, criterion: Criterion) -> tuple[int, str]:
    """Call until the time stops falling; how many calls, and why no more."""
    started = time.monotonic()
    best = device.timed(steps[0])
    for calls in range(1, criterion.max_warm_up):
        if time.monotonic() - started > criterion.budget_s:
            return calls, "budget"
        current = device.timed(steps[calls % len(steps)])
        if current > best * _STILL_FALLING:
            return calls + 1, "settled"
        best = min(best, current)
    return criterion.max_warm_up, "max_warm_up"


def stop_reason(times: Sequence[float], elapsed_s: float, criterion: Criterion) -> str | None:
    n = len(times)
    if n < criterion.min_samples:
        patient = elapsed_s < criterion.patience_s or n < _MIN_SAMPLES_TO_GIVE_UP
        return None if patient else "patience"
    width = half_width(times)
    if width <= criterion.target_half_width:
        return "converged"
    if n >= criterion.max_samples:
        return "max_samples"
    if elapsed_s >= criterion.budget_s:
        return "budget"
    doubled = n % 2 == 0 and n >= 4 * criterion.min_samples
    if doubled and width > _STILL_NARROWING * half_width(times[: n // 2]):
        return "no_improvement"
    return None
