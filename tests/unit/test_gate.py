"""The gate: bytes to the byte, times only where every clock agrees."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kvgauge.errors import ExitCode, NotComparable, UserError
from kvgauge.gate.baseline import Baseline, load_baseline, make_baseline
from kvgauge.gate.compare import compare, exit_code
from kvgauge.schema import DeviceRef, Record, Run, Trust
from records_for_tests import cell, failed, record, run_of

TIMES = (1.0, 1.01, 0.99, 1.0, 1.02)


def base() -> Baseline:
    return make_baseline([run_of(record()), run_of(record(times_s=tuple(t * 1.03 for t in TIMES)))])


def verdict_of(candidate: Record) -> tuple[str, ExitCode]:
    verdicts = compare(run_of(candidate), base())
    return verdicts[0].kind, exit_code(verdicts)


def slower(factor: float, read: float = 1e9, flops: float = 1e9) -> Record:
    return record(times_s=tuple(t * factor for t in TIMES), read=read, flops=flops)


def test_the_same_is_the_same() -> None:
    assert verdict_of(record()) == ("same", ExitCode.DONE)


def test_one_byte_is_a_regression() -> None:
    assert verdict_of(record(kv_bytes=1001)) == ("bytes_differ", ExitCode.REGRESSION)


def test_slower_by_every_clock_is_a_regression() -> None:
    assert verdict_of(slower(1.8)) == ("slower", ExitCode.REGRESSION)


def test_faster_by_every_clock_is_said_and_passes() -> None:
    assert verdict_of(slower(0.4)) == ("faster", ExitCode.DONE)


def test_within_the_least_change_nothing_is_said() -> None:
    assert verdict_of(slower(1.4)) == ("same", ExitCode.DONE)


@pytest.mark.parametrize(("read", "flops"), [(0.5e9, 1e9), (1e9, 0.5e9), (0.5e9, 0.5e9)])
def test_a_machine_that_slowed_down_is_no_regression(read: float, flops: float) -> None:
    """Twice the seconds, while memory or arithmetic gave half."""
    assert verdict_of(slower(2.0, read=read, flops=flops)) == ("undecided", ExitCode.DONE)


def test_a_busy_machine_decides_nothing() -> None:
    """A small step waits for a core far longer than the probe does."""
    kind, code = verdict_of(slower(20.0, read=0.2e9, flops=0.1e9))
    assert (kind, code) == ("undecided", ExitCode.DONE)


def test_a_disturbed_time_decides_nothing() -> None:
    disturbed = replace(slower(1.8), trust=Trust(False, ("wide_interval",)))
    assert verdict_of(disturbed) == ("undecided", ExitCode.DONE)


def test_a_machine_that_sped_up_is_no_regression() -> None:
    assert verdict_of(slower(1.0, read=2e9, flops=2e9)) == ("undecided", ExitCode.DONE)


def test_a_noisy_baseline_widens_the_band() -> None:
    wide = make_baseline([run_of(record()), run_of(slower(1.6))])
    assert compare(run_of(slower(1.9)), wide)[0].kind == "same"


def test_a_cell_that_was_disturbed_in_every_run_of_the_baseline_is_undecided() -> None:
    disturbed = replace(record(cell(2048)), trust=Trust(ok=False, flags=("drifting",)))
    made = make_baseline([run_of(record(), disturbed)])
    verdicts = compare(run_of(record(), record(cell(2048))), made)
    assert [v.kind for v in verdicts] == ["same", "undecided"]
    assert exit_code(verdicts) == ExitCode.DONE


def test_other_hardware_compares_bytes_alone() -> None:
    other = DeviceRef("cpu", "Another CPU", None)
    assert verdict_of(record(device=other)) == ("not_comparable", ExitCode.NOT_COMPARABLE)
    assert verdict_of(record(device=other, kv_bytes=1)) == ("bytes_differ", ExitCode.REGRESSION)


def test_a_new_cell_has_no_baseline() -> None:
    run = run_of(record(cell(99)))
    verdicts = compare(Run(replace(run.manifest, narrowed=True), run.records), base())
    assert [v.kind for v in verdicts] == ["not_comparable"]
    assert exit_code(verdicts) is ExitCode.NOT_COMPARABLE


def test_a_failed_cell_is_missing() -> None:
    assert verdict_of(failed(cell())) == ("missing", ExitCode.INCOMPLETE)


def test_a_cell_that_other_hardware_cannot_measure_is_not_missed() -> None:
    gone = replace(failed(cell()), status="unsupported", reason_code="not_supported", reason="no")
    other = DeviceRef("cpu", "Another CPU", None)
    assert verdict_of(gone) == ("missing", ExitCode.INCOMPLETE)
    elsewhere = replace(gone, device=other)
    assert verdict_of(elsewhere) == ("not_comparable", ExitCode.NOT_COMPARABLE)
    assert verdict_of(replace(failed(cell()), device=other)) == ("missing", ExitCode.INCOMPLETE)
    untimed = replace(base(), series=())
    assert compare(run_of(elsewhere), untimed)[0].kind == "missing"


def test_a_planned_cell_without_a_record_is_missing() -> None:
    run = Run(replace(run_of(record()).manifest), ())
    assert exit_code(compare(run, base())) is ExitCode.INCOMPLETE


def test_cells_left_out_by_hand_are_not_missed() -> None:
    two = make_baseline([run_of(record(), record(cell(4096)))])
    whole = run_of(record())
    by_hand = Run(replace(whole.manifest, narrowed=True), whole.records)
    assert [v.kind for v in compare(by_hand, two)] == ["same"]
    other_profile = Run(replace(whole.manifest, profile="nightly"), whole.records)
    assert [v.kind for v in compare(other_profile, two)] == ["same"]


def test_a_backend_that_disappears_is_missed() -> None:
    two = make_baseline([run_of(record(), record(cell(backend="sdpa-flash")))])
    verdicts = compare(run_of(record()), two)
    assert [v.kind for v in verdicts] == ["same", "missing"]
    assert exit_code(verdicts) is ExitCode.INCOMPLETE


def test_a_time_that_disappears_is_missed() -> None:
    measured = record().measured
    assert measured is not None
    assert verdict_of(replace(record(), measured=replace(measured, time_s=None)))[0] == "missing"


@pytest.mark.parametrize("status", ["running", "interrupted"])
def test_a_run_that_did_not_end_does_not_pass(status: str) -> None:
    whole = run_of(record())
    cut = Run(replace(whole.manifest, status=status), whole.records)  # type: ignore[arg-type]
    assert exit_code(compare(cut, base())) is ExitCode.INCOMPLETE


def test_the_whole_interval_must_lie_beyond_the_band() -> None:
    """The median is 1.7 times the baseline's, the interval reaches down to it."""
    (verdict,) = compare(run_of(record(times_s=(1.0, 1.0, 1.7, 1.8, 1.9))), base())
    assert verdict.kind == "same"
    assert (
        "no change shown: the interval of a median beyond the band reaches into it"
        in verdict.reason
    )
    assert "seconds x1.675 (band 0.667 to 1.500)" in verdict.reason


