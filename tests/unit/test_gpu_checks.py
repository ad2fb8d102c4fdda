"""The checks of the GPU tests, on the stand-in: they pass where all is right, and each can fail."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest

from cuda_for_tests import StandInCuda
from gpu_checks import (
    assert_each_count_is_more_than_the_last,
    assert_known_or_explained,
    assert_watts_are_possible,
    cold_median_s,
    hot_median_s,
)
from kvgauge.devices.cuda import CudaDevice
from kvgauge.schema import Conditions, CpuConditions, GpuConditions
from nvml_for_tests import Gpu, NvmlLibrary


class SteadyProbe:
    """Always the same."""

    def read_bytes_per_s(self) -> float:
        return 1e12


@pytest.fixture
def nvml_gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu("GPU-abc", [(os.getpid(), 700 * 2**20)])
    NvmlLibrary(gpu).install(monkeypatch)
    return gpu


def test_medians_are_of_the_devices_time(nvml_gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = StandInCuda().install(monkeypatch)
    device = CudaDevice(0)
    assert cold_median_s(lambda: gpu.launch("k", 3), device, SteadyProbe()) == pytest.approx(0.003)
    assert hot_median_s(lambda: gpu.launch("k", 4), device) == pytest.approx(0.004)
    replay = device.captured(lambda: gpu.launch("k", 5))
    assert hot_median_s(replay, device) == pytest.approx(0.005)


def test_memory_in_order_passes_and_out_of_order_fails(
    nvml_gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = StandInCuda().install(monkeypatch)
    gpu.allocate(10_000_001)
    use = CudaDevice(0).memory_use()
    assert_each_count_is_more_than_the_last(use)
    assert_each_count_is_more_than_the_last(replace(use, process_bytes=None))
    for wrong in (
        replace(use, process_bytes=1),
        replace(use, requested_bytes=10**9),
        replace(use, peak_allocated_bytes=0),
        replace(use, free_bytes=use.total_bytes),
    ):
        with pytest.raises(AssertionError):
            assert_each_count_is_more_than_the_last(wrong)


def test_conditions_with_reasons_pass_and_without_fail(
    nvml_gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    StandInCuda().install(monkeypatch)
    nvml_gpu.refuses["nvmlDeviceGetPowerUsage"] = 3  # not supported
    watch = CudaDevice(0).watch()
    watch.look()
    seen = watch.stop()
    assert_known_or_explained(seen)
    assert seen.gpu is not None
    assert seen.gpu.power_w is None
    silent = {k: v for k, v in seen.unavailable.items() if k != "gpu.power_w"}
    with pytest.raises(AssertionError, match=r"gpu\.power_w"):
        assert_known_or_explained(replace(seen, unavailable=silent))


def test_watts_that_no_card_draws_fail(nvml_gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    StandInCuda().install(monkeypatch)
    now = [10.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = CudaDevice(0).watch()
    now[0] += 2
    nvml_gpu.energy_mj += 1_000_000
    assert_watts_are_possible(watch.stop(), 700)  # 500 W
    for energy_j in (2000.0, 0.0):
        wrong = Conditions(2.0, CpuConditions(), GpuConditions(), energy_j=energy_j)
        with pytest.raises(AssertionError):
            assert_watts_are_possible(wrong, 700)
