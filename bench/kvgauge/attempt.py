"""One attempt at one cell: measured or not, it becomes a record."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from kvgauge.errors import UnsupportedLayout
from kvgauge.jobs import Job
from kvgauge.schema import (
    SCHEMA,
    CacheRef,
    Cell,
    Measurement,
    ModelRef,
    Record,
    ShapeRef,
    TraceRef,
    Trust,
)
from kvgauge.suites.types import Context, Outcome

_MAX_REASON_CHARS = 500
# torch's CPU allocator and CUDA's libraries say so in errors of no class of their own.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def record_of(
    job: Job,
    outcome: Outcome,
    context: Context,
    run_id: str,
    started_at: str,
    attempt: int = 1,
) -> Record:
    """The outcome with the names, ids and times of its cell; takes the context's phases."""
    device = context.device.ref
    cell, shape = job.plan.cell, job.plan.shape
    return Record(
        schema=SCHEMA,
        run_id=run_id,
        cell_id=cell.cell_id,
        series_id=cell.series_id(device.kind, device.name),
        attempt=attempt,
        started_at=started_at,
        suite=cell.suite,
        scope=cell.scope,
        status=outcome.status,
        reason_code=outcome.reason_code,
        reason=outcome.reason,
        model=ModelRef(
            shape.name, shape.attention, len(shape.layers), cell.layers_timed, cell.shape_id
        ),
        trace=_trace(cell),
        cache=CacheRef(cell.kv_format, cell.layout, cell.page_size, cell.policy),
        backend=outcome.backend,
        device=device,
        predicted=outcome.predicted,
        measured=_writable(outcome.measured),
        probe=outcome.probe,
        ratio=outcome.ratio,
        trust=Trust(outcome.status == "ok" and not outcome.flags, outcome.flags),
        cell=cell,
        shape=ShapeRef.of(shape),
        seed=context.seed,
        criterion=context.criterion,
        spent=context.phases.take(),
        conditions=outcome.conditions,
    )


def measure(job: Job, context: Context) -> Outcome:
    """Measure a cell in this process; whatever it raises becomes its status."""
    try:
        return job.suite.measure(job.plan, context)
    except UnsupportedLayout as error:
        return Outcome(
            "unsupported", job.suite.predict(job.plan), "layout", _one_line(error.detail)
        )
    except Exception as error:  # one cell must not end the others
        if _out_of_memory(error):
            return Outcome("oom", job.suite.predict(job.plan), "out_of_memory", _one_line(error))
        reason = f"{type(error).__name__}: {_one_line(error)}"
        return Outcome("failed", job.suite.predict(job.plan), "exception", reason)


def _writable(measured: Measurement | None) -> Measurement | None:
    """JSON has no infinity: how wrong an output of NaNs is, the reason alone says."""
    if measured is None or measured.max_error is None or math.isfinite(measured.max_error):
        return measured
    return replace(measured, max_error=None)


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _OUT_OF_MEMORY)


def _one_line(error: BaseException | str) -> str:
    return " ".join(str(error).split())[:_MAX_REASON_CHARS]


def _trace(cell: Cell) -> TraceRef:
    return TraceRef(
        cell.prompt_tokens, cell.think_tokens, cell.answer_tokens, cell.depth_tokens, cell.batch
    )
