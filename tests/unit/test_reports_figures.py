"""What the figures draw is what the records say."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from kvgauge.schema import Run
from kvgauge_reports.figures import decode, engine, growth, roofline
from kvgauge_reports.frame import model_names, records_frame
from kvgauge_reports.sections import figures
from runs_for_tests import empty_run, hostile_run, make_run, troubled_run

for package in ("pandas", "matplotlib"):
    pytest.importorskip(package)


def test_frame_has_one_row_an_ok_cell() -> None:
    run = troubled_run()
    frame = records_frame(run)
    ok = [r for r in run.latest() if r.status == "ok"]
    assert list(frame["cell_id"]) == [r.cell_id for r in ok]
    assert int((~frame["counted"].astype(bool)).sum()) == 1


def test_growth_draws_measured_and_predicted_bytes() -> None:
    run = make_run()
    pairs = growth.held_and_formula(records_frame(run))
    assert len(pairs) == 6  # fp16 and bf16 hold the same bytes: one line
    for held, formula in pairs:
        mine = sorted(
            (r.trace.depth_tokens, r.measured.kv_bytes, r.predicted.kv_bytes)
            for r in run.records
            if r.scope == "memory" and r.measured
            and r.model.name == held.group and r.cache.format == held.variant.split(" = ")[0]
        )  # fmt: skip
        assert list(held.x) == list(formula.x) == [depth for depth, _, _ in mine]
        assert list(held.y) == [measured for _, measured, _ in mine]
        assert list(formula.y) == [predicted for _, _, predicted in mine]


def test_decode_draws_the_times_with_their_intervals() -> None:
    run = troubled_run()
    panels = decode.panels(records_frame(run))
    assert [p.title.split(" · ")[0] for p in panels] == [
        "made-up-135m", "made-up-8b", "made-up-70b",
    ]  # fmt: skip
    drawn = {
        (panel.title.split(" · ")[0], s.variant, s.group, x): (y, low, high, good)
        for panel in panels
        for s in panel.times
        for x, y, low, high, good in zip(s.x, s.y, s.low, s.high, s.counted, strict=True)
    }
    expected = {
        (r.model.name, r.cache.format, r.backend.name, r.trace.depth_tokens): (
            r.measured.time_s.median, r.measured.time_s.low, r.measured.time_s.high, r.trust.ok,
        )
        for r in run.latest()
        if r.scope == "attention" and r.status == "ok" and r.cache.format in ("fp16", "int8")
        and r.backend and r.measured and r.measured.time_s
    }  # fmt: skip
    assert drawn == expected
    assert sum(not good for *_, good in drawn.values()) == 1


def test_decode_floor_is_the_median_of_the_records_floors() -> None:
    run = make_run()
    panel = decode.panels(records_frame(run))[0]
    floor = next(s for s in panel.floors if s.variant == "fp16")
    mine = sorted(
        r.predicted.floor_s or 0
        for r in run.records
        if r.model.name == "made-up-135m" and r.cache.format == "fp16"
        and r.scope == "attention" and r.trace.depth_tokens == 500
    )  # fmt: skip
    assert floor.x[0] == 500
    assert floor.y[0] == mine[1]


def test_engine_draws_tokens_a_second() -> None:
    run = make_run()
    frame = records_frame(run)
    for series in engine.speed_series(frame):
        mine = {
            r.trace.depth_tokens: r.measured.tokens_per_s
            for r in run.records
            if r.scope == "engine" and r.measured and r.backend
            and r.backend.name == series.variant.split(" ")[1]
        }  # fmt: skip
        assert dict(zip(series.x, series.y, strict=True)) == mine
        assert all(a <= y <= b for a, y, b in zip(series.low, series.y, series.high, strict=True))


def test_svg_is_whole_deterministic_and_loads_nothing() -> None:
    run = hostile_run()
    first, second = figures(run), figures(run)
    assert [f.wide for f in first] == [f.wide for f in second]
    assert {f.key for f in first} == {"growth", "decode", "roofline", "engine"}
    for figure in first:
        assert figure.alt
        assert figure.caption
        for svg in (figure.wide, figure.narrow):
            root = ElementTree.fromstring(svg)
            tags = {element.tag.rpartition("}")[2] for element in root.iter()}
            assert not tags & {"script", "image", "foreignObject", "text"}
            links = [v for e in root.iter() for k, v in e.attrib.items() if k.endswith("href")]
            assert all(link.startswith("#") for link in links)


def test_no_figure_of_what_was_not_measured() -> None:
    assert figures(empty_run()) == ()
    run = make_run()
    memory = Run(run.manifest, tuple(r for r in run.records if r.scope == "memory"))
    assert [figure.key for figure in figures(memory)] == ["growth"]


def test_many_settings_make_several_figures() -> None:
    run = make_run()
    record = next(r for r in run.records if r.scope == "attention")
    copies = tuple(
        replace(record, cell_id=f"c{i}", trace=replace(record.trace, batch=i)) for i in range(1, 31)
    )
    drawn = decode.figures(records_frame(Run(run.manifest, copies)))
    assert [figure.key for figure in drawn] == ["decode", "decode-2", "decode-3", "decode-4"]
    assert "6 settings more in the table" in drawn[-1].caption


def test_names_that_look_alike_stay_apart() -> None:
    run = make_run()
    records = tuple(
        replace(r, model=replace(r.model, name="N" * 99 + r.model.name)) for r in run.records
    )
    assert len(set(model_names(Run(run.manifest, records)).values())) == 3


def test_the_roofline_is_of_the_deepest_counted_attention() -> None:
    run = troubled_run()
    frame = records_frame(run)
    drawn = {
        (s.group, s.variant, x, y)
        for s in roofline.points(frame)
        for x, y in zip(s.x, s.y, strict=True)
    }
    counted = set(frame[frame["counted"].astype(bool)]["cell_id"])
    timed = [r for r in run.latest() if r.cell_id in counted and r.scope == "attention" and r.probe]
    deepest: dict[tuple[str, str, str], int] = {}
    for r in timed:
        key = (r.model.name, r.cache.format, r.backend.name if r.backend else "")
        deepest[key] = max(deepest.get(key, 0), r.trace.depth_tokens)
    expected = {
        (
            r.backend.name,
            r.cache.format,
            r.predicted.flops / r.predicted.moved_bytes,
            r.predicted.flops / r.measured.time_s.median,
        )
        for r in timed
        if r.backend and r.measured and r.measured.time_s
        and r.predicted.flops and r.predicted.moved_bytes
        and deepest[r.model.name, r.cache.format, r.backend.name] == r.trace.depth_tokens
    }  # fmt: skip
    assert expected
    assert drawn == expected
    above = roofline.roof(frame)
    assert above is not None
    reads = sorted(r.probe.read_bytes_per_s for r in timed if r.probe)
    assert reads[0] <= above.read_bytes_per_s <= reads[-1]
    assert above.at(0.001, above.flops_per_s) == pytest.approx(0.001 * above.read_bytes_per_s)
    assert above.at(1e9, above.flops_per_s) == above.flops_per_s
    assert roofline.figures(records_frame(empty_run())) == []
