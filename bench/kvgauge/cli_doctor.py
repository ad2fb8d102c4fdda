"""The command `doctor`: thin over the examination, registered by the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvgauge.errors import ExitCode, UserError


def doctor(
    run_dir: Annotated[
        Path | None, typer.Option(help="Where runs are to go; results/runs otherwise.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """What this machine can run, and why not the rest; exit 2 where something must be mended."""
    from kvgauge import display, display_doctor
    from kvgauge.doctor.examine import RUN_DIR, examine

    diagnosis = examine(run_dir or RUN_DIR)
    failures = diagnosis.having("fail")
    code = ExitCode.USER if failures else ExitCode.DONE
    if as_json:
        display.print_json({"exit_code": int(code), **diagnosis.to_json()})
    else:
        display_doctor.print_diagnosis(diagnosis)
    if failures:
        raise UserError(display_doctor.failure_line(failures[0]))
