"""What NVML says of a GPU (package nvidia-ml-py, imported as pynvml). What it cannot say is absent."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any


class Nvml:
    """The GPU with that UUID; answers None and {} where NVML, the driver or a permission is missing."""

    def __init__(self, uuid: str | None) -> None:
        self._handle: Any = None
        self.unavailable: str | None = None
        try:
            import pynvml
        except ImportError:
            self.unavailable = "nvidia-ml-py is not installed"
            return
        self._lib = pynvml
        if uuid is None:
            self.unavailable = "torch does not tell this GPU's UUID"
            return
        try:
            pynvml.nvmlInit()
            full = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(full)
        except pynvml.NVMLError as error:
            self.unavailable = str(error)

    def process_bytes(self) -> int | None:
        """Memory of this process on the GPU; None inside a container that hides host PIDs."""
        processes = self._ask(lambda lib, h: lib.nvmlDeviceGetComputeRunningProcesses(h)) or []
        for process in processes:
            if process.pid == os.getpid():
                used = process.usedGpuMemory
                return None if used is None else int(used)
        return None

    def facts(self) -> dict[str, Any]:
        """Driver, clocks, power and temperature now."""
        if self._handle is None:
            return {"nvml": f"unavailable: {self.unavailable}"}
        return {
            "driver": self._ask(lambda lib, _h: str(lib.nvmlSystemGetDriverVersion())),
            "uuid": self._ask(lambda lib, h: str(lib.nvmlDeviceGetUUID(h))),
            "sm_clock_mhz": self._ask(
                lambda lib, h: lib.nvmlDeviceGetClockInfo(h, lib.NVML_CLOCK_SM)
            ),
            "memory_clock_mhz": self._ask(
                lambda lib, h: lib.nvmlDeviceGetClockInfo(h, lib.NVML_CLOCK_MEM)
            ),
            "power_limit_mw": self._ask(lambda lib, h: lib.nvmlDeviceGetEnforcedPowerLimit(h)),
            "temperature_c": self._ask(
                lambda lib, h: lib.nvmlDeviceGetTemperature(h, lib.NVML_TEMPERATURE_GPU)
            ),
        }

    def _ask(self, question: Callable[[Any, Any], Any]) -> Any:
        if self._handle is None:
            return None
        try:
            return question(self._lib, self._handle)
        except self._lib.NVMLError:
            return None


def gpu_count() -> int:
    """GPUs that the driver sees, whatever torch can use; 0 without a driver."""
    try:
        import pynvml
    except ImportError:
        return 0
    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0
