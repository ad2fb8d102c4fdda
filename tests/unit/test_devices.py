"""Devices: the CPU for real; the CUDA code against a recording stand-in for torch.cuda."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from kvgauge.devices import cpu, cuda, nvml, select
from kvgauge.devices.cpu import CpuDevice
from kvgauge.devices.probe import make_probe
from kvgauge.errors import UserError


def test_the_cpu_counts_what_is_allocated() -> None:
    device = CpuDevice()
    before = device.memory_bytes()
    if before is None:
        pytest.skip("this system does not tell RssAnon")
    held = torch.ones(64 * 2**20, dtype=torch.uint8)
    after = device.memory_bytes()
    assert after is not None
    assert after - before == pytest.approx(held.nbytes, rel=0.02)
    del held
    freed = device.memory_bytes()
    assert freed is not None
    assert freed - before < 8 * 2**20


def test_the_cpu_peak_is_the_highest_since_the_reset() -> None:
    device = CpuDevice()
    before = device.memory_bytes()
    if before is None or not device.reset_peak():
        pytest.skip("this system does not reset VmHWM")
    held = torch.ones(64 * 2**20, dtype=torch.uint8)
    del held
    peak = device.peak_bytes()
    assert peak is not None
    assert peak - before == pytest.approx(64 * 2**20, rel=0.1)


def test_a_probe_gives_rates_that_a_memory_can_have() -> None:
    probe = make_probe(CpuDevice())
    assert 1e8 < probe.read_bytes_per_s() < 1e12
    assert 1e8 < probe.copy_bytes_per_s() < 2e12
    assert 1e8 < probe.flops_per_s() < 1e14
    # It must evict what the sample will read.
    assert probe.source.nbytes >= 4 * CpuDevice().last_level_cache_bytes


def test_time_that_others_take_is_counted_and_our_own_is_not() -> None:
    device = CpuDevice()
    if device.cpu_taken_s() is None:
        pytest.skip("this system has no /proc/stat")
    neighbour = "import time\nend = time.monotonic() + 1.0\nwhile time.monotonic() < end: pass"
    before = device.cpu_taken_s()
    subprocess.run([sys.executable, "-c", neighbour], check=True)
    after = device.cpu_taken_s()
    assert before is not None
    assert after is not None
    assert after - before >= 0.3  # a child is another process, however little of a core it got


def test_stolen_time_counts_and_idle_time_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_PROC", tmp_path)
    monkeypatch.setattr(os, "times", lambda: types.SimpleNamespace(user=1.0, system=0.5))
    ticks = os.sysconf("SC_CLK_TCK")
    fields = [2 * ticks, 0, ticks, 99 * ticks, 7 * ticks, 0, 0, 4 * ticks, 0, 0]
    (tmp_path / "stat").write_text("cpu  " + " ".join(map(str, fields)) + "\ncpu0 1 2 3\n")
    assert CpuDevice().cpu_taken_s() == pytest.approx(2 + 1 + 4 - 1.5)


def test_available_memory_respects_the_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    assert CpuDevice().available_bytes() == 3000
    (tmp_path / "memory.max").write_text("max\n")
    assert CpuDevice().available_bytes() > 10**6


class StandInEvent:
    """An event whose clock is the order of the calls."""

    ticks = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        StandInEvent.ticks += 1
        self.at = StandInEvent.ticks

    def synchronize(self) -> None:
        self.waited = True

    def elapsed_time(self, end: StandInEvent) -> float:
        assert end.waited, "the end must have happened before it is read"
        return 250.0 * (end.at - self.at)  # milliseconds


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """torch.cuda as a GPU machine has it, recording the calls."""
    calls: list[str] = []

    def call(name: str, value: Any) -> None:
        def answer(*_args: object) -> Any:
            calls.append(name)
            return value

        monkeypatch.setattr(torch.cuda, name, answer)

    facts = types.SimpleNamespace(
        name="Stand-in GPU", major=9, minor=0, multi_processor_count=132,
        total_memory=80 * 10**9, L2_cache_size=50 * 2**20, uuid="abc",
    )  # fmt: skip
    for name, value in {
        "is_available": True, "device_count": 2, "set_device": None, "synchronize": None,
        "empty_cache": None, "memory_allocated": 512, "max_memory_allocated": 2048,
        "reset_peak_memory_stats": None, "mem_get_info": (7 * 10**9, 80 * 10**9),
        "get_device_properties": facts,
    }.items():  # fmt: skip
        call(name, value)
    monkeypatch.setattr(torch.cuda, "Event", StandInEvent)
    return calls


def test_cuda_time_is_between_two_events_in_seconds(stand_in: list[str]) -> None:
    device = cuda.CudaDevice(1)
    ran: list[int] = []
    assert device.timed(lambda: ran.append(1)) == pytest.approx(0.25)
    assert ran == [1]
    assert (device.ref.kind, device.ref.name, device.ref.index) == ("cuda", "Stand-in GPU", 1)


def test_cuda_memory_is_the_allocators_after_cached_blocks_are_freed(stand_in: list[str]) -> None:
    device = cuda.CudaDevice(0)
    stand_in.clear()
    assert device.memory_bytes() == 512
    assert stand_in == ["synchronize", "empty_cache", "memory_allocated"]
    assert device.reset_peak()
    assert device.peak_bytes() == 2048
    assert device.available_bytes() == 7 * 10**9
    assert device.last_level_cache_bytes == 50 * 2**20
    assert device.properties()["compute_capability"] == "9.0"


def test_auto_takes_the_gpu_and_checks_its_index(stand_in: list[str]) -> None:
    assert select.select_device("auto").ref.kind == "cuda"
    assert select.select_device("cpu").ref.kind == "cpu"
    with pytest.raises(UserError, match="this machine has 2"):
        select.select_device("cuda", 2)


def test_a_gpu_that_torch_cannot_use_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(select, "gpu_count", lambda: 1)
    for choice in ("auto", "cuda"):
        with pytest.raises(UserError, match="sees 1 GPU"):
            select.select_device(choice)
    assert select.select_device("cpu").ref.kind == "cpu"


def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(select, "gpu_count", lambda: 0)
    assert select.select_device("auto").ref.kind == "cpu"
    with pytest.raises(UserError, match="no CUDA GPU"):
        select.select_device("cuda")


def test_nvml_tells_this_process_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    mine = types.SimpleNamespace(pid=os.getpid(), usedGpuMemory=123)
    other = types.SimpleNamespace(pid=1, usedGpuMemory=999)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: uuid)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", lambda _h: [other, mine])
    assert nvml.Nvml("abc").process_bytes() == 123
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", lambda _h: [other])
    assert nvml.Nvml("abc").process_bytes() is None  # a container that hides host PIDs


def test_nvml_without_permission_is_absent_not_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    def refuse(*_args: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: uuid)
    for name in ("nvmlDeviceGetComputeRunningProcesses", "nvmlSystemGetDriverVersion",
                 "nvmlDeviceGetUUID", "nvmlDeviceGetClockInfo", "nvmlDeviceGetEnforcedPowerLimit",
                 "nvmlDeviceGetTemperature"):  # fmt: skip
        monkeypatch.setattr(pynvml, name, refuse)
    device = nvml.Nvml("abc")
    assert device.process_bytes() is None
    assert set(device.facts().values()) == {None}


def test_nvml_without_a_driver_says_why() -> None:
    if nvml.gpu_count():
        pytest.skip("this machine has a driver")
    device = nvml.Nvml("abc")
    assert device.process_bytes() is None
    assert "unavailable" in str(device.facts()["nvml"])
