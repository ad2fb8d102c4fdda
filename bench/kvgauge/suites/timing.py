"""From a proven step to its outcome: sample it, probe beside it, and set it against the floor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from kvgauge.formula.floor import Rates, bound, floor_s
from kvgauge.formula.moved import Operation, total_bytes
from kvgauge.measure.sampler import sample
from kvgauge.measure.stats import median, summarize
from kvgauge.measure.validity import Fault, physics_fault, trust_flags
from kvgauge.schema import BackendRef, Conditions, Measurement, Prediction, Probe, Ratio
from kvgauge.suites.types import Context, Outcome

_PROBE_REPEATS = 3


def timed_outcome(
    step: Callable[[], object],
    context: Context,
    operations: Sequence[Operation],
    predicted: Prediction,
    proven: Measurement,
    backend: BackendRef,
    tokens_per_step: int | None = None,
) -> Outcome:
    """Time `step`, whose output, kernel and bytes (`proven`) were checked before.

    `tokens_per_step` is given for the scopes in which a step makes tokens (`step`, `engine`).
    """
    watch = context.device.watch()
    samples = sample(
        step, context.device, context.probe, context.criterion, context.phases, watch.look
    )
    conditions = watch.stop()
    with context.phases("probe"):
        probe = _probe(context, samples.read_bytes_per_s)
    timing = summarize(samples.times_s, samples.stop_reason)
    rates = Rates(probe.read_bytes_per_s, probe.flops_per_s, "probe")
    moved_bytes, least_s = total_bytes(operations), floor_s(operations, rates)
    fault = _lost_fault(conditions) or physics_fault(
        timing.median, moved_bytes, samples.read_bytes_per_s
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
            tokens_per_s=tokens_per_step / timing.median if tokens_per_step else None,
            bytes_per_s=bytes_per_s,
            cache_state="cold",
        ),
        probe=probe,
        ratio=Ratio(
            kv_bytes=proven.kv_bytes / predicted.kv_bytes if proven.kv_bytes else None,
            bandwidth=bytes_per_s / probe.read_bytes_per_s,
            floor=timing.median / least_s,
        ),
        flags=trust_flags(samples.times_s, samples.read_bytes_per_s, _cpu_taken(conditions)),
        backend=backend,
        conditions=conditions,
    )


def _lost_fault(conditions: Conditions) -> Fault | None:
    if not conditions.lost:
        return None
    return Fault("device_lost", conditions.unavailable.get("device_lost", "the GPU was lost"))


def _cpu_taken(conditions: Conditions) -> float | None:
    # A GPU's times are events on the GPU: the host's other work is not among them.
    return conditions.cpu.taken if conditions.gpu is None else None


def _probe(context: Context, read_samples: tuple[float, ...]) -> Probe:
    probe = context.probe
    return Probe(
        read_bytes_per_s=median(read_samples),
        copy_bytes_per_s=median([probe.copy_bytes_per_s() for _ in range(_PROBE_REPEATS)]),
        flops_per_s=median([probe.flops_per_s() for _ in range(_PROBE_REPEATS)]),
        read_samples_bytes_per_s=read_samples,
    )
