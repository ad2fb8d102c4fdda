"""The command `audit-kernels`: thin over the audit, registered by the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvgauge.errors import ExitCode


def audit_kernels(
    target: Annotated[
        list[str] | None, typer.Option(help="sm_80, sm_90, gfx942 and so on; all by default.")
    ] = None,
    kernel: Annotated[
        list[str] | None, typer.Option(help="Only kernels with this in their name.")
    ] = None,
    limits: Annotated[
        Path | None, typer.Option(help="A file of limits; the committed one by default.")
    ] = None,
    update: Annotated[bool, typer.Option(help="Make the findings the new limits.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """GPU kernels compiled and inspected with no GPU; exit 4 where one is not as it must be."""
    from kvgauge import display, display_kernels
    from kvgauge.kernel_audit import audit_kernels as run

    report = run(
        tuple(target or ()), tuple(kernel or ()), limits,
        update=update, progress=display.progress_line,
    )  # fmt: skip
    display.progress_line("")
    if as_json:
        display.print_json(report.to_json())
    else:
        display_kernels.print_report(report)
    if report.code is not ExitCode.DONE:
        raise typer.Exit(report.code)
