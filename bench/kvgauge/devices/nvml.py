"""What NVML says of a GPU (package nvidia-ml-py, imported as pynvml), or why it does not."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from kvgauge.devices.readings import Readings, Unavailable

# Numbers of nvml.h, which never change.
_FUNCTION_NOT_FOUND, _LOST, _RESET_REQUIRED, _MISMATCH = 13, 15, 16, 18
_CLOCK_SM, _CLOCK_MEMORY, _SENSOR_GPU = 1, 2, 0
_HINTS = {
    _FUNCTION_NOT_FOUND: "the driver is older than this question",
    _MISMATCH: "the driver was replaced under the running system: reboot",
}
# The newest first: a driver, and a package, knows the names up to its own time.
_PROCESSES = (
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetComputeRunningProcesses_v2",
    "nvmlDeviceGetComputeRunningProcesses",
)
_THROTTLING = (
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetCurrentClocksThrottleReasons",
)
_MIG_METER = "a MIG instance has no meter of its own, only its whole card"


class Nvml:
    """The GPU, or the MIG instance of one, that torch calls by that UUID.

    Where NVML, the driver or a permission is missing every question raises Unavailable.
    """

    def __init__(self, uuid: str | None, index: int = 0) -> None:
        self.lost: str | None = None
        """How the driver said that the GPU is gone, once it has."""
        self.is_mig = False
        self._lib: Any = None
        self._device: Any = None
        self._card: Any = None
        self._unavailable = ""
        try:
            self._lib = _library()
            self._device = self._card = self._find(uuid, index)
            self.is_mig = self._ask_is_mig()
            if self.is_mig:  # clocks, temperature and limits are the card's
                self._card = self.ask("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", self._device)
        except Unavailable as error:
            self._unavailable = str(error)
            self._card = None

    def ask(self, function: str, *arguments: Any) -> Any:
        """NVML's answer; raises Unavailable."""
        if self._lib is None:
            raise Unavailable(self._unavailable)
        try:
            return _ask(self._lib, function, *arguments)
        except _Refused as error:
            if error.code in (_LOST, _RESET_REQUIRED):
                self.lost = str(error)
            raise

    def ask_card(self, function: str, *arguments: Any) -> Any:
        """Of the whole card; raises Unavailable."""
        if self._card is None:
            raise Unavailable(self._unavailable)
        return self.ask(function, self._card, *arguments)

    def ask_meter(self, function: str) -> Any:
        """Of the card, where all of it is ours to measure; raises Unavailable."""
        if self.is_mig:
            raise Unavailable(_MIG_METER)
        return self.ask_card(function)

    def sm_clock_mhz(self) -> float:
        """The multiprocessors' clock; raises Unavailable."""
        return float(self.ask_card("nvmlDeviceGetClockInfo", _CLOCK_SM))

    def memory_clock_mhz(self) -> float:
        """The memory's clock; raises Unavailable."""
        return float(self.ask_card("nvmlDeviceGetClockInfo", _CLOCK_MEMORY))

    def temperature_c(self) -> float:
        """The GPU's; raises Unavailable."""
        return float(self.ask_card("nvmlDeviceGetTemperature", _SENSOR_GPU))

    def power_w(self) -> float:
        """Drawn now, averaged by the card over up to a second; raises Unavailable."""
        return float(self.ask_meter("nvmlDeviceGetPowerUsage")) / 1e3

    def energy_j(self) -> float:
        """Since the driver was loaded; raises Unavailable."""
        return float(self.ask_meter("nvmlDeviceGetTotalEnergyConsumption")) / 1e3

    def utilization_percent(self) -> float:
        """Share of time with a kernel running; raises Unavailable."""
        return float(self.ask_meter("nvmlDeviceGetUtilizationRates").gpu)

    def throttle_bits(self) -> int:
        """Reasons of the present clocks, a bit each; raises Unavailable."""
        return int(self._ask_newest(_THROTTLING, self._card))

    def violation_s(self, policy: int) -> float:
        """Seconds under that limit since the driver was loaded; raises Unavailable."""
        return float(self.ask_card("nvmlDeviceGetViolationStatus", policy).violationTime) / 1e9

    def processes(self) -> tuple[list[Any], list[Any]]:
        """This process's entries and the others' on this GPU or instance; raises Unavailable."""
        running = self._ask_newest(_PROCESSES, self._device)
        own = [process for process in running if process.pid == os.getpid()]
        if not own:
            raise Unavailable(
                "this process is not in NVML's list: a container hides the host's process ids, "
                "or it holds nothing on the GPU"
            )
        return own, [process for process in running if process.pid != os.getpid()]

    def process_bytes(self) -> int:
        """Memory of this process on the GPU, context and kernels too; raises Unavailable."""
        return total_bytes(self.processes()[0])

    def facts(self) -> dict[str, Any]:
        """Driver, clocks, power and temperature now; those it hides are under `nvml_unavailable`."""
        if self._card is None:
            return {"nvml": f"unavailable: {self._unavailable}"}
        readings = Readings("")
        questions: dict[str, Callable[[], Any]] = {
            "driver": lambda: str(self.ask("nvmlSystemGetDriverVersion")),
            "uuid": lambda: str(self.ask("nvmlDeviceGetUUID", self._device)),
            "sm_clock_mhz": self.sm_clock_mhz,
            "memory_clock_mhz": self.memory_clock_mhz,
            "power_limit_mw": lambda: self.ask_card("nvmlDeviceGetEnforcedPowerLimit"),
            "temperature_c": self.temperature_c,
        }
        answers = {field: readings.ask(field, question) for field, question in questions.items()}
        return {**answers, "mig": self.is_mig, "nvml_unavailable": readings.unavailable}

    def _find(self, uuid: str | None, index: int) -> Any:
        reason = Unavailable("torch does not tell this GPU's UUID")
        for name in _names(uuid, index):
            try:
                return self.ask("nvmlDeviceGetHandleByUUID", name)
            except Unavailable as error:
                reason = Unavailable(f"{name}: {error}")
        raise reason

    def _ask_is_mig(self) -> bool:
        try:
            answer = self.ask("nvmlDeviceIsMigDeviceHandle", self._device)
        except Unavailable:  # a card, a driver or a package from before MIG
            return False
        return bool(getattr(answer, "value", answer))

    def _ask_newest(self, functions: Sequence[str], device: Any) -> Any:
        if self._card is None:
            raise Unavailable(self._unavailable)
        *newer, oldest = functions
        for function in newer:
            try:
                return self.ask(function, device)
            except _Refused as error:
                if error.code != _FUNCTION_NOT_FOUND:
                    raise
        return self.ask(oldest, device)


