"""The CPU as a device: perf_counter_ns for time, /proc for memory (Linux; elsewhere unavailable)."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from kvgauge.caches.huge_pages import huge_pages
from kvgauge.devices.watch import CpuWatch
from kvgauge.schema import DeviceRef, MemoryUse

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")
_CPU0_CACHE = Path("/sys/devices/system/cpu/cpu0/cache")
_DEFAULT_LLC_BYTES = 32 * 2**20
_ISA_FLAGS = ("avx2", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve")
_ALLOCATOR_FIELDS = (
    "requested_bytes", "allocated_bytes", "reserved_bytes", "inactive_split_bytes",
    "fragmentation", "peak_allocated_bytes", "peak_reserved_bytes",
)  # fmt: skip

T = TypeVar("T")


class CpuDevice:
    """All cores that torch uses, and the process's resident memory."""

    memory_source = "resident anonymous memory of the process (/proc/self/status RssAnon)"

    def __init__(self) -> None:
        self.torch_device = torch.device("cpu")
        self.last_level_cache_bytes = _last_level_cache_bytes()
        self.ref = DeviceRef("cpu", _cpu_name(), None)

    def identity(self) -> str:
        """The CPU, the threads that torch uses and the cores that they may run on."""
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else "unknown"
        return f"{_cpu_name()} on cores {cores}"

    def timed(self, step: Callable[[], object]) -> float:
        """Seconds of one call."""
        start = time.perf_counter_ns()
        step()
        return (time.perf_counter_ns() - start) / 1e9

    def memory_bytes(self) -> int | None:
        """RssAnon after the C library has given freed memory back."""
        gc.collect()
        _malloc_trim()
        return _status_bytes("RssAnon")

    def reset_peak(self) -> bool:
        """Writing 5 to clear_refs resets VmHWM (proc(5))."""
        try:
            (_PROC / "self/clear_refs").write_text("5")
        except OSError:
            return False
        return True

    def peak_bytes(self) -> int | None:
        """VmHWM less the file-backed part, so that it compares with RssAnon."""
        peak, file_backed = _status_bytes("VmHWM"), _status_bytes("RssFile")
        return None if peak is None or file_backed is None else peak - file_backed

    def driver_bytes(self) -> int | None:
        """A CPU has no driver that counts."""
        return None

    def available_bytes(self) -> int:
        """MemAvailable, or what the control group still allows if that is less."""
        return _free_bytes() or 0

    def memory_use(self) -> MemoryUse:
        """The process and the machine: torch's CPU allocator counts nothing."""
        fields = {
            "process_bytes": _status_bytes("RssAnon"),
            "total_bytes": _meminfo_bytes("MemTotal"),
            "free_bytes": _free_bytes(),
        }
        hidden = {name: "/proc does not tell" for name, value in fields.items() if value is None}
        counters = dict.fromkeys(_ALLOCATOR_FIELDS, "torch's CPU allocator counts nothing")
        return MemoryUse(**fields, unavailable={**counters, **hidden})

    def watch(self) -> CpuWatch:
        """Begin to watch the host."""
        return CpuWatch()

    def captured(self, step: Callable[[], object]) -> None:
        """A CPU has no graphs."""
        del step

    def kernel_seconds(self, step: Callable[[], object]) -> None:
        """A CPU has no kernels that something else times."""
        del step

    def properties(self) -> dict[str, Any]:
        """Cores, caches, instruction sets, memory, load."""
        info = _cpuinfo()
        flags = set(info.get("flags", info.get("Features", "")).split())
        return {
            "cpu": self.ref.name,
            "architecture": platform.machine(),
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "isa": [flag for flag in _ISA_FLAGS if flag in flags],
            "last_level_cache_bytes": self.last_level_cache_bytes,
            "memory_bytes": _meminfo_bytes("MemTotal"),
            "clock_mhz": info.get("cpu MHz"),
            "load_1min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            "kernel": platform.release(),
            "transparent_huge_pages": huge_pages(),
        }


def _cpu_name() -> str:
    info = _cpuinfo()
    model = info.get("model name") or platform.processor() or platform.machine() or "CPU"
    numbers = [f"{key} {info[field]}" for key, field in _CPU_NUMBERS if field in info]
    detail = f" ({', '.join(numbers)})" if numbers else ""
    return f"{model}{detail} x{torch.get_num_threads()}"


_CPU_NUMBERS = (("family", "cpu family"), ("model", "model"), ("stepping", "stepping"))


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo."""
    text = _read(_PROC / "cpuinfo")
    pairs = (line.split(":", 1) for line in text.split("\n\n", 1)[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _last_level_cache_bytes() -> int:
    sizes = [_read(path) for path in sorted(_CPU0_CACHE.glob("index*/size"))]
    counts = [int(s[:-1]) * 1024 for s in (s.strip() for s in sizes) if s.endswith("K")]
    return max(counts, default=_DEFAULT_LLC_BYTES)


def _status_bytes(field: str) -> int | None:
    return _kib_field(_read(_PROC / "self/status"), field)


def _meminfo_bytes(field: str) -> int | None:
    return _kib_field(_read(_PROC / "meminfo"), field)


def _kib_field(text: str, field: str) -> int | None:
    for line in text.splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return None


def _free_bytes() -> int | None:
    limits = [_meminfo_bytes("MemAvailable"), _cgroup_headroom_bytes()]
    return min((limit for limit in limits if limit is not None), default=None)


def _cgroup_headroom_bytes() -> int | None:
    limit, used = (_read(_CGROUP / name).strip() for name in ("memory.max", "memory.current"))
    return int(limit) - int(used) if limit.isdigit() and used.isdigit() else None


def _malloc_trim() -> None:
    # glibc keeps freed memory; without this a cache that reuses it would look smaller than it is.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
