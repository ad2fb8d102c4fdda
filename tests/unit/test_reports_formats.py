"""Every quantized format stands beside its 16-bit twin, pages beside contiguous caches."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from formats_for_tests import BYTES_PER_TOKEN, DEPTH, TIMES, formats_run
from kvgauge.schema import Cell, Record, Run, Trust
from kvgauge_reports import six_lines, write_markdown
from kvgauge_reports.cards import cards
from kvgauge_reports.document import Table
from kvgauge_reports.figures import decode, looks, roofline
from kvgauge_reports.frame import records_frame
from kvgauge_reports.headline import headline
from kvgauge_reports.overview import overview_table
from kvgauge_reports.sections import make_document
from runs_for_tests import as_trouble, make_run


def overview(run: Run) -> tuple[Table, dict[tuple[bool, str], tuple[str, ...]]]:
    """The table, and its rows by paged and format, each cell with its second line."""
    table = overview_table(run, headline(run))
    rows = {
        ("pages" in group.label, row.cells[0].main): tuple(f"{c.main} {c.sub}" for c in row.cells)
        for group in table.groups
        for row in group.rows
    }
    return table, rows


def test_each_format_is_held_against_sixteen_bits() -> None:
    head = headline(formats_run())
    bytes_over = {(b.quantized.cache.format, b.plain.cache.layout): b for b in head.quantized_bytes}
    for fmt, a_token in BYTES_PER_TOKEN.items():
        if fmt != "fp16":
            assert bytes_over[fmt, "contiguous"].ratio == a_token / 8192
    speed = {(s.fast.cache.format, s.fast.cache.layout): s.ratio for s in head.quantized_time}
    assert speed == pytest.approx(
        {
            ("int8", "contiguous"): 20 / 10,  # by the faster of two backends
            ("int8", "paged"): 22 / 15,  # against pages
            ("int4", "contiguous"): 20 / 20.2,
            ("int2", "contiguous"): 20 / 30,
            ("int2", "paged"): 22 / 33,
            ("fp8_e4m3", "contiguous"): 20 / 16,
        }
    )


def test_a_footprint_goes_before_the_timed_layers_bytes() -> None:
    run, footprints = formats_run(), make_run()
    memory = tuple(r for r in footprints.records if r.scope == "memory")
    both = Run(run.manifest, (*run.records, *memory))
    saved = [b for b in headline(both).quantized_bytes if b.quantized.model.name == "made-up-8b"]
    scopes = {
        (b.quantized.cache.format, b.quantized.cache.layout): b.quantized.scope for b in saved
    }
    assert scopes["int8", "contiguous"] == "memory"
    assert scopes["int8", "paged"] == scopes["int4", "contiguous"] == "attention"


def test_the_fifth_line_names_every_format_and_says_where_one_is_slower() -> None:
    lines = six_lines(formats_run())
    assert len(lines) == 6
    label, text = lines[4].split(maxsplit=1)
    assert label == "quantized"
    assert text == (
        "Beside 16 bits: int8 0.51 of the bytes, 2.0 times as fast; "
        "int4 0.28 of the bytes, no difference in time shown with cpu; "
        "int2 0.16 of the bytes, takes 1.5 times as long with cpu; "
        "fp8_e4m3 0.50 of the bytes, 1.2 times as fast with cpu; "
        "times are those of attention, made-up-8b at 8,192 tokens, cpu-q8 against fp16 with cpu"
    )


def test_a_flagged_time_leaves_its_format_with_a_word_and_no_ratio() -> None:
    run = formats_run()
    flagged = Trust(False, ("drifting",))
    records = tuple(
        replace(r, trust=flagged) if r.cache.format == "int2" else r for r in run.records
    )
    assert "int2" not in six_lines(Run(run.manifest, records))[4]
    card = next(c for c in cards(run, headline(run)) if c.title.startswith("Quantized"))
    assert card.value == "0.500× to 1.50× the time"
    wide = formats_run(half_width=0.6)
    card = next(c for c in cards(wide, headline(wide)) if c.title.startswith("Quantized"))
    assert card.value == "no difference in time shown"


def test_pages_stand_beside_contiguous_caches_of_one_backend() -> None:
    table, rows = overview(formats_run())
    assert table.columns[-1].label == "pages over contiguous, time"
    assert rows[True, "fp16"][-1].startswith("1.10× ")
    assert rows[True, "int8"][-1].startswith("1.20× ")  # cpu's 15 over cpu's 12.5: not cpu-q8's
    assert "cpu, 8,192 tokens" in rows[True, "int8"][-1]
    assert rows[False, "int8"][-1] == "– "
    answer = " ".join(make_document([formats_run()]).sections[0].answer)
    assert (
        "Pages of 16 over a contiguous cache, attention of made-up-8b at 8,192 tokens with cpu: "
        "fp16 takes 1.1 times as long; int8 takes 1.2 times as long; "
        "int2 takes 1.1 times as long." in answer
    )
    plain = {key: ms for key, ms in TIMES.items() if key[2] is None}
    table, rows = overview(formats_run(plain))
    assert "pages" not in " ".join(c.label for c in table.columns)
    assert "Pages of" not in " ".join(make_document([formats_run(plain)]).sections[0].answer)


def test_a_run_without_footprints_has_the_timed_layers_bytes() -> None:
    _, rows = overview(formats_run())
    assert rows[False, "fp16"][1] == "8,192 2 of 32 layers, formula 8,192"
    assert rows[True, "int8"][1] == "4,160 2 of 32 layers, formula 4,160"
    assert rows[False, "int2"][6].endswith("15.6% of fp16 bytes")
    assert rows[False, "int2"][6].startswith("1.50× ")


def test_a_cell_that_did_not_run_names_its_backend() -> None:
    run = formats_run()
    first = run.records[0]
    cell = Cell(
        "decode", "attention", "made-up-8b", "s", "fp16", think_tokens=DEPTH, backend="sdpa"
    )
    bad = as_trouble(first, "unsupported", "not_supported", "head_dim 96")
    bad = replace(bad, backend=None, cell=cell)
    shown = labels_of_trouble(Run(run.manifest, (bad, *run.records[1:])))
    assert shown[0].endswith("8,192 tokens · fp16 · sdpa")
    assert labels_of_trouble(Run(run.manifest, (replace(bad, cell=None),)))[0].endswith("fp16")


def labels_of_trouble(run: Run) -> list[str]:
    tables = {table.key: table for table in make_document([run]).sections[0].tables}
    return [row.cells[0].main for row in tables["excluded"].groups[0].rows]


@pytest.mark.parametrize("ended", ["disturbed", "undisturbed"])
def test_the_note_on_repeats_says_what_counts(ended: str) -> None:
    run = formats_run()
    first = run.records[0]
    trust = Trust(False, ("drifting",)) if ended == "disturbed" else Trust(True)
    again = replace(first, attempt=2, trust=trust)
    twice = Run(run.manifest, (*run.records, again))
    note = make_document([twice]).sections[0].notes[0]
    assert "1 repeated attempt of cells: the last one counts, unless it was disturbed" in note
    assert "then that one stands" in note
    counted: Record = twice.latest()[0]
    assert counted.attempt == (1 if ended == "disturbed" else 2)


def test_markdown_holds_flagged_times_as_indications(tmp_path: Path) -> None:
    text = write_markdown([formats_run(flagged=True)], tmp_path / "s.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if "cpu-q8" in line and "10.00" in line]
    assert rows
    assert "| *int8* |" in rows[0]
    assert "*10.00 (" in rows[0]
    assert "cpu\\_shared" in rows[0]
    assert "Italic: flagged, an indication alone" in text
    text = write_markdown([formats_run()], tmp_path / "s.md").read_text("utf-8")
    assert "10.00 (" in text
    assert "*10.00" not in text


def test_the_chart_has_each_format_by_its_fastest_backend() -> None:
    frame = records_frame(formats_run())
    whole, paged = decode.panels(frame)
    assert [s.label for s in whole.times] == [
        "cpu fp16", "cpu-q8 int8", "cpu int4", "cpu int2", "cpu fp8_e4m3",
    ]  # fmt: skip
    assert [s.label for s in paged.times] == ["cpu fp16", "cpu int8", "cpu int2"]
    assert {f.variant for f in whole.floors} == set(BYTES_PER_TOKEN)
    seen = [decode.look(s, by_format=True) for s in whole.times]
    for (color, marker), (other, sign) in combinations(seen, 2):
        assert color != other
        assert marker != sign  # told apart in grey too
    two = {k: ms for k, ms in TIMES.items() if k[1] in ("fp16", "int8")}
    (one, _) = decode.panels(records_frame(formats_run(two)))
    assert [s.label for s in one.times] == ["cpu fp16", "cpu int8", "cpu-q8 int8"]
    seen = [decode.look(s, by_format=False) for s in one.times[1:]]
    assert seen[0][1] != seen[1][1]


def test_the_caption_calls_intervals_small_where_they_are() -> None:
    (narrow,) = decode.figures(records_frame(formats_run()))
    (wide,) = decode.figures(records_frame(formats_run(half_width=0.4)))
    assert "mostly smaller than the marker" in narrow.caption
    assert "mostly smaller" not in wide.caption
    assert "fastest backend" in narrow.caption


def test_the_roofline_tells_formats_and_pages_apart() -> None:
    drawn = roofline.points(records_frame(formats_run()))
    assert {s.label for s in drawn} >= {"cpu fp16", "cpu fp16, paged", "cpu int2", "cpu-q8 int8"}
    markers = {looks.of_format(fmt)[1] for fmt in BYTES_PER_TOKEN}
    assert len(markers) == len(BYTES_PER_TOKEN)
    (figure,) = roofline.figures(records_frame(formats_run()))
    assert "hollow: pages" in figure.caption
