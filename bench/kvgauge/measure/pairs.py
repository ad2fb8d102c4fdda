"""Two steps compared in one run: a sample of each beside the other, so that drift cancels.

On a machine that changes speed within seconds two medians taken one after the other differ by what
the machine did in between. The ratio of two neighbouring samples does not.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from kvgauge.devices.types import Device
from kvgauge.measure.phases import Phases
from kvgauge.measure.sampler import Clock, Step, stop_reason, warm_up
from kvgauge.measure.stats import median, median_interval
from kvgauge.schema import Criterion


@dataclass(frozen=True, slots=True)
class Pairs:
    """Seconds of A and of B, pair by pair, the probe's bandwidth before each pair, and the stop."""

    a_s: tuple[float, ...]
    b_s: tuple[float, ...]
    read_bytes_per_s: tuple[float, ...]
    stop_reason: str

    @property
    def ratios(self) -> tuple[float, ...]:
        """A's time over B's, pair by pair."""
        return tuple(a / b for a, b in zip(self.a_s, self.b_s, strict=True))

    def ratio(self) -> tuple[float, float, float]:
        """The median ratio with its 95% interval."""
        low, high = median_interval(self.ratios)
        return median(self.ratios), low, high


def sample_pairs(
    a: Sequence[Step],
    b: Sequence[Step],
    device: Device,
    probe: Clock,
    criterion: Criterion,
    phases: Phases,
    seed: int,
) -> Pairs:
    """Sample A and B in turn, a coin saying which goes first, until the ratio's interval is narrow.

    The cache is flushed before each sample of either, as `sample` does; its criterion applies to ratios.
    """
    rng = random.Random(seed)  # noqa: S311 - an order, not a secret
    with phases("warm_up"):
        warm_up(a, device, criterion)
        warm_up(b, device, criterion)
    times: tuple[list[float], list[float]] = ([], [])
    reads: list[float] = []
    ratios: list[float] = []
    started = time.monotonic()
    reason = None
    while reason is None:
        n = len(ratios)
        given: list[float] = []
        for which in rng.sample((0, 1), 2):
            steps = (a, b)[which]
            with phases("probe"):
                given.append(probe.read_bytes_per_s())
            with phases("samples"):
                times[which].append(device.timed(steps[n % len(steps)]))
        reads.append(given[0])
        ratios.append(times[0][-1] / times[1][-1])
        reason = stop_reason(ratios, time.monotonic() - started, criterion)
    return Pairs(tuple(times[0]), tuple(times[1]), tuple(reads), reason)
