"""Cells that run out of memory, hang or crash in their workers; a scenario of `campaigns.faults`.

The run goes on past each of them; resumed with backends that are mended it measures again what did not
come to an end, and keeps every record that there was.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import faulty_backends
from kvgauge import jobs, runner
from kvgauge.devices.cpu import CpuDevice
from kvgauge.isolate import Workers
from kvgauge.resume import FINAL
from kvgauge.schema import Run
from kvgauge.store.folder import RunFolder
from kvgauge.store.reader import load_run
from kvgauge_kernels import BACKENDS

# A fault between two healthy cells, and how its record must end.
FAULTS = {
    "exhaust-torch": "oom", "exhaust-python": "oom", "sigkill": "crashed", "segfault": "crashed",
    "abort": "crashed", "exit-silently": "crashed", "hang": "timeout", "raise": "failed",
}  # fmt: skip
OPTIONS = jobs.Options(
    suites=("decode",), models=("smollm2-135m",), kv_formats=("fp16",), think_tokens=(64,),
    backends=("eager", *FAULTS, "sdpa-flash"),
)  # fmt: skip
TIMEOUT_S = 20.0


def broken_then_mended(folder: Path) -> tuple[Counter[str], Counter[str]]:
    """What each fault came to, and what must not have been."""
    faults: Counter[str] = Counter()
    BACKENDS.update(faulty_backends.faulty_backends())
    os.environ[faulty_backends.PIDS] = str(folder.with_suffix(".pids"))
    script = str(Path(faulty_backends.__file__))
    with RunFolder.create(folder) as made:
        broken = _run(made, (sys.executable, script))
    kept = _lines(folder)
    ended = {r.backend.name if r.backend else _name(r.cell_id): r.status for r in broken.records}
    for name, status in {"eager": "ok", **FAULTS, "sdpa-flash": "ok"}.items():
        faults[f"{name} ended as {ended.get(name)}"] += ended.get(name) != status
    with RunFolder.reopen(folder) as again:
        mended = _run(again, (sys.executable, script, "mended"), load_run(folder))
    faults["a record was lost or changed"] += _lines(folder)[: len(kept)] != kept
    attempts = Counter((r.cell_id, r.attempt) for r in mended.records)
    faults["a record is there twice"] += max(attempts.values()) > 1
    faults["a final cell was measured again"] += any(
        r.attempt > 1 and _first(mended, r.cell_id) in FINAL and _trusted(mended, r.cell_id)
        for r in mended.records
    )
    faults["not all cells ended"] += any(r.status not in FINAL for r in mended.latest())
    came = Counter({f"{name}: {ended.get(name)}": 1 for name in FAULTS})
    came["resumed, mended: ok"] = sum(r.status == "ok" for r in mended.latest())
    return came, +faults


def _run(folder: RunFolder, command: tuple[str, ...], earlier: Run | None = None) -> Run:
    measure = Workers(command=command, timeout_s=TIMEOUT_S).measure
    return runner.execute(
        OPTIONS, CpuDevice(), folder, ["campaigns.faults"], earlier=earlier, measure=measure
    )


def _lines(folder: Path) -> Sequence[bytes]:
    return (folder / "records.jsonl").read_bytes().splitlines()


def _name(cell_id: str) -> str | None:
    listed = jobs.list_jobs(OPTIONS, "cpu").jobs
    return next(job.plan.cell.backend for job in listed if job.plan.cell.cell_id == cell_id)


def _first(run: Run, cell_id: str) -> str:
    return next(r.status for r in run.records if r.cell_id == cell_id)


def _trusted(run: Run, cell_id: str) -> bool:
    return next(r.trust.ok or r.status != "ok" for r in run.records if r.cell_id == cell_id)
