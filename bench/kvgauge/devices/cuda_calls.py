"""Every call of torch.cuda that the harness makes: the one place to replace or to read.

What a call gives, and nothing decided: that is `devices.cuda`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")

_WARM_UP_CALLS = 3  # as torch's own text on graphs: lazy set-up must not be captured


def is_available() -> bool:
    """Whether torch can use a GPU."""
    return torch.cuda.is_available()


def device_count() -> int:
    """GPUs that torch can use."""
    return torch.cuda.device_count()


def current_device() -> int:
    """Where kernels are launched now."""
    return torch.cuda.current_device()


def set_device(device: torch.device) -> None:
    """Make it the current one."""
    torch.cuda.set_device(device)


def properties(device: torch.device) -> Any:
    """Name, capability, memory, caches, UUID."""
    return torch.cuda.get_device_properties(device)


def synchronize(device: torch.device) -> None:
    """Wait for all that was launched."""
    torch.cuda.synchronize(device)


def elapsed_s(step: Callable[[], object]) -> float:
    """Seconds between two events around one call on the current stream, waited for afterwards."""
    start = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    start.record()
    step()
    end.record()
    end.synchronize()
    elapsed_ms: float = start.elapsed_time(end)
    return elapsed_ms / 1e3


def empty_cache() -> None:
    """Give the allocator's free blocks back to the driver."""
    torch.cuda.empty_cache()


def memory_allocated(device: torch.device) -> int:
    """Bytes of blocks in use."""
    return torch.cuda.memory_allocated(device)


def max_memory_allocated(device: torch.device) -> int:
    """The most of them since `reset_peak`."""
    return torch.cuda.max_memory_allocated(device)


def reset_peak(device: torch.device) -> None:
    """Start new peaks."""
    torch.cuda.reset_peak_memory_stats(device)


def memory_stats(device: torch.device) -> dict[str, int]:
    """The allocator's counters; those that this allocator does not keep are absent."""
    stats: dict[str, int] = dict(torch.cuda.memory_stats(device))
    if torch.cuda.get_allocator_backend() == "native":
        return stats
    # cudaMallocAsync counts these alone and says 0 of the others.
    return {k: v for k, v in stats.items() if k.startswith(("allocated_bytes", "reserved_bytes"))}


def mem_get_info(device: torch.device) -> tuple[int, int]:
    """Free and total bytes, as the driver counts them."""
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    return free_bytes, total_bytes


def capture(step: Callable[[], T]) -> Callable[[], T]:
    """A CUDA graph of `step`, warmed up on a side stream; calling it replays it.

    A replay gives the tensors that the capture made, filled anew. Raises RuntimeError where `step`
    does what a graph cannot hold: waiting for the GPU, reading a value of it.
    """
    current = torch.cuda.current_stream()
    side = torch.cuda.Stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP_CALLS):
            step()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            output = step()
    except RuntimeError:
        torch.cuda.set_stream(current)  # a capture that fails leaves its own stream behind
        raise

    def replay() -> T:
        graph.replay()
        return output

    return replay
