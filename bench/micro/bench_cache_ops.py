"""What is done to a cache between decode steps: append, evict, copy a page."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from beside_read import time_beside_read
from kernels_for_tests import held_bytes, random_layer
from kvgauge_kernels.cache_ops import append, copy_pages, keep
from kvgauge_kernels.cpu import probe

pytestmark = pytest.mark.skipif(probe.why_not() is not None, reason=str(probe.why_not()))
FORMATS = ("fp16", "int8", "int4")
PAGE_TOKENS = 16


def tokens_of(benchmark: Any) -> int:
    return 64 if benchmark.disabled else 32768


@pytest.mark.parametrize("fmt", FORMATS)
def bench_append(benchmark: Any, fmt: str) -> None:
    """One token, quantized; its bytes are those of one token."""
    tokens = tokens_of(benchmark)
    view = replace(random_layer(fmt, tokens), lengths=(tokens - 1,))
    k, v = (torch.randn(1, view.kv_heads, dim) for dim in (view.k_dim, view.v_dim))
    time_beside_read(benchmark, lambda: append(view, k, v), held_bytes(view) // tokens)


@pytest.mark.parametrize("fmt", FORMATS)
def bench_keep_every_second_token(benchmark: Any, fmt: str) -> None:
    """Half the tokens stay: as many bytes are read, and written."""
    view = random_layer(fmt, tokens_of(benchmark))
    kept = torch.arange(0, view.tokens, 2)[None]
    time_beside_read(benchmark, lambda: keep(view, kept), held_bytes(view))


@pytest.mark.parametrize("fmt", FORMATS)
def bench_copy_pages(benchmark: Any, fmt: str) -> None:
    """A quarter of the pages onto another one."""
    view = random_layer(fmt, tokens_of(benchmark), "pages in order", page=PAGE_TOKENS)
    count = view.k.shape[0] // 4
    source, target = torch.arange(count), torch.arange(count, 2 * count)
    time_beside_read(benchmark, lambda: copy_pages(view, source, target), held_bytes(view) // 2)
