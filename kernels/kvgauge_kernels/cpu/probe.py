"""The native loops of the probe: what memory and arithmetic units give when nothing else is asked of them.

Each call is short (128 MiB are read in some 2 to 4 ms, a rate takes 1 ms) and lets other Python threads run.
The loops are those of the level in use, on the threads of the kernels (`native/pool.h`).
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from kvgauge_kernels.cpu.native_module import NOT_BUILT, native


def why_not() -> str | None:
    """Why these loops cannot run here; None where they can."""
    return NOT_BUILT if native() is None else None


def level() -> str:
    """The instructions in use: `avx512`, `avx2` or `portable`."""
    return str(_built().level())


def read(data: torch.Tensor) -> int:
    """Read every byte; the sum of the 64-bit words modulo 2^64, the last filled up with zeros."""
    return int(_built().probe_read(*_memory(data)))


def copy(target: torch.Tensor, source: torch.Tensor, *, streaming: bool) -> None:
    """Copy every byte; `streaming` with stores that go around the caches, where the CPU has them."""
    address, size = _memory(source)
    if _memory(target)[1] != size:
        raise ValueError("the target must have as many bytes as the source")
    _built().probe_copy(target.data_ptr(), address, size, streaming)


def multiply_adds_per_s() -> float:
    """Fp32 operations a second of all threads from their registers; a multiply-add is two."""
    return float(_built().probe_multiply_add_rate())


def integer_dots_per_s(bits: Literal[8, 16]) -> float | None:
    """Integer operations a second of dot products into 32 bits; None where the level has none.

    `avx512` uses vpdpbusd and vpdpwssd, `avx2` the three and two instructions that do the same there.
    """
    rate: float | None = _built().probe_dot_rate(bits)
    return rate


def ping_pong_ns() -> float | None:
    """Nanoseconds in which a cache line goes from the first core to the second; None with one core."""
    latency: float | None = _built().probe_ping_pong_ns()
    return latency


def _built() -> Any:
    module = native()
    if module is None:
        raise RuntimeError(NOT_BUILT)
    torch.get_num_threads()  # gives OpenMP torch's count on this Python thread
    return module


def _memory(data: torch.Tensor) -> tuple[int, int]:
    if data.device.type != "cpu" or not data.is_contiguous():
        raise ValueError("the probe reads and writes contiguous memory of the CPU")
    return data.data_ptr(), data.nbytes
