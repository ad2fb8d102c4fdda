"""The PDF: it is set whatever the strings are, and its text can be read."""

from __future__ import annotations

import io

import pytest

from kvgauge.schema import Run
from kvgauge_reports.pdf import render_pdf
from kvgauge_reports.sections import make_document
from runs_for_tests import empty_run, hostile_run, troubled_run

pypdf = pytest.importorskip("pypdf")
for package in ("typst", "matplotlib", "pandas"):
    pytest.importorskip(package)


def text_of(data: bytes) -> str:
    reader = pypdf.PdfReader(io.BytesIO(data))
    text = " ".join(page.extract_text() for page in reader.pages)
    return " ".join(text.replace("\u200b", "").split())


def pdf_of(run: Run) -> bytes:
    return render_pdf(make_document([run]))


def test_text_numbers_and_figures_are_there() -> None:
    data = pdf_of(troubled_run())
    reader = pypdf.PdfReader(io.BytesIO(data))
    width, height = (float(n) for n in reader.pages[0].mediabox[2:])
    assert (round(width), round(height)) == (595, 842)  # A4 in points
    assert reader.metadata.title.startswith("What a long thinking trace costs")
    text = text_of(data)
    for part in ("CPU run", "327,680 bytes", "2,684,354,560", "wide_interval", "How to read this"):
        assert part in text
    assert f"1 / {len(reader.pages)}" in text


def test_hostile_strings_are_text() -> None:
    text = text_of(pdf_of(hostile_run()))
    assert "<script>alert(1)</script>" in text
    assert '#read("/etc/passwd")' in text
    assert "$x^2$" in text
    assert "root:" not in text
    assert "N" * 400 not in text


def test_same_run_same_bytes_and_an_empty_run_is_set() -> None:
    data = pdf_of(empty_run())
    assert data == pdf_of(empty_run())
    assert "No figure can be given" in text_of(data)
