"""A Document as one HTML file that needs nothing else: no network, no script, no font."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from kvgauge_reports.document import Document
from kvgauge_reports.extras import report_extra

TEMPLATES = Path(__file__).parent / "templates"


def render_html(document: Document) -> str:
    """The page. Every string is escaped by autoescape; the style sheet is allowed by its hash."""
    with report_extra():
        import jinja2
        import markupsafe
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page = environment.get_template("report.html.j2")
    return page.render(
        document=document,
        # The style sheet is a file of ours: the one string that goes in as it is.
        css=markupsafe.Markup(css),  # noqa: S704
        css_hash=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
        data_uri=_data_uri,
    )


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
