"""The command line: thin over the API. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from kvgauge import cli_audit, cli_doctor, cli_kernels, cli_rerun, cli_run, cli_selftest, display
from kvgauge.cli_load import load_run
from kvgauge.cli_options import tokens
from kvgauge.errors import ExitCode, NotComparable, UserError
from kvgauge.store.shield import SIGNALS

app = typer.Typer(
    name="kvgauge",
    help="What a long thinking trace costs in KV-cache memory and decode speed.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
baseline_app = typer.Typer(help="What the gate compares with.", no_args_is_help=True)
app.add_typer(baseline_app, name="baseline")
app.command("audit-log")(cli_audit.audit_log)
app.command("claims")(cli_audit.claims)
app.command("audit-kernels")(cli_kernels.audit_kernels)
app.command("tune-kernels")(cli_kernels.tune_kernels)
app.command("run")(cli_run.run)
app.command("doctor")(cli_doctor.doctor)
app.command("rerun")(cli_rerun.rerun)
app.command("selftest")(cli_selftest.selftest)
_print_json = display.print_json

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
RunDir = Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN_DIR")]
RunDirs = Annotated[list[Path], typer.Argument(help="Run folders.", metavar="RUN_DIR...")]


def _print_version(asked: object) -> None:
    if not asked:
        return
    from importlib import metadata

    try:
        typer.echo(f"kvgauge {metadata.version('kvgauge')}")
    except metadata.PackageNotFoundError:
        typer.echo("kvgauge (a checkout, not installed)")
    raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Say it and exit."),
    ] = False,
) -> None:
    del version  # its callback has said it


@app.command()
def models(as_json: AsJson = False) -> None:
    """The catalogue: shapes known by name."""
    from kvgauge.shapes.catalogue import catalogue

    shapes = catalogue()
    if as_json:
        _print_json({"models": [display.model_facts(shape) for shape in shapes]})
    else:
        display.print_models(shapes)


@app.command()
def plan(
    model: Annotated[
        str, typer.Argument(help="Catalogue name, config.json, its folder, or .gguf.")
    ],
    prompt: Annotated[int, tokens("Prompt tokens.")] = 0,
    think: Annotated[int, tokens("Thinking tokens: 50000, or 8k of 1,024.")] = 0,
    answer: Annotated[int, tokens("Answer tokens.")] = 0,
    batch: Annotated[int, typer.Option(help="Requests at once.")] = 1,
    kv_format: Annotated[
        str,
        typer.Option(help="fp16, fp8_e4m3, int8, int4, q8_0 and so on; int4-g32: groups of 32."),
    ] = "fp16",
    page_size: Annotated[int | None, typer.Option(help="Tokens a page.")] = None,
    tp: Annotated[int, typer.Option(help="Tensor parallel ranks.")] = 1,
    weight_format: Annotated[str, typer.Option(help="What weights are stored in.")] = "bf16",
    engine: Annotated[str, typer.Option(help="Whose conventions: hf, vllm or llama.cpp.")] = "hf",
    gpu: Annotated[str | None, typer.Option(help="A card, such as H100 or A100-80GB.")] = None,
    utilization: Annotated[float, typer.Option(help="Share of the card to fill.")] = 0.9,
    reserve_gb: Annotated[float, typer.Option(help="GB set aside beside weights and cache.")] = 0.0,
    explain: Annotated[bool, typer.Option(help="The arithmetic, and the memory ledger.")] = False,
    fit: Annotated[
        bool, typer.Option(help="The longest trace and most requests it holds.")
    ] = False,
    sweep: Annotated[
        list[str] | None, typer.Option(help="A table over think=1k:128k, batch=1,8,64 and so on.")
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(help="Columns beside it: int8, H200, MODEL, gpu=H200+tp=2; commas between."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What a trace costs, from arithmetic alone."""
    from kvgauge import plan_command, variants

    plan_command.run(
        model,
        {
            "prompt": prompt, "think": think, "answer": answer, "batch": batch,
            "kv_format": kv_format, "page_size": page_size, "tp": tp,
            "weight_format": weight_format, "engine": engine, "gpu": gpu,
            "utilization": utilization, "reserve_bytes": variants.reserve_bytes_of(reserve_gb),
        },
        plan_command.Views(explain, fit, plan_command.only_sweep(sweep or ()), tuple(compare or ())),
        _print_json if as_json else None,
    )  # fmt: skip


