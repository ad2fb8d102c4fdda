"""The three files of a report: each written whole, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kvgauge.schema import Run
from kvgauge.store.atomic import write_atomic
from kvgauge_reports.html import render_html
from kvgauge_reports.pdf import render_pdf
from kvgauge_reports.sections import make_document
from kvgauge_reports.summary import render_markdown


def write_html(runs: Sequence[Run], path: str | Path) -> Path:
    """One self-contained HTML file. Raises UserError for a missing package or an unwritable path."""
    return write_atomic(path, render_html(make_document(runs)).encode())


def write_pdf(runs: Sequence[Run], path: str | Path) -> Path:
    """The same report as PDF, A4."""
    return write_atomic(path, render_pdf(make_document(runs)))


def write_markdown(runs: Sequence[Run], path: str | Path) -> Path:
    """A summary in Markdown: the answer, the headline by model, every time, what does not count."""
    return write_atomic(path, render_markdown(make_document(runs)).encode())
