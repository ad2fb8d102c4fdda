"""What the native kernels reach of the memory's read bandwidth, measured at the same moment.

`pytest bench/micro/bench_decode.py --benchmark-enable --benchmark-json=decode.json`
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from kernels_for_tests import random_layer
from kvgauge_kernels import BACKENDS
from kvgauge_kernels.cpu import probe

pytestmark = pytest.mark.skipif(probe.why_not() is not None, reason=str(probe.why_not()))
Q_HEADS, DIM = 32, 128
CASES = [
    (name, fmt, layout)
    for layout in ("contiguous", "pages at random")
    for name, fmt in (("cpu", "fp16"), ("cpu", "bf16"), ("cpu", "int8"), ("cpu-q8", "int8"))
]


def seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


@pytest.mark.parametrize("depth", [8192, 32768])
@pytest.mark.parametrize(("name", "fmt", "layout"), CASES)
def bench_decode(benchmark: Any, name: str, fmt: str, layout: str, depth: int) -> None:
    view = random_layer(fmt, depth, layout)
    dtype = torch.bfloat16 if fmt == "int8" else view.k.dtype
    q = torch.randn(1, Q_HEADS, DIM).to(dtype)
    tensors = [x for x in (view.k, view.v, view.k_scale, view.v_scale) if x is not None]
    held = sum(x.numel() * x.element_size() for x in tensors)
    reads: list[float] = []

    def read_all() -> None:
        reads.append(sum(seconds(partial(probe.read, x)) for x in tensors))

    benchmark.pedantic(BACKENDS[name].decode, (q, view), setup=read_all, rounds=20, warmup_rounds=2)
    if benchmark.stats is None:  # benchmarks are disabled: it ran once
        return
    median = benchmark.stats.stats.median
    benchmark.extra_info["bytes_per_s"] = held / median
    benchmark.extra_info["read_share"] = sorted(reads)[len(reads) // 2] / median
