"""The first screen's figures, computed again from the lines of records.jsonl by other code."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kvgauge.schema import DeviceRef, Probe, Record, Run, Trust
from kvgauge_reports.answer import paragraph
from kvgauge_reports.headline import headline
from kvgauge_reports.headline_types import Speedup
from kvgauge_reports.overview import overview_table
from runs_for_tests import GPU, empty_run, make_run, troubled_run

Line = dict[str, Any]


def counted(run: Run) -> list[Line]:
    """The run's lines as a reader of the file would see them: the last of each cell, if it counts."""
    lines = [json.loads(json.dumps(record.to_json())) for record in run.records]
    last = {line["cell_id"]: line for line in lines}
    return [line for line in last.values() if line["status"] == "ok" and line["trust"]["ok"]]


def times(lines: list[Line], model: str, fmt: str) -> dict[int, dict[str, float]]:
    """depth -> backend -> median of one model and format."""
    found: dict[int, dict[str, float]] = {}
    for line in lines:
        if (line["scope"], line["model"]["name"], line["cache"]["format"]) != (
            "attention", model, fmt,
        ):  # fmt: skip
            continue
        at = found.setdefault(line["trace"]["depth_tokens"], {})
        at[line["backend"]["name"]] = line["measured"]["time_s"]["median"]
    return found


@pytest.fixture(params=["whole", "troubled", "gpu"])
def run(request: pytest.FixtureRequest) -> Run:
    if request.param == "whole":
        return make_run()
    return troubled_run() if request.param == "troubled" else make_run(GPU, seed=7)


def test_bytes_per_token(run: Run) -> None:
    expected: dict[tuple[str, str], tuple[int, float]] = {}
    for line in counted(run):
        if line["scope"] == "memory":
            key = (line["model"]["name"], line["cache"]["format"])
            depth = line["trace"]["depth_tokens"]
            if depth >= expected.get(key, (0, 0.0))[0]:
                expected[key] = (depth, line["measured"]["kv_bytes"] / depth)
    found = headline(run).bytes_per_token
    assert {(f.record.model.name, f.record.cache.format): f.measured for f in found} == {
        key: value for key, (_, value) in expected.items()
    }
    assert expected["made-up-70b", "fp16"][1] == 327_680


def test_footprint(run: Run) -> None:
    memory = [line for line in counted(run) if line["scope"] == "memory"]
    largest = max(line["measured"]["kv_bytes"] for line in memory)
    found = headline(run).footprint
    assert found is not None
    assert found.measured_bytes == largest == found.formula_bytes
    assert found.ratio == 1
    assert (found.exact, found.counted) == (len(memory), len(memory))


def test_fused_over_eager_at_the_deepest_common_depth(run: Run) -> None:
    lines = counted(run)
    found = {(s.fast.model.name, s.fast.cache.format): s for s in headline(run).fused}
    assert len(found) == 6
    for (model, fmt), speedup in found.items():
        depths = times(lines, model, fmt)
        depth = max(d for d, at in depths.items() if {"eager", "sdpa-flash"} <= at.keys())
        assert speedup.fast.trace.depth_tokens == depth
        assert speedup.ratio == depths[depth]["eager"] / depths[depth]["sdpa-flash"]
        assert speedup.low <= speedup.ratio <= speedup.high
        assert speedup.verdict == "faster"


@pytest.mark.parametrize(("by", "fastest"), [(0.5, "cpu"), (2.0, "sdpa-flash")])
def test_the_fastest_fused_backend_speaks(by: float, fastest: str) -> None:
    run = make_run()
    also = []
    for r in run.records:
        if r.backend and r.backend.name == "sdpa-flash" and r.measured and r.measured.time_s:
            time_s = r.measured.time_s
            scaled = replace(
                time_s, median=time_s.median * by, low=time_s.low * by, high=time_s.high * by
            )
            also.append(
                replace(
                    r,
                    cell_id=r.cell_id[::-1],
                    backend=replace(r.backend, name="cpu"),
                    measured=replace(r.measured, time_s=scaled),
                )
            )
    assert also
    found = headline(Run(run.manifest, (*run.records, *also))).fused
    assert {s.fast.backend.name for s in found if s.fast.backend} == {fastest}


