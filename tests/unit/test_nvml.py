"""NVML through nvidia-ml-py's own code and structures: several GPUs, MIG, refusals, a lost GPU."""

from __future__ import annotations

import builtins
import os
from typing import Any

import pynvml
import pytest

from kvgauge.devices import nvml
from kvgauge.devices.nvml import Nvml
from kvgauge.devices.readings import Unavailable
from nvml_for_tests import HIDDEN_MEMORY, Gpu, NvmlLibrary

ME = os.getpid()
PROCESSES = "nvmlDeviceGetComputeRunningProcesses"


@pytest.fixture(autouse=True)
def no_chosen_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_the_gpu_is_found_by_its_uuid_and_not_by_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Gpu("GPU-aaa", [(ME, 111)], sm_mhz=1000)
    second = Gpu("GPU-bbb", [(1, 999), (ME, 222), (ME, 3)], sm_mhz=2000)
    NvmlLibrary(first, second).install(monkeypatch)
    assert nvml.gpu_count() == 2
    assert Nvml("bbb").process_bytes() == 225  # its contexts, and nobody else's
    assert Nvml("GPU-aaa").process_bytes() == 111
    assert Nvml("bbb").sm_clock_mhz() == 2000
    facts = Nvml("bbb").facts()
    assert (facts["uuid"], facts["sm_clock_mhz"], facts["mig"]) == ("GPU-bbb", 2000, False)
    assert facts["nvml_unavailable"] == {}


def test_the_others_on_the_gpu_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    NvmlLibrary(Gpu("GPU-a", [(1, 10), (ME, 7), (2, 30)])).install(monkeypatch)
    own, others = Nvml("a").processes()
    assert [process.usedGpuMemory for process in own] == [7]
    assert nvml.total_bytes(others) == 40


@pytest.mark.parametrize("visible", ["MIG-one", "GPU-card", None])
def test_a_mig_instance_counts_its_own_processes_and_its_cards_clocks(
    monkeypatch: pytest.MonkeyPatch, visible: str | None
) -> None:
    card = Gpu("GPU-card", [(ME, 5), (1, 999)], sm_mhz=1755)
    instance = Gpu("MIG-one", [(ME, 5)], card=card, refuses={"nvmlDeviceGetClockInfo": 2})
    NvmlLibrary(card, instance).install(monkeypatch)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    device = Nvml("one")  # torch leaves out the prefix
    assert device.is_mig
    assert device.processes()[1] == []
    assert device.process_bytes() == 5
    assert device.sm_clock_mhz() == 1755
    for meter in (device.power_w, device.energy_j, device.utilization_percent):
        with pytest.raises(Unavailable, match="no meter of its own"):
            meter()
    assert device.facts()["mig"] is True


def test_the_mig_instance_that_the_environment_chose_comes_before_the_cards_uuid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = Gpu("GPU-card", [(ME, 5), (1, 999)])
    instance = Gpu("MIG-two", [(ME, 5)], card=card)
    NvmlLibrary(card, instance).install(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-two")
    assert Nvml("card").is_mig


def test_a_container_that_hides_process_ids_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for processes in ([], [(ME + 1, 5)]):
        NvmlLibrary(Gpu("GPU-a", processes)).install(monkeypatch)
        with pytest.raises(Unavailable, match="hides the host's process ids"):
            Nvml("a").process_bytes()


def test_a_process_whose_memory_nvml_hides_is_not_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    NvmlLibrary(Gpu("GPU-a", [(ME, HIDDEN_MEMORY)])).install(monkeypatch)
    with pytest.raises(Unavailable, match="not tell the memory"):
        Nvml("a").process_bytes()


def test_without_permission_each_fact_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = {
        PROCESSES + "_v3": pynvml.NVML_ERROR_NO_PERMISSION,
        "nvmlDeviceGetClockInfo": pynvml.NVML_ERROR_NO_PERMISSION,
    }
    library = NvmlLibrary(Gpu("GPU-a", [(ME, 5)], refuses=refused)).install(monkeypatch)
    device = Nvml("a")
    with pytest.raises(Unavailable, match="Insufficient Permissions"):
        device.process_bytes()
    # A refusal is an answer: an older function is no way around it.
    assert PROCESSES + "_v2" not in library.calls
    facts = device.facts()
    assert facts["sm_clock_mhz"] is None
    assert "Insufficient Permissions" in facts["nvml_unavailable"]["sm_clock_mhz"]
    assert facts["temperature_c"] == 45
    assert device.lost is None


def test_an_older_driver_is_asked_by_the_older_name(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu("GPU-a", [(ME, 5)], reasons=4)
    newer = (PROCESSES + "_v3", "nvmlDeviceGetCurrentClocksEventReasons")
    NvmlLibrary(gpu, without=newer).install(monkeypatch)
    assert Nvml("a").process_bytes() == 5
    assert Nvml("a").throttle_bits() == 4
    NvmlLibrary(gpu, without=(*newer, PROCESSES + "_v2")).install(monkeypatch)
    with pytest.raises(Unavailable, match="driver is older"):
        Nvml("a").process_bytes()


def test_an_older_nvidia_ml_py_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    NvmlLibrary(Gpu("GPU-a", [(ME, 5)])).install(monkeypatch)
    for name in (PROCESSES + "_v3", PROCESSES + "_v2", "nvmlDeviceGetTotalEnergyConsumption"):
        monkeypatch.delattr(pynvml, name)
    monkeypatch.setattr(pynvml, PROCESSES, lambda _handle: [])
    with pytest.raises(Unavailable, match="nvidia-ml-py is too old"):
        Nvml("a").energy_j()
    with pytest.raises(Unavailable, match="not in NVML's list"):  # its only name was asked
        Nvml("a").process_bytes()


def test_a_lost_gpu_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu("GPU-a", [(ME, 5)])
    NvmlLibrary(gpu).install(monkeypatch)
    device = Nvml("a")
    assert device.lost is None
    gpu.refuses["*"] = pynvml.NVML_ERROR_GPU_IS_LOST
    with pytest.raises(Unavailable, match="GPU is lost"):
        device.sm_clock_mhz()
    assert "GPU is lost" in str(device.lost)


def test_a_driver_replaced_under_the_system_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mismatch = pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    NvmlLibrary(Gpu("GPU-a"), init=mismatch).install(monkeypatch)
    assert nvml.gpu_count() == 0
    device = Nvml("a")
    with pytest.raises(Unavailable, match="reboot"):
        device.sm_clock_mhz()
    assert "reboot" in device.facts()["nvml"]


def test_a_uuid_that_nvml_does_not_know_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    NvmlLibrary(Gpu("GPU-a")).install(monkeypatch)
    with pytest.raises(Unavailable, match=r"MIG-zzz: .*Not Found"):
        Nvml("zzz").process_bytes()
    with pytest.raises(Unavailable, match="torch does not tell"):
        Nvml(None).sm_clock_mhz()


def test_without_the_package_or_the_driver_the_reason_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    NvmlLibrary(init=pynvml.NVML_ERROR_DRIVER_NOT_LOADED).install(monkeypatch)
    assert "Driver Not Loaded" in Nvml("a").facts()["nvml"]
    real = builtins.__import__

    def without_pynvml(name: str, *arguments: Any) -> Any:
        if name == "pynvml":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_pynvml)
    assert nvml.gpu_count() == 0
    assert Nvml("a").facts() == {"nvml": "unavailable: nvidia-ml-py is not installed"}
