"""The native loops of the probe: what memory and arithmetic units give when nothing else is asked of them.

Each call is short (128 MiB are read in some 2 to 4 ms, a rate takes 1 ms) and lets other Python threads run.
The loops are those of the level in use (`_native.level()`). They run on the threads that the caller names:
`openmp`, those of torch, or `pool`, those of the native kernels. Beside a step belongs a probe on the
same threads: those of the other kind still look for work for a while and take the cores away.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal

import torch

Threads = Literal["openmp", "pool"]
NOT_BUILT = "the native CPU kernels are not built"


def _load() -> Any:
    try:
        return importlib.import_module("kvgauge_kernels.cpu._native")
    except ImportError:
        return None


_native = _load()


def why_not(threads: Threads) -> str | None:
    """Why these loops cannot run here; None where they can."""
    if _native is None:
        return NOT_BUILT
    if threads == "openmp" and not _native.probe_has_openmp():
        return "torch's threads are none of GNU OpenMP's"
    return None


def level() -> str:
    """The instructions in use: `avx512`, `avx2` or `portable`."""
    return str(_built().level())


def read(data: torch.Tensor, threads: Threads) -> int:
    """Read every byte; the sum of the 64-bit words modulo 2^64, the last filled up with zeros."""
    return int(_built().probe_read(*_memory(data), threads == "openmp"))


def copy(target: torch.Tensor, source: torch.Tensor, threads: Threads, *, streaming: bool) -> None:
    """Copy every byte; `streaming` with stores that go around the caches, where the CPU has them."""
    address, size = _memory(source)
    if _memory(target)[1] != size:
        raise ValueError("the target must have as many bytes as the source")
    _built().probe_copy(target.data_ptr(), address, size, streaming, threads == "openmp")


def multiply_adds_per_s(threads: Threads) -> float:
    """Fp32 operations a second of all threads from their registers; a multiply-add is two."""
    return float(_built().probe_multiply_add_rate(threads == "openmp"))


def integer_dots_per_s(bits: Literal[8, 16], threads: Threads) -> float | None:
    """Integer operations a second of dot products into 32 bits; None where the level has none.

    `avx512` uses vpdpbusd and vpdpwssd, `avx2` the three and two instructions that do the same there.
    """
    rate: float | None = _built().probe_dot_rate(bits, threads == "openmp")
    return rate


def ping_pong_ns(threads: Threads) -> float | None:
    """Nanoseconds in which a cache line goes from the first core to the second; None with one core."""
    latency: float | None = _built().probe_ping_pong_ns(threads == "openmp")
    return latency


def _built() -> Any:
    if _native is None:
        raise RuntimeError(NOT_BUILT)
    return _native


def _memory(data: torch.Tensor) -> tuple[int, int]:
    if data.device.type != "cpu" or not data.is_contiguous():
        raise ValueError("the probe reads and writes contiguous memory of the CPU")
    return data.data_ptr(), data.nbytes
