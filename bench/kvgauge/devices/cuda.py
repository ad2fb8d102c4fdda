"""One NVIDIA GPU through torch.cuda: events for time, the caching allocator's statistics for memory."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any

import torch

from kvgauge.devices.nvml import Nvml
from kvgauge.schema import DeviceRef

_DEFAULT_L2_BYTES = 64 * 2**20


class CudaDevice:
    """The GPU of torch index `index`, with its telemetry."""

    memory_source = "torch.cuda.memory_allocated"

    def __init__(self, index: int = 0) -> None:
        self.torch_device = torch.device("cuda", index)
        torch.cuda.set_device(self.torch_device)
        facts = torch.cuda.get_device_properties(self.torch_device)
        self._facts = facts
        self._nvml = Nvml(str(getattr(facts, "uuid", "")) or None)
        self.last_level_cache_bytes = int(getattr(facts, "L2_cache_size", 0)) or _DEFAULT_L2_BYTES
        self.ref = DeviceRef("cuda", facts.name, index)

    @property
    def uuid(self) -> str:
        """As NVML writes it: the GPU's, from torch; of a MIG instance that instance's own."""
        # CUDA enumerates one MIG instance at most: the one that is named first.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
        return visible if visible.startswith("MIG-") else f"GPU-{self._facts.uuid}"

    def timed(self, step: Callable[[], object]) -> float:
        """Seconds between two events around one call."""
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        start.record()
        step()
        end.record()
        end.synchronize()
        elapsed_ms: float = start.elapsed_time(end)
        return elapsed_ms / 1e3

    def memory_bytes(self) -> int | None:
        """Bytes that live tensors occupy in the allocator, rounding to its blocks included."""
        gc.collect()
        torch.cuda.synchronize(self.torch_device)
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated(self.torch_device)

    def reset_peak(self) -> bool:
        """Start a new peak."""
        torch.cuda.reset_peak_memory_stats(self.torch_device)
        return True

    def peak_bytes(self) -> int | None:
        """Highest memory_allocated since then."""
        return torch.cuda.max_memory_allocated(self.torch_device)

    def driver_bytes(self) -> int | None:
        """This process's memory on the GPU as NVML counts it: context and cached blocks too."""
        return self._nvml.process_bytes()

    def available_bytes(self) -> int:
        """Free memory of the device, after cached blocks were given back."""
        torch.cuda.empty_cache()
        free_bytes, _total = torch.cuda.mem_get_info(self.torch_device)
        return free_bytes

    def cpu_taken_s(self) -> float | None:
        """A GPU's times are events on the GPU: the host's other work is not among them."""
        return None

    def properties(self) -> dict[str, Any]:
        """Facts of the GPU, with NVML's where it answers."""
        facts = self._facts
        return {
            "gpu": facts.name,
            "compute_capability": f"{facts.major}.{facts.minor}",
            "multiprocessors": facts.multi_processor_count,
            "memory_bytes": facts.total_memory,
            "last_level_cache_bytes": self.last_level_cache_bytes,
            "torch_cuda": torch.version.cuda,
            **self._nvml.facts(),
        }
