"""The native decode kernels, one benchmark a kernel and shape, each beside the memory's read bandwidth.

pytest bench/micro --benchmark-json=decode.json

`extra_info` has the bytes of the cache over the median time, and that over the bandwidth of a probe that
read other memory just before each call, which also empties the caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from kernels_for_tests import random_layer
from kvgauge_kernels import BACKENDS
from kvgauge_kernels.cpu import probe

pytestmark = pytest.mark.skipif(probe.why_not() is not None, reason=str(probe.why_not()))
# Query heads, K/V heads, head_dim.
SHAPES = {"llama-3.1-8b": (32, 8, 128), "smollm2-135m": (9, 3, 64), "phi-3-mini": (32, 32, 96)}
KERNELS = [
    (name, fmt, layout)
    for layout in ("contiguous", "pages in order", "pages at random")
    for name, fmt in (
        ("cpu", "fp32"), ("cpu", "fp16"), ("cpu", "bf16"), ("cpu", "int8"), ("cpu-q8", "int8")
    )
]  # fmt: skip
PROBE_BYTES = 128 * 2**20


def seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


@pytest.mark.parametrize("depth", [8192, 32768])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "fmt", "layout"), KERNELS)
def bench_decode(benchmark: Any, name: str, fmt: str, layout: str, shape: str, depth: int) -> None:
    q_heads, kv_heads, head_dim = SHAPES[shape]
    timed = not benchmark.disabled
    view = random_layer(fmt, depth if timed else 256, layout, kv_heads, head_dim)
    q = torch.randn(1, q_heads, head_dim).to(torch.bfloat16 if fmt == "int8" else view.k.dtype)
    refused = BACKENDS[name].supports(view, q.dtype)
    if refused is not None:
        pytest.skip(refused)
    other = torch.zeros(PROBE_BYTES if timed else 64, dtype=torch.uint8)
    reads_s: list[float] = []

    def read_other() -> None:
        reads_s.append(seconds(lambda: probe.read(other)))

    benchmark.pedantic(
        BACKENDS[name].decode, (q, view), setup=read_other, rounds=20, warmup_rounds=2
    )
    if not timed:
        return
    held = sum(x.nbytes for x in (view.k, view.v, view.k_scale, view.v_scale) if x is not None)
    bytes_per_s = held / benchmark.stats.stats.median
    read_bytes_per_s = PROBE_BYTES / sorted(reads_s)[len(reads_s) // 2]
    benchmark.extra_info["bytes_per_s"] = bytes_per_s
    benchmark.extra_info["share_of_read_bandwidth"] = bytes_per_s / read_bytes_per_s
