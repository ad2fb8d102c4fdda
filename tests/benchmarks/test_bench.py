"""Benchmarks of the project's own code: `pytest tests/benchmarks --benchmark-enable`.

In the ordinary test run each is called once, untimed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import kvgauge
from kvgauge.caches.contiguous import allocate
from kvgauge.shapes.resolve import resolve
from kvgauge_kernels import BACKENDS


def test_a_plan(benchmark: Any) -> None:
    plan = benchmark(kvgauge.plan, "llama-3.1-70b", think=50_000)
    assert plan.kv_bytes_per_request == 16_384_000_000


def test_a_plan_on_a_card_with_an_engine(benchmark: Any) -> None:
    plan = benchmark(
        kvgauge.plan, "llama-3.1-70b", prompt=500, think=50_000, tp=4, gpu="H100", engine="vllm"
    )
    assert plan.max_concurrent_requests == 8


@pytest.mark.parametrize("name", ["eager", "sdpa-math", "sdpa-flash"])
def test_one_layer_of_decode(benchmark: Any, name: str) -> None:
    layer = resolve("llama-3.1-8b").layers[:1]
    cache = allocate(layer, batch=1, tokens=2048, kv_format="bf16", device=torch.device("cpu"))
    cache.fill(torch.Generator().manual_seed(0))
    q = torch.randn(1, 32, 128).to(torch.bfloat16)
    out = benchmark(BACKENDS[name].decode, q, cache.view(0))
    assert out.shape == (1, 32, 128)
