"""The command `run`: thin over the runner, registered by the command line."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvgauge.errors import ExitCode, UserError

if TYPE_CHECKING:
    from kvgauge.devices.types import Device
    from kvgauge.jobs import Jobs, Options
    from kvgauge.schema import Run
    from kvgauge.store.folder import RunFolder

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


# Parameters that say what is measured, by their names in `jobs.Options`.
_FIELDS = {
    "profile": "profile", "suite": "suites", "model": "models", "backend": "backends",
    "kv_format": "kv_formats", "think": "think_tokens", "batch": "batches",
    "budget_s": "budget_s", "seed": "seed",
}  # fmt: skip


def run(
    context: typer.Context,
    profile: Annotated[str, typer.Option(help="smoke, standard or nightly.")] = "smoke",
    suite: Annotated[list[str] | None, typer.Option(help="footprint, decode, model.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="As for plan.")] = None,
    backend: Annotated[list[str] | None, typer.Option(help="As in `--list`.")] = None,
    kv_format: Annotated[list[str] | None, typer.Option(help="As for plan.")] = None,
    think: Annotated[
        list[int] | None, typer.Option(help="Depths instead of the profile's.")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Batches.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    require_device: Annotated[str | None, typer.Option(help="Exit 2 on another kind.")] = None,
    gpu: Annotated[int, typer.Option(help="Index of the GPU.")] = 0,
    budget_s: Annotated[float | None, typer.Option(help="Stop after so many seconds.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Where the run goes.")] = None,
    seed: Annotated[int, typer.Option(help="Of all random data.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Finish the run in --run-dir.")] = False,
    only_list: Annotated[bool, typer.Option("--list", help="Show the cells and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure: footprint, decode and a real model."""
    from kvgauge.jobs import Options, list_jobs
    from kvgauge.store.folder import RunFolder

    asked: dict[str, Any] = {
        "profile": profile, "suites": tuple(suite or ()), "models": tuple(model or ()),
        "backends": tuple(backend or ()), "kv_formats": tuple(kv_format or ()),
        "think_tokens": tuple(think or ()), "batches": tuple(batch or ()),
        "budget_s": budget_s, "seed": seed,
    }  # fmt: skip
    if resume:
        given = {name for name in context.params if _is_given(context, name)}
        again = {field: asked[field] for name, field in _FIELDS.items() if name in given}
        where = (device if "device" in given else None, gpu if "gpu" in given else None)
        _resume(run_dir, again, where, require_device, only_list=only_list, as_json=as_json)
        return
    options = Options(**asked)
    chosen = _device(device, gpu, require_device)
    listed = list_jobs(options, chosen.ref.kind)
    if only_list:
        _list(listed, as_json=as_json)
        return
    with RunFolder.create(run_dir or new_run_dir(profile)) as folder:
        _measure(options, chosen, folder, listed, as_json=as_json)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _resume(
    run_dir: Path | None,
    given: dict[str, Any],
    where: tuple[str | None, int | None],
    require_device: str | None,
    *,
    only_list: bool,
    as_json: bool,
) -> None:
    from kvgauge import display, resume
    from kvgauge.jobs import list_jobs
    from kvgauge.store.folder import RunFolder

    if run_dir is None:
        raise UserError("--resume: say with --run-dir which run")
    with RunFolder.reopen(run_dir) as folder:
        earlier = resume.load_earlier(run_dir)
        options = resume.options_of(earlier.manifest, run_dir, given)
        was = earlier.manifest.device
        kind, gpu = where[0] or was.kind, (was.index or 0) if where[1] is None else where[1]
        chosen = _device(kind, gpu, require_device)
        listed = list_jobs(options, chosen.ref.kind)
        resume.check_same_run(earlier.manifest, run_dir, options, chosen.ref, listed)
        left = tuple(job for job, _attempt in resume.left(listed.jobs, earlier.records))
        if only_list:
            _list(replace(listed, jobs=left), as_json=as_json)
            return
        torn_bytes = folder.repair()
        if torn_bytes:
            display.note(f"{run_dir}: cut off a torn last line of {torn_bytes} bytes")
        if earlier.manifest.status == "complete":
            display.note(f"{run_dir}: the run is complete, nothing is left to measure")
            if as_json:
                display.print_json({"run_dir": str(run_dir), "status": "complete"})
            return
        display.note(f"resuming {run_dir}: {len(left)} of {len(listed.jobs)} cells are left")
        _measure(options, chosen, folder, replace(listed, jobs=left), earlier, as_json=as_json)


def _device(choice: str, gpu: int, require: str | None) -> Device:
    from kvgauge.devices.select import select_device

    chosen = select_device(choice, gpu)
    if require is not None and chosen.ref.kind != require:
        raise UserError(f"--require-device {require}: the device here is {chosen.ref.kind}")
    return chosen


def _list(listed: Jobs, *, as_json: bool) -> None:
    from kvgauge import display

    rows = display.job_rows(listed)
    if as_json:
        display.print_json({"cells": rows, "left_out": listed.left_out})
    else:
        display.print_jobs(rows, listed.left_out)


def _measure(
    options: Options,
    device: Device,
    folder: RunFolder,
    listed: Jobs,
    earlier: Run | None = None,
    *,
    as_json: bool,
) -> None:
    """Measure what is `listed`, to the end of the run."""
    from kvgauge import display, runner

    command = ["kvgauge", *sys.argv[1:]]
    with display.Progress(listed) as progress:
        result = runner.execute(options, device, folder, command, progress.show, earlier)
    display.print_run(result, folder.path)
    if as_json:
        display.print_json({"run_dir": str(folder.path), "status": result.manifest.status})
    if result.manifest.status != "complete":
        raise typer.Exit(ExitCode.INCOMPLETE)


def new_run_dir(name: str) -> Path:
    """Where a run goes that was not told."""
    from datetime import UTC, datetime

    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return Path("results") / "runs" / f"{stamp}-{name}-{os.getpid()}"
