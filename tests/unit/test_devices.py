"""Devices: the CPU for real, and which device is taken."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from kvgauge.devices import cpu, select
from kvgauge.devices.cpu import CpuDevice
from kvgauge.devices.probe import make_probe
from kvgauge.devices.types import Device
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


def test_the_cpu_says_what_its_allocator_does_not_count() -> None:
    CpuDevice().memory_bytes()  # gives freed memory back: else `held` may be made of it
    use = CpuDevice().memory_use()
    if use.process_bytes is None:
        pytest.skip("this system does not tell RssAnon")
    held = torch.ones(64 * 2**20, dtype=torch.uint8)
    more = CpuDevice().memory_use()
    assert more.process_bytes is not None
    assert more.process_bytes - use.process_bytes == pytest.approx(held.nbytes, rel=0.02)
    assert use.total_bytes is not None
    assert use.free_bytes is not None
    assert use.process_bytes < use.total_bytes
    assert 0 < use.free_bytes <= use.total_bytes
    nothing = {name for name, value in dataclasses.asdict(use).items() if value is None}
    assert nothing == set(use.unavailable)


def test_a_cpu_has_no_graphs_and_no_kernels() -> None:
    def never() -> None:
        raise AssertionError("called")

    device: Device = CpuDevice()
    assert device.captured(never) is None
    assert device.kernel_seconds(never) is None


def test_a_probe_gives_rates_that_a_memory_can_have() -> None:
    probe = make_probe(CpuDevice())
    assert 1e8 < probe.read_bytes_per_s() < 1e12
    assert 1e8 < probe.copy_bytes_per_s() < 2e12
    assert 1e8 < probe.flops_per_s() < 1e14
    # It must evict what the sample will read.
    assert probe.source.nbytes >= 4 * CpuDevice().last_level_cache_bytes


def test_available_memory_respects_the_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    assert CpuDevice().available_bytes() == 3000
    (tmp_path / "memory.max").write_text("max\n")
    assert CpuDevice().available_bytes() > 10**6


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
