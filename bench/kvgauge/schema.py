"""The data model: a cell, what was predicted for it, what was measured, and the record of both.

`results/README.md` says the same in words. A line of `records.jsonl` is one Record as JSON. A
field that does not apply is null: never absent, never zero. Byte counts are integers; times are in
seconds; rates in bytes or operations a second.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

SCHEMA = "kvgauge.record/1"
MANIFEST_SCHEMA = "kvgauge.manifest/1"
CELL_VERSION = 1

Scope = Literal["attention", "step", "engine", "memory"]
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
RunStatus = Literal["running", "complete", "incomplete", "interrupted"]
CacheState = Literal["cold", "hot"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of an experiment: parameters alone, nothing of the machine and nothing measured."""

    suite: str
    scope: Scope
    model: str
    shape_id: str
    kv_format: str
    prompt_tokens: int = 0
    think_tokens: int = 0
    answer_tokens: int = 0
    batch: int = 1
    layout: str = "contiguous"
    page_size: int | None = None
    policy: str = "all"
    backend: str | None = None
    layers_timed: int | None = None

    @property
    def depth_tokens(self) -> int:
        """What the cache holds when the step starts."""
        return self.prompt_tokens + self.think_tokens + self.answer_tokens

    @property
    def cell_id(self) -> str:
        """A versioned hash of the parameters that are not at their default.

        Leaving defaults out means that a parameter added later renames no old cell.
        """
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        kept = {f.name: given[f.name] for f in fields(self) if given[f.name] != f.default}
        return _digest({"version": CELL_VERSION, **kept})

    def series_id(self, device_kind: str, device_name: str) -> str:
        """The cell on one kind of hardware: what a time may be compared along."""
        return _digest({"cell": self.cell_id, "kind": device_kind, "name": device_name})

    def label(self) -> str:
        """One line for people."""
        parts = [self.suite, self.model, f"{self.depth_tokens} tokens", self.kv_format]
        if self.batch > 1:
            parts.append(f"batch {self.batch}")
        if self.backend:
            parts.append(self.backend)
        return " · ".join(parts)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What arithmetic says, for the same scope as the measurement."""

    kv_bytes: int
    moved_bytes: int | None = None
    flops: int | None = None
    floor_s: float | None = None
    bound: Literal["memory", "compute"] | None = None
    rates_source: Literal["probe", "datasheet"] | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """All samples of one quantity and what they are worth.

    `low` and `high` are the bootstrap 95% interval of the median; `noise` is
    1.4826 * MAD / median, the spread of single samples.
    """

    median: float
    low: float
    high: float
    n: int
    noise: float
    samples: tuple[float, ...]
    stop_reason: str


@dataclass(frozen=True, slots=True)
class Measurement:
    """What the machine said."""

    kv_bytes: int | None = None
    allocated_bytes: int | None = None
    allocated_source: str | None = None
    driver_bytes: int | None = None
    peak_bytes: int | None = None
    time_s: Timing | None = None
    tokens_per_s: float | None = None
    bytes_per_s: float | None = None
    cpu_taken: float | None = None
    """Share of the machine's core time that others took while this was sampled; None on a GPU."""
    cache_state: CacheState | None = None
    max_error: float | None = None
    """Largest difference from the float64 oracle, relative to the largest value of the oracle."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What the device's memory and arithmetic units gave beside these samples (medians).

    `read_samples_bytes_per_s` pairs with the samples of the time: one just before each.
    """

    read_bytes_per_s: float
    copy_bytes_per_s: float
    flops_per_s: float
    read_samples_bytes_per_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Ratio:
    """Measured against predicted."""

    kv_bytes: float | None = None
    allocated_bytes: float | None = None
    bandwidth: float | None = None
    """Predicted moved bytes / time / probe read bandwidth."""
    floor: float | None = None
    """Time / floor: 1 is the best that arithmetic allows."""


@dataclass(frozen=True, slots=True)
class Trust:
    """Whether the number may be compared, and the reason codes of what disturbed it."""

    ok: bool
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelRef:
    """The model of a record."""

    name: str
    attention: str
    layers: int
    layers_timed: int | None
    shape_id: str


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

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


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


@dataclass(frozen=True, slots=True)
class Run:
    """A manifest and its records, as read from a run folder."""

    manifest: Manifest
    records: tuple[Record, ...]
    torn_lines: int = 0

    def latest(self) -> tuple[Record, ...]:
        """The last attempt of each cell, in the order of first appearance."""
        last: dict[str, Record] = {}
        for record in self.records:
            last[record.cell_id] = record
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


def _digest(value: dict[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
