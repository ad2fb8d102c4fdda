"""`kvgauge audit-kernels`: real compilations of few kernels, whole and broken."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from kernels_for_tests import make_view
from kvgauge import cli
from kvgauge.kernel_audit import audit_kernels
from kvgauge_kernels.audit import compiling, limits, run
from kvgauge_kernels.audit.cases import Case, default_cases
from kvgauge_kernels.audit.elf import code_hash
from kvgauge_kernels.audit.run import triton_version
from kvgauge_kernels.audit.targets import TARGETS
from kvgauge_kernels.triton import cache as cache_launch
from kvgauge_kernels.triton import launch
from kvgauge_kernels.view import KVView
from triton_for_tests import TritonCase, needs_triton, one_case, one_latent_case

SOURCE = Path(limits.PATH).with_name("kernels.py")
ONE = ("--target", "sm_90", "--kernel", "split_decode/fp16/128x128/contiguous")


def start(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["kvgauge", "audit-kernels", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(str(stopped.value.code))


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    return tmp_path / "cache" / "kvgauge" / "audit"


def module_of(source: str, path: Path) -> ModuleType:
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # triton finds a kernel's globals by it
    spec.loader.exec_module(module)
    return module


def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, old: str, new: str) -> None:
    """The kernels with one text changed, in the place of the real ones."""
    source = SOURCE.read_text()
    assert source.count(old) >= 1, old
    module = module_of(source.replace(old, new), tmp_path / "broken_kernels.py")
    monkeypatch.setattr(compiling, "kernels", lambda _kernel: module)


@needs_triton
def test_a_sound_kernel_passes_and_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    version = triton_version()
    expected = 0 if version in limits.load() else 3
    assert start(monkeypatch, *ONE, "--json") == expected
    said = json.loads(capsys.readouterr().out)
    assert said["exit_code"] == expected
    (kernel,) = said["kernels"]
    assert kernel["faults"] == []
    assert kernel["formula_bytes_per_token"] == kernel["findings"]["bytes_per_token"] == 512
    assert kernel["findings"]["code"]["load_bits"] == {"K": [128], "V": [128]}
    assert len(list(cache.glob("*.json"))) == 1
    monkeypatch.setattr(compiling, "compile_case", lambda *_: pytest.fail("compiled again"))
    assert start(monkeypatch, *ONE) == expected
    assert "1 kernels, 0 with faults" in capsys.readouterr().out
    texts: list[str] = []
    audit_kernels(("sm_90",), (ONE[3],), progress=texts.append)
    assert [text.split("/fp16")[0] for text in texts] == ["[1/1] sm_90 split_decode"]


@needs_triton
@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        # Elements two apart: no instruction loads several.
        ("k_rows[:, None] + k_columns", "k_rows[:, None] + k_columns * 2", "K is loaded 16 bits"),
        # Rows that start at any element: the compiler may assume nothing.
        ("v_rows[:, None] + v_columns", "v_rows[:, None] + v_columns + split", "V is loaded"),
        # No second product.
        (
            "out = tl.dot(weights.to(rounded).to(dtype), values, out)",
            "out += tl.sum(weights, 1)[:, None]",
            "no load of V was found",
        ),
        # K read twice.
        (
            "        keys = keys.to(dtype)",
            "        keys += tl.load(k_rows[:, None] + k_columns + 16, mask=k_mask, other=0)\n"
            "        keys = keys.to(dtype)",
            "its loop moves",
        ),
        ("tl.trans(keys)", "tl.trnas(keys)", "does not compile"),
    ],
)  # fmt: skip
def test_a_broken_kernel_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    old: str, new: str, fault: str,
) -> None:  # fmt: skip
    known = tmp_path / "limits.json"
    assert start(monkeypatch, *ONE, "--limits", str(known), "--update") == 0
    broken(monkeypatch, tmp_path, old, new)
    assert start(monkeypatch, *ONE, "--limits", str(known)) == 4
    said = capsys.readouterr().out
    assert "fault sm_90 split_decode/fp16/128x128/contiguous/n64-w4-s3: " in said
    assert fault in said


@needs_triton
def test_a_register_blow_up_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken(monkeypatch, tmp_path, "tl.arange(0, BLOCK_N)", "tl.arange(0, 4 * BLOCK_N)")
    assert start(monkeypatch, *ONE) == 4
    said = capsys.readouterr().out
    assert "split_decode/fp16/128x128/contiguous" in said
    assert "spills: " in said or "does not compile" in said


@needs_triton
def test_processes_find_what_one_finds(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    cases = [case for case in default_cases() if case.kernel in ("merge_splits", "copy_rows")]
    alone = run.audit({}, cases, [TARGETS["sm_90"]])
    shutil.rmtree(cache)
    monkeypatch.setattr(run, "_WORTH_PROCESSES", 1)
    assert len(cases) > 1
    assert run.audit({}, cases, [TARGETS["sm_90"]]) == alone
    assert len(list(cache.iterdir())) == len(cases)  # by the processes
    monkeypatch.setattr(run, "_by_processes", None)
    assert run.audit({}, cases, [TARGETS["sm_90"]]) == alone  # of what was kept


@needs_triton
def test_a_compiling_process_that_is_killed_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Killed(ProcessPoolExecutor):
        def map(self, *_: Any, **__: Any) -> Any:
            return super().map(os._exit, [9])

    monkeypatch.setattr(run, "_WORTH_PROCESSES", 1)
    monkeypatch.setattr(run, "ProcessPoolExecutor", Killed)
    assert start(monkeypatch, *ONE) == 2
    said = capsys.readouterr().err
    assert "a process that compiled was killed" in said
    assert "Traceback" not in said


@needs_triton
def test_no_limits_is_nothing_to_compare_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "limits.json"
    assert start(monkeypatch, *ONE, "--limits", str(file)) == 2
    assert "limits.json: no such file" in capsys.readouterr().err
    file.write_text('{"schema": 1, "limits": {}}')
    assert start(monkeypatch, *ONE, "--limits", str(file)) == 3
    assert "audit-kernels --update" in capsys.readouterr().out
    assert start(monkeypatch, *ONE, "--limits", str(file), "--update") == 0
    assert start(monkeypatch, *ONE, "--limits", str(file)) == 0
    strict = json.loads(file.read_text())
    for entry in strict["limits"][triton_version()]["sm_90"].values():
        entry["registers"] -= 1
    file.write_text(json.dumps(strict))
    assert start(monkeypatch, *ONE, "--limits", str(file)) == 4
    assert "registers, at most" in capsys.readouterr().out


@needs_triton
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target", "sm_70"), "unknown target 'sm_70': one of sm_80, sm_86"),
        (("--kernel", "prefill"), "no kernel has 'prefill' in its name"),
        (("--limits", str(SOURCE)), "no limits of this program"),
        (
            (*ONE, "--limits", "/nowhere/limits.json", "--update"),
            "cannot write /nowhere/limits.json",
        ),
    ],
)
def test_wrong_input_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    assert start(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_without_triton_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert start(monkeypatch) == 2
    error = capsys.readouterr().err
    assert "triton cannot be imported" in error
    assert len(error.splitlines()) == 1


def test_the_interpreter_compiles_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(os.environ, "TRITON_INTERPRET", "1")
    assert start(monkeypatch) == 2
    assert "unset TRITON_INTERPRET" in capsys.readouterr().err


@pytest.mark.parametrize("version", ["3.6.0", "3.7.1"])
def test_the_committed_limits_hold_every_default_kernel(version: str) -> None:
    known = limits.load()[version]
    assert set(known) == set(TARGETS)
    for target in TARGETS.values():
        expected = {case.key(target) for case in default_cases()}
        assert set(known[target.name]) == expected, "run `kvgauge audit-kernels --update`"
        for key, limit in known[target.name].items():
            assert limit.matrix > 0 or not key.startswith("split_decode")


class WarmedUp:
    """In the place of a kernel: a launch compiles as Triton's own launcher would, and runs nothing."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **options: self._kernel.warmup(*args, grid=grid, **options)


