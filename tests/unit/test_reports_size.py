"""A report of tens of thousands of records takes seconds: no step of it looks at every pair."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest

from kvgauge.schema import Record, Run
from kvgauge_reports.anchors import Anchors
from kvgauge_reports.frame import model_names, records_frame
from kvgauge_reports.sections import figures, make_document
from kvgauge_reports.summary import six_lines
from runs_for_tests import make_run

MANY = 20_000


def renamed(run: Run, names: list[tuple[str, str]]) -> Run:
    """`run` with its records over and over, one a name and shape."""

    def one(i: int, name: str, shape: str) -> Record:
        record = run.records[i % len(run.records)]
        model = replace(record.model, name=name, shape_id=shape)
        return replace(record, model=model, cell_id=f"{'c' * 64}{i}")

    records = tuple(one(i, name, shape) for i, (name, shape) in enumerate(names))
    return Run(replace(run.manifest, cells=tuple(r.cell_id for r in records)), records)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:constrained_layout")
def test_twenty_thousand_models_are_summed_up_in_seconds() -> None:
    for names in (
        [(f"model {i}", "shape") for i in range(MANY)],
        [("same", f"the same shape {i}") for i in range(MANY)],
    ):
        run, started = renamed(make_run(), names), time.process_time()
        assert len(six_lines(run)) == 6
        document = make_document([run])
        assert time.process_time() - started < 60  # some 7; looking at every pair takes minutes
        rows = [
            row for table in document.sections[0].tables for g in table.groups for row in g.rows
        ]
        assert len(rows) == len({row.anchor for row in rows}) == MANY


def test_names_and_anchors_that_meet_are_numbered() -> None:
    names = [("a", "s"), ("a #2", "s"), *[("x", f"long shape id {i}") for i in range(3)]]
    shown = list(model_names(renamed(make_run(), names)).values())
    assert shown == ["a", "a #2", *[f"x [long shape …]{n}" for n in ("", " #2", " #3")]]
    late = model_names(renamed(make_run(), [("a #2", "s"), ("a", "s")]))
    assert list(late.values()) == ["a #2", "a #3"]  # a name of its own is not given again
    anchors = Anchors("run2-")
    records = renamed(make_run(), [("a", "s")] * 3).records
    ids = [anchors.of(record) for record in records]
    assert ids == [f"run2-cell-{'c' * 64}{n}" for n in ("", "-2", "-3")]
    assert [anchors.of(record) for record in records] == ids


@pytest.mark.filterwarnings("ignore:constrained_layout")
def test_a_figure_draws_the_first_settings_and_says_how_many_more() -> None:
    run = renamed(make_run(), [(f"model {i}", "shape") for i in range(400)])
    frame = records_frame(run)
    settings = frame[frame["scope"] == "attention"]["panel"].nunique()
    drawn = [f for f in figures(run) if f.key.startswith("decode")]
    hidden = re.search(r"([\d,]+) settings more in the table", drawn[-1].caption)
    assert hidden is not None
    panels = sum(figure.alt.count(" ms at ") for figure in drawn)  # one record, one time a panel
    assert panels + int(hidden[1].replace(",", "")) <= settings
    assert panels == 24