def test_int8_against_the_fastest_of_16_bits(run: Run) -> None:
    lines, head = counted(run), headline(run)
    assert len(head.quantized_time) == 3
    for speedup in head.quantized_time:
        model = speedup.fast.model.name
        fp16, bf16, quantized = (times(lines, model, f) for f in ("fp16", "bf16", "int8"))
        depth = max(fp16.keys() & bf16.keys() & quantized.keys())
        plain = min(*fp16[depth].values(), *bf16[depth].values())
        expected = plain / min(quantized[depth].values())
        assert speedup.ratio == expected < 1
        assert speedup.verdict == "slower"
    for saved in head.quantized_bytes:
        heads_dim = {"made-up-135m": 64}.get(saved.plain.model.name, 128)
        assert saved.ratio == pytest.approx((heads_dim + 2) / (2 * heads_dim))


def test_best_backend_and_its_floor(run: Run) -> None:
    lines = counted(run)
    for best in headline(run).best:
        record = best.record
        depths = times(lines, record.model.name, record.cache.format)
        depth, time = max(depths), record.measured and record.measured.time_s
        assert time
        assert best.floor_ratio
        assert time.median == min(depths[depth].values())
        assert best.floor_ratio == pytest.approx(time.median / (record.predicted.floor_s or 0))
        assert best.bandwidth_ratio == pytest.approx(1 / best.floor_ratio)


def test_real_model_at_its_first_and_deepest_depth(run: Run) -> None:
    engine = [line for line in counted(run) if line["scope"] == "engine"]
    steps = headline(run).steps
    assert len(steps) == 2
    for step in steps:
        name = step.first.backend and step.first.backend.name
        mine = {
            line["trace"]["depth_tokens"]: line
            for line in engine
            if line["backend"]["name"] == name
        }
        assert step.first_tokens_per_s == mine[min(mine)]["measured"]["tokens_per_s"]
        assert step.deepest_tokens_per_s == mine[max(mine)]["measured"]["tokens_per_s"]
        assert step.bytes_per_token == mine[max(mine)]["measured"]["kv_bytes"] / max(mine)


def test_cells_of_a_troubled_run() -> None:
    run = troubled_run()
    cells = headline(run).cells
    lines = counted(run)
    assert cells.counted == len(lines)
    assert cells.ok == len(lines) + 1  # the flagged one
    assert cells.unreached == 1
    assert cells.total == len({r.cell_id for r in run.records}) + 1
    assert cells.by_status["oom"] == 1


def test_nothing_measured_gives_nothing() -> None:
    head = headline(empty_run())
    assert head.footprint is None
    empty = (head.bytes_per_token, head.fused, head.quantized_bytes, head.quantized_time)
    assert not any((*empty, head.best, head.steps))
    assert head.cells.counted == 0


def test_a_flagged_or_foreign_record_is_in_no_comparison() -> None:
    run = make_run()
    for change, flagged in (
        ({"trust": Trust(False, ("wide_interval",))}, True),
        ({"device": DeviceRef("cpu", "another machine", None)}, False),
    ):
        records = tuple(
            replace(r, **change) if r.backend and r.backend.name == "sdpa-flash" else r
            for r in run.records
        )
        head = headline(Run(run.manifest, records))
        assert not head.fused
        assert ("fused" in head.withheld) == flagged


def test_what_was_not_measured_is_not_said_to_be_flagged() -> None:
    run = make_run()
    records = tuple(
        replace(r, trust=Trust(False, ("drifting",)))
        for r in run.records
        if r.backend is None or r.backend.name != "eager"
    )
    withheld = headline(Run(run.manifest, records)).withheld
    assert "best" in withheld
    assert "fused" not in withheld


def flagging(run: Run, chosen: Callable[[Record], object]) -> Run:
    """The same run, disturbed in those records."""
    flagged = Trust(False, ("probe_changed",))
    return Run(
        run.manifest, tuple(replace(r, trust=flagged) if chosen(r) else r for r in run.records)
    )


def is_of(backend: str, depth: int) -> Callable[[Record], object]:
    return lambda r: r.backend and r.backend.name == backend and r.trace.depth_tokens == depth


def test_no_fastest_where_a_time_is_flagged() -> None:
    head = headline(flagging(make_run(), is_of("sdpa-flash", 4096)))
    depths = {(b.record.cache.format, b.record.trace.depth_tokens) for b in head.best}
    assert depths == {("fp16", 2048), ("bf16", 2048), ("int8", 4096)}
    assert {s.fast.trace.depth_tokens for s in head.quantized_time} == {2048}
    assert head.withheld == set()


