"""A run: its manifest and its records, and what the gate says of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from kvgauge.schema.measured import Spent
from kvgauge.schema.record import DeviceRef, Record

MANIFEST_SCHEMA = "kvgauge.manifest/1"

RunStatus = Literal["running", "complete", "incomplete", "interrupted"]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a run was: `manifest.json`. Written at the start, and again at the end."""

    schema: str
    run_id: str
    profile: str
    command: tuple[str, ...]
    seed: int
    started_at: str
    finished_at: str | None
    status: RunStatus
    git_revision: str | None
    git_dirty: bool | None
    device: DeviceRef
    machine: dict[str, Any]
    versions: dict[str, str]
    left_out: dict[str, str]
    """Backends and suites that this machine cannot run, each with the reason."""
    cells: tuple[str, ...]
    """The ids of all cells of the run, in order, measured or not."""
    narrowed: bool = False
    """Whether suites, models, formats, ... were chosen by hand: then the profile's others are not missed."""
    spent: Spent | None = None
    """Where the wall time went, resumed parts included; None while the run goes on."""
    options: dict[str, Any] = field(default_factory=dict)
    """What was asked for, so that `--resume` need not be told again; empty in runs of 0.1.0."""
    resumes: tuple[str, ...] = ()
    """When the run was resumed; `started_at` stays the first start."""


@dataclass(frozen=True, slots=True)
class Run:
    """A manifest and its records, as read from a run folder."""

    manifest: Manifest
    records: tuple[Record, ...]
    torn_lines: int = 0
    remarks: tuple[str, ...] = ()
    """What is to be said of it and stands in no record, such as a self-test's checks."""

    def latest(self) -> tuple[Record, ...]:
        """The attempt of each cell that counts, in the order of first appearance.

        The last one, unless it is right but disturbed and one before it was right and undisturbed: then
        that one.
        """
        last: dict[str, Record] = {}
        undisturbed: dict[str, Record] = {}
        for record in self.records:
            cell, disturbed = record.cell_id, record.status == "ok" and not record.trust.ok
            if record.status == "ok" and record.trust.ok:
                undisturbed[cell] = record
            last[cell] = undisturbed.get(cell, record) if disturbed else record
        return tuple(last.values())


VerdictKind = Literal[
    "same", "faster", "slower", "bytes_differ", "undecided", "missing", "not_comparable"
]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says of one cell, with the evidence."""

    cell_id: str
    label: str
    kind: VerdictKind
    reason: str
    evidence: dict[str, float | int | None]
