"""The command `audit-kernels`: thin over the audit, registered by the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvgauge.errors import ExitCode, UserError


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
    from kvgauge import display, display_kernels, display_progress
    from kvgauge.kernel_audit import audit_kernels as run

    report = run(
        tuple(target or ()), tuple(kernel or ()), limits,
        update=update, progress=display_progress.progress_line,
    )  # fmt: skip
    display_progress.progress_line("")
    if as_json:
        display.print_json(report.to_json())
    else:
        display_kernels.print_report(report)
    if report.code is not ExitCode.DONE:
        raise typer.Exit(report.code)


def tune_kernels(
    kv_format: Annotated[
        list[str] | None, typer.Option(help="Formats to tune for; bf16, int8, int4 by default.")
    ] = None,
    head_dim: Annotated[list[int] | None, typer.Option(help="128 by default.")] = None,
    gpu: Annotated[int, typer.Option(help="Index of the GPU.")] = 0,
    seed: Annotated[int, typer.Option(help="Of all random data.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Time audited configurations of the triton kernels on this GPU and keep the best ones."""
    from kvgauge import display, display_progress, run_command, tune
    from kvgauge.devices import cuda_calls
    from kvgauge.devices.nvml import gpu_count
    from kvgauge.devices.select import select_device

    if not cuda_calls.is_available() and not gpu_count():
        raise UserError("tune-kernels times the triton kernels on a CUDA GPU: there is none here")
    device = select_device("cuda", gpu)
    with run_command.held(device):
        report = tune.tune(
            device, tuple(kv_format or tune.FORMATS), tuple(head_dim or (128,)), seed,
            progress=display_progress.progress_line,
        )  # fmt: skip
    display_progress.progress_line("")
    if as_json:
        display.print_json(report.to_json())
    else:
        for line in report.lines():
            display.note(line)
