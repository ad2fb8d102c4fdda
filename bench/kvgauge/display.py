"""What the commands print for people: tables on stdout, notes and progress on stderr."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kvgauge.errors import ExitCode
from kvgauge.formats import kv_format
from kvgauge.formula.held import marginal_bytes
from kvgauge.shapes.types import ModelShape
from kvgauge.units import binary_bytes, decimal_bytes, seconds

if TYPE_CHECKING:
    from kvgauge.gate.baseline import Baseline
    from kvgauge.jobs import Jobs
    from kvgauge.rerun import Rerun
    from kvgauge.schema import Record, Run, Verdict

# Every one of these is shown; of the others a few.
_LOUD_VERDICTS = frozenset({"slower", "bytes_differ", "missing"})
_SHOWN_OF_A_KIND = 3


_WIDTH_OF_FILES = 160


def out() -> Console:
    """Where data goes."""
    return _console(stderr=False)


def err() -> Console:
    """Where everything else goes."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr)
    if not console.is_terminal:  # a file or a pipe has no width: do not fold tables to 80 columns
        console.width = _WIDTH_OF_FILES
    return console


def print_json(value: dict[str, Any]) -> None:
    """One JSON document on stdout, whole or not at all: a value may be one that JSON cannot hold."""
    text = json.dumps(value, indent=1, allow_nan=False)
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """One line on stderr."""
    err().print(escape(text), soft_wrap=True, highlight=False)


def model_facts(shape: ModelShape) -> dict[str, Any]:
    """A line of the catalogue."""
    return {
        "name": shape.name,
        "attention": shape.attention,
        "layers": len(shape.layers),
        "kv_bytes_per_token_fp16": marginal_bytes(shape, 0, kv_format("fp16")),
        "params_total": shape.params_total,
        "source": shape.source,
    }


def print_models(shapes: Sequence[ModelShape]) -> None:
    """The catalogue as a table."""
    table = Table("model", "attention", "layers", "fp16 bytes a token", "weights", box=None)
    for facts in map(model_facts, shapes):
        params = facts["params_total"]
        table.add_row(
            facts["name"], facts["attention"], str(facts["layers"]),
            f"{facts['kv_bytes_per_token_fp16']:,} ({binary_bytes(facts['kv_bytes_per_token_fp16'])})",
            "unknown" if params is None else f"{params / 1e9:.2f} B",
        )  # fmt: skip
    out().print(table)


def job_rows(jobs: Jobs) -> list[dict[str, Any]]:
    """The cells of a run with their bytes and guessed seconds."""
    return [
        {
            "cell_id": job.plan.cell.cell_id,
            "suite": job.plan.cell.suite,
            "label": job.plan.cell.label(),
            "kv_bytes": job.suite.predict(job.plan).kv_bytes,
            "estimate_s": round(job.estimate_s, 2),
        }
        for job in jobs.jobs
    ]


def print_jobs(jobs: Jobs) -> None:
    """`--list`."""
    table = Table("cell", "what", "KV bytes held", "", "estimated", box=None)
    cannot, total_s = 0, 0.0
    for job, row in zip(jobs.jobs, job_rows(jobs), strict=True):
        runs = job.plan.cell.backend not in jobs.cannot_run
        cannot += not runs
        total_s += row["estimate_s"] if runs else 0.0
        table.add_row(
            row["cell_id"], escape(row["label"]), f"{row['kv_bytes']:,}",
            decimal_bytes(row["kv_bytes"]), seconds(row["estimate_s"]) if runs else "unsupported",
        )  # fmt: skip
    console = out()
    console.print(table, soft_wrap=True)
    of_them = f", {cannot} of them unsupported here" if cannot else ""
    about = f"{total_s / 60:.1f} minutes" if total_s >= 60 else f"{total_s:.0f} s"
    console.print(f"{len(jobs.jobs)} cells{of_them}, about {about}")
    for name, reason in jobs.cannot_run.items():
        console.print(f"unsupported here: {escape(name)}: {escape(reason)}", soft_wrap=True)
    for name, reason in jobs.left_out.items():
        console.print(f"left out: {escape(name)}: {escape(reason)}", soft_wrap=True)


