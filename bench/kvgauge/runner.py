"""From a request to a run folder: which cells, on what device, one record each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kvgauge.caches.contiguous import STORAGE_DTYPE
from kvgauge.devices.probe import make_probe
from kvgauge.devices.types import Device
from kvgauge.errors import UnsupportedLayout, UserError
from kvgauge.formats import kv_format
from kvgauge.schema import (
    MANIFEST_SCHEMA,
    SCHEMA,
    CacheRef,
    Cell,
    Manifest,
    ModelRef,
    Record,
    Run,
    RunStatus,
    Status,
    TraceRef,
    Trust,
)
from kvgauge.shapes.resolve import resolve
from kvgauge.shapes.types import ModelShape
from kvgauge.store import provenance
from kvgauge.store.folder import RunFolder
from kvgauge.suites.profiles import Profile, profile
from kvgauge.suites.table import suites
from kvgauge.suites.types import CellPlan, Context, Outcome, Request, Suite
from kvgauge.traces.types import Trace

# A cell that ends so does not make a run incomplete: it is a finding about this machine.
_COMPLETE: frozenset[Status] = frozenset({"ok", "oom", "unsupported"})
_MAX_REASON_CHARS = 500


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for; an empty tuple means the profile's own."""

    profile: str = "smoke"
    suites: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    kv_formats: tuple[str, ...] = ()
    think_tokens: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    budget_s: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed {self.seed}: must be between 0 and 2^63 - 1")
        if self.budget_s is not None and not 0 <= self.budget_s < float("inf"):
            raise UserError(f"--budget-s {self.budget_s}: must be a number of seconds, 0 or more")

    @property
    def narrowed(self) -> bool:
        """Whether the profile's own choice was changed by hand."""
        chosen = (self.suites, self.models, self.backends, self.kv_formats)
        return any((*chosen, self.think_tokens, self.batches))


@dataclass(frozen=True, slots=True)
class Job:
    """A cell with the suite that measures it and the guessed seconds."""

    suite: Suite
    plan: CellPlan
    estimate_s: float


@dataclass(frozen=True, slots=True)
class Jobs:
    """All cells of a run, and what this machine leaves out of it with the reasons."""

    jobs: tuple[Job, ...]
    left_out: dict[str, str]


Listener = Callable[[Job, Record], None]


def list_jobs(options: Options, device_kind: str) -> Jobs:
    """The cells of a run in order; raises UserError for unknown names or an empty choice."""
    chosen, table = profile(options.profile), suites()
    for name in options.suites:
        if name not in table:
            raise UserError(f"unknown suite {name!r}: one of {', '.join(table)}")
    active = [s for s in table.values() if not options.suites or s.name in options.suites]
    left_out: dict[str, str] = {}
    jobs: list[Job] = []
    models = tuple(resolve(name) for name in (options.models or chosen.models))
    for suite in active:
        left_out |= suite.missing(device_kind)
        request = _request(suite.name, options, chosen, models, device_kind)
        plans = suite.plans(request)
        if not plans:
            left_out.setdefault(f"suite {suite.name}", "no cell of it fits this choice")
        jobs += [
            Job(suite, plan, suite.estimate_s(plan, chosen.criterion, device_kind))
            for plan in plans
        ]
    # A model or a depth named twice is one cell.
    jobs = list({job.plan.cell.cell_id: job for job in jobs}.values())
    _check_backends(options.backends, jobs)
    if not jobs:
        why = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise UserError(f"no cell matches this choice{f' ({why})' if why else ''}")
    return Jobs(tuple(jobs), left_out)


def execute(
    options: Options,
    device: Device,
    folder: RunFolder,
    command: Sequence[str],
    on_record: Listener = lambda _job, _record: None,
) -> Run:
    """Measure every cell and write the run folder as it goes.

    On KeyboardInterrupt the manifest says `interrupted`, and what was measured stays.
    """
    listed = list_jobs(options, device.ref.kind)
    manifest = _manifest(options, device, folder.path, command, listed)
    folder.write_manifest(manifest)
    records: list[Record] = []
    status: RunStatus = "interrupted"
    try:
        torch.manual_seed(options.seed)
        context = Context(
            device, make_probe(device), profile(options.profile).criterion, options.seed
        )
        started = time.monotonic()
        for job in listed.jobs:
            spent_s = time.monotonic() - started
            record = _record(job, context, manifest.run_id, _over_budget(options, spent_s))
            folder.append(record)
            records.append(record)
            on_record(job, record)
        status = "complete" if all(r.status in _COMPLETE for r in records) else "incomplete"
    finally:
        manifest = replace(manifest, finished_at=provenance.now(), status=status)
        folder.write_manifest(manifest)
    return Run(manifest, tuple(records))


