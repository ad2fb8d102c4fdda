"""A benchmark's step beside the read bandwidth of the memory at the same moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from kvgauge_kernels.cpu import probe

PROBE_BYTES = 128 * 2**20


def time_beside_read(benchmark: Any, step: Callable[[], object], step_bytes: int) -> None:
    """Time `step`, which moves that many bytes, by pytest-benchmark's fixture.

    `extra_info` gets `bytes_per_s`, of the median time, and `share_of_read_bandwidth`, of a probe that
    reads other memory just before each call, which also empties the caches.
    """
    other = torch.zeros(64 if benchmark.disabled else PROBE_BYTES, dtype=torch.uint8)
    reads_s: list[float] = []

    def read_other() -> None:
        start = time.perf_counter()
        probe.read(other)
        reads_s.append(time.perf_counter() - start)

    benchmark.pedantic(step, setup=read_other, rounds=20, warmup_rounds=2)
    if benchmark.disabled:
        return
    bytes_per_s = step_bytes / benchmark.stats.stats.median
    read_bytes_per_s = PROBE_BYTES / sorted(reads_s)[len(reads_s) // 2]
    benchmark.extra_info["bytes_per_s"] = bytes_per_s
    benchmark.extra_info["share_of_read_bandwidth"] = bytes_per_s / read_bytes_per_s
