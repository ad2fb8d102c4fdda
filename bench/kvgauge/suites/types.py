"""Suite: one experiment. It yields cells, predicts each and measures one at a time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from kvgauge.devices.probe import DeviceProbe
from kvgauge.devices.types import Device
from kvgauge.formats import kv_format
from kvgauge.formula.held import request_bytes
from kvgauge.measure.phases import Phases
from kvgauge.schema import (
    BackendRef,
    CacheState,
    Cell,
    Conditions,
    Criterion,
    Launch,
    Measurement,
    Prediction,
    Probe,
    Ratio,
    Scope,
    Status,
)
from kvgauge.shapes.types import ModelShape
from kvgauge.traces.types import Trace


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for, resolved for one suite. No backends means all that the machine can run."""

    device_kind: str
    models: tuple[ModelShape, ...]
    traces: tuple[Trace, ...]
    kv_formats: tuple[str, ...]
    backends: tuple[str, ...]
    batches: tuple[int, ...]
    layers_timed: int
    explicit_formats: bool
    """Whether the formats were asked for by name rather than by the profile."""
    cache_states: tuple[CacheState, ...] = ("cold",)
    launches: tuple[Launch, ...] = ("stream",)
    page_sizes: tuple[int, ...] = ()
    """Of paged caches, beside contiguous ones."""

    def layouts(self) -> tuple[dict[str, Any], ...]:
        """What a cell says of each layout that is asked for."""
        paged = ({"layout": "paged", "page_size": size} for size in self.page_sizes)
        return ({}, *paged)


@dataclass(frozen=True, slots=True)
class Context:
    """Where and how a cell is measured."""

    device: Device
    probe: DeviceProbe
    criterion: Criterion
    seed: int
    phases: Phases = field(default_factory=Phases)
    try_oversize: bool = False
    """Whether a cell that does not fit is tried; on a CPU the kernel may kill the process for it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one cell; the runner adds names, ids and times and makes it a Record."""

    status: Status
    predicted: Prediction
    reason_code: str | None = None
    reason: str | None = None
    measured: Measurement | None = None
    probe: Probe | None = None
    ratio: Ratio | None = None
    flags: tuple[str, ...] = ()
    backend: BackendRef | None = None
    conditions: Conditions | None = None


@dataclass(frozen=True, slots=True)
class CellPlan:
    """A cell with the shape that it is about."""

    cell: Cell
    shape: ModelShape = field(repr=False)


class Suite(Protocol):
    """One experiment, one file, one line in `suites.table`."""

    @property
    def name(self) -> str:
        """What `--suite` takes."""
        ...

    def backends(self) -> tuple[str, ...]:
        """What `--backend` takes for this suite, whether the machine has it or not."""
        ...

    def missing(self, device_kind: str, named: Collection[str] = ()) -> dict[str, str]:
        """What of this suite the machine cannot run at all: name to reason.

        What is measured only where it is asked for by name is missing unless it is `named`.
        """
        ...

    def takes(self) -> str:
        """Which choices have cells here, in words, for those that have none."""
        ...

    def plans(self, request: Request) -> Sequence[CellPlan]:
        """The cells, in the order in which they are to be measured."""
        ...

    def predict(self, plan: CellPlan) -> Prediction:
        """Bytes and operations from arithmetic alone; no rates, so no floor."""
        ...

    def estimate_s(self, plan: CellPlan, criterion: Criterion, device_kind: str) -> float:
        """A rough guess of the seconds that the cell takes, for `--list` and the progress line."""
        ...

    def measure(self, plan: CellPlan, context: Context) -> Outcome:
        """Measure one cell. May raise: the runner turns an exception into a record."""
        ...


def trace_cell(
    suite: str, scope: Scope, shape: ModelShape, kv_format: str, trace: Trace, batch: int
) -> Cell:
    """The cell of a trace on a shape; a suite adds what is its own with `dataclasses.replace`."""
    return Cell(
        suite=suite,
        scope=scope,
        model=shape.name,
        shape_id=shape.shape_id,
        kv_format=kv_format,
        prompt_tokens=trace.prompt_tokens,
        think_tokens=trace.think_tokens,
        answer_tokens=trace.answer_tokens,
        batch=batch,
    )


def cell_kv_bytes(plan: CellPlan) -> int:
    """The formula's bytes of the cell's cache: all layers, or those that are timed."""
    cell, shape = plan.cell, plan.shape
    if cell.layers_timed is not None:
        shape = first_layers(shape, cell.layers_timed)
    fmt = kv_format(cell.kv_format)
    return cell.batch * request_bytes(shape, cell.depth_tokens, fmt, cell.page_size)


def first_layers(shape: ModelShape, count: int) -> ModelShape:
    """The shape cut to its first `count` layers; weights are not counted any more."""
    return ModelShape(
        shape.name, shape.layers[:count], shape.hidden, shape.vocab, None, None, shape.source
    )


def does_not_fit(needed_bytes: int, context: Context, predicted: Prediction) -> Outcome | None:
    """An `oom` outcome where the device has not the room: Linux would kill the process instead."""
    if context.try_oversize:
        return None
    available_bytes = context.device.available_bytes()
    if needed_bytes <= available_bytes:
        return None
    reason = f"needs {needed_bytes} bytes, {available_bytes} are available"
    return Outcome("oom", predicted, "does_not_fit", reason)
