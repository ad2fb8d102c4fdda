"""From a request to a run folder: each cell measured on the device, one record each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from kvgauge import attempt
from kvgauge.attempt import record_of
from kvgauge.devices.probe import make_probe
from kvgauge.devices.types import Device
from kvgauge.jobs import Job, Jobs, Options, list_jobs
from kvgauge.measure.phases import Phases, total
from kvgauge.schema import MANIFEST_SCHEMA, Manifest, Record, Run, RunStatus, Status
from kvgauge.store import provenance
from kvgauge.store.folder import RunFolder
from kvgauge.suites.profiles import profile
from kvgauge.suites.types import Context, Outcome

# A cell that ends so does not make a run incomplete: it is a finding about this machine.
_COMPLETE: frozenset[Status] = frozenset({"ok", "oom", "unsupported"})

Listener = Callable[[Job, Record], None]
Measure = Callable[[Job, Context], Outcome]


def execute(
    options: Options,
    device: Device,
    folder: RunFolder,
    command: Sequence[str],
    on_record: Listener = lambda _job, _record: None,
    measure: Measure = attempt.measure,
) -> Run:
    """Measure every cell, in this process or as `measure` does, and write the folder as it goes.

    On KeyboardInterrupt the manifest says `interrupted`, and what was measured stays.
    """
    listed = list_jobs(options, device.ref.kind)
    manifest = _manifest(options, device, folder.path, command, listed)
    folder.write_manifest(manifest)
    records: list[Record] = []
    phases = Phases()
    status: RunStatus = "interrupted"
    try:
        torch.manual_seed(options.seed)
        with phases("probe"):
            probe = make_probe(device)
        criterion = profile(options.profile).criterion
        context = Context(device, probe, criterion, options.seed, phases, options.try_oversize)
        started = time.monotonic()
        for job in listed.jobs:
            over_budget = _over_budget(options, time.monotonic() - started)
            started_at = provenance.now()
            if over_budget is not None:
                outcome = Outcome("skipped", job.suite.predict(job.plan), "budget", over_budget)
            else:
                outcome = measure(job, context)
            record = record_of(job, outcome, context, manifest.run_id, started_at)
            folder.append(record)
            records.append(record)
            on_record(job, record)
        status = "complete" if all(r.status in _COMPLETE for r in records) else "incomplete"
    finally:
        manifest = replace(
            manifest,
            finished_at=provenance.now(),
            status=status,
            spent=total([phases.take(), *(r.spent for r in records if r.spent is not None)]),
        )
        folder.write_manifest(manifest)
    return Run(manifest, tuple(records))


def _over_budget(options: Options, spent_s: float) -> str | None:
    if options.budget_s is None or spent_s < options.budget_s:
        return None
    return f"the budget of {options.budget_s:g} s was spent after {spent_s:.0f} s"


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
