"""libnvidia-ml as nvidia-ml-py calls it: its C functions answered in Python.

nvidia-ml-py's own code runs, and the structures that it passes are its own ctypes structures; only
the shared library behind them is this one. The signatures are those of nvml.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pynvml
import pytest

SUCCESS, INSUFFICIENT_SIZE = 0, 7
HIDDEN_MEMORY = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE


@dataclass
class Gpu:
    """A card, or a MIG instance of one."""

    uuid: str
    processes: list[tuple[int, int]] = field(default_factory=list)
    """Process id and bytes."""
    card: Gpu | None = None
    """For a MIG instance: its card."""
    sm_mhz: int = 1980
    memory_mhz: int = 2619
    power_mw: int = 350_000
    temperature_c: int = 45
    utilization: int = 90
    energy_mj: int = 1_000_000
    reasons: int = 0
    violation_ns: dict[int, int] = field(default_factory=dict)
    refuses: dict[str, int] = field(default_factory=dict)
    """C function to NVML's error code; `*` is for all that ask this GPU."""

    def __post_init__(self) -> None:
        # A handle points at memory of its own, as NVML's do.
        self._memory = ctypes.create_string_buffer(8)
        self.address = ctypes.addressof(self._memory)


class NvmlLibrary:
    """`pynvml.nvmlLib`: functions that are absent here are absent from the driver."""

    def __init__(self, *gpus: Gpu, init: int = SUCCESS, without: tuple[str, ...] = ()) -> None:
        self.gpus = gpus
        self.calls: list[str] = []
        self._init = init
        self._without = without

    def __getattr__(self, name: str) -> Callable[..., int]:
        answer = getattr(NvmlLibrary, f"_{name}", None) if name.startswith("nvml") else None
        if answer is None or name in self._without:
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            for argument in arguments:
                gpu = self._gpu(argument)
                if gpu is not None:
                    code = gpu.refuses.get(name, gpu.refuses.get("*", SUCCESS))
                    if code != SUCCESS:
                        return code
            result: int = answer(self, *arguments)
            return result

        return call

    def install(self, monkeypatch: pytest.MonkeyPatch) -> NvmlLibrary:
        """Be the library that nvidia-ml-py has loaded."""
        monkeypatch.setattr(pynvml, "nvmlLib", self)
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        return self

    def _gpu(self, handle: Any) -> Gpu | None:
        if not isinstance(handle, pynvml.c_nvmlDevice_t):
            return None
        address = ctypes.cast(handle, ctypes.c_void_p).value
        return next(gpu for gpu in self.gpus if gpu.address == address)

    def _of(self, handle: Any) -> Gpu:
        gpu = self._gpu(handle)
        assert gpu is not None
        return gpu

    def _nvmlInitWithFlags(self, _flags: int) -> int:
        return self._init

    def _nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = sum(gpu.card is None for gpu in self.gpus)
        return SUCCESS

    def _nvmlSystemGetDriverVersion(self, text: Any, _length: Any) -> int:
        text.value = b"570.00"
        return SUCCESS

    def _nvmlDeviceGetHandleByUUID(self, uuid: Any, handle: Any) -> int:
        for gpu in self.gpus:
            if gpu.uuid.encode() == uuid.value:
                return point(handle, gpu)
        return int(pynvml.NVML_ERROR_NOT_FOUND)

    def _nvmlDeviceIsMigDeviceHandle(self, handle: Any, answer: Any) -> int:
        answer._obj.value = self._of(handle).card is not None
        return SUCCESS

    def _nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: Any, card: Any) -> int:
        parent = self._of(handle).card
        return point(card, parent) if parent else int(pynvml.NVML_ERROR_INVALID_ARGUMENT)

    def _nvmlDeviceGetUUID(self, handle: Any, text: Any, _length: Any) -> int:
        text.value = self._of(handle).uuid.encode()
        return SUCCESS

    def _nvmlDeviceGetComputeRunningProcesses_v3(self, handle: Any, count: Any, rows: Any) -> int:
        processes = self._of(handle).processes
        room, count._obj.value = count._obj.value, len(processes)
        if room < len(processes):
            return INSUFFICIENT_SIZE
        for row, (pid, used) in zip(rows or (), processes, strict=False):
            assert isinstance(row, pynvml.c_nvmlProcessInfo_v2_t)  # v3 is laid out as v2
            row.pid, row.usedGpuMemory = pid, used
        return SUCCESS

    _nvmlDeviceGetComputeRunningProcesses_v2 = _nvmlDeviceGetComputeRunningProcesses_v3

    def _nvmlDeviceGetClockInfo(self, handle: Any, kind: Any, clock: Any) -> int:
        gpu = self._of(handle)
        clock._obj.value = {1: gpu.sm_mhz, 2: gpu.memory_mhz}[kind.value]
        return SUCCESS

    def _nvmlDeviceGetTemperature(self, handle: Any, sensor: Any, celsius: Any) -> int:
        assert sensor.value == 0
        celsius._obj.value = self._of(handle).temperature_c
        return SUCCESS

    def _nvmlDeviceGetPowerUsage(self, handle: Any, milliwatts: Any) -> int:
        milliwatts._obj.value = self._of(handle).power_mw
        return SUCCESS

    def _nvmlDeviceGetEnforcedPowerLimit(self, handle: Any, milliwatts: Any) -> int:
        self._of(handle)
        milliwatts._obj.value = 700_000
        return SUCCESS

    def _nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, millijoules: Any) -> int:
        millijoules._obj.value = self._of(handle).energy_mj
        return SUCCESS

    def _nvmlDeviceGetUtilizationRates(self, handle: Any, rates: Any) -> int:
        assert isinstance(rates._obj, pynvml.c_nvmlUtilization_t)
        rates._obj.gpu = self._of(handle).utilization
        return SUCCESS

    def _nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any, bits: Any) -> int:
        bits._obj.value = self._of(handle).reasons
        return SUCCESS

    _nvmlDeviceGetCurrentClocksThrottleReasons = _nvmlDeviceGetCurrentClocksEventReasons

    def _nvmlDeviceGetViolationStatus(self, handle: Any, policy: Any, time: Any) -> int:
        assert isinstance(time._obj, pynvml.c_nvmlViolationTime_t)
        time._obj.violationTime = self._of(handle).violation_ns.get(policy.value, 0)
        return SUCCESS


def point(handle: Any, gpu: Gpu) -> int:
    """Write the GPU's address where the caller's handle is."""
    pointer = ctypes.cast(ctypes.addressof(handle._obj), ctypes.POINTER(ctypes.c_void_p))
    pointer[0] = gpu.address
    return SUCCESS
