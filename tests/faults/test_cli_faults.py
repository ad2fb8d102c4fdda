"""Clumsy and hostile input on every command: one line on stderr, exit 2, no traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOTS = os.pathsep.join(str(ROOT / name) for name in ("bench", "kernels", "reports"))


def kvgauge(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command as a user starts it from a plain checkout."""
    return subprocess.run(
        [sys.executable, "-m", "kvgauge", *arguments],
        capture_output=True, text=True, timeout=120, cwd=cwd,
        env={**os.environ, "PYTHONPATH": ROOTS},
    )  # fmt: skip


def refused(*arguments: str, cwd: Path = ROOT) -> str:
    done = kvgauge(*arguments, cwd=cwd)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stdout == ""
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("plan", "no-such-model"), "no-such-model"),
        (("plan", "llama-3.1-8b", "--kv-format", "fp7"), "fp7"),
        (("plan", "llama-3.1-8b", "--think", "-1"), "-1"),
        (("plan", "llama-3.1-8b", "--think", "many"), "--think"),
        (("plan", "llama-3.1-8b", "--think", "9" * 30), "999"),
        (("plan", "llama-3.1-8b", "--page-size", "0"), "page size"),
        (("plan", "llama-3.1-8b", "--tp", "3"), "tensor parallel"),
        (("plan", "llama-3.1-8b", "--batch", "0"), "batch"),
        (("plan", "llama-3.1-8b", "--gpu", "H101"), "H100"),
        (("plan", "llama-3.1-8b", "--utilization", "1.5"), "utilization"),
        (("plan", "llama-3.1-8b", "--utilization", "nan"), "utilization"),
        (("plan", "llama-3.1-8b", "--reserve-gb", "-1"), "reserve"),
        (("plan", "llama-3.1-8b", "--engine", "x"), "engine"),
        (("plan", "llama-3.1-8b", "--sweep", "think=9:1"), "low:high"),
        (("plan", "llama-3.1-8b", "--compare", "gpx=H100"), "gpx"),
        (("plan", "llama-3.1-8b", "--fit"), "--gpu"),
        (("plan", "phi-3.5-mini", "--kv-format", "int4-g0"), "group"),
        (("run", "--kv-format", "q8_0", "--list"), "planned but not measured"),
        (("run", "--kv-format", "fp8", "--list"), "did you mean fp8_e4m3 or fp8_e5m2?"),
        (
            ("run", "--kv-format", "int8,fp16"),
            "given once for each: --kv-format int8 --kv-format fp16",
        ),
        (("run", "--model", "gpt2,qwen3-8b"), "given once for each: --model gpt2 --model qwen3-8b"),
        (("run", "--model", "gpt2,x.json"), "no such file or folder"),
        (
            ("run", "--backend", "cpuq", "--list"),
            "unknown backend 'cpuq': did you mean cpu or cpu-q8?",
        ),
        (("run", "--backend", "zzz", "--list"), "unknown backend 'zzz': one of eager, "),
        (("plan", "llama-3.1-8b", "--kv-format", "fp8"), "did you mean fp8_e4m3 or fp8_e5m2?"),
        (("plan", "llama-3.1-8b", "--compare", "fp8"), "did you mean fp8_e4m3 or fp8_e5m2?"),
        (("plan", "llama-3.1-8b", "--compare", "lama-3.1-8b"), "llama-3.1-8b"),
        (("plan",), "model"),
        (("plan", "llama-3.1-8b", "--nonsense"), "nonsense"),
        (("nonsense",), "nonsense"),
        (("gate", "no-such-folder", "--baseline", "results/baselines"), "no-such-folder"),
        (("report", "no-such-folder", "--html", "x.html"), "no-such-folder"),
        (("summary", "no-such-folder"), "no-such-folder"),
        (("baseline", "make", "no-such-folder", "--out", "x"), "no-such-folder"),
    ],
)
def test_wrong_arguments(arguments: tuple[str, ...], says: str) -> None:
    assert says in refused(*arguments)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'"text"', b"\x00\xff", b'{"model_type": "llama"}', b"[" * 50_000,
     json.dumps({"model_type": "llama", "num_hidden_layers": 10**9}).encode(),
     json.dumps({"model_type": "llama", "num_hidden_layers": "x", "hidden_size": 8}).encode(),
     b'{"model_type": "llama", "num_hidden_layers": NaN}'],
)  # fmt: skip
def test_a_broken_config(tmp_path: Path, content: bytes) -> None:
    config = tmp_path / "config.json"
    config.write_bytes(content)
    assert "config.json" in refused("plan", str(config))


