"""Files and lines: written whole or not at all, honest about what is absent."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kvgauge.errors import UserError
from kvgauge.schema import Run, Trust
from kvgauge.store.atomic import write_atomic
from kvgauge_reports import six_lines, write_html, write_markdown, write_pdf
from kvgauge_reports.text import clean, markdown, number, ratio_of_bytes
from runs_for_tests import GPU, HOSTILE, empty_run, hostile_run, make_run, troubled_run

Writer = Callable[[Sequence[Run], str | Path], Path]
WRITERS: list[Writer] = [write_html, write_pdf, write_markdown]


def test_six_lines_of_a_run() -> None:
    lines = six_lines(troubled_run())
    assert len(lines) == 6
    assert "CPU" in lines[0]
    assert "no GPU was used" in lines[0]
    assert "1 oom" in lines[1]
    assert "327,680 bytes a token" in lines[2]
    assert "faster" in lines[3]
    assert "int8 0.51 of the bytes, takes" in lines[4]
    assert "against fp16 with sdpa-flash" in lines[4]
    assert "tokens/s" in lines[5]
    assert "no GPU" not in six_lines(make_run(GPU))[0]


def test_six_lines_of_nothing() -> None:
    lines = six_lines(empty_run())
    assert len(lines) == 6
    assert all("not measured in this run" in line for line in lines[2:])


def test_what_was_measured_and_flagged_is_not_called_unmeasured() -> None:
    run = make_run()
    records = tuple(replace(r, trust=Trust(False, ("probe_changed",))) for r in run.records)
    lines = six_lines(Run(run.manifest, records))
    assert f"{len(records)} ok but flagged" in lines[1]
    assert all("measured but flagged, so not compared" in x for x in lines[2:])


def test_six_lines_are_six_whatever_the_strings() -> None:
    lines = six_lines(hostile_run())
    assert len(lines) == 6
    assert all(line.isprintable() and len(line) < 600 for line in lines)


@pytest.mark.parametrize("write", WRITERS)
def test_a_missing_package_names_the_extra(
    write: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] in ("jinja2", "matplotlib", "pandas", "typst"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"kvgauge\[report\]"):
        write([make_run()], tmp_path / "report")
    assert list(tmp_path.iterdir()) == []


def test_markdown_summary(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    pytest.importorskip("pandas")
    text = write_markdown([hostile_run()], tmp_path / "s.md").read_text(encoding="utf-8")
    assert "<script" not in text.replace("\\<", "")
    assert "](" not in text
    assert "N" * 400 not in text
    # A `|` in a name must not make a cell: each row has as many as the rule under its head.
    width = 0
    for above, line in pairwise(text.splitlines()):
        if line.startswith("|---"):
            width = cells(line)
            assert cells(above) == width
        elif width and line.startswith("|"):
            assert cells(line) == width
        else:
            width = 0
    text = write_markdown([troubled_run()], tmp_path / "s.md").read_text(encoding="utf-8")
    assert "2.74× faster" in text
    assert "does_not_fit" in text.replace("\\", "")


def cells(row: str) -> int:
    """Cells of a table's row, escaped bars not counted."""
    return row.replace("\\|", "").count("|") - 1


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")
    assert write_atomic(target, b"new") == target
    assert target.read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent" / "r.html", tmp_path / "a\0b"):
        with pytest.raises(UserError) as error:
            write_atomic(path, b"x")
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_rename_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "r.html"
    target.write_text("old")

    def full(self: Path, other: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match="No space left"):
        write_atomic(target, b"new")
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("text", HOSTILE)
def test_clean_is_one_bounded_printable_line(text: str) -> None:
    shown = clean(text, 40)
    assert shown.isprintable()
    assert len(shown) <= 40
    shown.encode()


def test_markdown_escapes_what_renderers_read() -> None:
    assert markdown("a|b <c> [d](e) `f`") == r"a\|b \<c\> \[d\](e) \`f\`"
    assert "://" not in markdown("https://example.invalid").replace("\\://", "")


def test_numbers_as_text() -> None:
    assert number(1234.5) == "1,234"
    assert number(0.012345) == "0.0123"
    assert number(float("nan")) == "–"
    assert ratio_of_bytes(10, 10) == "1"
    assert ratio_of_bytes(10_000_001, 10_000_000) == "1.000000"
