"""A run that was stopped anywhere goes on to the cells that it would have had, and never as another."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import pytest

from kvgauge import attempt, jobs, resume, runner
from kvgauge.cli import app
from kvgauge.devices.cpu import CpuDevice
from kvgauge.errors import ExitCode, UserError
from kvgauge.schema import Record, Run, Status
from kvgauge.store import provenance
from kvgauge.store.folder import RunFolder, write_json
from kvgauge.store.reader import load_run
from unit.test_runner import TINY, NoProbe

REVISION = ("0" * 40, False)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(runner, "make_probe", lambda _device: NoProbe())
    # Other work in the checkout while the tests run must not change what a run says of itself.
    monkeypatch.setattr(provenance, "git_state", lambda: REVISION)
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    return str(tmp_path)


def cli(*arguments: str) -> int:
    """The exit code of a command in this process; raises what the command line would print."""
    return app(list(arguments), standalone_mode=False) or 0


def start(model: str, run_dir: Path, *more: str) -> int:
    return cli("run", "--suite", "footprint", "--model", model, "--think", "10", "--think", "20",
               "--kv-format", "fp16", "--kv-format", "int8", "--device", "cpu",
               "--run-dir", str(run_dir), *more)  # fmt: skip


def go_on(run_dir: Path, *more: str) -> int:
    return cli("run", "--resume", "--run-dir", str(run_dir), *more)


def stop_after(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, count = attempt.measure, [0]

    def measure(*arguments: Any) -> Any:
        if count[0] == cells:
            raise KeyboardInterrupt
        count[0] += 1
        return real(*arguments)

    monkeypatch.setattr(attempt, "measure", measure)


def stopped(model: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch, cells: int = 1) -> Run:
    """A run that was interrupted after so many of its four cells."""
    with monkeypatch.context() as patch:
        stop_after(cells, patch)
        assert start(model, run_dir) == ExitCode.INTERRUPTED
    return load_run(run_dir)


def lines(run_dir: Path) -> bytes:
    return (run_dir / "records.jsonl").read_bytes()


def change_manifest(run_dir: Path, **changes: object) -> None:
    manifest = json.loads((run_dir / "manifest.json").read_text())
    write_json(run_dir / "manifest.json", {**manifest, **changes})


@pytest.mark.parametrize("cells", [0, 1, 2, 3])
def test_a_resumed_run_has_the_cells_of_an_undisturbed_one(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cells: int
) -> None:
    assert start(model, tmp_path / "whole") == 0
    whole = load_run(tmp_path / "whole")
    before = stopped(model, tmp_path / "run", monkeypatch, cells)
    assert (before.manifest.status, len(before.records)) == ("interrupted", cells)
    kept = lines(tmp_path / "run")
    assert go_on(tmp_path / "run") == 0
    run = load_run(tmp_path / "run")
    assert lines(tmp_path / "run").startswith(kept)
    assert [r.cell_id for r in run.records] == [r.cell_id for r in whole.records]
    assert {r.attempt for r in run.records} == {1}
    assert run.manifest.status == "complete"
    assert run.manifest.cells == whole.manifest.cells
    assert run.manifest.started_at == before.manifest.started_at
    assert len(run.manifest.resumes) == 1
    assert run.manifest.spent is not None
    assert before.manifest.spent is not None
    own = sum(sum(asdict(r.spent).values()) for r in run.records[cells:] if r.spent)
    assert sum(asdict(run.manifest.spent).values()) >= own + sum(
        asdict(before.manifest.spent).values()
    )


def test_spent_of_a_killed_run_is_what_its_records_say(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(model, tmp_path / "run", monkeypatch, 3)
    change_manifest(tmp_path / "run", status="running", spent=None, finished_at=None)
    assert go_on(tmp_path / "run") == 0
    run = load_run(tmp_path / "run")
    own = sum(sum(asdict(r.spent).values()) for r in run.records if r.spent)
    assert run.manifest.spent is not None
    assert own <= sum(asdict(run.manifest.spent).values()) < own + 5


def test_what_did_not_come_to_an_end_is_tried_again_and_findings_stay(
    model: str, tmp_path: Path
) -> None:
    listed = jobs.list_jobs(jobs.Options(models=(model,), think_tokens=tuple(range(1, 9))), "cpu")
    statuses: tuple[Status, ...] = get_args(Status)
    ended = {
        job.plan.cell.cell_id: status
        for job, status in zip(listed.jobs, statuses, strict=False)
    }  # fmt: skip
    records = [_fake(cell_id, status, number) for number, (cell_id, status) in
               enumerate(ended.items(), 1)]  # fmt: skip
    again = {job.plan.cell.cell_id: n for job, n in resume.left(listed.jobs, records)}
    for number, (cell_id, status) in enumerate(ended.items(), 1):
        if status in ("ok", "invalid", "oom", "unsupported"):
            assert cell_id not in again
        else:
            assert again[cell_id] == number + 1
    assert {n for cell_id, n in again.items() if cell_id not in ended} == {1}


def _fake(cell_id: str, status: Status, number: int) -> Record:
    from records_for_tests import record

    return replace(record(), cell_id=cell_id, status=status, attempt=number)


def test_a_skipped_cell_is_measured_and_its_record_stays(model: str, tmp_path: Path) -> None:
    assert start(model, tmp_path / "run", "--budget-s", "0") == 5
    before = lines(tmp_path / "run")
    assert go_on(tmp_path / "run") == 5  # the same budget, which is none
    assert go_on(tmp_path / "run", "--budget-s", "60") == 0
    assert lines(tmp_path / "run").startswith(before)
    run = load_run(tmp_path / "run")
    assert [(r.status, r.attempt) for r in run.records] == [
        *[("skipped", 1)] * 4, *[("skipped", 2)] * 4, *[("ok", 3)] * 4,
    ]  # fmt: skip
    assert len(run.manifest.resumes) == 2


def test_a_complete_run_is_left_alone(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(model, tmp_path / "run")
    before = lines(tmp_path / "run"), (tmp_path / "run" / "manifest.json").read_bytes()
    capsys.readouterr()
    assert go_on(tmp_path / "run") == 0
    assert "complete, nothing is left" in capsys.readouterr().err
    assert before == (lines(tmp_path / "run"), (tmp_path / "run" / "manifest.json").read_bytes())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"git_revision": "1" * 40}, ("git_revision", "1" * 40, "0" * 40)),
        ({"git_dirty": True}, ("git_dirty", "True", "False")),
        ({"device": {"kind": "cpu", "name": "Abacus", "index": None}}, ("device", "cpu Abacus")),
        ({"versions": {"torch": "0.1"}}, ("version of", "unknown")),
        ({"cells": ["0123456789abcdef"]}, ("has 1 cells", "has 4", "0 of them the same")),
        ({"schema": "kvgauge.manifest/9"}, ("kvgauge.manifest/9", "kvgauge.manifest/1")),
        ({"options": {"seed": "x"}}, ("options", "int")),
        ({"options": {"seed": -1}}, ("options", "--seed -1")),
        ({"options": {}}, ("cannot resume",)),
        ({"profile": "nightly"}, ("profile", "nightly", "smoke")),
        ({"seed": 5}, ("seed", "5", "0")),
    ],
)
def test_another_run_is_refused_by_name_and_nothing_is_changed(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object], says: tuple[str, ...],
) -> None:  # fmt: skip
    stopped(model, tmp_path / "run", monkeypatch)
    change_manifest(tmp_path / "run", **changes)
    with (tmp_path / "run" / "records.jsonl").open("a") as file:
        file.write("torn")
    before = lines(tmp_path / "run"), (tmp_path / "run" / "manifest.json").read_bytes()
    with pytest.raises(UserError) as caught:
        go_on(tmp_path / "run")
    for part in says:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert before == (lines(tmp_path / "run"), (tmp_path / "run" / "manifest.json").read_bytes())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("--seed", "3"), ("seed", "0", "3")),
        (("--profile", "standard"), ("profile", "smoke", "standard")),
        (("--think", "10"), ("think_tokens", "10, 20", "is 10 now")),
        (("--suite", "decode"), ("suites", "footprint", "decode")),
        (("--backend", "eager"), ("backends", "the profile's own", "eager")),
        (("--device", "cuda"), ("cuda",)),
    ],
)
def test_other_options_than_the_runs_own_are_refused(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    given: tuple[str, ...], says: tuple[str, ...],
) -> None:  # fmt: skip
    stopped(model, tmp_path / "run", monkeypatch)
    with pytest.raises(UserError) as caught:
        go_on(tmp_path / "run", *given)
    for part in says:
        assert part in str(caught.value)


def test_the_same_options_may_be_said_again(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(model, tmp_path / "run", monkeypatch)
    assert start(model, tmp_path / "run", "--resume") == 0


def test_a_run_that_does_not_state_its_options_is_told_them(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(model, tmp_path / "run", monkeypatch)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    del manifest["options"], manifest["resumes"]  # as kvgauge 0.1.0 wrote it
    write_json(tmp_path / "run" / "manifest.json", manifest)
    assert start(model, tmp_path / "run", "--resume") == 0


def test_a_running_run_is_not_resumed(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(model, tmp_path / "run", monkeypatch)
    with (
        RunFolder.reopen(tmp_path / "run"),
        pytest.raises(UserError, match=f"already in use: process {os.getpid()} is writing it"),
    ):
        go_on(tmp_path / "run")


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match="holds no run to resume"):
            go_on(path)
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(UserError, match="--run-dir"):
        cli("run", "--resume")


def test_wherever_the_last_line_is_torn_the_lines_before_it_stay(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(model, tmp_path / "run")
    whole = lines(tmp_path / "run")
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in (0, 1, ends[0] - 1, ends[0], ends[1] + 700, ends[2] + 1, len(whole) - 1):
        (tmp_path / "run" / "records.jsonl").write_bytes(whole[:cut])
        change_manifest(tmp_path / "run", status="running")
        capsys.readouterr()
        assert go_on(tmp_path / "run") == 0
        kept = whole[: max([0, *(end for end in ends if end <= cut)])]
        assert lines(tmp_path / "run").startswith(kept)
        run = load_run(tmp_path / "run")
        assert ([r.cell_id for r in run.records], run.torn_lines) == (list(run.manifest.cells), 0)
        said = f"torn last line of {cut - len(kept)} bytes" in capsys.readouterr().err
        assert said == (cut not in (0, *ends))


def faulty(
    name: str, at: int, fault: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    """Let call number `at` of `os.NAME` be preceded by `fault`; the calls are counted."""
    real, calls = getattr(os, name), [0]

    def call(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == at + 1:
            fault()
        return real(*arguments)

    monkeypatch.setattr(os, name, call)
    return calls


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def run_with(
    name: str, at: int, fault: Callable[[], None], model: str, path: Path
) -> tuple[BaseException | None, int]:
    """What a run of two cells raised, with a fault before one of its system calls."""
    options = jobs.Options(
        suites=("footprint",), models=(model,), think_tokens=(10,), kv_formats=("fp16", "int8")
    )
    with RunFolder.create(path) as folder, pytest.MonkeyPatch.context() as patch:
        calls = faulty(name, at, fault, patch)
        try:
            runner.execute(options, CpuDevice(), folder, ["kvgauge", "run"])
        except (KeyboardInterrupt, UserError) as error:
            return error, calls[0]
    return None, calls[0]


@pytest.mark.parametrize("name", ["write", "fsync"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_at_any_write_leaves_a_run_that_goes_on(
    model: str, tmp_path: Path, name: str, number: int
) -> None:
    def interrupt() -> None:
        signal.raise_signal(number)

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command line has it
    try:
        points = 0
        while True:
            path = tmp_path / f"run-{points}"
            raised, _calls = run_with(name, points, interrupt, model, path)
            if raised is None:
                break
            assert isinstance(raised, KeyboardInterrupt)
            assert load_run(path).manifest.status == "interrupted"
            assert go_on(path) == 0
            run = load_run(path)
            assert [r.cell_id for r in run.records] == list(run.manifest.cells)
            points += 1
        # The manifest twice and two records: a write each, and one more sync of the folder's names.
        assert points == {"write": 4, "fsync": 6}[name]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("name", ["write", "fsync"])
def test_a_disk_that_fills_at_any_write_is_one_line_and_leaves_a_run_that_goes_on(
    model: str, tmp_path: Path, name: str
) -> None:
    points = {"write": 4, "fsync": 6}[name]
    for point in range(points):
        path = tmp_path / f"run-{point}"
        raised, _calls = run_with(name, point, no_space, model, path)
        assert isinstance(raised, UserError)
        assert "cannot write: No space left on device" in str(raised)
        assert "\n" not in str(raised)
        run = load_run(path)
        assert run.torn_lines == 0
        kept = lines(path)
        assert go_on(path) == 0
        run = load_run(path)
        assert lines(path).startswith(kept)
        assert [r.cell_id for r in run.records] == list(run.manifest.cells)
    assert run_with(name, points, no_space, model, tmp_path / "none")[0] is None


def test_a_disk_that_is_full_for_good_ends_with_the_first_line(model: str, tmp_path: Path) -> None:
    options = jobs.Options(suites=("footprint",), models=(model,), think_tokens=(10,))
    with RunFolder.create(tmp_path / "run") as folder, pytest.MonkeyPatch.context() as patch:
        real, calls = os.write, [0]

        def full(handle: int, data: bytes) -> int:
            calls[0] += 1
            if calls[0] > 2:
                no_space()
            return real(handle, data)

        patch.setattr(os, "write", full)
        with pytest.raises(UserError, match=r"records\.jsonl: cannot write"):
            runner.execute(options, CpuDevice(), folder, ["kvgauge", "run"])
    run = load_run(tmp_path / "run")
    assert (run.manifest.status, len(run.records)) == ("running", 1)
    with pytest.raises(UserError, match="already in use"):
        start(model, tmp_path / "run")
    assert go_on(tmp_path / "run") == 0


def test_an_interrupted_run_is_reported_and_gated(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(model, tmp_path / "whole")
    stopped(model, tmp_path / "run", monkeypatch)
    base = str(tmp_path / "base.json")
    assert cli("baseline", "make", str(tmp_path / "whole"), "--out", base) == 0
    assert cli("report", str(tmp_path / "run"), "--html", str(tmp_path / "x.html")) == 0
    assert cli("summary", str(tmp_path / "run")) == 0
    assert cli("gate", str(tmp_path / "run"), "--baseline", base) == 5
    assert go_on(tmp_path / "run") == 0
    assert cli("gate", str(tmp_path / "run"), "--baseline", base) == 0


def test_a_list_of_a_resumed_run_shows_what_is_left(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    stopped(model, tmp_path / "run", monkeypatch)
    capsys.readouterr()
    assert go_on(tmp_path / "run", "--list", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["cells"]) == 3
