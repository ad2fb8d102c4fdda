"""footprint: allocate and fill the whole cache, and count its bytes three ways.

The tensors' storages must equal the formula to the byte; the allocator (CUDA) or the operating
system (CPU) must agree within a stated share once the cache is large enough for it to show.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch

from kvgauge.caches.layouts import allocate_for
from kvgauge.devices.types import Device
from kvgauge.errors import UserError
from kvgauge.measure.validity import Fault, bytes_fault
from kvgauge.schema import Criterion, Measurement, Prediction, Ratio
from kvgauge.suites.types import (
    CellPlan,
    Context,
    Outcome,
    Request,
    cell_kv_bytes,
    does_not_fit,
    trace_cell,
)

ALLOCATION_CHECKED_ABOVE_BYTES = 256 * 10**6
ALLOCATION_TOLERANCE = {"cpu": 0.02, "cuda": 0.001}
# Room beside the cache for the random pool and the process's own small change.
_HEADROOM_BYTES = 256 * 2**20
_FILL_BYTES_PER_S = {"cpu": 1.5e9, "cuda": 2e11}


class Footprint:
    """Bytes of a cache of all layers."""

    name = "footprint"

    def backends(self) -> tuple[str, ...]:
        """None: a footprint is held and not read."""
        return ()

    def missing(self, device_kind: str, named: Collection[str] = ()) -> dict[str, str]:
        """Nothing: every device has memory."""
        del device_kind, named
        return {}

    def takes(self) -> str:
        """Whatever there is a shape of."""
        return "every model, format and depth"

    def plans(self, request: Request) -> Sequence[CellPlan]:
        """Every model, format, batch and depth; the smallest first."""
        plans = [
            CellPlan(
                replace(trace_cell(self.name, "memory", shape, fmt, trace, batch), **layout), shape
            )
            for shape in request.models
            for fmt in request.kv_formats
            for batch in request.batches
            for trace in request.traces
            for layout in request.layouts()
        ]
        return sorted(plans, key=cell_kv_bytes)

    def predict(self, plan: CellPlan) -> Prediction:
        """The formula's bytes."""
        return Prediction(kv_bytes=cell_kv_bytes(plan))

    def estimate_s(self, plan: CellPlan, criterion: Criterion, device_kind: str) -> float:
        """Filling dominates."""
        del criterion
        return 0.25 + cell_kv_bytes(plan) / _FILL_BYTES_PER_S[device_kind]

    def measure(self, plan: CellPlan, context: Context) -> Outcome:
        """Allocate, fill, count, free."""
        predicted, device = self.predict(plan), context.device
        full = does_not_fit(predicted.kv_bytes + _HEADROOM_BYTES, context, predicted)
        if full is not None:
            return full
        with context.phases("fill"):
            measured = _count(plan, context)
        if measured.kv_bytes is None:
            raise UserError("a cache without tensors has no bytes to count")
        ratio = Ratio(
            kv_bytes=measured.kv_bytes / predicted.kv_bytes,
            allocated_bytes=(
                None
                if measured.allocated_bytes is None
                else measured.allocated_bytes / predicted.kv_bytes
            ),
        )
        fault = bytes_fault(measured.kv_bytes, predicted.kv_bytes) or _allocation_fault(
            measured, predicted.kv_bytes, device
        )
        if fault:
            return Outcome(
                "invalid", predicted, fault.code, fault.reason, measured=measured, ratio=ratio
            )
        return Outcome("ok", predicted, measured=measured, ratio=ratio)


def _count(plan: CellPlan, context: Context) -> Measurement:
    device = context.device
    generator = torch.Generator().manual_seed(context.seed)
    before, driver_before = device.memory_bytes(), device.driver_bytes()
    has_peak = device.reset_peak()
    cache = allocate_for(plan.cell, plan.shape.layers, device.torch_device)
    cache.fill(generator)
    peak = device.peak_bytes() if has_peak else None
    memory = device.memory_use()
    after, driver_after = device.memory_bytes(), device.driver_bytes()
    return Measurement(
        kv_bytes=cache.storage_bytes(),
        allocated_bytes=_difference(after, before),
        allocated_source=device.memory_source,
        driver_bytes=_difference(driver_after, driver_before),
        peak_bytes=_difference(peak, before),
        memory=memory,
    )


def _difference(after: int | None, before: int | None) -> int | None:
    return None if after is None or before is None else after - before


def _allocation_fault(measured: Measurement, predicted_bytes: int, device: Device) -> Fault | None:
    allocated = measured.allocated_bytes
    if allocated is None or predicted_bytes < ALLOCATION_CHECKED_ABOVE_BYTES:
        return None
    tolerance = ALLOCATION_TOLERANCE[device.ref.kind]
    if abs(allocated - predicted_bytes) <= tolerance * predicted_bytes:
        return None
    return Fault(
        "allocation_differs",
        f"{device.memory_source} grew by {allocated} bytes, formula {predicted_bytes}, "
        f"tolerance {tolerance:.1%}",
    )
