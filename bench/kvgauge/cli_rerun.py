"""The command `rerun`: thin over `kvgauge.rerun`, registered by the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kvgauge.errors import ExitCode


def rerun(
    run_dir: Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN_DIR")],
    cell: Annotated[str, typer.Argument(help="A cell's id, or 4 or more characters of it.")],
    new_run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="Where the new run goes.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu or cuda; else the record's kind.")
    ] = None,
    gpu: Annotated[int, typer.Option(help="Index of the GPU.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Measure one cell again from its record alone, and set both side by side."""
    from kvgauge import display, rerun
    from kvgauge.cli_load import load_run
    from kvgauge.devices.select import select_device
    from kvgauge.run_command import held
    from kvgauge.run_command import new_run_dir as default_run_dir
    from kvgauge.store.folder import RunFolder

    record = rerun.record_named(load_run(run_dir), cell)
    chosen = select_device(device or record.device.kind, gpu)
    rerun.job_of(record, chosen)  # what cannot be measured makes no folder
    with held(chosen), RunFolder.create(new_run_dir or default_run_dir("rerun")) as folder:
        result = rerun.rerun(record, chosen, folder, ["kvgauge", *sys.argv[1:]])
    if as_json:
        display.print_json({**result.to_json(), "run_dir": str(folder.path)})
    else:
        display.print_rerun(result)
    display.note(f"{result.after.status}: 1 cell in {folder.path}")
    if not result.comparable:
        display.note("on another device: the bytes compare, the times do not")
        raise typer.Exit(ExitCode.NOT_COMPARABLE)
    if result.after.status not in ("ok", "oom", "unsupported"):
        raise typer.Exit(ExitCode.INCOMPLETE)
