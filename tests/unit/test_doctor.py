"""The doctor as a whole: packages, the verdict, the table, the JSON document and the exit code."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from doctor_for_tests import NVMLError, StandInNvml, gpu_torch, tree
from faults.test_cli_faults import ROOT, kvgauge
from kvgauge import cli_doctor, display, display_doctor
from kvgauge.doctor import packages, runnable
from kvgauge.doctor.examine import examine
from kvgauge.doctor.torch_facts import Torch, TorchGpu
from kvgauge.doctor.types import Check, Diagnosis, Runnable, Section, Unavailable, section
from kvgauge.errors import UserError

CPU_TORCH = Torch("2.13.0+cpu", None, None, (), 8, ())
HOSTILE = "evil\x1b[31m\r\nred [bold]x[/] :smile: \u202e" + "y" * 1000


def test_one_json_document_with_the_documented_keys(tmp_path: Path) -> None:
    done = kvgauge("doctor", "--json", "--run-dir", str(tmp_path / "runs"))
    document = json.loads(done.stdout)
    assert document["exit_code"] == done.returncode
    assert set(document) == {"exit_code", "schema", "verdict", "can_run", "sections"}
    assert document["schema"] == "kvgauge.doctor/1"
    assert document["sections"]
    for part in document["sections"]:
        assert set(part) == {"title", "checks"}
        for check in part["checks"]:
            assert set(check) == {"name", "state", "found", "means", "right"}
            assert check["state"] in {"ok", "warn", "unavailable", "fail"}
    on_cpu = {e["name"]: e["available"] for e in document["can_run"] if e["device"] == "cpu"}
    assert on_cpu["footprint"] is True
    assert on_cpu["sdpa-flash"] is True
    assert on_cpu["flash-attn"] is False


def test_the_table_begins_with_the_verdict(tmp_path: Path) -> None:
    done = kvgauge("doctor", "--run-dir", str(tmp_path))
    assert done.stdout.startswith("This machine can run footprint, decode")
    assert "Traceback" not in done.stderr


def test_without_torch_it_says_how_to_get_it() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['kvgauge', 'doctor'];"
        "from kvgauge.cli import main; main()"
    )
    paths = [str(ROOT / name) for name in ("bench", "kernels", "reports")]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}; {code}"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("kvgauge: torch: not installed")
    assert "pip install 'kvgauge[torch]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout.startswith("This machine can run no suite: torch is not installed")


def test_transformers_is_not_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from kvgauge.doctor.examine import examine;"
        f"examine(Path({str(tmp_path)!r}));"
        "print([m for m in ('transformers', 'pandas', 'matplotlib', 'typst') if m in sys.modules])"
    )
    paths = [str(ROOT / name) for name in ("bench", "kernels", "reports")]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}; {code}"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_a_cpu_build_on_a_gpu_machine_exits_2_with_the_table_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", StandInNvml(count=2))
    monkeypatch.setattr("kvgauge.doctor.examine.read_torch", lambda: CPU_TORCH)
    with pytest.raises(UserError, match=r"torch: the driver sees 2 GPU\(s\).*a CPU build"):
        cli_doctor.doctor(run_dir=tmp_path)
    out = capsys.readouterr().out
    assert "To be mended" in out
    assert "all 2: 1" not in out
    assert "all 2: on" in out  # two cards alike: said once
    with pytest.raises(UserError):
        cli_doctor.doctor(run_dir=tmp_path, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == 2
    assert {part["title"] for part in document["sections"]} >= {"GPU", "GPU 0", "GPU 1"}


def test_no_driver_exits_0(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", StandInNvml(nvmlInit=NVMLError(12)))
    monkeypatch.setattr("kvgauge.doctor.examine.read_torch", lambda: CPU_TORCH)
    diagnosis = examine(tmp_path, tree(tmp_path))
    assert diagnosis.having("fail") == ()
    assert "It cannot run CUDA: no NVIDIA driver" in diagnosis.verdict


def test_suites_that_do_not_load_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_args: object) -> Any:
        raise ImportError("numpy is broken")

    monkeypatch.setattr("kvgauge.doctor.examine.what_runs", broken)
    diagnosis = examine(tmp_path, tree(tmp_path))
    assert any(
        c.name == "suites" and "numpy is broken" in c.found for c in diagnosis.having("fail")
    )
    assert diagnosis.verdict.startswith("This machine can run no suite")


def test_a_suite_that_misses_a_package_is_named_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kvgauge.suites.model.missing_packages", lambda _name: "no transformers")
    entries = runnable.what_runs(CPU_TORCH, "no driver")
    on_cpu = {(e.kind, e.name): e.reason for e in entries if e.device == "cpu"}
    assert on_cpu["suite", "model"] == "no transformers"
    assert on_cpu["suite", "decode"] is None
    assert {e.reason for e in entries if e.device == "cuda"} == {"no driver"}
    text = runnable.verdict(entries, CPU_TORCH)
    assert "can run footprint, decode on the CPU" in text
    assert "cannot run model on the CPU: no transformers; CUDA: no driver" in text


def test_decode_without_any_backend_cannot_run() -> None:
    backends: dict[str, str | None] = {"reference": None, "a": "no", "b": "no"}
    assert runnable._missing({"a": "no", "b": "no"}, backends) == "no backend can run here"
    assert runnable._missing({"a": "no"}, backends) is None


@pytest.mark.parametrize(
    ("torch", "required", "installed", "state"),
    [
        (CPU_TORCH, [], None, "unavailable"),
        (gpu_torch(), ["triton==3.7.1; platform_system == 'Linux'"], None, "warn"),
        (gpu_torch(), ["numpy", "triton==3.7.1; x"], "3.6.0", "warn"),
        (gpu_torch(), ["pytorch-triton==3.7.1+git1"], "3.8.0", "warn"),
    ],
)
def test_triton_against_what_torch_requires(
    torch: Torch, required: list[str], installed: str | None, state: str
) -> None:
    check = packages.triton(torch, required, installed)
    assert check.state == state
    if state == "warn":
        assert check.right == "pip install triton==3.7.1"


def test_triton_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: object())
    check = packages.triton(gpu_torch(), ["triton==3.7.1"], "3.7.1")
    assert (check.state, check.found) == ("ok", "3.7.1, as torch requires")


@pytest.mark.parametrize(
    ("files", "state"),
    [(["pynvml.py"], "warn"), (["pynvml/__init__.py"], "warn"), (None, "warn"),
     (["pynvml_utils/__init__.py"], "ok")],
)  # fmt: skip
def test_the_deprecated_pynvml_warns_where_it_brings_the_module(
    monkeypatch: pytest.MonkeyPatch, files: list[str] | None, state: str
) -> None:
    monkeypatch.setattr(metadata, "version", {"nvidia-ml-py": "13.0", "pynvml": "11.5"}.__getitem__)
    monkeypatch.setattr(metadata, "distribution", lambda _name: SimpleNamespace(files=files))
    assert packages.nvidia_ml_py().state == state


def test_an_old_torch_and_an_absent_one() -> None:
    old = Torch("2.4.1+cu121", "12.1", None, (), 8, ())
    assert packages.torch_package(old).state == "warn"
    assert packages.torch_package(CPU_TORCH).state == "ok"
    assert packages.torch_package(Unavailable("not installed")).state == "fail"


def test_an_absent_package_says_what_it_would_enable() -> None:
    group = packages.Group(
        "x", {"no-such-a": "no_such_a", "rich": "rich"}, "suite x", "pip install x"
    )
    check = packages.optional_group(group)
    assert (check.state, check.found) == ("unavailable", "not installed: no-such-a")
    assert (check.means, check.right) == ("would enable suite x", "pip install x")


def test_a_question_that_breaks_takes_no_other_with_it() -> None:
    def broken() -> Check:
        raise ValueError("invalid literal for int(): 'abc'")

    asked = section("s", ("a", broken), ("b", lambda: Check("b", "ok", "fine")))
    assert [check.state for check in asked.checks] == ["unavailable", "ok"]
    assert "invalid literal" in asked.checks[0].found


def test_hostile_strings_reach_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(
        display, "out", lambda: Console(file=shown, width=100, force_terminal=False)
    )
    checks = tuple(Check(HOSTILE, state, HOSTILE, HOSTILE, HOSTILE)
                   for state in ("ok", "warn", "unavailable", "fail"))  # fmt: skip
    entries = (Runnable("suite", HOSTILE, "cpu", HOSTILE), Runnable("backend", HOSTILE, "cpu"))
    display_doctor.print_diagnosis(Diagnosis(HOSTILE, entries, (Section("CPU", checks),)))
    text = shown.getvalue()
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "[bold]" in text
    assert ":smile:" in text
    assert "\\x1b[31m\\r\\nred" in text
    line = display_doctor.failure_line(checks[3])
    assert line.isprintable()
    assert len(line) < 1000


def card_of(number: int) -> Section:
    ecc = Check("ECC", "warn", "off", right=f"nvidia-smi -i {number} -e 1")
    return Section(f"GPU {number}", (ecc, Check("MIG", "ok", "on" if number else "off")))


def test_cards_that_differ_are_told_apart() -> None:
    gpu, cpu = Section("GPU", (Check("driver", "ok", "fine"),)), Section("CPU", ())
    merged = display_doctor.merged([gpu, *map(card_of, range(3)), cpu])
    assert [part.title for part in merged] == ["GPU", "Each GPU", "CPU"]
    checks = merged[1].checks
    assert [check.found for check in checks] == ["all 3: off", "0: off", "1, 2: on"]
    assert checks[0].right == "nvidia-smi -i 0 -e 1; likewise for GPU 1, 2"
    assert display_doctor.merged([gpu, card_of(0), cpu]) == [gpu, card_of(0), cpu]


def test_a_broken_gpu_fails_though_another_works(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", StandInNvml())
    good, bad = TorchGpu(0, "11", None, None), TorchGpu(1, "00", None, "RuntimeError: ECC error")
    monkeypatch.setattr("kvgauge.doctor.examine.read_torch", lambda: gpu_torch(good, bad))
    monkeypatch.setattr("kvgauge.doctor.examine.what_runs", lambda *_args: ())
    failures = examine(tmp_path, tree(tmp_path)).having("fail")
    assert [check.found for check in failures] == ["a sum on it fails: RuntimeError: ECC error"]
