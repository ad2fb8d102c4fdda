"""A Document as a Markdown summary, and the six lines at the end of a run."""

from __future__ import annotations

from typing import Any

from kvgauge_reports.answer import six_lines
from kvgauge_reports.document import Document
from kvgauge_reports.extras import report_extra
from kvgauge_reports.html import TEMPLATES
from kvgauge_reports.text import markdown

__all__ = ["render_markdown", "six_lines"]


def render_markdown(document: Document) -> str:
    """The answer, the cards, the headline, every time, what does not count. Every string is escaped."""
    with report_extra():
        import jinja2
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=False,  # noqa: S701 - not HTML: `finalize` escapes every value for Markdown
        finalize=_escaped,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("summary.md.j2").render(document=document)


def _escaped(value: Any) -> Any:
    return markdown(value) if isinstance(value, str) else value
