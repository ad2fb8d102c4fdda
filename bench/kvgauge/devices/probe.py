"""What the device's memory and arithmetic units give at this moment, by the best loops we have.

The read probe runs just before each sample: it pairs the sample with the bandwidth of that moment,
and by reading a buffer four times the last-level cache it evicts what the sample will read.

On a CPU the loops are native where they are built (`kvgauge_kernels.cpu.probe`), else torch's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from kvgauge.caches.huge_pages import ask_for_huge_pages
from kvgauge.devices.types import Device
from kvgauge_kernels.cpu import probe as native

_MIN_BUFFER_BYTES = 128 * 2**20
_CACHED_READS = 5
_MATMUL_SIZE = {"cpu": 512, "cuda": 4096}


@dataclass(frozen=True, slots=True)
class DeviceProbe:
    """Buffers of their own on one device; `native_loops` where those are built."""

    device: Device
    source: torch.Tensor
    target: torch.Tensor
    factor: torch.Tensor
    native_loops: bool = False
    readings: list[float] = field(default_factory=list)
    """Every read bandwidth so far."""

    @property
    def loops(self) -> str:
        """Whose loops these are: `torch`, or `kvgauge native` with the instructions."""
        return f"kvgauge native, {native.level()}" if self.native_loops else "torch"

    def read_bytes_per_s(self) -> float:
        """A sum of all words: every byte read once from start to end, nothing written."""
        self.readings.append(_bytes(self.source) / self.device.timed(self._reader(self.source)))
        return self.readings[-1]

    def best_read_bytes_per_s(self) -> float | None:
        """The best reading so far, of whichever cell."""
        return max(self.readings, default=None)

    def copy_bytes_per_s(self) -> float:
        """Bytes read plus bytes written, a second. The native copy writes around the caches.

        A store that does not do so first reads the line that it overwrites, which this does not count.
        """
        return 2 * _bytes(self.source) / self.device.timed(self._copy)

    def cached_read_bytes_per_s(self) -> float:
        """The best of some reads of a quarter of the last-level cache, one right after another."""
        part = self.source[: self.device.last_level_cache_bytes // 4 // self.source.element_size()]
        reader = self._reader(part)
        return max(_bytes(part) / self.device.timed(reader) for _ in range(_CACHED_READS))

    def flops_per_s(self) -> float:
        """Native: fp32 multiply-adds from registers, the most that vectors of floats can do (16-bit dot
        products may do more). Else a square matrix product: fp32 on a CPU, fp16 (matrix units) on a GPU.
        """
        if self.native_loops:
            return native.multiply_adds_per_s()
        n = self.factor.shape[0]
        return 2 * n**3 / self.device.timed(lambda: self.factor @ self.factor)

    def integer_ops_per_s(self) -> float | None:
        """Dot products of 8-bit integers from registers; None without native loops or instructions for it."""
        return native.integer_dots_per_s(8) if self.native_loops else None

    def ping_pong_ns(self) -> float | None:
        """How far the first two cores are from each other at this moment; None where nothing tells."""
        return native.ping_pong_ns() if self.native_loops else None

    def _reader(self, data: torch.Tensor) -> Callable[[], object]:
        return (lambda: native.read(data)) if self.native_loops else data.sum

    def _copy(self) -> None:
        if self.native_loops:
            native.copy(self.target, self.source, streaming=True)
        else:
            self.target.copy_(self.source)


def make_probe(device: Device) -> DeviceProbe:
    """Allocate the buffers, with random data, and run each loop once to warm up."""
    elements = max(_MIN_BUFFER_BYTES, 4 * device.last_level_cache_bytes) // 4
    where = device.torch_device
    size = _MATMUL_SIZE[device.ref.kind]
    dtype = torch.float32 if device.ref.kind == "cpu" else torch.float16
    probe = DeviceProbe(
        device,
        ask_for_huge_pages(torch.empty(elements, device=where)).uniform_(),
        ask_for_huge_pages(torch.empty(elements, device=where)).uniform_(),
        torch.rand(size, size, device=where).to(dtype),
        device.ref.kind == "cpu" and native.why_not() is None,
    )
    probe.read_bytes_per_s()
    probe.copy_bytes_per_s()
    probe.flops_per_s()
    return probe


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
