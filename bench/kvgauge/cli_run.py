"""The command `run`: thin over the runner, registered by the command line."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvgauge.errors import ExitCode, UserError

if TYPE_CHECKING:
    from kvgauge.devices.types import Device
    from kvgauge.runner import Measure

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def run(
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
    isolate: Annotated[
        bool, typer.Option("--isolate", help="Each cell in a fresh process: a crash is a record.")
    ] = False,
    timeout_s: Annotated[
        float | None, typer.Option(help="With --isolate: seconds a cell may take.")
    ] = None,
    try_oversize: Annotated[
        bool, typer.Option("--try-oversize", help="Try cells that do not fit the memory.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of all random data.")] = 0,
    only_list: Annotated[bool, typer.Option("--list", help="Show the cells and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure: footprint, decode and a real model."""
    from kvgauge import display, jobs, runner
    from kvgauge.devices.select import select_device
    from kvgauge.store.folder import RunFolder

    options = jobs.Options(
        profile=profile, suites=tuple(suite or ()), models=tuple(model or ()),
        backends=tuple(backend or ()), kv_formats=tuple(kv_format or ()),
        think_tokens=tuple(think or ()), batches=tuple(batch or ()),
        budget_s=budget_s, seed=seed, try_oversize=try_oversize,
    )  # fmt: skip
    measure = _isolated(timeout_s) if isolate else _in_process(timeout_s)
    chosen = select_device(device, gpu)
    if require_device is not None and chosen.ref.kind != require_device:
        raise UserError(f"--require-device {require_device}: the device here is {chosen.ref.kind}")
    if try_oversize and chosen.ref.kind == "cpu" and not isolate:
        raise UserError("--try-oversize on a CPU needs --isolate: Linux would kill the run itself")
    listed = jobs.list_jobs(options, chosen.ref.kind)
    if only_list:
        rows = display.job_rows(listed)
        display.print_json(
            {"cells": rows, "left_out": listed.left_out}
        ) if as_json else display.print_jobs(rows, listed.left_out)
        return
    with _held(chosen):
        folder = RunFolder.create(run_dir or _new_run_dir(profile))
        with display.Progress(listed) as progress:
            result = runner.execute(
                options, chosen, folder, ["kvgauge", *sys.argv[1:]], progress.show, measure
            )
    display.print_run(result, folder.path)
    if as_json:
        display.print_json({"run_dir": str(folder.path), "status": result.manifest.status})
    if result.manifest.status != "complete":
        raise typer.Exit(ExitCode.INCOMPLETE)


def _held(device: Device) -> AbstractContextManager[None]:
    """One run at a time has a GPU; a CPU is anyone's."""
    from kvgauge.devices.cuda import CudaDevice

    if not isinstance(device, CudaDevice):
        return nullcontext()
    from kvgauge.devices.lock import gpu_lock

    return gpu_lock(device.uuid)


def _isolated(timeout_s: float | None) -> Measure:
    if sys.platform != "linux":
        raise UserError("--isolate needs Linux")
    if timeout_s is not None and not 0 < timeout_s < float("inf"):
        raise UserError(f"--timeout-s {timeout_s}: must be a number of seconds above 0")
    try:
        from kvgauge.isolate import Workers
    except ModuleNotFoundError as error:
        raise UserError(f"--isolate needs the package {error.name}; install it") from None
    return Workers(timeout_s=timeout_s).measure


def _in_process(timeout_s: float | None) -> Measure:
    from kvgauge import attempt

    if timeout_s is not None:
        raise UserError("--timeout-s needs --isolate: only a worker process can be stopped")
    return attempt.measure


def _new_run_dir(profile: str) -> Path:
    from datetime import UTC, datetime

    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return Path("results") / "runs" / f"{stamp}-{profile}-{os.getpid()}"
