"""The command `selftest`: thin over the self-test, registered by the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvgauge.errors import ExitCode, UserError


def selftest(
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    gpu: Annotated[int, typer.Option(help="Index of the GPU.")] = 0,
    out: Annotated[Path, typer.Option(help="The bundle to write.")] = Path("selftest.json"),
    budget_s: Annotated[float, typer.Option(help="Seconds for the measuring.")] = 240.0,
    run_dir: Annotated[Path | None, typer.Option(help="Where the run goes.")] = None,
    seed: Annotated[int, typer.Option(help="Of all random data.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Is every kernel right here, and how fast; a few minutes, and a file to send back.

    On a GPU four shapes at depths to 65,536 and batch 1 and 16; on a CPU two, to 4,096, batch 1 and 2.
    """
    import sys

    from kvgauge import display, display_progress, display_selftest, run_command
    from kvgauge.devices.select import select_device
    from kvgauge.selftest.command import options_for
    from kvgauge.selftest.command import selftest as run

    if not out.parent.is_dir():
        raise UserError(f"selftest: no folder {out.parent} to write {out.name} into")
    if out.is_dir():
        raise UserError(f"selftest: --out {out} is a folder: it must be a file")
    chosen = select_device(device, gpu)
    options = options_for(chosen.ref.kind, budget_s, seed)
    folder = run_dir or run_command.new_run_dir("selftest")
    with run_command.held(chosen):
        outcome = run(
            chosen, options, folder, out, ["kvgauge", *sys.argv[1:]], display_progress.progress_line
        )
    display_progress.progress_line("")
    if as_json:
        display.print_json(
            {
                "exit_code": int(outcome.code), "bundle": str(out), "run_dir": str(folder),
                "left_out": outcome.left_out,
                "checks": [check.to_json() for check in outcome.checks],
                "shares": [{"point": point, **row} for point, row in outcome.shares()],
                "disturbed": sorted(outcome.disturbed()),
            }
        )  # fmt: skip
    else:
        display_selftest.print_outcome(outcome)
    display.note(
        f"wrote {out}; `kvgauge report {out} --html selftest.html` draws it; the run is in {folder}"
    )
    if outcome.code is not ExitCode.DONE:
        raise typer.Exit(outcome.code)
