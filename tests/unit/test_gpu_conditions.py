"""What a GPU did while it was sampled: NVML's looks and counters, and what an outcome makes of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import msgspec
import pynvml
import pytest

from kvgauge.devices.cpu import CpuDevice
from kvgauge.devices.nvml import Nvml
from kvgauge.devices.probe import DeviceProbe
from kvgauge.devices.watch import GpuWatch, throttle_names
from kvgauge.formula.moved import Operation
from kvgauge.measure.validity import MAX_CPU_TAKEN
from kvgauge.schema import (
    BackendRef,
    Conditions,
    CpuConditions,
    Criterion,
    GpuConditions,
    Measurement,
    Prediction,
    Span,
)
from kvgauge.suites.timing import Timed, timed_outcome
from kvgauge.suites.types import Context, Outcome
from nvml_for_tests import HIDDEN_MEMORY, Gpu, NvmlLibrary

ME = os.getpid()
LOST = pynvml.NVML_ERROR_GPU_IS_LOST


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [50.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def pass_s(seconds: float) -> None:
        now[0] += seconds

    return pass_s


def watched(gpu: Gpu, monkeypatch: pytest.MonkeyPatch, *others: Gpu) -> GpuWatch:
    NvmlLibrary(gpu, *others).install(monkeypatch)
    return GpuWatch(Nvml(gpu.uuid))


def test_looks_make_spans_and_counters_make_differences(
    monkeypatch: pytest.MonkeyPatch, clock: Callable[[float], None]
) -> None:
    gpu = Gpu("GPU-a", [(ME, 5)], energy_mj=7_000, violation_ns={0: 10**9, 1: 5})
    watch = watched(gpu, monkeypatch)
    for sm_mhz, power_mw, celsius, reasons in (
        (1980, 690_000, 60, 0x0), (1700, 700_000, 71, 0x4), (1900, 650_500, 70, 0x40),
    ):  # fmt: skip
        gpu.sm_mhz, gpu.power_mw, gpu.temperature_c, gpu.reasons = (
            sm_mhz,
            power_mw,
            celsius,
            reasons,
        )
        clock(0.2)
        watch.look()
    gpu.sm_mhz, gpu.power_mw, gpu.reasons = 300, 80_000, 0x1  # idle after the last sample
    gpu.energy_mj, gpu.violation_ns = 257_500, {0: 3 * 10**9, 1: 5}
    seen = watch.stop()
    assert seen.elapsed_s == pytest.approx(0.6)
    assert seen.gpu is not None
    assert seen.gpu.sm_clock_mhz == Span(1700, 1980)
    assert seen.gpu.power_w == Span(650.5, 700)
    assert seen.gpu.temperature_c == Span(60, 71)
    assert seen.gpu.memory_clock_mhz == Span(2619, 2619)
    assert seen.gpu.utilization_percent == Span(90, 90)
    assert seen.gpu.throttle_reasons == ("sw_power_cap", "hw_thermal_slowdown")
    assert seen.gpu.throttled_s == {
        "power": pytest.approx(2), "thermal": 0, "sync_boost": 0, "board_limit": 0, "reliability": 0,
    }  # fmt: skip
    assert seen.energy_j == pytest.approx(250.5)
    assert seen.energy_source == "nvmlDeviceGetTotalEnergyConsumption, the card"
    assert not seen.lost
    assert not [field for field in seen.unavailable if not field.startswith("cpu.")]


def test_looks_are_at_most_ten_a_second(
    monkeypatch: pytest.MonkeyPatch, clock: Callable[[float], None]
) -> None:
    library = NvmlLibrary(Gpu("GPU-a", [(ME, 5)])).install(monkeypatch)
    watch = GpuWatch(Nvml("a"))
    library.calls.clear()
    for _ in range(1000):
        watch.look()
        clock(0.001)
    assert 9 <= library.calls.count("nvmlDeviceGetPowerUsage") <= 11


def test_neighbours_are_the_most_of_the_start_and_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu("GPU-a", [(1, 10), (ME, 5), (2, 30)])
    watch = watched(gpu, monkeypatch, Gpu("GPU-b", [(3, 99)]))
    gpu.processes = [(ME, 5)]  # both left
    seen = watch.stop().gpu
    assert seen is not None
    assert (seen.other_processes, seen.other_bytes) == (2, 40)
    alone = watched(gpu, monkeypatch).stop().gpu
    assert alone is not None
    assert (alone.other_processes, alone.other_bytes) == (0, 0)  # known to be nobody


def test_neighbours_whose_memory_is_hidden_are_still_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = watched(Gpu("GPU-a", [(ME, 5), (1, HIDDEN_MEMORY)]), monkeypatch).stop()
    assert seen.gpu is not None
    assert (seen.gpu.other_processes, seen.gpu.other_bytes) == (1, None)
    assert "not tell the memory" in seen.unavailable["gpu.other_bytes"]


def test_hidden_process_ids_are_unavailable_and_not_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(Gpu("GPU-a", []), monkeypatch).stop()
    assert seen.gpu is not None
    assert (seen.gpu.other_processes, seen.gpu.other_bytes) == (None, None)
    assert "process ids" in seen.unavailable["gpu.other_processes"]


def test_a_mig_instance_has_no_energy_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Gpu("GPU-card")
    seen = watched(Gpu("MIG-a", [(ME, 5)], card=card), monkeypatch, card).stop()
    assert seen.gpu is not None
    assert (seen.energy_j, seen.gpu.power_w, seen.gpu.utilization_percent) == (None, None, None)
    assert "MIG" in seen.unavailable["energy_j"]
    assert "MIG" in seen.unavailable["gpu.power_w"]
    assert seen.gpu.sm_clock_mhz == Span(1980, 1980)
    assert seen.gpu.other_processes == 0


def test_a_gpu_without_permission_or_counters_hides_each_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = Gpu("GPU-a", refuses={"*": pynvml.NVML_ERROR_NO_PERMISSION})
    seen = watched(gpu, monkeypatch).stop()
    assert seen.gpu == GpuConditions()
    assert (seen.energy_j, seen.energy_source, seen.lost) == (None, None, False)
    fields = {f"gpu.{name}" for name in GpuConditions.__slots__} | {"energy_j"}
    assert fields <= set(seen.unavailable)
    assert all("Insufficient Permissions" in seen.unavailable[field] for field in fields)


def test_a_gpu_lost_in_the_middle_keeps_what_was_seen_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = Gpu("GPU-a", [(ME, 5)])
    watch = watched(gpu, monkeypatch)
    watch.look()
    gpu.refuses["*"] = LOST
    seen = watch.stop()
    assert seen.lost
    assert "GPU is lost" in seen.unavailable["device_lost"]
    assert seen.gpu is not None
    assert seen.gpu.sm_clock_mhz == Span(1980, 1980)
    assert (seen.energy_j, seen.gpu.throttled_s) == (None, None)


def test_every_reason_has_nvmls_own_bit_and_idleness_is_none() -> None:
    def snake(name: str) -> str:
        return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")

    prefix = "nvmlClocksThrottleReason"
    names = {n.removeprefix(prefix): getattr(pynvml, n) for n in dir(pynvml) if prefix in n}
    for name, bit in names.items():
        if name not in ("All", "None", "GpuIdle", "Unknown", "UserDefinedClocks"):
            assert throttle_names(bit | 0x1) == (snake(name),)
    assert throttle_names(0x1) == ()
    assert throttle_names(0x8000) == ("bit 0x8000",)


class ToldWatch:
    """Saw what the test says."""

    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions
        self.looks = 0

    def look(self) -> None:
        self.looks += 1

    def stop(self) -> Conditions:
        return self._conditions


class WatchedDevice(CpuDevice):
    """A second a call, under a watch that the test gives."""

    def __init__(self, watch: ToldWatch) -> None:
        super().__init__()
        self._watch = watch

    def timed(self, step: Callable[[], object]) -> float:
        return 1.0

    def watch(self) -> ToldWatch:  # type: ignore[override]
        return self._watch


class SteadyProbe:
    """Always the same."""

    def read_bytes_per_s(self) -> float:
        return 1e9

    copy_bytes_per_s = flops_per_s = cached_read_bytes_per_s = read_bytes_per_s
    best_read_bytes_per_s = read_bytes_per_s
    loops = "made-up"

    def nothing(self) -> None:
        return None

    integer_ops_per_s = ping_pong_ns = nothing


def outcome(conditions: Conditions) -> tuple[Outcome, ToldWatch]:
    watch = ToldWatch(conditions)
    criterion = Criterion(1e-9, min_samples=6, max_samples=6, budget_s=60)
    context = Context(WatchedDevice(watch), cast(DeviceProbe, SteadyProbe()), criterion, seed=0)
    found = timed_outcome(
        Timed([lambda: None], [Operation("a", 10, 10)]), context, Prediction(10),
        Measurement(kv_bytes=10), BackendRef("made-up", "1", None),
    )  # fmt: skip
    return found, watch


BUSY = CpuConditions(taken=MAX_CPU_TAKEN + 0.01)


def test_an_outcome_carries_the_conditions_of_its_samples() -> None:
    conditions = Conditions(5.0, CpuConditions(taken=MAX_CPU_TAKEN))
    found, watch = outcome(conditions)
    assert found.conditions is conditions
    assert watch.looks == 6  # before each sample
    assert (found.status, found.flags) == ("ok", ())


def test_a_shared_cpu_disturbs_times_of_the_cpu_and_not_of_a_gpu() -> None:
    assert outcome(Conditions(5.0, BUSY))[0].flags == ("cpu_shared",)
    assert outcome(Conditions(5.0, BUSY, gpu=GpuConditions()))[0].flags == ()


def test_a_lost_gpu_fails_the_cell() -> None:
    reason = {"device_lost": "the GPU was lost: somewhere"}
    lost = Conditions(5.0, CpuConditions(), GpuConditions(), lost=True, unavailable=reason)
    found, _watch = outcome(lost)
    assert (found.status, found.reason_code) == ("failed", "device_lost")
    assert found.reason == "the GPU was lost: somewhere"


def test_conditions_come_back_from_json_as_they_were() -> None:
    gpu = GpuConditions(
        sm_clock_mhz=Span(1, 2), throttle_reasons=("sync_boost",), throttled_s={"power": 0.5}
    )
    conditions = replace(Conditions(5.0, BUSY, gpu), energy_j=3.5, unavailable={"a": "b"})
    assert msgspec.json.decode(msgspec.json.encode(conditions), type=Conditions) == conditions
