"""One cell measured again from its record alone, and set beside it.

A record is hostile input: its cell must be one that a suite of this kvgauge plans, and what measuring it
takes must fit the machine, before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvgauge.devices.types import Device
from kvgauge.errors import UserError, short
from kvgauge.jobs import MAX_PAGE_SIZE, Job, Jobs
from kvgauge.runner import Settings, go_on, new_manifest
from kvgauge.schema import Cell, Criterion, Record, Run
from kvgauge.shapes.types import ModelShape
from kvgauge.store.folder import RunFolder
from kvgauge.store.reader import MAX_SAMPLES
from kvgauge.suites.table import suites
from kvgauge.suites.types import CellPlan, Request
from kvgauge.traces.types import Trace
from kvgauge_kernels.stored import STORED_FORMATS, is_stored

MIN_PREFIX = 4
MAX_BUDGET_S = 3600
MAX_WARMUP = 1000
# fp32 scores, queries and outputs, and the copies of them that a plain implementation makes.
_SCRATCH_COPIES = 4
_SCRATCH_ELEMENT_BYTES = 4
# Rows of random data that a cache is filled from, in fp32.
_POOL_ROWS = 4099


@dataclass(frozen=True, slots=True)
class Rerun:
    """A record and the one that measuring its cell again gave."""

    before: Record
    after: Record

    @property
    def comparable(self) -> bool:
        """Whether both are of one kind of hardware."""
        old, new = self.before.device, self.after.device
        return (old.kind, old.name) == (new.kind, new.name)

    @property
    def time_ratio(self) -> float | None:
        """The new median over the old one; None where either has none, was disturbed, or is of elsewhere."""
        if not self.comparable or self.before.trust.flags or self.after.trust.flags:
            return None
        old, new = median_s(self.before), median_s(self.after)
        return None if old is None or new is None else new / old

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "cell_id": self.before.cell_id,
            "comparable": self.comparable,
            "time_ratio": self.time_ratio,
            "before": _facts(self.before),
            "after": _facts(self.after),
        }


def record_named(run: Run, name: str) -> Record:
    """The last record of the cell of that id, or of the one id that begins so; else UserError."""
    if len(name) < MIN_PREFIX:
        raise UserError(f"cell '{short(name)}': give at least {MIN_PREFIX} characters of its id")
    found = [record for record in run.latest() if record.cell_id.startswith(name)]
    if not found:
        raise UserError(f"cell '{short(name)}': no record of this run has an id that begins so")
    if len(found) > 1:
        ids = ", ".join(short(record.cell_id, 20) for record in found[:5])
        raise UserError(f"cell '{short(name)}': {len(found)} ids begin so: {ids}; give more of it")
    return found[0]


def rerun(record: Record, device: Device, folder: RunFolder, command: Sequence[str]) -> Rerun:
    """Measure the record's cell on `device` into a run folder of one cell.

    Raises UserError for a record that is too old, was edited, or asks for more than there is.
    """
    job, criterion, seed = job_of(record, device)
    listed = Jobs((job,), {})
    manifest = new_manifest("rerun", seed, device, folder.path, command, listed)
    run = Run(replace(manifest, narrowed=True), ())
    ended = go_on(run, listed.jobs, Settings(criterion), device, folder)
    return Rerun(record, ended.latest()[-1])


def job_of(record: Record, device: Device) -> tuple[Job, Criterion, int]:
    """The record's cell as its suite plans it, and how it is to be measured."""
    cell, criterion, seed = record.cell, record.criterion, record.seed
    if cell is None or record.shape is None or criterion is None or seed is None:
        raise UserError(
            f"cell {short(record.cell_id)}: its record was written by an older kvgauge and does not "
            "say all that measuring it again needs; run its profile again"
        )
    _check_criterion(criterion, seed)
    shape = record.shape.shape(short(cell.model))
    plan = _planned(cell, shape, record.cell_id, device)
    _check_room(plan, device)
    suite = suites()[cell.suite]
    return Job(suite, plan, suite.estimate_s(plan, criterion, device.ref.kind)), criterion, seed


def median_s(record: Record) -> float | None:
    """The median time of a record that has one."""
    timing = record.measured.time_s if record.measured is not None else None
    return None if timing is None else timing.median


