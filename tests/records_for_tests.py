"""Records made up for tests; no figure here was measured."""

from __future__ import annotations

from dataclasses import replace

from kvgauge.schema import (
    MANIFEST_SCHEMA,
    SCHEMA,
    BackendRef,
    CacheRef,
    Cell,
    DeviceRef,
    Manifest,
    Measurement,
    ModelRef,
    Prediction,
    Probe,
    Ratio,
    Record,
    Run,
    Timing,
    TraceRef,
    Trust,
)

DEVICE = DeviceRef("cpu", "Test CPU x2", None)


def cell(depth: int = 1024, fmt: str = "fp16", backend: str | None = "eager") -> Cell:
    """A decode cell."""
    return Cell(
        "decode", "attention", "tiny", "shape0", fmt,
        think_tokens=depth, backend=backend, layers_timed=2,
    )  # fmt: skip


def record(
    of: Cell | None = None,
    times_s: tuple[float, ...] = (1.0, 1.01, 0.99, 1.0, 1.02),
    read: float = 1e9,
    flops: float = 1e9,
    kv_bytes: int = 1000,
    device: DeviceRef = DEVICE,
) -> Record:
    """An ok record of that cell."""
    of = of or cell()
    ordered = sorted(times_s)
    timing = Timing(
        ordered[len(ordered) // 2], ordered[0], ordered[-1], len(times_s), 0.01, times_s, "x"
    )
    return Record(
        schema=SCHEMA,
        run_id="run",
        cell_id=of.cell_id,
        series_id=of.series_id(device.kind, device.name),
        attempt=1,
        started_at="2026-01-01T00:00:00+00:00",
        suite=of.suite,
        scope=of.scope,
        status="ok",
        reason_code=None,
        reason=None,
        model=ModelRef("tiny", "gqa", 2, 2, "shape0"),
        trace=TraceRef(0, of.think_tokens, 0, of.depth_tokens, 1),
        cache=CacheRef(of.kv_format, "contiguous", None, "all"),
        backend=BackendRef(of.backend, "1", "aten::bmm") if of.backend else None,
        device=device,
        predicted=Prediction(kv_bytes, kv_bytes, 10, 1e-6, "memory", "probe"),
        measured=Measurement(kv_bytes=kv_bytes, time_s=timing, bytes_per_s=1.0, cache_state="cold"),
        probe=Probe(read, read, flops, (read,) * len(times_s)),
        ratio=Ratio(1.0, None, 0.5, 2.0),
        trust=Trust(True),
    )


def run_of(*records: Record, cells: tuple[str, ...] = ()) -> Run:
    """A complete run of those records."""
    manifest = Manifest(
        schema=MANIFEST_SCHEMA, run_id="run", profile="smoke", command=("kvgauge", "run"), seed=0,
        started_at="2026-01-01T00:00:00+00:00", finished_at="2026-01-01T00:01:00+00:00",
        status="complete", git_revision=None, git_dirty=None, device=DEVICE, machine={"cores": 2},
        versions={"python": "3.11"}, left_out={"flash-attn": "no CUDA GPU"},
        cells=cells or tuple(r.cell_id for r in records),
    )  # fmt: skip
    return Run(manifest, records)


def failed(of: Cell) -> Record:
    """The same cell, failed."""
    return replace(
        record(of), status="failed", reason_code="exception", reason="ValueError: no",
        measured=None, probe=None, ratio=None, trust=Trust(False),
    )  # fmt: skip