def _request(
    suite: str, options: Options, chosen: Profile, models: tuple[ModelShape, ...], device_kind: str
) -> Request:
    for name in options.kv_formats:
        if kv_format(name).name not in STORAGE_DTYPE:
            raise UserError(
                f"KV format {name} is planned but not measured: one of {', '.join(STORAGE_DTYPE)}"
            )
    for batch in options.batches:
        if batch < 1:
            raise UserError(f"--batch {batch}: must be at least 1")
    for tokens in options.think_tokens:
        if tokens < 1:
            raise UserError(f"--think {tokens}: must be at least 1")
    return Request(
        device_kind=device_kind,
        models=models,
        traces=tuple(Trace(think_tokens=n) for n in options.think_tokens)
        or chosen.traces.get(suite, chosen.traces["decode"]),
        kv_formats=options.kv_formats or chosen.kv_formats,
        backends=options.backends,
        batches=options.batches or chosen.batches,
        layers_timed=chosen.layers_timed,
        explicit_formats=bool(options.kv_formats),
    )


def _check_backends(backends: tuple[str, ...], jobs: Sequence[Job]) -> None:
    used = {job.plan.cell.backend for job in jobs}
    for name in backends:
        if name not in used:
            known = sorted(backend for backend in used if backend)
            raise UserError(
                f"backend {name!r} reads none of the chosen formats and suites"
                + (f"; chosen cells use {', '.join(known)}" if known else "")
            )


def _over_budget(options: Options, spent_s: float) -> str | None:
    if options.budget_s is None or spent_s < options.budget_s:
        return None
    return f"the budget of {options.budget_s:g} s was spent after {spent_s:.0f} s"


def _record(job: Job, context: Context, run_id: str, over_budget: str | None) -> Record:
    started_at = provenance.now()
    if over_budget is not None:
        outcome = Outcome("skipped", job.suite.predict(job.plan), "budget", over_budget)
    else:
        outcome = _measure(job, context)
    cell, shape, device = job.plan.cell, job.plan.shape, context.device.ref
    return Record(
        schema=SCHEMA,
        run_id=run_id,
        cell_id=cell.cell_id,
        series_id=cell.series_id(device.kind, device.name),
        attempt=1,
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
        measured=outcome.measured,
        probe=outcome.probe,
        ratio=outcome.ratio,
        trust=Trust(outcome.status == "ok" and not outcome.flags, outcome.flags),
    )


def _measure(job: Job, context: Context) -> Outcome:
    try:
        return job.suite.measure(job.plan, context)
    except UnsupportedLayout as error:
        return Outcome("unsupported", job.suite.predict(job.plan), "layout", _one_line(error))
    except (torch.OutOfMemoryError, MemoryError) as error:
        return Outcome("oom", job.suite.predict(job.plan), "out_of_memory", _one_line(error))
    except Exception as error:  # one cell must not end the others
        reason = f"{type(error).__name__}: {_one_line(error)}"
        return Outcome("failed", job.suite.predict(job.plan), "exception", reason)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:_MAX_REASON_CHARS]


def _trace(cell: Cell) -> TraceRef:
    return TraceRef(
        cell.prompt_tokens, cell.think_tokens, cell.answer_tokens, cell.depth_tokens, cell.batch
    )


def _manifest(
    options: Options, device: Device, path: Path, command: Sequence[str], listed: Jobs
) -> Manifest:
    revision, dirty = provenance.git_state()
    return Manifest(
        schema=MANIFEST_SCHEMA,
        run_id=path.resolve().name,
        profile=options.profile,
        command=tuple(command),
        seed=options.seed,
        started_at=provenance.now(),
        finished_at=None,
        status="running",
        git_revision=revision,
        git_dirty=dirty,
        device=device.ref,
        machine=device.properties(),
        versions=provenance.versions(),
        left_out=listed.left_out,
        cells=tuple(job.plan.cell.cell_id for job in listed.jobs),
        narrowed=options.narrowed,
    )