def _planned(cell: Cell, shape: ModelShape, cell_id: str, device: Device) -> CellPlan:
    """The suite's own plan of the cell: what no suite plans is not measured."""
    if cell.suite not in suites():
        raise UserError(f"record: suite {short(cell.suite)}: one of {', '.join(suites())}")
    if not is_stored(cell.kv_format):
        raise UserError(
            f"record: KV format {short(cell.kv_format)}: one of {', '.join(STORED_FORMATS)}"
        )
    if cell.batch < 1:
        raise UserError(f"record: batch {cell.batch}: must be at least 1")
    if cell.depth_tokens < 1:
        raise UserError(f"record: {cell.depth_tokens} tokens: must be at least 1")
    if cell.layers_timed is not None and cell.layers_timed < 1:
        raise UserError(f"record: {cell.layers_timed} layers timed: must be at least 1")
    if cell.page_size is not None and not 1 <= cell.page_size <= MAX_PAGE_SIZE:
        raise UserError(f"record: pages of {cell.page_size} tokens: 1 to {MAX_PAGE_SIZE}")
    trace = Trace(cell.prompt_tokens, cell.think_tokens, cell.answer_tokens)
    request = Request(
        device_kind=device.ref.kind,
        models=(shape,),
        traces=(trace,),
        kv_formats=(cell.kv_format,),
        backends=(cell.backend,) if cell.backend is not None else (),
        batches=(cell.batch,),
        layers_timed=cell.layers_timed or 1,
        explicit_formats=True,
        cache_states=(cell.cache_state,),
        launches=(cell.launch,),
        page_sizes=() if cell.page_size is None else (cell.page_size,),
    )
    for plan in suites()[cell.suite].plans(request):
        if plan.cell.cell_id == cell_id:
            return plan
    raise UserError(
        f"cell {short(cell_id)}: its record does not describe the cell of that id, or one that "
        "this kvgauge cannot measure here; run its profile again"
    )


def _check_criterion(criterion: Criterion, seed: int) -> None:
    fits = (
        criterion.target_half_width > 0
        and 1 <= criterion.min_samples <= criterion.max_samples <= MAX_SAMPLES
        and 0 <= criterion.budget_s <= MAX_BUDGET_S
        and 1 <= criterion.max_warm_up <= MAX_WARMUP
        and 0 <= criterion.patience_s <= MAX_BUDGET_S
    )
    if not fits:
        raise UserError(
            f"record: criterion: 1 to {MAX_SAMPLES} samples, a budget of at most {MAX_BUDGET_S} s, a "
            f"target above 0 and at most {MAX_WARMUP} calls to warm up are measured"
        )
    if not 0 <= seed < 2**63:
        raise UserError(f"record: seed {seed}: must be between 0 and 2^63 - 1")


def _check_room(plan: CellPlan, device: Device) -> None:
    """A made-up shape may hold a small cache and want a huge query, or rows to fill it from."""
    cell, layers = plan.cell, plan.shape.layers[: plan.cell.layers_timed]
    widest = max(max(layer.k_dim, layer.v_dim) for layer in layers)
    queries = cell.batch * sum(layer.q_heads * (layer.k_dim + layer.v_dim) for layer in layers)
    scores = cell.batch * max(layer.q_heads for layer in layers) * cell.depth_tokens
    scratch = _POOL_ROWS * widest + (queries + scores if cell.backend is not None else 0)
    kv_bytes = suites()[cell.suite].predict(plan).kv_bytes
    needed_bytes = kv_bytes + _SCRATCH_COPIES * _SCRATCH_ELEMENT_BYTES * scratch
    available_bytes = device.available_bytes()
    if needed_bytes > available_bytes:
        raise UserError(
            f"cell {cell.cell_id}: takes about {needed_bytes} bytes to measure, "
            f"{available_bytes} are available"
        )


def _facts(record: Record) -> dict[str, Any]:
    measured = record.measured
    timing = measured.time_s if measured is not None else None
    return {
        "run_id": record.run_id,
        "started_at": record.started_at,
        "device": {"kind": record.device.kind, "name": record.device.name},
        "status": record.status,
        "reason": record.reason,
        "kv_bytes": measured.kv_bytes if measured is not None else None,
        "time_s": None
        if timing is None
        else {"median": timing.median, "low": timing.low, "high": timing.high, "n": timing.n},
        "flags": list(record.trust.flags),
    }
