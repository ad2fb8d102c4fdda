"""The native kernels read nothing behind a cache: each of its tensors ends where memory does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from kernels_for_tests import error, make_query, make_view, random_layer
from kvgauge_kernels import BACKENDS, KVView, oracle_decode
from kvgauge_kernels.cpu.native_module import native
from kvgauge_kernels.stored import PLAIN_DTYPE
from walls_for_tests import before_a_wall

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels are not built")
INTEGERS = ("int8", "int4", "int2", "int2-g32", "kivi4", "kivi2")
READ = [
    *(("cpu", fmt) for fmt in ("fp32", "fp16", "bf16", "fp8_e4m3", *INTEGERS)),
    *(("cpu-q8", fmt) for fmt in INTEGERS),
]


def check(name: str, view: KVView) -> None:
    """The same result from a copy of the cache before walls, or a skip where it is not read here."""
    q = make_query(view, 5, PLAIN_DTYPE.get(view.format, torch.float32))
    reason = BACKENDS[name].supports(view, q.dtype)
    if reason is not None:
        pytest.skip(reason)
    walled: dict[str, Any] = {n: before_a_wall(x) for n, x in view.tensors().items()}
    if view.block_table is not None:
        walled["block_table"] = before_a_wall(view.block_table)
    out = BACKENDS[name].decode(before_a_wall(q), replace(view, **walled))
    limit = 3e-2 if name == "cpu-q8" else 1e-2 if q.dtype == torch.bfloat16 else 1e-3
    assert error(out, oracle_decode(q, view)) < limit


@pytest.mark.parametrize(("name", "fmt"), READ)
@pytest.mark.parametrize(("dim", "tokens"), [(64, 1), (64, 17), (80, 70), (128, 15), (128, 200)])
def test_of_a_cache_in_one_piece(level: str, name: str, fmt: str, dim: int, tokens: int) -> None:
    if dim % 32 and fmt == "int2-g32":
        pytest.skip("80 is no whole number of groups of 32")
    check(name, make_view(fmt, tokens=tokens, k_dim=dim, batch=1))


@pytest.mark.parametrize(("name", "fmt"), READ)
@pytest.mark.parametrize("tokens", [32, 64, 224])
def test_of_a_cache_in_pages(level: str, name: str, fmt: str, tokens: int) -> None:
    check(name, random_layer(fmt, tokens, "pages at random", heads=2, page=32, huge_pages=False))
