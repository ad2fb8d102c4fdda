"""The commands `audit-log` and `claims`: thin over the API, registered by the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvgauge.errors import ExitCode

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def audit_log(
    file: Annotated[Path, typer.Argument(help="A start-up log.", metavar="FILE")],
    model: Annotated[str, typer.Option(help="As for plan: what the log's engine loaded.")],
    kv_format: Annotated[
        str | None, typer.Option(help="Of the cache, where the log does not state it.")
    ] = None,
    tp: Annotated[int | None, typer.Option(help="Tensor parallel ranks, likewise.")] = None,
    tokens: Annotated[
        list[int] | None, typer.Option(help="Tokens of a cache, likewise; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """An engine's own KV lines, recomputed: llama.cpp, vLLM, SGLang, TensorRT-LLM."""
    from kvgauge import api, display, display_audit

    audit = api.audit_log(file, model, kv_format=kv_format, tp=tp, tokens=tuple(tokens or ()))
    code = ExitCode.REGRESSION if audit.count("disagree") else ExitCode.DONE
    if as_json:
        display.print_json({"exit_code": int(code), **audit.to_json()})
    else:
        display_audit.print_audit(audit)
    if code is not ExitCode.DONE:
        raise typer.Exit(code)


def claims(as_json: AsJson = False) -> None:
    """The textbook's figures against the formula."""
    from kvgauge import api, display, display_audit

    table = api.claims()
    if as_json:
        display.print_json({"claims": [claim.to_json() for claim in table]})
    else:
        display_audit.print_claims(table)
