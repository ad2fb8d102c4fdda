"""From a proven step to its outcome: sample it, probe beside it, and set it against the floor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from kvgauge.devices.probe import DeviceProbe
from kvgauge.formula.floor import Rates, bound, floor_s
from kvgauge.formula.moved import Operation, total_bytes
from kvgauge.measure.sampler import sample
from kvgauge.measure.stats import median
from kvgauge.measure.validity import (
    Fault,
    device_fault,
    lost_fault,
    physics_fault,
    trust_flags,
)
from kvgauge.schema import BackendRef, CacheState, Measurement, Prediction, Probe, Ratio
from kvgauge.suites.types import Context, Outcome

_PROBE_REPEATS = 3


@dataclass(frozen=True, slots=True)
class Timed:
    """A proven step that is to be timed: `steps` do the same on different inputs, in turn.

    `tokens_per_step` is given for the scopes in which a step makes tokens (`step`, `engine`).
    `prove_again` is asked after the timing, with the step's seconds.
    """

    steps: Sequence[Callable[[], object]]
    operations: Sequence[Operation]
    cache_state: CacheState = "cold"
    tokens_per_step: int | None = None
    prove_again: Callable[[float], Fault | None] = lambda _step_s: None
    integers: bool = False
    """The cache holds integers, which dot products of integers may compute on."""


def timed_outcome(
    timed: Timed,
    context: Context,
    predicted: Prediction,
    proven: Measurement,
    backend: BackendRef,
) -> Outcome:
    """Time a step whose output, kernel and bytes (`proven`) were checked before."""
    device, operations = context.device, timed.operations
    with context.phases("probe"):
        before = _arithmetic(context.probe)
    watch, device_before = device.watch(), device.identity()
    distances_ns: list[float | None] = []

    def look() -> None:
        watch.look()
        with context.phases("probe"):
            distances_ns.append(context.probe.ping_pong_ns())

    samples = sample(
        timed.steps,
        device,
        context.probe,
        context.criterion,
        context.phases,
        timed.cache_state,
        look,
    )
    conditions = watch.stop()
    with context.phases("probe"):
        probe = _probe(context.probe, samples.read_bytes_per_s, distances_ns, before)
    timing = samples.timing()
    dots_per_s = probe.integer_ops_per_s if timed.integers else None
    rates = Rates(probe.read_bytes_per_s, max(probe.flops_per_s, dots_per_s or 0.0), "probe")
    moved_bytes, least_s = total_bytes(operations), floor_s(operations, rates)
    flags = trust_flags(
        samples.times_s, samples.read_bytes_per_s, conditions, probe.ping_pong_ns or ()
    )
    with context.phases("check"):
        fault = (
            lost_fault(conditions)
            or timed.prove_again(timing.median)
            or physics_fault(
                timing.median,
                moved_bytes,
                timed.cache_state,
                device.last_level_cache_bytes,
                probe,
                disturbed="cpu_shared" in flags,
            )
            or device_fault(device_before, device.identity())
        )
    bytes_per_s = moved_bytes / timing.median
    return Outcome(
        status="failed" if conditions.lost else "invalid" if fault else "ok",
        reason_code=fault.code if fault else None,
        reason=fault.reason if fault else None,
        predicted=replace(
            predicted, floor_s=least_s, bound=bound(operations, rates), rates_source="probe"
        ),
        measured=replace(
            proven,
            time_s=timing,
            tokens_per_s=timed.tokens_per_step / timing.median if timed.tokens_per_step else None,
            bytes_per_s=bytes_per_s,
            cache_state=timed.cache_state,
        ),
        probe=probe,
        ratio=Ratio(
            kv_bytes=proven.kv_bytes / predicted.kv_bytes if proven.kv_bytes else None,
            bandwidth=bytes_per_s / probe.read_bytes_per_s,
            floor=timing.median / least_s,
        ),
        flags=flags,
        backend=backend,
        conditions=conditions,
    )


def _probe(
    probe: DeviceProbe,
    read_samples: tuple[float, ...],
    distances_ns: Sequence[float | None],
    before: tuple[float, float | None],
) -> Probe:
    flops_per_s, integer_ops_per_s = _arithmetic(probe)
    told_ns = tuple(round(ns, 1) for ns in distances_ns if ns is not None)
    return Probe(
        read_bytes_per_s=median(read_samples),
        copy_bytes_per_s=median([probe.copy_bytes_per_s() for _ in range(_PROBE_REPEATS)]),
        flops_per_s=max(before[0], flops_per_s),
        read_samples_bytes_per_s=read_samples,
        best_read_bytes_per_s=probe.best_read_bytes_per_s(),
        cached_read_bytes_per_s=probe.cached_read_bytes_per_s(),
        source=probe.loops,
        integer_ops_per_s=max(filter(None, (before[1], integer_ops_per_s)), default=None),
        ping_pong_ns=told_ns or None,
    )


def _arithmetic(probe: DeviceProbe) -> tuple[float, float | None]:
    """FLOPs and integer operations a second, the best of some readings of a millisecond each.

    A core that others take for so long halves a reading, and a floor with it; nothing makes one too good.
    """
    dots = [probe.integer_ops_per_s() for _ in range(_PROBE_REPEATS)]
    flops_per_s = max(probe.flops_per_s() for _ in range(_PROBE_REPEATS))
    return flops_per_s, max(filter(None, dots), default=None)
