"""What a worker's ending means, without a worker; `tests/faults/test_isolated_run.py` has real ones."""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kvgauge import attempt, child, jobs, run_command
from kvgauge.child import Ending, ask
from kvgauge.devices import oom
from kvgauge.errors import UserError
from kvgauge.isolate import Limit, Memory, outcome_of
from kvgauge.measure.phases import Phases
from kvgauge.schema import Criterion, Prediction, Spent
from kvgauge.suites.types import CellPlan, Context, Outcome, does_not_fit

NOTHING = Ending(
    answer=None, oversized=False, timed_out=False, exit_code=0, last_words="", peak_bytes=None
)
KILLED = replace(NOTHING, exit_code=-signal.SIGKILL)
PREDICTED = Prediction(kv_bytes=1)
LIMIT = Limit(60, "by default")
ROOMY = Memory((), available_bytes=1000)


@pytest.mark.parametrize(
    ("ending", "memory", "status", "code", "says"),
    [
        (KILLED, Memory(("this control group",), 1000), "oom", "killed", "rose in this control"),
        (replace(KILLED, peak_bytes=900), ROOMY, "oom", "killed", "900 bytes of the 1000"),
        (replace(KILLED, peak_bytes=700), ROOMY, "crashed", "killed", "no count of OOM kills rose"),
        (KILLED, ROOMY, "crashed", "killed", "held unknown"),
        (replace(KILLED, timed_out=True), ROOMY, "timeout", "timeout", "after 60 s (by default)"),
        (replace(NOTHING, timed_out=True, exit_code=None), ROOMY, "timeout", "timeout",
         "could not be killed"),
        (replace(NOTHING, exit_code=-signal.SIGBUS), ROOMY, "crashed", "signal", "SIGBUS"),
        (replace(NOTHING, exit_code=-40, last_words="a\x1b[31m"), ROOMY, "crashed", "signal",
         "signal 40; its last words: a\\x1b[31m"),
        (NOTHING, ROOMY, "crashed", "exit", "exited with 0 and no answer"),
        (replace(KILLED, oversized=True), ROOMY, "failed", "bad_answer", "over 1048576 bytes"),
    ],
)  # fmt: skip
def test_an_ending_is_told_as_what_it_was(
    ending: Ending, memory: Memory, status: str, code: str, says: str
) -> None:
    outcome = outcome_of(ending, PREDICTED, LIMIT, memory)
    assert (outcome.status, outcome.reason_code) == (status, code)
    assert says in (outcome.reason or "")
    assert (outcome.reason or "").isprintable()


def told(script: str, request: bytes = b"", limit_s: float = 20) -> Ending:
    return ask((sys.executable, "-c", f"import os, sys, time; {script}"), request, limit_s)


def test_a_child_reads_all_its_stdin_and_only_the_first_line_of_its_answer_counts() -> None:
    request = b"r" * 10**6
    ending = told(
        "text = sys.stdin.read(); print('noise');"
        "os.write(int(sys.argv[1]), f'{len(text)}\\nmore\\n'.encode())",
        request,
    )
    assert (ending.answer, ending.exit_code) == (b"1000000", 0)
    assert not ending.timed_out


def test_a_child_imports_from_where_its_parent_does() -> None:
    assert told("import kvgauge; os.write(int(sys.argv[1]), b'found\\n')").answer == b"found"


def test_the_largest_answer_arrives_and_one_byte_more_is_refused() -> None:
    write = "os.fdopen(int(sys.argv[1]), 'wb').write(b'x' * (2**20 + {}) + b'\\n')"
    whole, over = told(write.format(0)), told(write.format(1))
    assert len(whole.answer or b"") == child.MAX_ANSWER_BYTES
    assert (over.answer, over.oversized) == (None, True)


def test_an_answer_without_its_end_is_none() -> None:
    ending = told("os.write(int(sys.argv[1]), b'torn')")
    assert (ending.answer, ending.oversized, ending.exit_code) == (None, False, 0)


def test_a_child_that_floods_is_stopped_in_time_and_its_last_line_kept() -> None:
    started = time.monotonic()
    ending = told("[os.write(2, b'line\\n' * 1000) for _ in iter(int, 1)]", limit_s=1)
    assert time.monotonic() - started < 5
    assert ending.timed_out
    assert ending.exit_code == -signal.SIGKILL
    assert ending.last_words
    assert "line".startswith(ending.last_words)  # the kill may have torn it


def test_an_answered_child_that_lingers_is_killed_and_its_answer_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(child, "_GRACE_S", 0.3)
    started = time.monotonic()
    ending = told("os.write(int(sys.argv[1]), b'done\\n'); time.sleep(60)", limit_s=60)
    assert time.monotonic() - started < 10
    assert (ending.answer, ending.timed_out) == (b"done", False)


