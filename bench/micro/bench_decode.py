"""The native decode kernels, one benchmark a kernel and shape, each beside the memory's read bandwidth.

pytest bench/micro --benchmark-json=decode.json
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from beside_read import time_beside_read
from kernels_for_tests import held_bytes, random_layer
from kvgauge_kernels import BACKENDS
from kvgauge_kernels.cpu import probe
from kvgauge_kernels.mla import latent_view
from kvgauge_kernels.quantize import quantize
from kvgauge_kernels.stored import PLAIN_DTYPE

pytestmark = pytest.mark.skipif(probe.why_not() is not None, reason=str(probe.why_not()))
# Query heads, K/V heads, head_dim.
SHAPES = {"llama-3.1-8b": (32, 8, 128), "smollm2-135m": (9, 3, 64), "phi-3-mini": (32, 32, 96)}
FORMATS = [("cpu", fmt) for fmt in ("fp32", "fp16", "bf16", "fp8_e4m3", "int8", "int4", "int2")]
FORMATS += [("cpu-q8", fmt) for fmt in ("int8", "int4", "int2")]
IN_PAGES = tuple(FORMATS)
FORMATS += [(name, fmt) for fmt in ("kivi4", "kivi2") for name in ("cpu", "cpu-q8")]
LAYOUTS = ("contiguous", "pages in order", "pages at random")
KERNELS = [(name, fmt, layout) for layout in LAYOUTS[1:] for name, fmt in IN_PAGES]
KERNELS += [(name, fmt, LAYOUTS[0]) for name, fmt in FORMATS]
# DeepSeek-V3: query heads, latent_dim, rope_dim.
LATENT = (128, 512, 64)


def decode(benchmark: Any, name: str, q: torch.Tensor, view: Any) -> None:
    refused = BACKENDS[name].supports(view, q.dtype)
    if refused is not None:
        pytest.skip(refused)
    time_beside_read(benchmark, lambda: BACKENDS[name].decode(q, view), held_bytes(view))


@pytest.mark.parametrize("depth", [8192, 32768])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "fmt", "layout"), KERNELS)
def bench_decode(
    benchmark: Any, name: str, fmt: str, layout: str, shape: str, depth: int
) -> None:  # fmt: skip
    q_heads, kv_heads, head_dim = SHAPES[shape]
    view = random_layer(fmt, 256 if benchmark.disabled else depth, layout, kv_heads, head_dim)
    q = torch.randn(1, q_heads, head_dim).to(PLAIN_DTYPE.get(fmt, torch.bfloat16))
    decode(benchmark, name, q, view)


@pytest.mark.parametrize("depth", [8192, 32768])
@pytest.mark.parametrize(("name", "fmt"), [("cpu", "bf16"), ("cpu", "int8"), ("cpu-q8", "int8")])
def bench_latent(benchmark: Any, name: str, fmt: str, depth: int) -> None:
    """All query heads over one latent a token, which is both K and V."""
    heads, latent_dim, rope_dim = LATENT
    tokens = 64 if benchmark.disabled else depth
    rows = quantize(torch.randn(1, tokens, latent_dim + rope_dim), fmt)
    view = latent_view(rows.codes, latent_dim, fmt, rows.scale)
    q = torch.randn(1, heads, latent_dim + rope_dim).to(PLAIN_DTYPE.get(fmt, torch.bfloat16))
    decode(benchmark, name, q, view)
