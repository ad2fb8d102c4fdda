"""One NVIDIA GPU: events for time, the caching allocator and NVML for memory."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from kvgauge.devices import cuda_calls, cuda_kernels
from kvgauge.devices.nvml import Nvml
from kvgauge.devices.readings import Readings, Unavailable
from kvgauge.devices.watch import GpuWatch
from kvgauge.errors import UnsupportedLayout
from kvgauge.schema import DeviceRef, MemoryUse, fragmentation

_DEFAULT_L2_BYTES = 64 * 2**20

T = TypeVar("T")


class CudaDevice:
    """The GPU of torch index `index`, with its telemetry."""

    memory_source = "torch.cuda.memory_allocated"

    def __init__(self, index: int = 0) -> None:
        self.torch_device = torch.device("cuda", index)
        cuda_calls.set_device(self.torch_device)
        facts = cuda_calls.properties(self.torch_device)
        self._facts = facts
        self._nvml = Nvml(str(getattr(facts, "uuid", "")) or None, index)
        self.last_level_cache_bytes = int(getattr(facts, "L2_cache_size", 0)) or _DEFAULT_L2_BYTES
        self.ref = DeviceRef("cuda", facts.name, index)

    def identity(self) -> str:
        """The GPU that torch launches on at this moment."""
        index = cuda_calls.current_device()
        facts = cuda_calls.properties(torch.device("cuda", index))
        return f"{facts.name} {getattr(facts, 'uuid', '')} (index {index})"

    @property
    def uuid(self) -> str:
        """As NVML writes it: the GPU's, from torch; of a MIG instance that instance's own."""
        # CUDA enumerates one MIG instance at most: the one that is named first.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
        return visible if visible.startswith("MIG-") else f"GPU-{self._facts.uuid}"

    def timed(self, step: Callable[[], object]) -> float:
        """Seconds between two events around one call: launching counts where the GPU waits for it."""
        return cuda_calls.elapsed_s(step)

    def captured(self, step: Callable[[], T]) -> Callable[[], T]:
        """A CUDA graph of `step`, which launches all of it at once; raises UnsupportedLayout."""
        try:
            return cuda_calls.capture(step)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise UnsupportedLayout("CUDA graph of the step", str(error)) from error

    def kernel_seconds(self, step: Callable[[], object]) -> dict[str, float] | None:
        """Seconds of each kernel of one call, by its name on the GPU."""
        return cuda_kernels.kernel_seconds(step, self.torch_device)

    def watch(self) -> GpuWatch:
        """Begin to watch the GPU and its host."""
        return GpuWatch(self._nvml)

    def memory_bytes(self) -> int | None:
        """Bytes that live tensors occupy in the allocator, rounding to its blocks included."""
        gc.collect()
        cuda_calls.synchronize(self.torch_device)
        cuda_calls.empty_cache()
        return cuda_calls.memory_allocated(self.torch_device)

    def reset_peak(self) -> bool:
        """Start a new peak."""
        cuda_calls.reset_peak(self.torch_device)
        return True

    def peak_bytes(self) -> int | None:
        """Highest memory_allocated since then."""
        return cuda_calls.max_memory_allocated(self.torch_device)

    def memory_use(self) -> MemoryUse:
        """The allocator's counts, NVML's of this process, and the driver's of the GPU."""
        stats = cuda_calls.memory_stats(self.torch_device)
        free_bytes, total_bytes = cuda_calls.mem_get_info(self.torch_device)
        readings = Readings("")

        def counted(field: str, key: str) -> int | None:
            return readings.ask(field, lambda: _stat(stats, key))

        allocated = counted("allocated_bytes", "allocated_bytes.all.current")
        reserved = counted("reserved_bytes", "reserved_bytes.all.current")
        known = allocated is not None and reserved is not None
        return MemoryUse(
            requested_bytes=counted("requested_bytes", "requested_bytes.all.current"),
            allocated_bytes=allocated,
            reserved_bytes=reserved,
            inactive_split_bytes=counted(
                "inactive_split_bytes", "inactive_split_bytes.all.current"
            ),
            fragmentation=fragmentation(allocated or 0, reserved or 0) if known else None,
            peak_allocated_bytes=counted("peak_allocated_bytes", "allocated_bytes.all.peak"),
            peak_reserved_bytes=counted("peak_reserved_bytes", "reserved_bytes.all.peak"),
            process_bytes=readings.ask("process_bytes", self._nvml.process_bytes),
            total_bytes=total_bytes,
            free_bytes=free_bytes,
            unavailable=readings.unavailable,
        )

    def driver_bytes(self) -> int | None:
        """This process's memory on the GPU as NVML counts it: context and cached blocks too."""
        try:
            return self._nvml.process_bytes()
        except Unavailable:
            return None

    def available_bytes(self) -> int:
        """Free memory of the device, after cached blocks were given back."""
        cuda_calls.empty_cache()
        return cuda_calls.mem_get_info(self.torch_device)[0]

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


def _stat(stats: dict[str, int], key: str) -> int:
    if key not in stats:
        raise Unavailable(f"this allocator of torch does not count {key}")
    return stats[key]
