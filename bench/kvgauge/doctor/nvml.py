"""What the driver says of each GPU, read once through NVML (package nvidia-ml-py, module pynvml)."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from typing import Any

from kvgauge.doctor.types import Unavailable

# Numbers of nvml.h, the same in every version.
NOT_LOADED, NO_PERMISSION, NO_LIBRARY, MISMATCH = 9, 4, 12, 18
PROHIBITED, EXCLUSIVE = 2, 3
_SM, _MEMORY = 1, 2
_UNCORRECTED, _VOLATILE, _AGGREGATE = 1, 0, 1
_TEMPERATURE_GPU = 0

Answer = Any
"""What NVML returned, or Unavailable."""


@dataclass(frozen=True, slots=True)
class NoNvml:
    """Why NVML does not answer; `code` is its error, None where the package is absent."""

    reason: str
    code: int | None = None


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU as the driver sees it. Each field may be Unavailable instead."""

    index: int
    name: Answer
    uuid: Answer
    pci: Answer
    """Domain, bus and device."""
    capability: Answer
    memory: Answer
    """With `total` and `free`, bytes."""
    ecc: Answer
    """On now, on after a restart."""
    errors_since_start: Answer
    errors_ever: Answer
    persistence: Answer
    power_limit_mw: Answer
    power_default_mw: Answer
    sm_mhz: Answer
    sm_max_mhz: Answer
    sm_default_mhz: Answer
    """The default of the application clocks: what the maker holds to be sustained."""
    memory_mhz: Answer
    memory_max_mhz: Answer
    reasons: Answer
    """Why the clocks are not higher, as bits."""
    temperature_c: Answer
    utilization: Answer
    """With `gpu`, percent."""
    pids: Answer
    mig: Answer
    """On now, on after a reset."""
    mig_instances: Answer
    display: Answer
    compute_mode: Answer


@dataclass(frozen=True, slots=True)
class Driver:
    """The driver and its GPUs."""

    version: Answer
    count: Answer
    """GPUs that it drives."""
    cuda: Answer
    """The newest CUDA that it supports, (major, minor)."""
    cards: tuple[Card, ...]


def ask(function: Any, *args: object) -> Answer:
    """The function's value, or Unavailable with the reason: no permission, not supported, ..."""
    try:
        value = function(*args)
    except Exception as error:
        return Unavailable(str(error) or type(error).__name__)
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def read_driver() -> Driver | NoNvml:
    """Start NVML and ask for everything; changes nothing and makes no CUDA context."""
    try:
        with warnings.catch_warnings():  # of the deprecated package of that name
            warnings.simplefilter("ignore")
            lib = importlib.import_module("pynvml")
    except ModuleNotFoundError:
        return NoNvml("nvidia-ml-py is not installed")
    except Exception as error:
        return NoNvml(f"module pynvml does not load: {error}")
    try:
        lib.nvmlInit()
    except Exception as error:
        code = getattr(error, "value", None)
        return NoNvml(str(error), code if isinstance(code, int) else -1)
    try:
        return _driver(lib)
    finally:
        ask(_named(lib, "nvmlShutdown"))


def _driver(lib: Any) -> Driver:
    count = ask(_named(lib, "nvmlDeviceGetCount"))
    handles = [] if isinstance(count, Unavailable) else range(count)
    cuda = ask(_named(lib, "nvmlSystemGetCudaDriverVersion_v2"))
    if not isinstance(cuda, Unavailable):
        cuda = (cuda // 1000, cuda % 1000 // 10)
    return Driver(
        ask(_named(lib, "nvmlSystemGetDriverVersion")),
        count,
        cuda,
        tuple(_card(lib, index) for index in handles),
    )


def _card(lib: Any, index: int) -> Card:
    handle = ask(_named(lib, "nvmlDeviceGetHandleByIndex"), index)

    def get(name: str, *args: object) -> Answer:
        if isinstance(handle, Unavailable):
            return handle
        return ask(_named(lib, f"nvmlDeviceGet{name}"), handle, *args)

    pci = get("PciInfo")
    reasons = get("CurrentClocksEventReasons")
    if isinstance(reasons, Unavailable):  # the name before driver 535
        reasons = get("CurrentClocksThrottleReasons")
    return Card(
        index=index,
        name=get("Name"),
        uuid=get("UUID"),
        pci=pci if isinstance(pci, Unavailable) else ask(lambda: (pci.domain, pci.bus, pci.device)),
        capability=get("CudaComputeCapability"),
        memory=get("MemoryInfo"),
        ecc=get("EccMode"),
        errors_since_start=get("TotalEccErrors", _UNCORRECTED, _VOLATILE),
        errors_ever=get("TotalEccErrors", _UNCORRECTED, _AGGREGATE),
        persistence=get("PersistenceMode"),
        power_limit_mw=get("EnforcedPowerLimit"),
        power_default_mw=get("PowerManagementDefaultLimit"),
        sm_mhz=get("ClockInfo", _SM),
        sm_max_mhz=get("MaxClockInfo", _SM),
        sm_default_mhz=get("DefaultApplicationsClock", _SM),
        memory_mhz=get("ClockInfo", _MEMORY),
        memory_max_mhz=get("MaxClockInfo", _MEMORY),
        reasons=reasons,
        temperature_c=get("Temperature", _TEMPERATURE_GPU),
        utilization=get("UtilizationRates"),
        pids=_pids(get("ComputeRunningProcesses"), get("GraphicsRunningProcesses")),
        mig=get("MigMode"),
        mig_instances=_mig_instances(get),
        display=get("DisplayActive"),
        compute_mode=get("ComputeMode"),
    )


def _pids(*lists: Answer) -> Answer:
    known = [processes for processes in lists if not isinstance(processes, Unavailable)]
    if not known:
        return lists[0]
    return tuple(sorted({int(process.pid) for processes in known for process in processes}))


def _mig_instances(get: Any) -> Answer:
    most = get("MaxMigDeviceCount")
    if isinstance(most, Unavailable):
        return most
    handles = [get("MigDeviceHandleByIndex", index) for index in range(most)]
    return sum(not isinstance(handle, Unavailable) for handle in handles)


def _named(lib: Any, name: str) -> Any:
    def absent(*_args: object) -> None:
        raise NotImplementedError(f"this nvidia-ml-py has no {name}")

    return getattr(lib, name, absent)