def test_an_unknown_layout_is_named(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "made_up_net", "num_hidden_layers": 2}))
    assert "unsupported layout: model_type=made_up_net" in refused("plan", str(config))


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"not a gguf file at all", b"GGUF" + b"\xff" * 60]
)
def test_a_broken_gguf(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    assert "model.gguf" in refused("plan", str(file))


def test_a_run_that_cannot_be_is_refused_before_it_starts(tmp_path: Path) -> None:
    where = ("--run-dir", str(tmp_path / "run"))
    assert "no-such-suite" in refused("run", "--suite", "no-such-suite", *where)
    assert "tpu" in refused("run", "--device", "tpu", *where)
    assert not (tmp_path / "run").exists()


def test_a_gate_without_a_baseline_is_exit_3(tmp_path: Path) -> None:
    from kvgauge.store.folder import RunFolder
    from records_for_tests import record, run_of

    run = run_of(record())
    folder = RunFolder.create(tmp_path / "run")
    folder.write_manifest(run.manifest)
    folder.append(run.records[0])
    (tmp_path / "empty").mkdir()
    done = kvgauge("gate", str(folder.path), "--baseline", str(tmp_path / "empty"))
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (3, 1)
    assert "kvgauge baseline make" in done.stderr


def test_a_closed_pipe_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m kvgauge plan llama-3.1-8b --json | head -c 1",
        shell=True, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": ROOTS}, cwd=ROOT,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr


@pytest.mark.parametrize(
    ("sent", "ignored"),
    [
        ((signal.SIGTERM,), None),
        # A shell starts a job in the background with SIGINT ignored; nohup ignores SIGHUP.
        ((signal.SIGTERM,), signal.SIGINT),
        ((signal.SIGHUP,), None),
        ((signal.SIGHUP, signal.SIGINT), signal.SIGHUP),
        ((signal.SIGINT, signal.SIGINT, signal.SIGINT), None),
    ],
)
def test_a_signal_ends_a_run_cleanly(
    tmp_path: Path, sent: tuple[signal.Signals, ...], ignored: signal.Signals | None
) -> None:
    def ignore() -> None:
        if ignored is not None:
            signal.signal(ignored, signal.SIG_IGN)

    run_dir = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "kvgauge", "run", "--suite", "footprint", "--model", "llama-3.1-8b",
         "--device", "cpu", "--run-dir", str(run_dir)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": ROOTS}, stderr=subprocess.PIPE, text=True,
        preexec_fn=ignore,
    )  # fmt: skip
    records = run_dir / "records.jsonl"
    deadline = time.monotonic() + 60
    while not (records.exists() and records.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    for number in sent:
        process.send_signal(number)
        time.sleep(0.02)
    _out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted; what a run has measured is kept" in err.splitlines()[-1]
    assert records.read_text().endswith("\n")
    manifest = json.loads((run_dir / "manifest.json").read_text())
    if len(sent) < 3:  # of three, a later one may come before the manifest: it then says `running`
        assert manifest["status"] == "interrupted"


def test_an_interrupt_inside_exec_is_exit_130_too(tmp_path: Path) -> None:
    (tmp_path / "stopped.py").write_text(
        "from kvgauge import cli\n"
        "cli.app = lambda **_: exec('raise KeyboardInterrupt')\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "stopped"], capture_output=True, text=True, timeout=60, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ROOTS},
    )  # fmt: skip
    assert done.returncode == 130
    assert "interrupted" in done.stderr


def test_a_terminal_without_unicode_is_no_error() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kvgauge", "plan", "llama-3.1-8b", "--think", "5"],
        capture_output=True, timeout=60, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": ROOTS, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
