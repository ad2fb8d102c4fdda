"""Disturbed cells are measured once more at the end of a run, within a share of its time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kvgauge import display_progress, jobs, runner
from kvgauge.devices.cpu import CpuDevice
from kvgauge.jobs import Job
from kvgauge.resume import disturbed
from kvgauge.schema import Measurement, Prediction, Run, Trust
from kvgauge.store.folder import RunFolder
from kvgauge.suites.types import Context, Outcome
from records_for_tests import record, run_of

OPTIONS = jobs.Options(
    suites=("footprint",), models=("smollm2-135m",), think_tokens=(8, 16), kv_formats=("fp16",)
)
Flags = Callable[[int], tuple[str, ...]]


class Clock:
    """Seconds that pass only where a cell is measured."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


def run(
    flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cells: int = 2, **more: object
) -> Run:
    clock, calls = Clock(), Counter[str]()
    monkeypatch.setattr(runner, "make_probe", lambda _device: None)
    monkeypatch.setattr("kvgauge.runner.time", clock)

    def measure(job: Job, _context: Context) -> Outcome:
        clock.now_s += 1
        calls["all"] += 1
        return Outcome("ok", Prediction(1), measured=Measurement(1), flags=flags(calls["all"]))

    options = jobs.Options(
        suites=("footprint",), models=("smollm2-135m",), kv_formats=("fp16",),
        think_tokens=tuple(range(1, cells + 1)), **more,  # type: ignore[arg-type]
    )  # fmt: skip
    with RunFolder.create(tmp_path / "run") as folder:
        listed = jobs.list_jobs(options, "cpu")
        with display_progress.Progress(listed) as progress:
            return runner.execute(
                options, CpuDevice(), folder, ["kvgauge"], progress.show, measure=measure
            )


def attempts(found: Run) -> list[tuple[int, int, tuple[str, ...]]]:
    return [(r.trace.depth_tokens, r.attempt, r.trust.flags) for r in found.records]


def test_a_disturbed_cell_is_measured_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(lambda n: ("cpu_shared",) if n == 3 else (), tmp_path, monkeypatch, cells=10)
    assert attempts(found)[2:3] == [(3, 1, ("cpu_shared",))]
    assert attempts(found)[10:] == [(3, 2, ())]
    assert all(r.trust.ok for r in found.latest())
    assert len(found.latest()) == 10
    assert found.manifest.status == "complete"


def test_a_run_that_is_disturbed_all_over_repeats_a_fifth_of_it_and_each_cell_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(lambda _n: ("cpu_shared",), tmp_path, monkeypatch, cells=20)
    again = [r for r in found.records if r.attempt == 2]
    assert 4 <= len(again) <= 5
    assert max(Counter(r.cell_id for r in found.records).values()) == 2


def test_nothing_is_repeated_past_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(lambda _n: ("drifting",), tmp_path, monkeypatch, cells=10, budget_s=10.0)
    assert [r.attempt for r in found.records] == [1] * 10


def test_only_right_but_disturbed_cells_are_repeated() -> None:
    listed = jobs.list_jobs(OPTIONS, "cpu").jobs
    trusted, disturbed_once = (record(job.plan.cell) for job in listed)
    disturbed_once = replace(disturbed_once, trust=Trust(ok=False, flags=("drifting",)))
    assert disturbed(listed, [trusted, disturbed_once]) == [(listed[1], 2)]
    twice = replace(disturbed_once, attempt=2)
    assert disturbed(listed, [trusted, disturbed_once, twice]) == []
    failed = replace(disturbed_once, status="failed", trust=Trust(ok=False))
    assert disturbed(listed, [trusted, failed]) == []


def test_the_trusted_attempt_counts() -> None:
    first = record()
    worse = replace(first, attempt=2, trust=Trust(ok=False, flags=("drifting",)))
    assert run_of(first, worse).latest() == (first,)
    assert run_of(worse, replace(first, attempt=3)).latest()[0].attempt == 3
    both = run_of(replace(worse, attempt=1), worse)
    assert both.latest()[0].attempt == 2
    failed = replace(first, attempt=2, status="failed", trust=Trust(ok=False))
    assert run_of(first, failed).latest() == (failed,)
    assert run_of(first, failed, replace(worse, attempt=3)).latest() == (first,)
    assert run_of(replace(failed, attempt=1), worse).latest() == (worse,)
