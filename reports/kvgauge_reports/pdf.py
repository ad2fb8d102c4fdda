"""A Document as PDF, set by typst.

The source is a constant file; all strings reach it as JSON and become text, never markup. Typst sees
a temporary folder as its root, no fonts of the system and no package folder with anything in it.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kvgauge.errors import UserError
from kvgauge_reports.document import Document
from kvgauge_reports.extras import report_extra
from kvgauge_reports.html import TEMPLATES


def render_pdf(document: Document) -> bytes:
    """The bytes of the PDF; the same for the same document."""
    with report_extra():
        import typst
    with tempfile.TemporaryDirectory(prefix="kvgauge-pdf-") as name:
        root = Path(name)
        packages = root / "packages"
        packages.mkdir()
        source = root / "report.typ"
        source.write_bytes((TEMPLATES / "report.typ").read_bytes())
        data = json.dumps(_data(document, root), ensure_ascii=False)
        (root / "data.json").write_text(data, encoding="utf-8")
        try:
            pdf = typst.compile(
                str(source),
                root=str(root),
                format="pdf",
                font_paths=[],
                ignore_system_fonts=True,
                package_path=str(packages),
                package_cache_path=str(packages),
                timestamp=0,
            )
        except RuntimeError as error:
            raise UserError(f"typst could not set the PDF: {str(error)[:300]}") from error
    if not isinstance(pdf, bytes):
        raise TypeError("typst gave no single PDF")
    return pdf


def _data(document: Document, root: Path) -> dict[str, Any]:
    """The document with each figure as the name of a file in `root`."""
    data = asdict(document)
    for section in data["sections"]:
        for figure in section["figures"]:
            file = f"{section['key']}-{figure['key']}.svg"
            (root / file).write_text(figure.pop("wide"), encoding="utf-8")
            del figure["narrow"]
            figure["file"] = file
    return data
