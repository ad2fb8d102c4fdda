"""What a resumed run goes on with: the cells that are left, and whether it is the same run still."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kvgauge.errors import UserError, short
from kvgauge.jobs import Job, Jobs, Options
from kvgauge.schema import DeviceRef, Manifest, Record, Run, Status
from kvgauge.store import provenance
from kvgauge.store.folder import MANIFEST

# A cell that ended so is a finding, and is not measured again; what merely did not come to an end is.
FINAL: frozenset[Status] = frozenset({"ok", "invalid", "oom", "unsupported"})
# A disturbed cell is measured once more, not for ever.
MAX_ATTEMPTS = 2
# May be another one than before: which cells a run has does not depend on it.
_FREE_OPTIONS = frozenset({"budget_s"})


def left(jobs: Sequence[Job], records: Sequence[Record]) -> list[tuple[Job, int]]:
    """The jobs without a final record, each with the number of its next attempt."""
    last = {record.cell_id: record for record in records}
    found = []
    for job in jobs:
        before = last.get(job.plan.cell.cell_id)
        if before is None:
            found.append((job, 1))
        elif before.status not in FINAL:
            found.append((job, before.attempt + 1))
    return found


def disturbed(jobs: Sequence[Job], records: Sequence[Record]) -> list[tuple[Job, int]]:
    """The jobs whose only record is right but disturbed, each with the number of its next attempt."""
    last = {record.cell_id: record for record in records}
    found = []
    for job in jobs:
        record = last.get(job.plan.cell.cell_id)
        if record is not None and record.status == "ok" and not record.trust.ok:
            found.append((job, record.attempt + 1))
    return [(job, number) for job, number in found if number <= MAX_ATTEMPTS]


def going_on(manifest: Manifest) -> Manifest:
    """The manifest of a run that is resumed now."""
    return replace(
        manifest,
        status="running",
        finished_at=None,
        resumes=(*manifest.resumes, provenance.now()),
    )


def load_earlier(path: Path) -> Run:
    """The run to resume; raises UserError as `load_run`."""
    from kvgauge.store.reader import load_run  # msgspec: only where run folders are read

    return load_run(path)


def options_of(manifest: Manifest, path: Path, given: Mapping[str, Any]) -> Options:
    """The run's own options. Those `given` again must be the same; the budget may be another.

    Raises UserError that names the first that differs with both values. A run of kvgauge 0.1.0 does
    not state its options: there `given` says them.
    """
    if not manifest.options:
        return Options(**given)
    from kvgauge.store.reader import convert

    options = convert(manifest.options, Options, f"{path / MANIFEST}: options")
    stated = asdict(options)
    for name, value in given.items():
        if name not in _FREE_OPTIONS:
            _same(path, f"option {name}", stated[name], value)
    return replace(options, **{n: v for n, v in given.items() if n in _FREE_OPTIONS})


def check_same_run(
    earlier: Manifest, path: Path, options: Options, device: DeviceRef, listed: Jobs
) -> None:
    """Whether going on here gives the same run; raises UserError that names what differs."""
    _same(path, "profile", earlier.profile, options.profile)
    _same(path, "seed", earlier.seed, options.seed)
    _same(path, "device", _device(earlier.device), _device(device))
    revision, dirty = provenance.git_state()
    _same(path, "git_revision", earlier.git_revision, revision)
    _same(path, "git_dirty", earlier.git_dirty, dirty)
    here = provenance.versions()
    for package in sorted({*earlier.versions, *here}):
        _same(path, f"version of {package}", earlier.versions.get(package), here.get(package))
    before, now = set(earlier.cells), {job.plan.cell.cell_id for job in listed.jobs}
    if before != now:
        raise UserError(
            f"run folder {path}: cannot resume: it has {len(before)} cells, this choice on this "
            f"machine has {len(now)}, {len(before & now)} of them the same; resume it with the options "
            "and the packages that it was started with, or start a new run"
        )


def _same(path: Path, what: str, before: object, now: object) -> None:
    if before != now:
        raise UserError(
            f"run folder {path}: cannot resume: {what} was {_text(before)}, is {_text(now)} now; "
            "start a new run"
        )


def _device(ref: DeviceRef) -> str:
    return f"{ref.kind} {ref.name}"


def _text(value: object) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(short(item) for item in value) or "the profile's own"
    return "unknown" if value is None else short(value)
