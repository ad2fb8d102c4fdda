"""Real worker processes that crash, hang, starve and lie; the run goes on and leaves no process."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

import faulty_backends
from kvgauge import jobs, runner
from kvgauge.devices.cpu import CpuDevice
from kvgauge.isolate import Workers
from kvgauge.jobs import Job
from kvgauge.schema import Record
from kvgauge.store.folder import RunFolder
from kvgauge.store.reader import load_run
from kvgauge.suites.types import Context, Outcome
from kvgauge_kernels import BACKENDS

ROOT = Path(__file__).resolve().parents[2]
ROOTS = os.pathsep.join(str(ROOT / name) for name in ("bench", "kernels", "reports"))
WORKER = (sys.executable, faulty_backends.__file__)
HANG_LIMIT_S = 8.0
TINY = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2,
    "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64,
    "vocab_size": 100, "tie_word_embeddings": False,
}  # fmt: skip
ENDS = {
    "segfault": ("crashed", "signal", "SIGSEGV"),
    "abort": ("crashed", "signal", "SIGABRT"),
    "hang": ("timeout", "timeout", "killed after 8 s (--timeout-s); its last words: about to hang"),
    "exhaust-torch": ("oom", "out_of_memory", "can't allocate memory"),
    "exhaust-python": ("oom", "out_of_memory", ""),
    "sigkill": ("crashed", "killed", "no count of OOM kills rose"),
    "raise": ("failed", "exception", "ValueError: a fault of this test"),
    "garbage": ("ok", None, ""),
    "exit-silently": ("crashed", "exit", "exited with 3 and no answer"),
    "huge-answer": ("failed", "bad_answer", "over 1048576 bytes"),
    "malformed-answer": ("failed", "bad_answer", "$.outcome"),
    "other-cells-answer": ("failed", "bad_answer", "predicts 1 bytes, this cell has 16896"),
    "impossible-answer": ("failed", "bad_answer", "spent 1e+09 s"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of every fault between two healthy cells; the last is of another backend."""
    path = tmp_path_factory.mktemp("isolated")
    (path / "config.json").write_text(json.dumps(TINY))
    options = jobs.Options(
        suites=("decode",), models=(str(path),), think_tokens=(33,), kv_formats=("fp32",),
        backends=("sdpa-flash", *ENDS, "eager"),
    )  # fmt: skip

    def measure(job: Job, context: Context) -> Outcome:
        hangs = job.plan.cell.backend == "hang"
        return Workers(WORKER, HANG_LIMIT_S if hangs else 120.0).measure(job, context)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(faulty_backends.PIDS, str(path / "pids"))
        for name, backend in faulty_backends.faulty_backends().items():
            patch.setitem(BACKENDS, name, backend)
        started = time.monotonic()
        run = runner.execute(
            options, CpuDevice(), RunFolder.create(path / "run"), ["kvgauge"], measure=measure
        )
        assert run.manifest.spent is not None
        assert sum(asdict(run.manifest.spent).values()) == pytest.approx(
            time.monotonic() - started, rel=0.05
        )
    return path


def records(folder: Path) -> dict[str, Record]:
    return {r.cell.backend or "": r for r in load_run(folder / "run").records if r.cell}


@pytest.mark.parametrize("fault", ENDS)
def test_a_fault_becomes_its_record(folder: Path, fault: str) -> None:
    status, code, says = ENDS[fault]
    record = records(folder)[fault]
    assert (record.status, record.reason_code) == (status, code), record.reason
    assert says in (record.reason or "")


def test_every_fault_of_the_list_is_tried() -> None:
    assert set(ENDS) == set(faulty_backends.FAULTS)


def test_the_cells_before_and_after_are_measured(folder: Path) -> None:
    read = records(folder)
    assert list(read) == ["sdpa-flash", *ENDS, "eager"]
    for name in ("sdpa-flash", "eager"):
        record = read[name]
        assert (record.status, record.reason) == ("ok", None)
        assert record.backend is not None
        assert record.backend.name == name
        assert record.spent is not None
        assert record.spent.isolation_s > 0.1  # importing torch alone takes longer
        assert record.spent.samples_s > 0
        assert record.spent.probe_s > 0


def test_no_process_of_a_worker_is_left(folder: Path) -> None:
    pids = (folder / "pids").read_text().split()
    assert len(pids) == 2
    assert [pid for pid in pids if alive(int(pid))] == []


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def workers_of(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            ppid = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_bytes()
            if ppid == parent and (b"kvgauge.worker" in command or b"faulty_backends" in command):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def until(what: Callable[[], object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def isolated(*arguments: str, limit_bytes: int | None = None) -> subprocess.Popen[str]:
    def limit() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))

    return subprocess.Popen(
        [sys.executable, "-m", "kvgauge", "run", "--device", "cpu", "--isolate",
         "--suite", "footprint", "--kv-format", "fp16", *arguments],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": ROOTS}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=limit,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_no_worker(tmp_path: Path, number: signal.Signals) -> None:
    run = isolated("--run-dir", str(tmp_path / "run"))
    try:
        assert until(lambda: workers_of(run.pid), 60)
        found = workers_of(run.pid)
        run.send_signal(number)
        _out, err = run.communicate(timeout=60)
        assert run.returncode == 130, err
        assert [pid for pid in found if alive(pid)] == []
    finally:
        run.kill()


HANGING_RUN = """
import sys
from pathlib import Path
import faulty_backends
from kvgauge import jobs, runner
from kvgauge.devices.cpu import CpuDevice
from kvgauge.isolate import Workers
from kvgauge.store.folder import RunFolder
faulty_backends.BACKENDS.update(faulty_backends.faulty_backends())
options = jobs.Options(suites=("decode",), think_tokens=(33,), kv_formats=("fp32",),
                       models=("smollm2-135m",), backends=("hang",))
workers = Workers((sys.executable, faulty_backends.__file__), 100.0)
folder = RunFolder.create(Path(sys.argv[1]))
runner.execute(options, CpuDevice(), folder, ["kvgauge"], measure=workers.measure)
"""


def test_a_run_that_is_killed_takes_a_hanging_worker_with_it(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    run = subprocess.Popen(
        [sys.executable, "-c", HANGING_RUN, str(tmp_path / "run")],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            faulty_backends.PIDS: str(pids),
        },
    )
    try:
        assert until(lambda: pids.exists() and pids.read_text().endswith("\n"), 60)
        (worker,) = workers_of(run.pid)
        adjusted = int(Path(f"/proc/{worker}/oom_score_adj").read_text())
        assert adjusted > int(Path("/proc/self/oom_score_adj").read_text())
    finally:
        run.kill()
        run.wait()
    assert until(lambda: not alive(worker), 5)
    # What a worker itself started is out of reach of a run that was killed.
    os.kill(int(pids.read_text()), signal.SIGKILL)


def test_a_run_from_a_plain_checkout_and_a_tried_cell_that_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    run = isolated(
        "--model", "llama-3.1-70b", "--think", "64", "--think", "1000000000", "--try-oversize",
        "--run-dir", str(path), limit_bytes=256 * 2**30,
    )  # fmt: skip
    _out, err = run.communicate(timeout=120)
    assert run.returncode == 0, err  # oom is a finding, and the run is complete
    small, large = load_run(path).records
    assert (small.status, small.ratio and small.ratio.kv_bytes) == ("ok", 1.0)
    assert (large.status, large.reason_code) == ("oom", "out_of_memory")