def test_undecided_says_which_way() -> None:
    (verdict,) = compare(run_of(slower(2.0, read=0.5e9)), base())
    assert "slower beyond the band by some clocks only" in verdict.reason
    (verdict,) = compare(run_of(slower(0.4, flops=2e9)), base())
    assert "faster beyond the band by some clocks only" in verdict.reason


def test_half_the_range_of_the_baseline_widens_the_band() -> None:
    """Runs at 1.0 and 1.6: center 1.3, half the range 0.3 of it, band twice that: up to 1.3 * 1.49."""
    wide = make_baseline([run_of(slower(1.0)), run_of(slower(1.6))])
    level = wide.series[0].clocks["seconds"]
    assert level.half_range == pytest.approx((1.02 * 1.6 - 0.99) / 2 / 1.3, rel=0.02)


def test_a_gpu_is_held_to_five_percent() -> None:
    gpu = DeviceRef("cuda", "Some GPU", 0)
    still = (1.0, 1.0, 1.0, 1.0, 1.0)
    steady = make_baseline([run_of(record(device=gpu, times_s=still))])
    for factor, kind in ((1.04, "same"), (1.08, "slower")):
        now = record(device=gpu, times_s=tuple(t * factor for t in still))
        assert [v.kind for v in compare(run_of(now), steady)] == [kind]


def test_baselines_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(base().to_json()))
    other = make_baseline([run_of(record(kv_bytes=7))])
    (tmp_path / "b.json").write_text(json.dumps(other.to_json()))
    with pytest.raises(NotComparable, match="disagree"):
        load_baseline(tmp_path)
    (tmp_path / "b.json").write_text(json.dumps(base().to_json()))
    with pytest.raises(NotComparable, match="make one baseline"):
        load_baseline(tmp_path)


@pytest.mark.parametrize(
    ("center", "half_range"), [(0.0, 0.1), (1e300, 0.1), (1.0, -1.0), (-1.0, 0.1)]
)
def test_a_baseline_with_impossible_times_is_refused(
    tmp_path: Path, center: float, half_range: float
) -> None:
    made = base().to_json()
    made["series"][0]["clocks"]["seconds"] = {"center": center, "half_range": half_range}
    (tmp_path / "b.json").write_text(json.dumps(made))
    with pytest.raises(UserError, match=r"b\.json"):
        load_baseline(tmp_path)
    del made["series"][0]["clocks"]["seconds"]
    (tmp_path / "b.json").write_text(json.dumps(made))
    with pytest.raises(UserError, match="must have seconds"):
        load_baseline(tmp_path)


def test_a_disturbed_time_is_no_baseline() -> None:
    disturbed = replace(slower(9.0), trust=Trust(False, ("cpu_shared",)))
    made = make_baseline([run_of(record()), run_of(disturbed)])
    assert made.series[0].runs == 1
    assert make_baseline([run_of(disturbed)]).series == ()


def test_runs_that_disagree_on_bytes_make_no_baseline() -> None:
    with pytest.raises(NotComparable, match="bytes in one run"):
        make_baseline([run_of(record()), run_of(record(kv_bytes=5))])
    with pytest.raises(NotComparable, match="no ok record"):
        make_baseline([run_of(failed(cell()))])


def test_a_baseline_file_comes_back(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(json.dumps(base().to_json()))
    assert load_baseline(tmp_path) == load_baseline(tmp_path / "b.json") == base()


def test_no_baseline_and_a_broken_one(tmp_path: Path) -> None:
    with pytest.raises(NotComparable, match="no baseline"):
        load_baseline(tmp_path)
    with pytest.raises(NotComparable, match="no baseline"):
        load_baseline(tmp_path / "nothing.json")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(UserError, match=r"b\.json is no baseline"):
        load_baseline(tmp_path)
    for name in ("manifest.json", "records.jsonl"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=r"is a run folder, not a baseline: `kvgauge baseline make"):
        load_baseline(tmp_path)


def test_a_run_folder_is_told_with_a_command_that_can_be_pasted(tmp_path: Path) -> None:
    folder = tmp_path / "my run"
    folder.mkdir()
    for name in ("manifest.json", "records.jsonl"):
        (folder / name).write_text("{}")
    with pytest.raises(UserError, match=f"baseline make '{folder}' --out baseline.json`"):
        load_baseline(folder)
