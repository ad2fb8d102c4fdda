"""What `kvgauge run` does: start a run or go on with one, hold the GPU, and say how it ended."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from kvgauge import attempt, display, display_progress, runner
from kvgauge import resume as resuming
from kvgauge.devices.cuda import CudaDevice
from kvgauge.devices.lock import gpu_lock
from kvgauge.devices.select import select_device
from kvgauge.devices.types import Device
from kvgauge.errors import ExitCode, UserError
from kvgauge.jobs import Jobs, Options, list_jobs
from kvgauge.schema import Run
from kvgauge.store.folder import RunFolder


@dataclass(frozen=True, slots=True)
class Where:
    """The device that was asked for; None where a resumed run may say it."""

    device: str | None
    gpu: int | None
    require: str | None

    def select(self, kind: str = "auto", index: int = 0) -> Device:
        """The device; raises UserError where it is not the kind that is required."""
        chosen = select_device(self.device or kind, index if self.gpu is None else self.gpu)
        if self.require is not None and chosen.ref.kind != self.require:
            raise UserError(
                f"--require-device {self.require}: the device here is {chosen.ref.kind}"
            )
        return chosen


@dataclass(frozen=True, slots=True)
class Manner:
    """How cells are measured and what is printed: nothing of this is part of what a run is."""

    isolate: bool
    timeout_s: float | None
    only_list: bool
    as_json: bool

    def measure(self) -> runner.Measure:
        """In this process or in workers; raises UserError where that cannot be."""
        if not self.isolate:
            if self.timeout_s is not None:
                raise UserError("--timeout-s needs --isolate: only a worker process can be stopped")
            return attempt.measure
        if sys.platform != "linux":
            raise UserError("--isolate needs Linux")
        if self.timeout_s is not None and not 0 < self.timeout_s < float("inf"):
            raise UserError(f"--timeout-s {self.timeout_s}: must be a number of seconds above 0")
        try:
            from kvgauge.isolate import Workers
        except ModuleNotFoundError as error:
            raise UserError(f"--isolate needs the package {error.name}; install it") from None
        return Workers(timeout_s=self.timeout_s).measure

    def check(self, options: Options, device: Device) -> None:
        """Raises UserError where the options would end this process."""
        if options.try_oversize and device.ref.kind == "cpu" and not self.isolate:
            raise UserError(
                "--try-oversize on a CPU needs --isolate: Linux would kill the run itself"
            )


def start(asked: dict[str, Any], where: Where, run_dir: Path | None, manner: Manner) -> None:
    """A new run; raises typer.Exit where it is not complete."""
    options, measure, device = Options(**asked), manner.measure(), where.select()
    manner.check(options, device)
    listed = list_jobs(options, device.ref.kind)
    if manner.only_list:
        _list(listed, as_json=manner.as_json)
        return
    with held(device), RunFolder.create(run_dir or new_run_dir(options.profile)) as folder:
        _measure(options, device, folder, listed, measure, as_json=manner.as_json)


def resume(run_dir: Path | None, given: dict[str, Any], where: Where, manner: Manner) -> None:
    """Go on with the run in that folder; `given` are the options that were said again."""
    if run_dir is None:
        raise UserError("--resume: say with --run-dir which run")
    measure = manner.measure()
    with RunFolder.reopen(run_dir) as folder:
        earlier = resuming.load_earlier(run_dir)
        options = resuming.options_of(earlier.manifest, run_dir, given)
        ref = earlier.manifest.device
        device = where.select(ref.kind, ref.index or 0)
        manner.check(options, device)
        listed = list_jobs(options, device.ref.kind)
        resuming.check_same_run(earlier.manifest, run_dir, options, device.ref, listed)
        left = tuple(job for job, _attempt in resuming.left(listed.jobs, earlier.records))
        if manner.only_list:
            _list(replace(listed, jobs=left), as_json=manner.as_json)
            return
        torn_bytes = folder.repair()
        if torn_bytes:
            display.note(f"{run_dir}: cut off a torn last line of {torn_bytes} bytes")
        if earlier.manifest.status == "complete" and not left:
            display.note(f"{run_dir}: the run is complete, nothing is left to measure")
            if manner.as_json:
                display.print_json({"run_dir": str(run_dir), "status": "complete"})
            return
        display.note(f"resuming {run_dir}: {len(left)} of {len(listed.jobs)} cells are left")
        shown = replace(listed, jobs=left)
        with held(device):
            _measure(options, device, folder, shown, measure, earlier, as_json=manner.as_json)


@contextmanager
def held(device: Device) -> Iterator[None]:
    """One run at a time has a GPU; a CPU is anyone's."""
    if not isinstance(device, CudaDevice):
        yield
        return
    with gpu_lock(device.uuid):
        yield


def new_run_dir(name: str) -> Path:
    """Where a run goes that was not told."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return Path("results") / "runs" / f"{stamp}-{name}-{os.getpid()}"


def _list(listed: Jobs, *, as_json: bool) -> None:
    if as_json:
        display.print_json(
            {
                "cells": display.job_rows(listed),
                "left_out": listed.left_out,
                "unsupported": listed.cannot_run,
            }
        )
    else:
        display.print_jobs(listed)


def _measure(
    options: Options,
    device: Device,
    folder: RunFolder,
    listed: Jobs,
    measure: runner.Measure,
    earlier: Run | None = None,
    *,
    as_json: bool,
) -> None:
    """Measure what is `listed`, to the end of the run."""
    command = ["kvgauge", *sys.argv[1:]]
    with display_progress.Progress(listed) as progress:
        result = runner.execute(options, device, folder, command, progress.show, earlier, measure)
    display.print_run(result, folder.path)
    if as_json:
        display.print_json({"run_dir": str(folder.path), "status": result.manifest.status})
    if result.manifest.status != "complete":
        raise typer.Exit(ExitCode.INCOMPLETE)
