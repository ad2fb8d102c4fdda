"""What the device's memory and arithmetic units give at this moment, by the best loops we have.

The read probe runs just before each sample: it pairs the sample with the bandwidth of that moment,
and by reading a buffer four times the last-level cache it evicts what the sample will read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvgauge.devices.types import Device

_MIN_BUFFER_BYTES = 128 * 2**20
_CACHED_READS = 5
_MATMUL_SIZE = {"cpu": 512, "cuda": 4096}


@dataclass(frozen=True, slots=True)
class DeviceProbe:
    """Buffers of their own on one device."""

    device: Device
    source: torch.Tensor
    target: torch.Tensor
    factor: torch.Tensor

    def read_bytes_per_s(self) -> float:
        """A sum over fp32: every byte read once, nothing written."""
        return _bytes(self.source) / self.device.timed(self.source.sum)

    def copy_bytes_per_s(self) -> float:
        """Bytes read plus bytes written, a second."""
        elapsed_s = self.device.timed(lambda: self.target.copy_(self.source))
        return 2 * _bytes(self.source) / elapsed_s

    def cached_read_bytes_per_s(self) -> float:
        """The best of some reads of a quarter of the last-level cache, one right after another."""
        part = self.source[: self.device.last_level_cache_bytes // 4 // self.source.element_size()]
        return max(_bytes(part) / self.device.timed(part.sum) for _ in range(_CACHED_READS))

    def flops_per_s(self) -> float:
        """A square matrix product: fp32 on a CPU, fp16 (matrix units) on a GPU."""
        n = self.factor.shape[0]
        return 2 * n**3 / self.device.timed(lambda: self.factor @ self.factor)


def make_probe(device: Device) -> DeviceProbe:
    """Allocate the buffers, with random data, and run each loop once to warm up."""
    elements = max(_MIN_BUFFER_BYTES, 4 * device.last_level_cache_bytes) // 4
    where = device.torch_device
    size = _MATMUL_SIZE[device.ref.kind]
    dtype = torch.float32 if device.ref.kind == "cpu" else torch.float16
    probe = DeviceProbe(
        device,
        torch.rand(elements, device=where),
        torch.rand(elements, device=where),
        torch.rand(size, size, device=where).to(dtype),
    )
    probe.read_bytes_per_s()
    probe.copy_bytes_per_s()
    probe.flops_per_s()
    return probe


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
