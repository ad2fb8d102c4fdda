"""Reports of run folders: HTML, PDF and Markdown, from the records alone.

    from kvgauge_reports import write_html
    write_html([run], "report.html")

`six_lines` needs no package beyond kvgauge's own; the others need `kvgauge[report]` and raise
`kvgauge.errors.UserError` where it is missing.
"""

from kvgauge_reports.answer import six_lines
from kvgauge_reports.build import write_html, write_markdown, write_pdf

__all__ = ["six_lines", "write_html", "write_markdown", "write_pdf"]