def total_bytes(processes: Sequence[Any]) -> int:
    """Memory of all these entries; raises Unavailable where NVML tells a process but not its memory."""
    used = [process.usedGpuMemory for process in processes]
    if None in used:
        raise Unavailable("NVML does not tell the memory of a process: no permission, or a vGPU")
    return sum(used)


def gpu_count() -> int:
    """GPUs that the driver sees, whatever torch can use; 0 without a driver."""
    try:
        return int(_ask(_library(), "nvmlDeviceGetCount"))
    except Unavailable:
        return 0


class _Refused(Unavailable):
    """NVML's own error, or what stands for it, with its code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def _library() -> Any:
    try:
        import pynvml
    except ImportError:
        raise Unavailable("nvidia-ml-py is not installed") from None
    _ask(pynvml, "nvmlInit")
    return pynvml


def _ask(lib: Any, function: str, *arguments: Any) -> Any:
    question = getattr(lib, function, None)
    if question is None:
        text = f"{function}: nvidia-ml-py is too old: it does not have it"
        raise _Refused(text, _FUNCTION_NOT_FOUND)
    try:
        return question(*arguments)
    except lib.NVMLError as error:
        hint = _HINTS.get(error.value)
        text = f"{function}: {error}{f' ({hint})' if hint else ''}"
        raise _Refused(text, error.value) from None
    except getattr(lib, "NVMLLibraryMismatchError", ()):  # what it makes of a missing function
        text = f"{function}: {_HINTS[_FUNCTION_NOT_FOUND]}"
        raise _Refused(text, _FUNCTION_NOT_FOUND) from None


def _names(uuid: str | None, index: int) -> list[str]:
    """What NVML may call the device: torch leaves out the prefix that tells a MIG instance."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    chosen = visible[index].strip() if index < len(visible) else ""
    names = [chosen] if chosen.startswith("MIG-") else []
    if uuid is not None:
        names += [uuid] if uuid.startswith(("GPU-", "MIG-")) else [f"GPU-{uuid}", f"MIG-{uuid}"]
    return names
