"""`kvgauge selftest` on the CPU, small: checks, a run, the bundle; and what a wrong kernel does to it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kvgauge import cli
from kvgauge.display_selftest import print_outcome
from kvgauge.jobs import Options
from kvgauge.schema import Trust
from kvgauge.selftest import command
from kvgauge.selftest.checks import run_checks
from kvgauge_kernels import BACKENDS, KVView
from kvgauge_kernels.eager import Eager
from kvgauge_kernels.stored import STORED_FORMATS
from records_for_tests import cell, record, run_of

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[str, ...]:
    options = Options(
        suites=("decode",), models=("smollm2-135m",), kv_formats=("bf16",), think_tokens=(64,),
        batches=(1,), backends=("eager", "sdpa-flash"),
    )  # fmt: skip
    monkeypatch.setattr(command, "options_for", lambda *_: options)
    out, folder = tmp_path / "selftest.json", tmp_path / "run"
    return ("--device", "cpu", "--out", str(out), "--run-dir", str(folder))


def start(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["kvgauge", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(str(stopped.value.code))


class Off(Eager):
    """eager, and a little beside it; or not at all."""

    def __init__(self, error: float | None) -> None:
        self._error = error

    def decode(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        if self._error is None:
            raise RuntimeError("no such\nkernel")
        return super().decode(q, view) + self._error


def test_a_bundle_that_the_report_draws(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    small: tuple[str, ...],
) -> None:  # fmt: skip
    assert start(monkeypatch, "selftest", *small, "--json") == 0
    printed = capsys.readouterr()
    said = json.loads(printed.out)
    assert said["exit_code"] == 0
    assert f"the run is in {said['run_dir']}" in printed.err
    assert Path(said["run_dir"], "records.jsonl").is_file()
    (share,) = said["shares"]
    assert share["point"] == "smollm2-135m bf16 depth 64 batch 1"
    assert set(share) == {"point", "eager", "sdpa-flash"}
    bundle = json.loads((tmp_path / "selftest.json").read_text())
    assert bundle["schema"] == "kvgauge.selftest/1"
    assert "flash-attn needs a CUDA device" in bundle["left_out"]["flash-attn"]
    assert said["left_out"] == bundle["left_out"]
    assert len(bundle["records"]) == 2
    states = [check["state"] for check in bundle["checks"]]
    assert set(states) == {"right", "unsupported"}
    drawn = tmp_path / "report.md"
    assert start(monkeypatch, "report", str(tmp_path / "selftest.json"), "--md", str(drawn)) == 0
    assert "CPU run" in drawn.read_text()
    counts = {state: states.count(state) for state in ("right", "unsupported")}
    said = f"were {counts['right']} right, 0 wrong, {counts['unsupported']} unsupported, 0 failed."
    assert said in drawn.read_text()


@pytest.mark.parametrize(
    ("error", "code", "word"), [(0.5, 4, "wrong eager"), (None, 5, "failed eager")]
)
def test_a_backend_that_errs_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    small: tuple[str, ...], error: float | None, code: int, word: str,
) -> None:  # fmt: skip
    options = replace(command.options_for("cpu", 1.0, 0), backends=("sdpa-flash",))
    monkeypatch.setattr(command, "options_for", lambda *_: options)
    monkeypatch.setitem(BACKENDS, "eager", Off(error))
    assert start(monkeypatch, "selftest", *small) == code
    said = capsys.readouterr().out
    assert f"{word} (fp32, contiguous, 64x64): " in said
    assert (tmp_path / "selftest.json").exists()
    drawn = tmp_path / "report.md"
    assert start(monkeypatch, "report", str(tmp_path / "selftest.json"), "--md", str(drawn)) == 0
    said = f"the self-test found {word} (fp32, contiguous); "
    assert said in capsys.readouterr().err
    assert said in drawn.read_text()


def test_every_format_and_layout_has_a_backend_that_is_right() -> None:
    """Paged caches on the CPU are the native kernels' alone, where they are built."""
    checks = run_checks(CPU, seed=1)
    right = {(c.format, c.layout) for c in checks if c.state == "right"}
    assert {(fmt, "contiguous") for fmt in STORED_FORMATS} <= right
    assert not [c for c in checks if c.state in ("wrong", "failed")]
    if BACKENDS["cpu"].available(CPU) is None:
        assert len(right) == 8 * 4 + 2 * 2  # K per channel not in pages of 16
    assert all(c.reason for c in checks if c.state == "unsupported")


