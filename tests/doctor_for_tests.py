"""Made-up machines: trees in place of /proc, /sys and /dev, and a stand-in for the module pynvml."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

from kvgauge.doctor.system import System
from kvgauge.doctor.torch_facts import Torch, TorchGpu
from kvgauge.doctor.types import Section

NVML_ERRORS = {4: "Insufficient Permissions", 9: "Driver Not Loaded",
               12: "NVML Shared Library Not Found", 18: "Driver/library version mismatch"}  # fmt: skip


class NVMLError(Exception):
    """As pynvml's: its number is `value`."""

    def __init__(self, value: int) -> None:
        super().__init__(NVML_ERRORS.get(value, "Not Supported"))
        self.value = value


class StandInNvml(types.ModuleType):
    """One quiet H100 whose clocks do not drop while idle; `answers` by NVML's names change it.

    An answer that is an exception is raised. All that was called stands in `calls`.
    """

    def __init__(self, count: int = 1, **answers: Any) -> None:
        super().__init__("pynvml")
        self.calls: list[str] = []
        space = types.SimpleNamespace
        self.answers: dict[str, Any] = {
            "nvmlInit": None, "nvmlShutdown": None, "nvmlDeviceGetCount": count,
            "nvmlSystemGetDriverVersion": "580.65.06", "nvmlSystemGetCudaDriverVersion_v2": 13000,
            "nvmlDeviceGetName": "NVIDIA H100 80GB HBM3", "nvmlDeviceGetUUID": "GPU-00",
            "nvmlDeviceGetPciInfo": space(domain=0, bus=0x65, device=0),
            "nvmlDeviceGetCudaComputeCapability": (9, 0),
            "nvmlDeviceGetMemoryInfo": space(total=80 * 2**30, free=80 * 2**30 - 2**29),
            "nvmlDeviceGetEccMode": [1, 1], "nvmlDeviceGetTotalEccErrors": 0,
            "nvmlDeviceGetPersistenceMode": 1, "nvmlDeviceGetEnforcedPowerLimit": 700_000,
            "nvmlDeviceGetPowerManagementDefaultLimit": 700_000,
            "nvmlDeviceGetClockInfo": {1: 1980, 2: 2619},
            "nvmlDeviceGetMaxClockInfo": {1: 1980, 2: 2619},
            "nvmlDeviceGetDefaultApplicationsClock": {1: 1980},
            "nvmlDeviceGetCurrentClocksEventReasons": 0x1,
            "nvmlDeviceGetTemperature": 31,
            "nvmlDeviceGetUtilizationRates": space(gpu=0, memory=0),
            "nvmlDeviceGetComputeRunningProcesses": [], "nvmlDeviceGetGraphicsRunningProcesses": [],
            "nvmlDeviceGetMigMode": [0, 0], "nvmlDeviceGetMaxMigDeviceCount": 7,
            "nvmlDeviceGetMigDeviceHandleByIndex": NVMLError(6),
            "nvmlDeviceGetDisplayActive": 0, "nvmlDeviceGetComputeMode": 0,
        }  # fmt: skip
        self.answers |= answers

    def __getattr__(self, name: str) -> Any:
        if name == "nvmlDeviceGetHandleByIndex":
            return lambda index: index
        if name not in self.__dict__.get("answers", {}):
            raise AttributeError(name)

        def answer(*args: Any) -> Any:
            self.calls.append(name)
            value = self.answers[name]
            if isinstance(value, Exception):
                raise value
            return value[args[-1]] if isinstance(value, dict) else value

        return answer


def process(pid: int) -> Any:
    """An entry of NVML's list of processes."""
    return types.SimpleNamespace(pid=pid, usedGpuMemory=None)


def tree(root: Path, **texts: str) -> System:
    """Files under `proc`, `sys` and `dev`; a key is the path with `__` for `/`."""
    system = System(root / "proc", root / "sys", root / "dev")
    for key, text in texts.items():
        put(root / key.replace("__", "/"), text)
    return system


def put(path: Path, text: str) -> None:
    """One file with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def gpu_torch(*gpus: TorchGpu, cuda: str | None = "13.0", complaint: str | None = None) -> Torch:
    """A CUDA build of torch that lists those GPUs."""
    return Torch("2.13.0", cuda, None, ("sm_80", "sm_90", "sm_100"), 8, gpus, complaint)


def states(section: Section) -> dict[str, str]:
    """Name to state."""
    return {check.name: check.state for check in section.checks}
