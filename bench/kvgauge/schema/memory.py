"""What memory a process uses, by each of those who count it. They count different things."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes at one moment, peaks since the last reset; `unavailable` says why one is None.

    requested <= allocated <= reserved <= process, each with more around it than the last.
    """

    requested_bytes: int | None = None
    """What the program asked the allocator for, and holds."""
    allocated_bytes: int | None = None
    """The allocator's blocks behind that, rounded up."""
    reserved_bytes: int | None = None
    """What the allocator took from the driver: blocks in use and blocks kept for later."""
    inactive_split_bytes: int | None = None
    """Free parts of split blocks: they cannot be given back while their other parts are in use."""
    fragmentation: float | None = None
    """1 - allocated / reserved: the share of the allocator's memory that holds nothing."""
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    process_bytes: int | None = None
    """This process: NVML's count on a GPU (context and kernels too), RssAnon on a CPU."""
    total_bytes: int | None = None
    """The GPU's memory as the driver gives it out, or the machine's."""
    free_bytes: int | None = None
    """What anyone can still allocate of it."""
    unavailable: dict[str, str] = field(default_factory=dict)


def fragmentation(allocated_bytes: int, reserved_bytes: int) -> float | None:
    """The share of reserved memory that holds nothing; None where nothing is reserved."""
    return 1 - allocated_bytes / reserved_bytes if reserved_bytes else None