def test_a_disturbed_share_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    quiet = record(cell(backend="eager"))
    noisy = replace(record(cell(backend="sdpa-flash")), trust=Trust(False, ("cpu_shared",)))
    outcome = command.Outcome((), run_of(quiet, noisy), {})
    assert outcome.disturbed() == {("tiny fp16 depth 1024 batch 1", "sdpa-flash")}
    print_outcome(outcome)
    said = capsys.readouterr().out
    (row,) = [line for line in said.splitlines() if "depth 1024" in line]
    assert row.split()[-2:] == ["0.50", "~0.50"]
    assert "1 of 2 times were disturbed" in said
    print_outcome(replace(outcome, run=run_of(quiet)))
    assert "disturbed" not in capsys.readouterr().out


def test_the_points_on_a_gpu_are_four_shapes_three_depths_two_batches() -> None:
    gpu = command.options_for("cuda", 240.0, 0)
    assert (len(gpu.models), len(gpu.think_tokens), gpu.batches) == (4, 3, (1, 16))
    assert gpu.budget_s == 240.0
    assert gpu.launches == ("graph",)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"schema": "kvgauge.selftest/1"}',
        '{"schema": "kvgauge.selftest/1", "manifest": {}, "records": []}',
    ],
)
def test_a_file_that_is_no_bundle(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str
) -> None:  # fmt: skip
    file = tmp_path / "other.json"
    file.write_text(content)
    assert start(monkeypatch, "summary", str(file)) == 2
    error: Any = capsys.readouterr().err
    assert len(error.splitlines()) == 1


def test_the_bundle_needs_a_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert start(monkeypatch, "selftest", "--out", str(tmp_path / "no" / "x.json")) == 2
    assert "no folder" in capsys.readouterr().err


class Late(Eager):
    """A fault that shows only where the result is asked for, or a result of another shape."""

    def __init__(self, shape: bool) -> None:
        self._shape = shape

    def decode(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        out = super().decode(q, view)
        return out[:, 1:] if self._shape else out.to("meta")


@pytest.mark.parametrize(("shape", "state"), [(True, "wrong"), (False, "failed")])
def test_a_result_that_cannot_be_compared_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, shape: bool, state: str
) -> None:
    monkeypatch.setitem(BACKENDS, "eager", Late(shape))
    found = {c.state for c in run_checks(CPU, seed=1) if c.backend == "eager"}
    assert found == {state, "unsupported"}


def test_an_oracle_that_does_not_answer_fails_every_backend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def dead(*_args: object) -> torch.Tensor:
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr("kvgauge.selftest.checks.oracle_decode", dead)
    checks = run_checks(CPU, seed=1)
    assert {check.state for check in checks} == {"failed", "unsupported"}
    assert {c.layout for c in checks if c.state == "unsupported"} == {
        "pages of 16", "pages of 16, a window"
    }  # fmt: skip
    assert "the oracle: RuntimeError: an illegal memory access" in str(checks[0].reason)


def test_a_folder_is_no_bundle_to_write(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Said before the minutes that a self-test takes."""
    assert start(monkeypatch, "selftest", "--device", "cpu", "--out", str(tmp_path)) == 2
    assert f"--out {tmp_path} is a folder" in capsys.readouterr().err


def test_what_is_wrong_with_a_bundle_is_said_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "bundle.json"
    path.write_text('{"schema": "kvgauge.selftest/1", "manifest": {}, "records": []}')
    assert start(monkeypatch, "report", str(path), "--md", str(tmp_path / "x.md")) == 2
    said = capsys.readouterr().err
    assert f"{path}: manifest.json: " in said