def test_the_peak_of_a_child_is_seen() -> None:
    ending = told("held = b'x' * 300_000_000; time.sleep(0.3)")
    assert ending.peak_bytes is not None
    assert 300e6 < ending.peak_bytes < 400e6


def test_a_command_that_is_not_there_is_an_os_error() -> None:
    with pytest.raises(FileNotFoundError):
        ask(("/no/such/command",), b"", 1)


def test_a_workers_seconds_are_taken_from_the_phase_that_waited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    phases = Phases()
    now[0] += 1
    with phases("isolation"):
        now[0] += 10
        phases.merge(Spent(samples_s=3, fill_s=2, rest_s=1))
    assert phases.take() == Spent(samples_s=3, fill_s=2, isolation_s=4, rest_s=2)


@pytest.mark.parametrize(
    ("own_group", "file", "text"),
    [
        ("0::/nightly\n", "nightly/memory.events", "low 0\noom 3\noom_kill 2\noom_group_kill 1\n"),
        ("0::/\n", "memory.events", "oom_kill 2\n"),
        ("4:memory:/job\n0::/\n", "memory/job/memory.oom_control", "under_oom 0\noom_kill 2\n"),
        ("4:memory:/host/job\n", "memory/memory.oom_control", "under_oom 0\noom_kill 2\n"),
    ],
)
def test_oom_kills_are_read_where_the_kernel_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_group: str, file: str, text: str
) -> None:
    monkeypatch.setattr(oom, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(oom, "_CGROUPS", tmp_path / "cgroup")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(own_group)
    assert oom.oom_kills() == {}
    counter = tmp_path / "cgroup" / file
    counter.parent.mkdir(parents=True)
    counter.write_text(text)
    (tmp_path / "proc/vmstat").write_text("pgfault 9\noom_kill 5\n")
    assert oom.oom_kills() == {"this control group": 2, "this machine": 5}


class Raises:
    """A suite whose every cell raises the error."""

    name = "raises"

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def predict(self, plan: object) -> Prediction:
        return PREDICTED

    def measure(self, plan: object, context: object) -> Outcome:
        raise self._error


def real_allocation_failure() -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (real_allocation_failure(), "oom", "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "oom", "out_of_memory"),
        (RuntimeError("CUDA error: out of memory"), "oom", "out_of_memory"),
        (MemoryError(), "oom", "out_of_memory"),
        (RuntimeError("shapes do not match"), "failed", "exception"),
        (ValueError("can't allocate memory"), "failed", "exception"),
    ],
)
def test_memory_that_is_refused_is_oom(error: Exception, status: str, code: str) -> None:
    job = jobs.Job(Raises(error), object(), 0.0)  # type: ignore[arg-type]
    outcome = attempt.measure(job, object())  # type: ignore[arg-type]
    assert (outcome.status, outcome.reason_code) == (status, code)


class Full:
    """A device without a free byte."""

    def available_bytes(self) -> int:
        return 0


def test_a_cell_that_does_not_fit_is_tried_only_when_asked() -> None:
    criterion = Criterion(0.1, 1, 1, 1.0)
    context = Context(Full(), object(), criterion, seed=0)  # type: ignore[arg-type]
    refused = does_not_fit(1, context, PREDICTED)
    assert refused is not None
    assert (refused.status, refused.reason_code) == ("oom", "does_not_fit")
    assert does_not_fit(1, replace(context, try_oversize=True), PREDICTED) is None


def started(**given: Any) -> None:
    asked = {"try_oversize": given.pop("try_oversize", False)}
    manner = {"isolate": False, "timeout_s": None, **given}
    run_command.start(
        asked,
        run_command.Where("cpu", 0, None),
        None,
        run_command.Manner(**manner, only_list=True, as_json=False),
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"timeout_s": 5.0}, "--timeout-s needs --isolate"),
        ({"isolate": True, "timeout_s": 0.0}, "--timeout-s 0.0"),
        ({"isolate": True, "timeout_s": float("inf")}, "--timeout-s inf"),
        ({"try_oversize": True}, "--try-oversize on a CPU needs --isolate"),
    ],
)
def test_wrong_combinations_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        started(**options)


def test_isolate_without_msgspec_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msgspec", None)
    for name in ("kvgauge.isolate", "kvgauge.worker", "kvgauge.store.reader"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(UserError, match="--isolate needs the package msgspec"):
        started(isolate=True)


def test_the_limit_is_twenty_estimates_and_at_least_three_minutes() -> None:
    from kvgauge.isolate import Workers

    def limit_of(estimate_s: float, timeout_s: float | None = None) -> float:
        plan = CellPlan(None, None)  # type: ignore[arg-type]
        job = jobs.Job(Raises(ValueError()), plan, estimate_s)  # type: ignore[arg-type]
        return Workers(timeout_s=timeout_s)._limit(job).seconds

    assert (limit_of(1), limit_of(10), limit_of(10, 5)) == (180, 200, 5)
