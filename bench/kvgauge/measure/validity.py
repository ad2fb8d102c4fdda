"""Validity before performance: what a cell must prove before its time counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kvgauge.measure.stats import MIN_SAMPLES_OF_AN_INTERVAL, drift, half_width, quartiles
from kvgauge.schema import CacheState, Conditions, Probe

# Largest relative difference from the float64 oracle, by the dtype that the kernel computes in.
MAX_ERROR: dict[torch.dtype, float] = {
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 4e-2,
}
# A step may beat the probe a little: the probe is a measurement too.
PHYSICS_MARGIN = 1.25
MAX_HALF_WIDTH = 0.15
MAX_PROBE_SPREAD = 1.5
# Two cores of a virtual machine are near each other (31 to 50 ns) or far (129 to 209): 2.6 times at
# least, where readings in one state stayed within 1.6 times of each other. Twice lies between.
MAX_PING_PONG_SPREAD = 2.0
# The kernel counts time in hundredths of a second: in a short block one count is several percent.
MAX_CPU_TAKEN = 0.15
# Clocks that someone set are held, but they do not change under a cell.
CHOSEN_CLOCKS = frozenset({"applications_clocks_setting", "display_clock_setting"})
MAX_HELD = 0.01
# A slope of the samples over their order: so much of the median, and beyond chance.
MAX_DRIFT = 0.10
DRIFT_SCORE = 3.0


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a number is not what was asked for."""

    code: str
    reason: str


def observe_ops(step: Callable[[], object]) -> frozenset[str]:
    """Run `step` once and name the torch operators that it dispatched, as `aten::bmm`."""
    seen: set[str] = set()

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.add(str(func._schema.name))
            return func(*args, **(kwargs or {}))

    with Recorder():
        step()
    return frozenset(seen)


def kernel_fault(
    seen: frozenset[str], expected: Sequence[str], forbidden: Sequence[str] = ()
) -> Fault | None:
    """Whether the kernel that ran is the one asked for."""
    wrong = sorted(seen & set(forbidden))
    if wrong:
        return Fault("other_kernel", f"ran {', '.join(wrong)}, which this backend must not")
    if expected and not seen & set(expected):
        return Fault("other_kernel", f"none of {', '.join(expected)} was seen to run")
    return None


def bytes_fault(measured_bytes: int, predicted_bytes: int) -> Fault | None:
    """Whether the tensors' bytes are the formula's, to the byte."""
    if measured_bytes == predicted_bytes:
        return None
    return Fault("bytes_differ", f"storages hold {measured_bytes} bytes, formula {predicted_bytes}")


def relative_error(output: torch.Tensor, oracle: torch.Tensor) -> float:
    """Largest absolute difference over the oracle's largest absolute value; inf for a NaN."""
    difference = (output.detach().cpu().double() - oracle.cpu()).abs().max()
    error = float(difference / oracle.abs().max().clamp_min(1e-30))
    return error if error == error else float("inf")


def output_fault(error: float, dtype: torch.dtype) -> Fault | None:
    """Whether the output agrees with the oracle."""
    limit = MAX_ERROR[dtype]
    if error <= limit:
        return None
    return Fault("wrong_output", f"error {error:.3g} against the float64 oracle, limit {limit:g}")


def tokens_fault(unread: Sequence[int]) -> Fault | None:
    """Whether all tokens that the cell states were read."""
    if not unread:
        return None
    which = ", ".join(map(str, unread))
    return Fault("fewer_tokens", f"the output does not depend on token {which}: it was not read")


def early_fault(late_error: float) -> Fault | None:
    """Whether the output was still being written when the step had returned."""
    if late_error == 0:
        return None
    return Fault(
        "returned_early", f"the output changed by {late_error:.3g} after the step returned"
    )


def physics_fault(
    time_s: float,
    moved_bytes: int,
    cache_state: CacheState,
    cache_bytes: int,
    probe: Probe,
    *,
    disturbed: bool = False,
) -> Fault | None:
    """Whether the time is one that memory allows, and cold where it is said to be.

    What a cache of `cache_bytes` can hold may be read at the cache's rate, but not where the cell is cold.
    Where neighbours `disturbed` the cell they may have slowed the probe and not the step: then the best
    reading of the run is what memory gives.
    """
    rate = moved_bytes / time_s
    best_read = (probe.best_read_bytes_per_s or 0.0) if disturbed else 0.0
    memory = max((*probe.read_samples_bytes_per_s, best_read)) * PHYSICS_MARGIN
    cache = max(memory, (probe.cached_read_bytes_per_s or 0.0) * PHYSICS_MARGIN)
    # Of two times what the cache holds at least half came from memory.
    fits = moved_bytes <= 2 * cache_bytes
    if rate <= memory or (rate <= cache and fits and cache_state == "hot"):
        return None
    said = f"{moved_bytes} bytes in {time_s:.3g} s is {rate / 1e9:.3g} GB/s"
    if rate <= cache and fits:
        return Fault(
            "cache_state",
            f"{said}, above what memory gives ({memory / 1e9:.3g} GB/s with margin {PHYSICS_MARGIN}): "
            "the data stayed in a cache, but the cell is cold",
        )
    best = cache if fits else memory
    return Fault(
        "faster_than_physics",
        f"{said}, above {best / 1e9:.3g} GB/s (probe with margin {PHYSICS_MARGIN})",
    )


def device_fault(before: str, after: str) -> Fault | None:
    """Whether the device at the end is the one of the start (`Device.identity`)."""
    if before == after:
        return None
    return Fault("device_changed", f"started on {before}, ended on {after}")


def lost_fault(conditions: Conditions) -> Fault | None:
    """Whether the GPU answered to the end."""
    if not conditions.lost:
        return None
    return Fault("device_lost", conditions.unavailable.get("device_lost", "the GPU was lost"))


def trust_flags(
    times_s: Sequence[float],
    read_bytes_per_s: Sequence[float],
    conditions: Conditions,
    ping_pong_ns: Sequence[float] = (),
) -> tuple[str, ...]:
    """What disturbed the samples without making them wrong."""
    flags = list(_neighbour_flags(conditions))
    if len(times_s) < MIN_SAMPLES_OF_AN_INTERVAL:
        flags.append("too_few_samples")
    if half_width(times_s) > MAX_HALF_WIDTH:
        flags.append("wide_interval")
    moved, score = drift(times_s)
    if abs(moved) > MAX_DRIFT and abs(score) > DRIFT_SCORE:
        flags.append("drifting")
    low, high = quartiles(read_bytes_per_s)
    if high > MAX_PROBE_SPREAD * low:
        flags.append("probe_changed")
    if ping_pong_ns:
        near, far = quartiles(ping_pong_ns)
        if far > MAX_PING_PONG_SPREAD * near:
            flags.append("state_changed")
    return tuple(flags)


def _neighbour_flags(conditions: Conditions) -> Iterator[str]:
    gpu, taken = conditions.gpu, conditions.cpu.taken
    if gpu is None:
        # A GPU's times are events on the GPU: the host's other work is not among them.
        if taken is not None and taken > MAX_CPU_TAKEN:
            yield "cpu_shared"
        return
    if gpu.other_processes:
        yield "gpu_shared"
    held_s = max((gpu.throttled_s or {}).values(), default=0.0)
    if set(gpu.throttle_reasons or ()) - CHOSEN_CLOCKS or held_s > MAX_HELD * conditions.elapsed_s:
        yield "throttled"
