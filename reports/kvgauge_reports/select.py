"""Which records may be compared, and along what."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from kvgauge.errors import UserError
from kvgauge.formats import kv_format
from kvgauge.schema import Record, Run, Timing

STEP_SCOPES = ("step", "engine")
SIXTEEN_BITS = 16


@dataclass(frozen=True, slots=True)
class Setting:
    """Everything that two records share when they differ in depth and backend alone."""

    model: str
    shape_id: str
    layers: int
    layers_timed: int
    format: str
    batch: int
    layout: str
    page_size: int | None
    policy: str
    cache_state: str | None

    def in_format(self, name: str) -> Setting:
        """The same setting in another KV format."""
        return replace(self, format=name)


def setting(record: Record) -> Setting:
    """The setting of a record. `layers_timed` null means all layers."""
    model, cache = record.model, record.cache
    return Setting(
        model=model.name,
        shape_id=model.shape_id,
        layers=model.layers,
        layers_timed=model.layers if model.layers_timed is None else model.layers_timed,
        format=cache.format,
        batch=record.trace.batch,
        layout=cache.layout,
        page_size=cache.page_size,
        policy=cache.policy,
        cache_state=record.measured.cache_state if record.measured else None,
    )


def why_not(run: Run, record: Record) -> str | None:
    """None where the record may be compared, else what keeps it out."""
    if record.status != "ok":
        return record.reason or record.reason_code or "no reason recorded"
    home, device = run.manifest.device, record.device
    if (device.kind, device.name) != (home.kind, home.name):
        return f"measured on another device than the run's: {device.kind} {device.name}"
    if not record.trust.ok:
        return f"flagged: {', '.join(record.trust.flags) or 'not trusted'}"
    return None


def comparable(run: Run) -> tuple[Record, ...]:
    """The last attempt of each cell that is ok, trusted and of the run's own device."""
    return tuple(record for record in run.latest() if why_not(run, record) is None)


def excluded(run: Run) -> tuple[tuple[Record, str], ...]:
    """The last attempt of each other cell, with what keeps it out of every comparison."""
    found = ((record, why_not(run, record)) for record in run.latest())
    return tuple((record, why) for record, why in found if why is not None)


def flagged(run: Run) -> tuple[Record, ...]:
    """Those of `excluded` that are right, and of the run's own device, but were disturbed."""
    home = run.manifest.device
    return tuple(
        record
        for record, _ in excluded(run)
        if record.status == "ok"
        and (record.device.kind, record.device.name) == (home.kind, home.name)
    )


def unreached(run: Run) -> tuple[str, ...]:
    """Ids of cells that the run listed and has no record of."""
    seen = {record.cell_id for record in run.records}
    return tuple(cell for cell in run.manifest.cells if cell not in seen)


def of_scope(records: Iterable[Record], *scopes: str) -> tuple[Record, ...]:
    """Those records whose scope is one of `scopes`."""
    return tuple(record for record in records if record.scope in scopes)


def timing(record: Record) -> Timing | None:
    """The record's time, where there is one that a ratio can be made of."""
    time = record.measured.time_s if record.measured else None
    if time is None:
        return None
    finite = all(math.isfinite(t) and t > 0 for t in (time.median, time.low, time.high))
    return time if finite else None


def held_bytes(record: Record) -> int | None:
    """Measured bytes of the cache, where both it and the formula's are positive."""
    held = record.measured.kv_bytes if record.measured else None
    return held if held and held > 0 and record.predicted.kv_bytes > 0 else None


def with_bytes(run: Run, scope: str) -> tuple[Record, ...]:
    """Counted records of a scope that hold bytes and tokens."""
    found = of_scope(comparable(run), scope)
    return tuple(r for r in found if held_bytes(r) and r.trace.depth_tokens > 0)


def tokens_held(record: Record) -> int:
    """Tokens of the whole batch: what bytes a token divides by."""
    return record.trace.depth_tokens * record.trace.batch


def backend_name(record: Record) -> str:
    """The backend asked for, also where it did not run; empty where the cell has none."""
    if record.backend:
        return record.backend.name
    return (record.cell.backend or "") if record.cell else ""


def is_quantized(name: str) -> bool:
    """Whether the KV format takes fewer than 16 bits an element."""
    try:
        return kv_format(name).bits < SIXTEEN_BITS
    except UserError:
        return False