def record_line(label: str, record: Record) -> str:
    """A record in one line."""
    if record.status != "ok":
        return f"{label}: {record.status} ({record.reason_code}: {record.reason})"
    measured = record.measured
    if measured is not None and measured.time_s is not None:
        flags = f", disturbed ({', '.join(record.trust.flags)})" if record.trust.flags else ""
        return f"{label}: {seconds(measured.time_s.median)}{flags}"
    return f"{label}: {decimal_bytes(measured.kv_bytes or 0) if measured else ''}"


def print_run(run: Run, path: Path) -> None:
    """What a run came to, on stderr: stdout may be wanted for JSON."""
    counts = Counter(record.status for record in run.latest())
    text = ", ".join(f"{count} {status}" for status, count in counts.items())
    disturbed = sum(bool(record.trust.flags) for record in run.latest())
    if disturbed:
        text += f"; {disturbed} with a time that was disturbed"
    cells = "1 cell" if counts.total() == 1 else f"{counts.total()} cells"
    note(f"{run.manifest.status}: {cells} ({text}) in {path}")
    if counts.total() and set(counts) == {"unsupported"}:
        note(
            "nothing was measured: no cell can run here; `kvgauge doctor` says what can, and why not"
        )
    elif counts["ok"]:
        note(f"its figures: `kvgauge summary {path}`, `kvgauge report {path} --html report.html`")


def print_rerun(result: Rerun) -> None:
    """The two records side by side."""
    table = Table("", "status", "KV bytes", "median", "95% interval", "device", box=None)
    for name, record in (("before", result.before), ("after", result.after)):
        measured = record.measured
        timing = measured.time_s if measured is not None else None
        held = measured.kv_bytes if measured is not None else None
        table.add_row(
            name,
            record.status if record.reason is None else escape(f"{record.status}: {record.reason}"),
            "none" if held is None else f"{held:,}",
            "none" if timing is None else seconds(timing.median),
            "none" if timing is None else f"{seconds(timing.low)} to {seconds(timing.high)}",
            escape(record.device.name),
        )  # fmt: skip
    console = out()
    console.print(table, soft_wrap=True)
    if result.time_ratio is not None:
        console.print(f"after / before: {result.time_ratio:.3f}", highlight=False)
    for name, record in (("before", result.before), ("after", result.after)):
        if record.trust.flags:
            said = f"no ratio: the time {name} was disturbed ({', '.join(record.trust.flags)})"
            console.print(escape(said), highlight=False)


def verdict_row(verdict: Verdict) -> dict[str, Any]:
    """A verdict as plain JSON values."""
    return {
        "cell_id": verdict.cell_id,
        "label": verdict.label,
        "verdict": verdict.kind,
        "reason": verdict.reason,
        "evidence": verdict.evidence,
    }


def print_verdicts(verdicts: Sequence[Verdict], code: ExitCode, *, explain: bool) -> None:
    """What went wrong, a few of the rest (all with `explain`), and what they come to."""
    console = out()
    shown: Counter[str] = Counter()
    for verdict in verdicts:
        if not explain:
            shown[verdict.kind] += verdict.kind not in _LOUD_VERDICTS
            if verdict.kind == "same" or shown[verdict.kind] > _SHOWN_OF_A_KIND:
                continue
        line = f"{verdict.kind:>14}  {verdict.label}: {verdict.reason}"
        console.print(escape(line), soft_wrap=True, highlight=False)
    for kind, count in shown.items():
        if kind != "same" and count > _SHOWN_OF_A_KIND:
            more = count - _SHOWN_OF_A_KIND
            console.print(f"{kind:>14}  {more} more, see --explain", highlight=False)
    counts = Counter(verdict.kind for verdict in verdicts)
    text = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in counts.items())
    console.print(f"gate: {text or 'no cell'} (exit {int(code)})", highlight=False)


def print_baseline(baseline: Baseline) -> None:
    """What a baseline holds."""
    console = out()
    devices = Counter(series.device for series in baseline.series)
    console.print(f"{len(baseline.cells)} cells from {len(baseline.made_from)} run(s)")
    for device, count in devices.items():
        console.print(escape(f"  {count} timed on {device}"), highlight=False)
