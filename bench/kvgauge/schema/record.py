"""A record: the cell, the prediction, the measurement and where it was made. One line of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from kvgauge.errors import UserError
from kvgauge.schema.cell import Cell, Scope
from kvgauge.schema.conditions import Conditions
from kvgauge.schema.measured import (
    Criterion,
    Measurement,
    Prediction,
    Probe,
    Ratio,
    Spent,
    Trust,
)
from kvgauge.shapes.types import MAX_LAYERS, LayerShape, ModelShape

SCHEMA = "kvgauge.record/1"

Status = Literal[
    "ok",  # measured, and every validity check passed
    "invalid",  # measured, but a validity check says that the number is not what was asked
    "oom",  # the cache does not fit this machine
    "unsupported",  # this machine or package cannot run it; the reason says why
    "failed",  # an exception
    "timeout",
    "crashed",
    "skipped",
]
DeviceKind = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class ModelRef:
    """The model of a record."""

    name: str
    attention: str
    layers: int
    layers_timed: int | None
    shape_id: str


@dataclass(frozen=True, slots=True)
class LayerRun:
    """So many equal layers, one after another."""

    count: int
    layer: LayerShape


@dataclass(frozen=True, slots=True)
class ShapeRef:
    """The whole shape, so that the cell can be measured again from its record alone."""

    hidden: int
    vocab: int
    params_total: int | None
    params_active: int | None
    experts: int
    experts_per_token: int
    params_routed: int
    layers: tuple[LayerRun, ...]

    @classmethod
    def of(cls, shape: ModelShape) -> ShapeRef:
        """What the shape says but its name, source and notes."""
        layers = tuple(LayerRun(count, layer) for layer, count in shape.runs())
        return cls(
            shape.hidden, shape.vocab, shape.params_total, shape.params_active,
            shape.experts, shape.experts_per_token, shape.params_routed, layers,
        )  # fmt: skip

    def shape(self, name: str) -> ModelShape:
        """The shape again; raises UserError for one that no model has."""
        if sum(max(0, run.count) for run in self.layers) > MAX_LAYERS:
            raise UserError(f"shape of {name!a}: over {MAX_LAYERS} layers")
        return ModelShape(
            name=name,
            layers=tuple(run.layer for run in self.layers for _ in range(run.count)),
            hidden=self.hidden,
            vocab=self.vocab,
            params_total=self.params_total,
            params_active=self.params_active,
            source="a record",
            experts=self.experts,
            experts_per_token=self.experts_per_token,
            params_routed=self.params_routed,
        )


@dataclass(frozen=True, slots=True)
class TraceRef:
    """The trace of a record, in tokens."""

    prompt: int
    think: int
    answer: int
    depth_tokens: int
    batch: int


@dataclass(frozen=True, slots=True)
class CacheRef:
    """The cache of a record."""

    format: str
    layout: str
    page_size: int | None
    policy: str


@dataclass(frozen=True, slots=True)
class BackendRef:
    """Which code ran: the backend asked for, its version, and the kernel that was seen to run."""

    name: str
    version: str
    kernel: str | None


@dataclass(frozen=True, slots=True)
class DeviceRef:
    """Where it ran."""

    kind: DeviceKind
    name: str
    index: int | None


@dataclass(frozen=True, slots=True)
class Record:
    """One line of `records.jsonl`."""

    schema: str
    run_id: str
    cell_id: str
    series_id: str
    attempt: int
    started_at: str
    suite: str
    scope: Scope
    status: Status
    reason_code: str | None
    reason: str | None
    model: ModelRef
    trace: TraceRef
    cache: CacheRef
    backend: BackendRef | None
    device: DeviceRef
    predicted: Prediction
    measured: Measurement | None
    probe: Probe | None
    ratio: Ratio | None
    trust: Trust
    cell: Cell | None = None
    """All parameters; absent from records of kvgauge 0.1.0, which cannot be measured again alone."""
    shape: ShapeRef | None = None
    seed: int | None = None
    criterion: Criterion | None = None
    spent: Spent | None = None
    conditions: Conditions | None = None
    """What the machine did while the cell was sampled."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)
