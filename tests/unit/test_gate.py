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


def test_other_hardware_compares_bytes_alone() -> None:
    other = DeviceRef("cpu", "Another CPU", None)
    assert verdict_of(record(device=other)) == ("not_comparable", ExitCode.NOT_COMPARABLE)
    assert verdict_of(record(device=other, kv_bytes=1)) == ("bytes_differ", ExitCode.REGRESSION)


def test_a_new_cell_has_no_baseline() -> None:
    assert verdict_of(record(cell(99))) == ("not_comparable", ExitCode.NOT_COMPARABLE)


def test_a_failed_cell_is_missing() -> None:
    assert verdict_of(failed(cell())) == ("missing", ExitCode.INCOMPLETE)


def test_a_planned_cell_without_a_record_is_missing() -> None:
    run = Run(replace(run_of(record()).manifest), ())
    assert exit_code(compare(run, base())) is ExitCode.INCOMPLETE


def test_cells_that_were_not_planned_are_not_missed() -> None:
    two = make_baseline([run_of(record(), record(cell(4096)))])
    assert [v.kind for v in compare(run_of(record()), two)] == ["same"]


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
    with pytest.raises(UserError, match=r"b\.json"):
        load_baseline(tmp_path)
