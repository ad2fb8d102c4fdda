"""The least time that arithmetic allows: the roofline, summed over operations.

Williams, Waterman, Patterson, "Roofline: an insightful visual performance model", CACM 52(4), 2009.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kvgauge.formula.hardware import Gpu
from kvgauge.formula.moved import Operation

Bound = Literal["memory", "compute"]
RatesSource = Literal["probe", "datasheet"]


@dataclass(frozen=True, slots=True)
class Rates:
    """What a device gives: bytes and floating-point operations a second, and who says so.

    From the probe of a CPU `flops_per_s` is that of fp32 multiply-adds on all cores with their operands in
    registers, two operations each; of a matrix product where the native loops are not built and on a GPU.
    For a cache of integers it is that of 8-bit dot products where those are faster.
    """

    read_bytes_per_s: float
    flops_per_s: float
    source: RatesSource
    eight_bit_flops_per_s: float | None = None


def datasheet_rates(gpu: Gpu) -> Rates:
    """A card's own figures."""
    return Rates(gpu.bytes_per_s, gpu.fp16_flops_per_s, "datasheet", gpu.fp8_flops_per_s)


def floor_s(operations: Sequence[Operation], rates: Rates) -> float:
    """Seconds: the sum over operations of max(bytes / bandwidth, FLOPs / rate)."""
    return sum(max(*operation_times(op, rates)) for op in operations)


def bound(operations: Sequence[Operation], rates: Rates) -> Bound:
    """What most of the floor is made of."""
    memory = sum(m for m, c in (operation_times(op, rates) for op in operations) if m >= c)
    return "memory" if memory * 2 >= floor_s(operations, rates) else "compute"


def operation_times(op: Operation, rates: Rates) -> tuple[float, float]:
    """Seconds that the bytes take and seconds that the arithmetic takes."""
    eight_bit = rates.eight_bit_flops_per_s if op.eight_bit else None
    return op.moved_bytes / rates.read_bytes_per_s, op.flops / (eight_bit or rates.flops_per_s)
