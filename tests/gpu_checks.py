"""What must hold of a CUDA device, real or standing in: the GPU tests and the stand-in's use these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from kvgauge.devices.types import Device
from kvgauge.measure.phases import Phases
from kvgauge.measure.sampler import Clock, sample
from kvgauge.measure.stats import median
from kvgauge.schema import Conditions, Criterion, MemoryUse

_CRITERION = Criterion(0.01, min_samples=20, max_samples=200, budget_s=5.0)


def cold_median_s(step: Callable[[], object], device: Device, probe: Clock) -> float:
    """The median of the harness's own samples, each after the probe's flush."""
    return median(sample([step], device, probe, _CRITERION, Phases()).times_s)


def hot_median_s(step: Callable[[], object], device: Device, calls: int = 50) -> float:
    """The median of calls one after another."""
    device.timed(step)
    return median([device.timed(step) for _ in range(calls)])


def assert_known_or_explained(conditions: Conditions) -> None:
    """Each field of the GPU and of the host has a value, or else a reason."""
    for prefix, part in (("gpu.", conditions.gpu), ("cpu.", conditions.cpu)):
        assert part is not None
        for field in fields(part):
            known = getattr(part, field.name) is not None
            assert known or conditions.unavailable.get(prefix + field.name), prefix + field.name
    assert conditions.energy_j is not None or conditions.unavailable.get("energy_j")


def assert_each_count_is_more_than_the_last(use: MemoryUse) -> None:
    """requested <= allocated <= reserved <= process <= total, where known; peaks above the present."""
    counts = [
        use.requested_bytes, use.allocated_bytes, use.reserved_bytes, use.process_bytes,
        use.total_bytes,
    ]  # fmt: skip
    known = [count for count in counts if count is not None]
    assert known == sorted(known), counts
    for now, peak in (
        (use.allocated_bytes, use.peak_allocated_bytes),
        (use.reserved_bytes, use.peak_reserved_bytes),
    ):
        assert now is None or peak is None or now <= peak
    assert use.free_bytes is not None
    assert use.total_bytes is not None
    assert use.free_bytes + (use.reserved_bytes or 0) <= use.total_bytes


def assert_watts_are_possible(conditions: Conditions, limit_w: float) -> None:
    """Energy over time is a power that the card may draw; it draws some, always."""
    assert conditions.energy_j is not None
    watts = conditions.energy_j / conditions.elapsed_s
    assert 1 < watts < 1.2 * limit_w, watts
