"""From runs to a Document: one section a run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from kvgauge.errors import UserError
from kvgauge.schema import Run, Spent
from kvgauge.units import seconds
from kvgauge_reports import answer, tables, words
from kvgauge_reports.anchors import Anchors
from kvgauge_reports.cards import cards
from kvgauge_reports.document import Document, Section
from kvgauge_reports.figures import decode, engine, growth, roofline
from kvgauge_reports.figures.style import Figure
from kvgauge_reports.frame import records_frame
from kvgauge_reports.headline import headline
from kvgauge_reports.headline_types import Headline
from kvgauge_reports.overview import overview_table
from kvgauge_reports.text import NONE, clean, count, percent, plural

_MAX_FACTS = 60


def make_document(runs: Sequence[Run]) -> Document:
    """The report of these runs; raises UserError where there is none."""
    if not runs:
        raise UserError("a report needs at least one run folder")
    several = len(runs) > 1
    silent = words.SILENT
    if any(run.manifest.device.kind == "cpu" for run in runs):
        silent = (*silent, words.CPU_SILENT)
    return Document(
        title="What a long thinking trace costs in KV cache and decode speed",
        sections=tuple(_section(run, n, several=several) for n, run in enumerate(runs, 1)),
        reading=words.READING,
        silent=silent,
    )


def figures(run: Run) -> tuple[Figure, ...]:
    """All figures of a run; none for what it did not measure."""
    frame = records_frame(run)
    drawn = (
        *growth.figures(frame),
        *decode.figures(frame),
        *roofline.figures(frame),
        *engine.figures(frame),
    )
    return tuple(drawn)


def _section(run: Run, number: int, *, several: bool) -> Section:
    head = headline(run)
    key = f"run{number}"
    anchors = Anchors("" if number == 1 else f"{key}-")
    kind = run.manifest.device.kind
    badge = {"cpu": "CPU run", "cuda": "GPU run"}.get(kind, f"{clean(kind, 20)} run")
    name = clean(run.manifest.run_id, 60)
    return Section(
        key=key,
        heading=f"Run {number}: {name}" if several else f"Run {name}",
        badge=badge,
        is_cpu=kind == "cpu",
        summary=_summary(run, head),
        answer=answer.paragraph(run, head),
        cards=cards(run, head),
        overview=overview_table(run, head),
        figures=figures(run),
        tables=(
            tables.attention_table(run, anchors),
            tables.step_table(run, anchors),
            tables.footprint_table(run, anchors),
            tables.left_out_table(run),
            tables.trouble_table(run, anchors),
        ),
        notes=_notes(run),
        provenance=_provenance(run),
    )


def _summary(run: Run, head: Headline) -> tuple[tuple[str, str], ...]:
    manifest, c = run.manifest, head.cells
    return (
        ("device", answer.device_name(run)),
        ("profile", clean(manifest.profile, 30)),
        ("started", clean(manifest.started_at, 30)),
        ("status", manifest.status),
        ("cells that count", f"{count(c.counted)} of {count(c.total)}"),
    )


def _notes(run: Run) -> tuple[str, ...]:
    notes = [clean(remark, 2000) for remark in run.remarks]
    repeated = len(run.records) - len(run.latest())
    if repeated:
        attempts = plural(repeated, "repeated attempt")
        notes.append(
            f"{attempts} of cells: the last one counts, unless it was disturbed and one before it "
            "was measured undisturbed: then that one stands."
        )
    if run.torn_lines:
        notes.append(f"{plural(run.torn_lines, 'torn line')} of records.jsonl could not be read.")
    if run.manifest.status == "running":
        notes.append("The manifest says running: the run is not over, or it ended without a word.")
    elif run.manifest.status != "complete":
        notes.append(f"The run's status is {run.manifest.status}: what is missing is listed below.")
    if run.manifest.git_dirty:
        notes.append("The source tree differed from the revision named under provenance.")
    return tuple(notes)


def _provenance(run: Run) -> tuple[tuple[str, str], ...]:
    m = run.manifest
    revision = clean(m.git_revision, 60)
    if m.git_dirty:
        revision += " with changes"
    facts = [
        ("command", clean(shlex.join(part[:200] for part in m.command[:60]), 400)),
        ("source revision", revision),
        ("seed", clean(m.seed, 30)),
        ("started", clean(m.started_at, 40)),
        ("finished", clean(m.finished_at, 40)),
        ("status", m.status),
        ("device", f"{clean(m.device.kind, 20)} · {clean(m.device.name, 80)}"),
        ("where the time went", _spent(m.spent)),
    ]
    facts += [(f"machine: {clean(k, 40)}", _plain(v)) for k, v in list(m.machine.items())]
    facts += [(f"version: {clean(k, 40)}", clean(v, 60)) for k, v in list(m.versions.items())]
    return tuple(facts[:_MAX_FACTS])


def _spent(spent: Spent | None) -> str:
    parts = {} if spent is None else asdict(spent)
    total_s = sum(parts.values())
    if not 0 < total_s < float("inf"):
        return NONE
    shares = ", ".join(
        f"{name.removesuffix('_s').replace('_', '-')} {percent(part_s / total_s)}"
        for name, part_s in parts.items()
        if part_s
    )
    return f"{seconds(total_s)}: {shares}"


def _plain(value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, str):
        return clean(value, 200)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if abs(value) < 10**18 else clean(value, 40)
    return clean(json.dumps(value, ensure_ascii=False, default=str), 200)