@app.command()
def report(
    run_dirs: RunDirs,
    html: Annotated[Path | None, typer.Option(help="Write one HTML file.")] = None,
    pdf: Annotated[Path | None, typer.Option(help="Write a PDF.")] = None,
    md: Annotated[Path | None, typer.Option(help="Write a Markdown summary.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw what a run measured."""
    import kvgauge_reports as reports

    runs = [load_run(folder) for folder in run_dirs]
    if html is None and pdf is None and md is None:
        raise UserError("report: say at least one of --html FILE, --pdf FILE, --md FILE")
    written = {}
    for kind, path, write in (
        ("html", html, reports.write_html),
        ("pdf", pdf, reports.write_pdf),
        ("md", md, reports.write_markdown),
    ):
        if path is not None:
            write(runs, path)
            written[kind] = str(path)
            display.note(f"wrote {path}")
    if as_json:
        _print_json({"written": written})


@app.command()
def summary(run_dir: RunDir, as_json: AsJson = False) -> None:
    """Six lines on a run."""
    import kvgauge_reports as reports

    lines = reports.six_lines(load_run(run_dir))
    if as_json:
        _print_json({"lines": lines})
    else:
        typer.echo("\n".join(lines))


@app.command()
def gate(
    run_dir: RunDir,
    baseline: Annotated[Path, typer.Option(help="A baseline file, or a folder of them.")],
    explain: Annotated[bool, typer.Option(help="Every verdict, not the notable ones.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare with a baseline: bytes exactly, times beyond the noise."""
    from kvgauge import api
    from kvgauge.gate.compare import exit_code

    verdicts = api.compare(load_run(run_dir), baseline)
    code = exit_code(verdicts)
    if as_json:
        _print_json(
            {"exit_code": int(code), "verdicts": [display.verdict_row(v) for v in verdicts]}
        )
    else:
        display.print_verdicts(verdicts, code, explain=explain)
    if code is not ExitCode.DONE:
        raise typer.Exit(code)


@baseline_app.command("make")
def baseline_make(
    run_dirs: RunDirs,
    out: Annotated[Path, typer.Option(help="The file to write.")],
    as_json: AsJson = False,
) -> None:
    """Make a baseline from one run or, better, several."""
    from kvgauge.gate.baseline import make_baseline
    from kvgauge.store.folder import write_json

    made = make_baseline([load_run(folder) for folder in run_dirs])
    write_json(out, made.to_json())
    display.note(f"wrote {out}: {len(made.cells)} cells, {len(made.series)} with times that count")
    if not made.series:
        display.note("no time counts: all were disturbed; this baseline guards bytes alone")
    if len(run_dirs) == 1:
        display.note("one run does not know how far runs differ: give several, of different times")
    if as_json:
        _print_json({"written": str(out), "cells": len(made.cells), "series": len(made.series)})


@baseline_app.command("show")
def baseline_show(
    baseline: Annotated[Path, typer.Argument(help="A baseline file, or a folder of them.")],
    as_json: AsJson = False,
) -> None:
    """What a baseline holds."""
    from kvgauge.gate.baseline import load_baseline

    loaded = load_baseline(baseline)
    if as_json:
        _print_json(loaded.to_json())
    else:
        display.print_baseline(loaded)


def main() -> None:
    """Run the command line and exit with the contract's code."""
    # A terminal that cannot show a character shows another; a stop by the system is an interrupt.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup has it ignored
            signal.signal(number, signal.default_int_handler)
    sys.exit(int(_run_app()))


def _run_app() -> int:
    try:
        result: Any = app(standalone_mode=False)
    except UserError as error:
        return _fail(str(error), ExitCode.USER)
    except NotComparable as error:
        return _fail(str(error), ExitCode.NOT_COMPARABLE)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except BrokenPipeError:
        # The reader of our stdout has gone; nothing is left to say, and Python must not say it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.DONE
    except Exception as error:
        return _internal_or_usage(error)
    if result == ExitCode.INTERRUPTED:  # typer makes this of a KeyboardInterrupt
        return _interrupted()
    return result if isinstance(result, int) else ExitCode.DONE


def _interrupted() -> int:
    for number in SIGNALS:  # all is written: a second Ctrl-C has nothing left to stop
        signal.signal(number, signal.SIG_IGN)
    # Python notes an interrupt inside `exec`, as dataclasses use it, until the next `exec`, and would
    # end `python -m` by a signal instead of with our code.
    exec("")  # noqa: S102
    return _fail(
        "interrupted; what a run has measured is kept, and `run --resume --run-dir DIR` goes on",
        ExitCode.INTERRUPTED,
    )


def _internal_or_usage(error: Exception) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":  # of the click that typer brings
        print(getattr(error, "format_message", str)(), file=sys.stderr)
        return ExitCode.USER
    message = getattr(error, "format_message", None)
    if message is not None:  # the argument parser's own: a wrong option or value
        hint = "" if not str(message()) else f"{message()} (see --help)"
        return _fail(hint, ExitCode.USER) if hint else ExitCode.USER
    if os.environ.get("KVGAUGE_DEBUG"):
        traceback.print_exc()
    return _fail(
        f"internal error: {type(error).__name__}: {error} (KVGAUGE_DEBUG=1 shows where)",
        ExitCode.INTERNAL,
    )


def _fail(message: str, code: ExitCode) -> int:
    with contextlib.suppress(OSError):  # the terminal may have gone
        print(f"kvgauge: {' '.join(message.split())}", file=sys.stderr)
    return code
