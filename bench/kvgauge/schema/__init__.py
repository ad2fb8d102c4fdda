"""The data model: a cell, what was predicted for it, what was measured, and the record of both.

`results/README.md` says the same in words. A line of `records.jsonl` is one Record as JSON. A
field that does not apply is null: never absent, never zero. Byte counts are integers; times are in
seconds; rates in bytes or operations a second.
"""

from kvgauge.schema.cell import (
    CELL_VERSION,
    CacheState,
    Cell,
    Launch,
    Scope,
)
from kvgauge.schema.conditions import Conditions, CpuConditions, GpuConditions, Span
from kvgauge.schema.measured import (
    Criterion,
    Measurement,
    Prediction,
    Probe,
    Ratio,
    Spent,
    Timing,
    Trust,
)
from kvgauge.schema.memory import MemoryUse, fragmentation
from kvgauge.schema.record import (
    SCHEMA,
    BackendRef,
    CacheRef,
    DeviceKind,
    DeviceRef,
    LayerRun,
    ModelRef,
    Record,
    ShapeRef,
    Status,
    TraceRef,
)
from kvgauge.schema.run import (
    MANIFEST_SCHEMA,
    Manifest,
    Run,
    RunStatus,
    Verdict,
    VerdictKind,
)

__all__ = [
    "CELL_VERSION",
    "MANIFEST_SCHEMA",
    "SCHEMA",
    "BackendRef",
    "CacheRef",
    "CacheState",
    "Cell",
    "Conditions",
    "CpuConditions",
    "Criterion",
    "DeviceKind",
    "DeviceRef",
    "GpuConditions",
    "Launch",
    "LayerRun",
    "Manifest",
    "Measurement",
    "MemoryUse",
    "ModelRef",
    "Prediction",
    "Probe",
    "Ratio",
    "Record",
    "Run",
    "RunStatus",
    "Scope",
    "ShapeRef",
    "Span",
    "Spent",
    "Status",
    "Timing",
    "TraceRef",
    "Trust",
    "Verdict",
    "VerdictKind",
    "fragmentation",
]