class NoGpu:
    """What Triton asks a driver before it compiles."""

    def __init__(self, target: Any) -> None:
        self.get_current_target = lambda: target
        self.get_current_device = lambda: target.arch  # what is compiled is kept by device
        self.get_current_stream = lambda _device: 0


def launched(
    monkeypatch: pytest.MonkeyPatch, case: TritonCase, view: KVView, name: str, kernel: str
) -> str | None:
    """The code that the whole path of a launch compiles for that target, as a record would name it."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    target = TARGETS[name]
    monkeypatch.setattr(launch, "processor", lambda _device: launch.Processor(132, target.room))
    for started in (kernel, "merge_splits"):
        holder = compiling.kernels(started)
        monkeypatch.setattr(holder, started, WarmedUp(getattr(holder, started)))
    gpu = GPUTarget(target.backend, target.arch, target.warp)
    monkeypatch.setattr(driver, "_active", NoGpu(gpu))
    lengths = None if view.lengths is None else list(view.lengths)
    launch.triton_decode(
        case.query(), view.k, view.v, view.k_scale, view.v_scale, view.k_zero, view.v_zero,
        view.block_table, lengths, view.format, view.window, view.sink_tokens,
    )  # fmt: skip
    return launch.last_code_hash()


@needs_triton
@pytest.mark.parametrize("name", ["sm_90", "sm_120"])
@pytest.mark.parametrize(
    ("fmt", "page_size", "lengths", "window"),
    [
        ("fp16", None, None, None), ("bf16", 16, (200, 70), None), ("int8", None, None, None),
        ("int8", 16, (77, 131), None), ("fp8_e4m3", None, None, 90), ("int4-g32", None, None, None),
        ("int2", 16, (77, 131), 90),
    ],
)  # fmt: skip
def test_what_the_host_launches_is_what_was_audited(
    monkeypatch: pytest.MonkeyPatch, name: str, fmt: str, page_size: int | None,
    lengths: tuple[int, ...] | None, window: int | None,
) -> None:  # fmt: skip
    """By the whole path of a launch, for rooms that are no multiple of anything."""
    q_format = "fp16" if fmt == "fp16" else "bf16"
    kernel = "split_decode_packed" if fmt.startswith(("int4", "int2")) else "split_decode"
    case = replace(
        one_case(), fmt=fmt, k_dim=128, v_dim=128, page_size=page_size, lengths=lengths, room=203,
        q_dtype=torch.float16 if fmt == "fp16" else torch.bfloat16, window=window,
    )  # fmt: skip
    audited = Case(
        kernel, fmt, q_format, 128, 128, page_size or 0,
        ragged=lengths is not None, windowed=window is not None,
    )  # fmt: skip
    findings = compiling.compile_case(audited, TARGETS[name], compiling.kernels(kernel))
    assert launched(monkeypatch, case, case.view(), name, kernel) == findings.code_hash[:16]


@needs_triton
@pytest.mark.parametrize("name", ["sm_90", "sm_120"])
@pytest.mark.parametrize("page_size", [None, 16])
def test_of_latents_too(monkeypatch: pytest.MonkeyPatch, name: str, page_size: int | None) -> None:
    kernel, lengths = "split_decode_latents", (203, 70) if page_size else None
    case = replace(
        one_latent_case(), fmt="bf16", q_dtype=torch.bfloat16, page_size=page_size, lengths=lengths,
        room=203,
    )  # fmt: skip
    audited = Case(
        kernel, "bf16", "bf16", 576, 512, page_size or 0, ragged=lengths is not None
    )  # fmt: skip
    findings = compiling.compile_case(audited, TARGETS[name], compiling.kernels(kernel))
    assert launched(monkeypatch, case, case.latents(), name, kernel) == findings.code_hash[:16]


@needs_triton
def test_a_latent_is_counted_once_by_its_bytes_and_by_the_formula(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only = ("--target", "sm_90", "--kernel", "latents/bf16/576x512/contiguous", "--json")
    start(monkeypatch, *only)
    (kernel,) = json.loads(capsys.readouterr().out)["kernels"]
    assert kernel["faults"] == []
    assert kernel["formula_bytes_per_token"] == kernel["findings"]["bytes_per_token"] == 576 * 2


class Compiled(WarmedUp):
    """As WarmedUp, and keeps what came out."""

    def __getitem__(self, grid: Any) -> Any:
        def start(*args: Any, **options: Any) -> None:
            self.binary = self._kernel.warmup(*args, grid=grid, **options).asm["cubin"]

        return start


def as_pages(view: KVView) -> KVView:
    """Its rows as pages of 16."""
    table = torch.zeros(2, 9, dtype=torch.int32)
    pools: dict[str, Any] = {name: x[:, :, :16].contiguous() for name, x in view.tensors().items()}
    return KVView(
        format=view.format, lengths=(9, 9), layout="paged", page_size=16, block_table=table, **pools
    )  # fmt: skip


@needs_triton
@pytest.mark.parametrize("name", ["sm_90", "sm_120"])
@pytest.mark.parametrize("fmt", ["bf16", "int8", "int4"])
def test_of_what_happens_between_steps_too(
    monkeypatch: pytest.MonkeyPatch, name: str, fmt: str
) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    target = TARGETS[name]
    monkeypatch.setattr(
        driver, "_active", NoGpu(GPUTarget(target.backend, target.arch, target.warp))
    )
    view = as_pages(make_view(fmt, k_dim=128, tokens=40))
    # Of the rows alone: scales are moved in words of their own.
    monkeypatch.setattr(KVView, "stored_tensors", lambda view: {"k": view.k})
    new = torch.zeros(2, 2, 128, dtype=torch.bfloat16)
    kept = torch.tensor([[1, 2, 5]] * 2)
    steps: dict[str, Callable[[], None]] = {
        "append_row": lambda: cache_launch.append_rows(view, new, new),
        "keep_tokens": lambda: cache_launch.keep_tokens(view, kept),
        "copy_rows": lambda: cache_launch.copy_pages(view, kept[0, :1] * 0, kept[0, :1]),
    }
    for kernel, step in steps.items():
        holder = compiling.kernels(kernel)
        audited = compiling.compile_case(Case(kernel, fmt, "bf16", 128, 128, 16), target, holder)
        started = Compiled(getattr(holder, kernel))
        monkeypatch.setattr(holder, kernel, started)
        step()
        assert code_hash(started.binary, kernel) == audited.code_hash


@needs_triton
@pytest.mark.parametrize("page_size", [0, 16])
def test_a_block_that_is_kept_is_read_before_it_is_written(page_size: int) -> None:
    """The interpreter knows no threads: the barrier between them shows in the machine code alone."""
    case = Case("keep_tokens", "bf16", "bf16", 128, 128, page_size)
    for name in ("sm_80", "sm_90", "sm_120"):
        code = compiling.built(case, TARGETS[name], compiling.kernels(case.kernel)).asm["ptx"]
        steps = re.findall(r"\b(ld\.global\.v4|bar\.sync|st\.global\.v4)", code)
        kinds = [kind for kind, _ in itertools.groupby(steps)]
        at = kinds.index("ld.global.v4")
        assert kinds[at:] == ["ld.global.v4", "bar.sync", "st.global.v4"], kinds


def test_tools_that_do_not_run_are_no_fault_of_a_kernel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(*_args: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", "nvdisasm")

    monkeypatch.setattr(compiling, "compile_case", absent)
    assert start(monkeypatch, "--target", "sm_90", "--kernel", "merge_splits/fp16") == 2
    assert "the compiler's tools do not run here" in capsys.readouterr().err
