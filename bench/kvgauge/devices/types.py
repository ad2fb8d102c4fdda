"""Device: the one interface through which the harness tells time and counts memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch

from kvgauge.schema import Conditions, DeviceRef, MemoryUse

T = TypeVar("T")


class Watch(Protocol):
    """What the machine does from its making to `stop`; no thread, so that it disturbs nothing."""

    def look(self) -> None:
        """See what has no counter; called between samples, cheap at any rate."""
        ...

    def stop(self) -> Conditions:
        """What was seen."""
        ...


class Device(Protocol):
    """A CPU or one GPU."""

    @property
    def ref(self) -> DeviceRef:
        """Kind, name and index as records state them."""
        ...

    @property
    def torch_device(self) -> torch.device:
        """Where tensors go."""
        ...

    @property
    def memory_source(self) -> str:
        """What `memory_bytes` reads, in words."""
        ...

    @property
    def last_level_cache_bytes(self) -> int:
        """What a flush must evict."""
        ...

    def identity(self) -> str:
        """What must not change under a cell: the GPU by its UUID; the CPU with its cores and threads."""
        ...

    def timed(self, step: Callable[[], object]) -> float:
        """Run `step` once, to its end on the device; seconds."""
        ...

    def memory_bytes(self) -> int | None:
        """Bytes in use now, freed memory given back first; None where this system cannot say."""
        ...

    def reset_peak(self) -> bool:
        """Start a new peak; False where this system cannot."""
        ...

    def peak_bytes(self) -> int | None:
        """Highest bytes in use since `reset_peak`, comparable with `memory_bytes`."""
        ...

    def driver_bytes(self) -> int | None:
        """Bytes of this process as the driver counts them (NVML); None on a CPU or unavailable."""
        ...

    def available_bytes(self) -> int:
        """Bytes that can still be allocated."""
        ...

    def memory_use(self) -> MemoryUse:
        """Who counts how many bytes at this moment."""
        ...

    def watch(self) -> Watch:
        """Begin to watch what the machine does."""
        ...

    def captured(self, step: Callable[[], T]) -> Callable[[], T] | None:
        """`step` launched as one (a CUDA graph); None on a CPU. Raises UnsupportedLayout."""
        ...

    def kernel_seconds(self, step: Callable[[], object]) -> dict[str, float] | None:
        """Seconds of each kernel of one call by its name on the GPU; None where nothing tells."""
        ...

    def properties(self) -> dict[str, Any]:
        """Facts of the machine for the manifest: plain JSON values."""
        ...
