"""torch.cuda as a machine with GPUs has it, in Python: every call is recorded in its order.

Work is what a test's step records with `launch`; time passes only by it. The allocator rounds as
torch's does: blocks to 512 bytes, segments to 2 MiB, freed blocks kept until `empty_cache`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

BLOCK, SEGMENT = 512, 2 * 2**20
GPU_BYTES = 80 * 10**9
FACTS = SimpleNamespace(
    name="Stand-in GPU", major=9, minor=0, multi_processor_count=132,
    total_memory=GPU_BYTES, L2_cache_size=50 * 2**20, uuid="abc",
)  # fmt: skip


class StandInCuda:
    """The calls, the clock and the allocator of one GPU."""

    def __init__(self, backend: str = "native") -> None:
        self.calls: list[str] = []
        self.now_ms = 0.0
        self.stream_name = "default"
        self.backend = backend
        self.capturing: list[float] | None = None
        self.capture_fails = False
        self._streams = 0
        self._requested: list[int] = []
        self._reserved = 0
        self._peak = {"allocated": 0, "reserved": 0}

    def launch(self, kernel: str, milliseconds: float) -> None:
        """What a step does on the GPU: a kernel that takes so long."""
        self.calls.append(f"{kernel} on {self.stream_name}")
        if self.capturing is not None:
            self.capturing.append(milliseconds)
        else:
            self.now_ms += milliseconds

    def allocate(self, requested_bytes: int) -> None:
        """A live tensor, in a segment of its own."""
        self._requested.append(requested_bytes)
        self._reserved += up(requested_bytes, SEGMENT)
        self._see_peak()

    def free(self, requested_bytes: int) -> None:
        """Its block stays with the allocator."""
        self._requested.remove(requested_bytes)

    @property
    def allocated(self) -> int:
        """Blocks in use."""
        return sum(up(n, BLOCK) for n in self._requested)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> StandInCuda:
        """Be torch.cuda."""
        answers = {
            "is_available": lambda: True,
            "device_count": lambda: 2,
            "current_device": lambda: 0,
            "set_device": lambda _device: None,
            "get_device_properties": lambda _device: FACTS,
            "synchronize": lambda _device=None: None,
            "empty_cache": self._empty_cache,
            "memory_allocated": lambda _device: self.allocated,
            "max_memory_allocated": lambda _device: self._peak["allocated"],
            "reset_peak_memory_stats": lambda _device: self._reset_peak(),
            "memory_stats": lambda _device: self._stats(),
            "get_allocator_backend": lambda: self.backend,
            "mem_get_info": lambda _device: (GPU_BYTES - self._reserved, GPU_BYTES),
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, self._recorded(name, answer))
        monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: Event(self, enable_timing))
        monkeypatch.setattr(torch.cuda, "Stream", self._new_stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream(self, self.stream_name))
        monkeypatch.setattr(torch.cuda, "stream", self._on_stream)
        monkeypatch.setattr(torch.cuda, "set_stream", self._set_stream)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(self))
        monkeypatch.setattr(torch.cuda, "graph", self._graph)
        return self

    def _recorded(self, name: str, answer: Any) -> Any:
        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            return answer(*arguments)

        return call

    def _new_stream(self) -> Stream:
        self._streams += 1
        return Stream(self, f"side{self._streams}")

    @contextmanager
    def _on_stream(self, stream: Stream) -> Iterator[None]:
        before, self.stream_name = self.stream_name, stream.name
        yield
        self.stream_name = before

    def _set_stream(self, stream: Stream) -> None:
        self.stream_name = stream.name

    @contextmanager
    def _graph(self, graph: Graph) -> Iterator[None]:
        before, self.stream_name = self.stream_name, "capture"
        self.capturing = graph.kernels_ms
        self.calls.append("capture begins")
        yield
        self.calls.append("capture ends")
        self.capturing = None
        if self.capture_fails:  # as torch's: what ends the capture raises, and the stream stays
            raise RuntimeError("operation not permitted when stream is capturing")
        self.stream_name = before

    def _empty_cache(self) -> None:
        self._reserved = sum(up(n, SEGMENT) for n in self._requested)

    def _reset_peak(self) -> None:
        self._peak = {"allocated": self.allocated, "reserved": self._reserved}

    def _see_peak(self) -> None:
        self._peak["allocated"] = max(self._peak["allocated"], self.allocated)
        self._peak["reserved"] = max(self._peak["reserved"], self._reserved)

    def _stats(self) -> dict[str, int]:
        native = self.backend == "native"
        return {
            "requested_bytes.all.current": sum(self._requested) if native else 0,
            "allocated_bytes.all.current": self.allocated,
            "allocated_bytes.all.peak": self._peak["allocated"],
            "reserved_bytes.all.current": self._reserved,
            "reserved_bytes.all.peak": self._peak["reserved"],
            "inactive_split_bytes.all.current": self._splits() if native else 0,
        }

    def _splits(self) -> int:
        return sum(up(n, SEGMENT) - up(n, BLOCK) for n in self._requested)


class Event:
    """Holds the GPU's time when it was reached; only a waited-for end may be read."""

    def __init__(self, cuda: StandInCuda, enable_timing: bool) -> None:
        assert enable_timing
        self._cuda = cuda
        self._at_ms: float | None = None
        self._waited = False

    def record(self) -> None:
        self._cuda.calls.append("record")
        self._at_ms = self._cuda.now_ms

    def synchronize(self) -> None:
        self._cuda.calls.append("event.synchronize")
        self._waited = True

    def elapsed_time(self, end: Event) -> float:
        assert end._waited, "the end must have happened before it is read"
        assert self._at_ms is not None
        assert end._at_ms is not None
        return end._at_ms - self._at_ms


class Stream:
    """A name, and who waits for whom."""

    def __init__(self, cuda: StandInCuda, name: str) -> None:
        self._cuda = cuda
        self.name = name

    def wait_stream(self, other: Stream) -> None:
        self._cuda.calls.append(f"{self.name} waits for {other.name}")


class Graph:
    """The kernels of a capture, launched again by `replay`."""

    def __init__(self, cuda: StandInCuda) -> None:
        self._cuda = cuda
        self.kernels_ms: list[float] = []

    def replay(self) -> None:
        self._cuda.calls.append("replay")
        self._cuda.now_ms += sum(self.kernels_ms)


def up(value: int, to: int) -> int:
    """Rounded up to a multiple."""
    return -(-value // to) * to