def test_a_flagged_time_that_cannot_be_the_fastest_hides_nothing() -> None:
    head = headline(flagging(make_run(), is_of("eager", 4096)))
    assert {b.record.trace.depth_tokens for b in head.best} == {4096}
    assert {s.slow.trace.depth_tokens for s in head.fused} == {2048}  # eager's own time must count


def test_one_name_with_two_shapes_is_not_merged() -> None:
    run = make_run()
    records = tuple(replace(r, model=replace(r.model, name="same")) for r in run.records)
    assert len(headline(Run(run.manifest, records)).fused) == 6


def test_speed_up_at_equal_bandwidth() -> None:
    run = make_run()

    def slower_memory(probe: Probe | None) -> Probe | None:
        return probe and replace(probe, read_bytes_per_s=probe.read_bytes_per_s / 2)

    def halved(r: Any) -> Any:
        is_eager = r.backend and r.backend.name == "eager"
        return replace(r, probe=slower_memory(r.probe)) if is_eager else r

    plain = headline(run).fused[0]
    changed = headline(Run(run.manifest, tuple(map(halved, run.records)))).fused[0]
    assert plain.normalized is not None
    assert changed.ratio == plain.ratio
    assert changed.normalized == pytest.approx(plain.normalized / 2)


def test_an_interval_that_includes_one_decides_nothing() -> None:
    slow = headline(make_run()).fused[0]
    undecided = Speedup(slow.slow, slow.fast, 1.1, 0.9, 1.3, None)
    assert undecided.verdict == "undecided"


def test_what_another_device_measured_hides_nothing() -> None:
    run = make_run()
    foreign = tuple(
        replace(r, cell_id=r.cell_id[::-1], device=DeviceRef("cpu", "another machine", None))
        for r in run.records
    )
    both = Run(run.manifest, (*run.records, *foreign))
    assert headline(both).best == headline(run).best
    assert headline(both).fused == headline(run).fused


def test_a_formats_flagged_time_is_not_called_unmeasured() -> None:
    run = flagging(make_run(), lambda r: r.cache.format == "int8" and r.scope == "attention")
    assert "quantized_time int8" in headline(run).withheld


def test_a_twin_whose_times_are_all_flagged_is_not_passed_over() -> None:
    run = make_run()
    assert headline(run).quantized_time
    run = flagging(run, lambda r: r.cache.format == "bf16" and r.scope == "attention")
    head = headline(run)
    assert not head.quantized_time
    assert "quantized_time" in head.withheld


def test_a_floor_that_only_a_flagged_record_has_is_not_called_unmeasured() -> None:
    run = make_run()
    without = tuple(replace(r, ratio=None) if r.cache.format == "fp16" else r for r in run.records)
    head = headline(flagging(Run(run.manifest, without), lambda r: r.cache.format != "fp16"))
    assert head.best
    assert "best" in head.withheld


def test_a_setting_with_a_fused_time_alone_has_a_row_and_a_sentence() -> None:
    run = make_run()
    kept = [r for r in run.records if r.scope == "attention" and r.cache.format == "fp16"]
    quick = [
        replace(
            r,
            cell_id=r.cell_id[::-1],
            backend=replace(r.backend, name="sdpa-math"),
            trust=Trust(False, ("drifting",)),
            measured=replace(
                r.measured,
                time_s=replace(
                    r.measured.time_s, median=1e-9, low=1e-9, high=1e-9, samples=(1e-9,)
                ),
            ),
        )
        for r in kept
        if r.backend and r.backend.name == "eager" and r.measured and r.measured.time_s
    ]
    head = headline(alone := Run(run.manifest, (*kept, *quick)))
    assert head.fused
    assert not head.best
    assert overview_table(alone, head).groups


def test_cells_that_count_are_not_denied() -> None:
    run = make_run()
    eager = tuple(
        r for r in run.records if r.scope == "attention" and r.backend and r.backend.name == "eager"
    )
    alone = Run(run.manifest, tuple(replace(r, ratio=None) for r in eager))
    told = " ".join(paragraph(alone, headline(alone)))
    assert "no cell of this run was measured and trusted" not in told
