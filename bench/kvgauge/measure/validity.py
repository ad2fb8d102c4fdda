"""Validity before performance: what a cell must prove before its time counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kvgauge.measure.stats import half_width, quartiles

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
# The kernel counts time in hundredths of a second: in a short block one count is several percent.
MAX_CPU_TAKEN = 0.15


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


def physics_fault(
    time_s: float, moved_bytes: int, read_samples_bytes_per_s: Sequence[float]
) -> Fault | None:
    """Whether the time is one that the memory allows."""
    best = max(read_samples_bytes_per_s) * PHYSICS_MARGIN
    if time_s * best >= moved_bytes:
        return None
    return Fault(
        "faster_than_physics",
        f"{moved_bytes} bytes in {time_s:.3g} s is {moved_bytes / time_s / 1e9:.3g} GB/s, above "
        f"{best / 1e9:.3g} GB/s (probe with margin {PHYSICS_MARGIN})",
    )


def trust_flags(
    times_s: Sequence[float], read_bytes_per_s: Sequence[float], cpu_taken: float | None = None
) -> tuple[str, ...]:
    """What disturbed the samples without making them wrong."""
    flags = []
    if cpu_taken is not None and cpu_taken > MAX_CPU_TAKEN:
        flags.append("cpu_shared")
    if half_width(times_s) > MAX_HALF_WIDTH:
        flags.append("wide_interval")
    low, high = quartiles(read_bytes_per_s)
    if high > MAX_PROBE_SPREAD * low:
        flags.append("probe_changed")
    return tuple(flags)
