"""The command line as a user calls it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from faults.test_cli_faults import kvgauge
from kvgauge import api, display_progress, jobs
from kvgauge.schema import Status
from kvgauge.store.folder import RunFolder
from records_for_tests import cell as make_cell
from records_for_tests import failed, record, run_of


def test_plan_as_json_is_the_contract() -> None:
    done = kvgauge("plan", "llama-3.1-70b", "--think", "50000", "--kv-format", "fp16", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["kv_bytes_per_token"] == 327_680
    assert plan["kv_bytes_per_request"] == 16_384_000_000
    for name in (
        "model", "attention", "layers", "kv_format", "tokens", "kv_bytes_per_gpu",
        "state_bytes_per_request", "weight_bytes", "weight_bytes_per_gpu",
        "max_concurrent_requests", "max_cached_tokens", "decode", "notes",
    ):  # fmt: skip
        assert name in plan
    assert set(plan["decode"]) == {
        "bytes_per_step", "flops_per_step", "floor_s", "bound", "tokens_per_s",
    }  # fmt: skip


def test_plan_for_people_names_both_units() -> None:
    out = kvgauge("plan", "llama-3.1-70b", "--think", "50000").stdout
    assert "16,384,000,000 bytes · 16.38 GB · 15.26 GiB" in out
    assert "not modelled" in out


def test_plan_imports_no_heavy_package() -> None:
    code = (
        "import sys; from kvgauge.cli import app; "
        "app(['plan', 'llama-3.1-8b', '--json'], standalone_mode=False); "
        "print([m for m in ('torch', 'numpy', 'pandas', 'matplotlib', 'transformers') "
        "if m in sys.modules], file=sys.stderr)"
    )
    paths = [p for p in sys.path if p.endswith(("bench", "kernels", "reports"))]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}; {code}"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"


def test_models_lists_the_catalogue() -> None:
    listed = json.loads(kvgauge("models", "--json").stdout)["models"]
    assert len(listed) >= 12
    assert {"llama-3.1-8b", "llama-3.1-70b", "qwen3-32b", "smollm2-135m"} <= {
        m["name"] for m in listed
    }


def test_api_and_command_agree() -> None:
    out = json.loads(kvgauge("plan", "qwen3-32b", "--think", "1000", "--json").stdout)
    assert out == json.loads(json.dumps(api.plan("qwen3-32b", think=1000).to_json()))


def test_list_measures_nothing(tmp_path: Path) -> None:
    done = kvgauge("run", "--profile", "standard", "--model", "llama-3.1-70b", "--list", "--json",
                   "--device", "cpu", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    cells = json.loads(done.stdout)["cells"]
    assert any(
        c["kv_bytes"] == 16_384_000_000
        and c["suite"] == "footprint"
        and "50000 tokens" in c["label"]
        for c in cells
    )
    assert all(c["estimate_s"] > 0 for c in cells)
    assert not list(tmp_path.iterdir())


def test_list_says_what_of_it_cannot_run() -> None:
    asked = ("run", "--profile", "smoke", "--suite", "decode", "--backend", "flash-attn")
    done = kvgauge(*asked, "--device", "cpu", "--list")
    assert "unsupported here: flash-attn: flash-attn needs a CUDA device" in done.stdout
    cells = [line for line in done.stdout.splitlines() if line.rstrip().endswith("unsupported")]
    assert f"{len(cells)} cells, {len(cells)} of them unsupported here, about 0 s" in done.stdout
    assert cells
    longer = kvgauge(
        "run", "--profile", "standard", "--suite", "decode", "--device", "cpu", "--list"
    )
    assert re.search(r"\d cells, about \d+\.\d minutes\n", longer.stdout)


def test_help_and_version() -> None:
    for arguments in ((), ("baseline",)):
        done = kvgauge(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("Usage:")
        assert len(done.stderr.splitlines()) > 5
    assert kvgauge("--version").stdout.startswith("kvgauge ")


def test_tokens_in_thousands() -> None:
    out = json.loads(kvgauge("plan", "llama-3.1-8b", "--think", "8k", "--json").stdout)
    assert out["think_tokens"] == 8192
    assert "Invalid value for '--think'" in kvgauge("plan", "llama-3.1-8b", "--think", "8x").stderr
    most = kvgauge("plan", "llama-3.1-8b", "--think", "1000000001").stderr
    assert "up to 1000000000" in most
    assert kvgauge("plan", "llama-3.1-8b", "--think", "0000000001000000000").returncode == 0
    depths = ("--think", "1k", "--think", "1500", "--list", "--json")
    listed = json.loads(kvgauge("run", "--suite", "footprint", *depths).stdout)
    assert {cell["label"].split(" · ")[2] for cell in listed["cells"]} == {
        "1024 tokens", "1500 tokens",
    }  # fmt: skip


def test_progress_elsewhere_than_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    say = display_progress.ProgressLine()
    for at, text in ((29.0, "a"), (31.0, "b"), (60.0, "c"), (62.0, "d"), (99.0, "")):
        now[0] = at
        say(text)
    assert capsys.readouterr().err == "b\nd\n"


def test_the_time_left_follows_the_estimates_until_much_was_measured() -> None:
    assert display_progress.scaled_s(left_s=300.0, measured_s=0.0, elapsed_s=0.0) == 300.0
    assert display_progress.scaled_s(300.0, measured_s=5.0, elapsed_s=20.0) < 400.0
    assert display_progress.scaled_s(300.0, 600.0, 1200.0) == pytest.approx(600.0, rel=0.1)
    assert display_progress.scaled_s(-1e-9, 600.0, 1200.0) == 0.0


def test_cells_that_cannot_run_say_nothing_of_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    options = jobs.Options(
        suites=("decode",), kv_formats=("fp16",), backends=("triton", "cpu"),
        models=("smollm2-135m",), think_tokens=(16,),
    )  # fmt: skip
    listed = jobs.list_jobs(options, "cpu")
    with display_progress.Progress(listed) as progress:
        for job in sorted(listed.jobs, key=lambda job: job.plan.cell.backend != "triton"):
            status: Status = "unsupported" if job.plan.cell.backend == "triton" else "ok"
            progress.show(job, replace(record(job.plan.cell), status=status))
    first, last = capsys.readouterr().err.splitlines()
    assert first.endswith("· 1 s left")  # the other cell's estimate, unscaled
    assert last.endswith("· 0 s left")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    run = run_of(record())
    with RunFolder.create(tmp_path / "run") as folder:
        folder.write_manifest(run.manifest)
        folder.append(run.records[0])
    return folder.path


def test_gate_against_its_own_baseline_passes(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "base.json"
    assert kvgauge("baseline", "make", str(run_dir), "--out", str(out)).returncode == 0
    assert "1 cells from 1 run" in kvgauge("baseline", "show", str(out)).stdout
    done = kvgauge("gate", str(run_dir), "--baseline", str(out), "--json")
    assert done.returncode == 0
    verdicts = json.loads(done.stdout)["verdicts"]
    assert [v["verdict"] for v in verdicts] == ["same"]


def test_gate_on_other_bytes_is_exit_4(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "base.json"
    kvgauge("baseline", "make", str(run_dir), "--out", str(out))
    changed = json.loads(out.read_text())
    changed["cells"][0]["kv_bytes"] += 1
    out.write_text(json.dumps(changed))
    done = kvgauge("gate", str(run_dir), "--baseline", str(out))
    assert done.returncode == 4
    assert "bytes_differ" in done.stdout


@pytest.mark.parametrize("command", ["report", "summary", "gate", "baseline"])
def test_a_torn_last_line_is_said_by_every_command_that_reads_a_run(
    command: str, run_dir: Path, tmp_path: Path
) -> None:
    with (run_dir / "records.jsonl").open("a") as file:
        file.write('{"schema": "kvg')
    base = str(tmp_path / "base.json")
    kvgauge("baseline", "make", str(run_dir), "--out", base)
    arguments = {
        "report": (str(run_dir), "--md", str(tmp_path / "x.md")),
        "summary": (str(run_dir),),
        "gate": (str(run_dir), "--baseline", base),
        "baseline": ("make", str(run_dir), "--out", base),
    }[command]
    done = kvgauge(command, *arguments)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "torn" in line and str(run_dir) in line]


def test_gate_on_a_failed_cell_is_exit_5(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "base.json"
    kvgauge("baseline", "make", str(run_dir), "--out", str(out))
    with RunFolder.reopen(run_dir) as folder:
        folder.append(failed(make_cell()))
    assert kvgauge("gate", str(run_dir), "--baseline", str(out)).returncode == 5
