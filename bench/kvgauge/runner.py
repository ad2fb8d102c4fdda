"""From a request to a run folder: each cell measured on the device, one record each."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kvgauge import attempt
from kvgauge.attempt import record_of
from kvgauge.devices.probe import make_probe
from kvgauge.devices.types import Device
from kvgauge.errors import UserError
from kvgauge.jobs import Job, Jobs, Options, list_jobs
from kvgauge.measure.phases import Phases, total
from kvgauge.resume import disturbed, going_on, left
from kvgauge.schema import (
    MANIFEST_SCHEMA,
    Criterion,
    Manifest,
    Record,
    Run,
    RunStatus,
    Spent,
    Status,
)
from kvgauge.store import provenance
from kvgauge.store.folder import RunFolder
from kvgauge.suites.profiles import profile
from kvgauge.suites.types import Context, Outcome

# A cell that ends so does not make a run incomplete: it is a finding about this machine.
_COMPLETE: frozenset[Status] = frozenset({"ok", "oom", "unsupported"})

# Cells that were disturbed are measured once more while that takes no more than this share of the run.
_REPEAT_SHARE = 0.2

Listener = Callable[[Job, Record], None]
Measure = Callable[[Job, Context], Outcome]


@dataclass(frozen=True, slots=True)
class Settings:
    """How the cells of a run are measured, whichever they are."""

    criterion: Criterion
    budget_s: float | None = None
    try_oversize: bool = False


def execute(
    options: Options,
    device: Device,
    folder: RunFolder,
    command: Sequence[str],
    on_record: Listener = lambda _job, _record: None,
    earlier: Run | None = None,
    measure: Measure = attempt.measure,
) -> Run:
    """Measure every cell and write the run folder as it goes; `earlier` is the run to go on with.

    A cell is measured in this process, or as `measure` does it.

    On KeyboardInterrupt the manifest says `interrupted`, and what was measured stays. Raises UserError
    where the folder cannot be written; the records before that stay.
    """
    listed = list_jobs(options, device.ref.kind)
    if earlier is None:
        manifest = new_manifest(options.profile, options.seed, device, folder.path, command, listed)
        manifest = replace(manifest, narrowed=options.narrowed, options=options.to_json())
        run = Run(manifest, ())
    else:
        run = replace(earlier, manifest=going_on(earlier.manifest), torn_lines=0)
    criterion = profile(options.profile).criterion
    settings = Settings(criterion, options.budget_s, options.try_oversize)
    return go_on(run, listed.jobs, settings, device, folder, on_record, measure)


def go_on(
    run: Run,
    jobs: Sequence[Job],
    settings: Settings,
    device: Device,
    folder: RunFolder,
    on_record: Listener = lambda _job, _record: None,
    measure: Measure = attempt.measure,
) -> Run:
    """Measure the jobs that have no final record in `run`, then those that were disturbed once more.

    Its manifest is on disk before the first cell, and says at the end what became of the run.
    """
    records, phases, opening = list(run.records), Phases(), Spent()
    try:
        folder.write_manifest(replace(run.manifest, spent=None))
        torch.manual_seed(run.manifest.seed)
        with phases("probe"):
            probe = make_probe(device)
        opening = phases.take()
        context = Context(
            device,
            probe,
            settings.criterion,
            run.manifest.seed,
            phases,
            settings.try_oversize,
        )
        started = time.monotonic()

        def attempt_at(job: Job, number: int) -> None:
            over_budget = _over_budget(settings.budget_s, time.monotonic() - started)
            started_at = provenance.now()
            if over_budget is not None:
                outcome = Outcome("skipped", job.suite.predict(job.plan), "budget", over_budget)
            else:
                outcome = measure(job, context)
            record = record_of(job, outcome, context, run.manifest.run_id, started_at, number)
            folder.append(record)
            records.append(record)
            on_record(job, record)

        for job, number in left(jobs, run.records):
            attempt_at(job, number)
        once_s = time.monotonic() - started
        for job, number in disturbed(jobs, records):
            spent_s = time.monotonic() - started
            late = _over_budget(settings.budget_s, spent_s) is not None
            if late or spent_s > (1 + _REPEAT_SHARE) * once_s:
                break
            attempt_at(job, number)
        ended = _ended(run, records, [opening, phases.take()], _status(run.manifest, records))
        folder.write_manifest(ended.manifest)
    except BaseException:
        # A full disk may be what stopped us: then the manifest of the start stays.
        with contextlib.suppress(UserError):
            own = [opening, phases.take()]
            folder.write_manifest(_ended(run, records, own, "interrupted").manifest)
        raise
    return ended


def _status(manifest: Manifest, records: Sequence[Record]) -> RunStatus:
    latest = Run(manifest, tuple(records)).latest()
    return "complete" if all(r.status in _COMPLETE for r in latest) else "incomplete"


def _ended(run: Run, records: Sequence[Record], between: Sequence[Spent], status: RunStatus) -> Run:
    """The run with all records; what it spent is what it had, or its records where it was killed."""
    own = [r.spent for r in records if r.spent is not None]
    before = run.manifest.spent
    if before is not None:
        own = [before, *own[len([r for r in run.records if r.spent is not None]) :]]
    manifest = replace(
        run.manifest,
        finished_at=provenance.now(),
        status=status,
        spent=total([*between, *own]),
    )
    return Run(manifest, tuple(records))


def _over_budget(budget_s: float | None, spent_s: float) -> str | None:
    if budget_s is None or spent_s < budget_s:
        return None
    return f"the budget of {budget_s:g} s was spent after {spent_s:.0f} s"


def new_manifest(
    profile_name: str,
    seed: int,
    device: Device,
    path: Path,
    command: Sequence[str],
    listed: Jobs,
) -> Manifest:
    """The manifest of a run that starts now with these cells."""
    revision, dirty = provenance.git_state()
    return Manifest(
        schema=MANIFEST_SCHEMA,
        run_id=path.resolve().name,
        profile=profile_name,
        command=tuple(command),
        seed=seed,
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
    )
