"""Attention in parts by the Triton kernels under Triton's interpreter, against the oracle in float64.

Runs in the process that test_triton_against_oracle starts.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from kernels_for_tests import as_numbers, error, make_query, make_view
from kvgauge_kernels import KVView, oracle_decode
from kvgauge_kernels.parts import merged, shared_prefix_decode
from kvgauge_kernels.triton import launch
from kvgauge_kernels.triton.backend import TritonBackend
from parts_for_tests import cut, joined
from triton_for_tests import inside, needs_triton, new_interpreter, one_case

pytestmark = [needs_triton, new_interpreter, inside]
TRITON = TritonBackend()
MAX_ERROR = {torch.float16: 1.5e-3, torch.bfloat16: 1.6e-2}


def log_sums(q: torch.Tensor, view: KVView) -> torch.Tensor:
    """Of a contiguous cache, in float64: the logarithm of the sum of the exponentiated scores."""
    keys = torch.from_numpy(as_numbers(view, "k"))
    grouped = q.double().view(view.batch, view.kv_heads, -1, view.k_dim)
    scores = torch.einsum("bhgd,bhtd->bhgt", grouped, keys) / view.k_dim**0.5
    places = torch.arange(view.tokens)
    for b, n in enumerate(view.lengths or ()):
        seen = places < n
        if view.window is not None:
            seen &= (places >= n - view.window) | (places < view.sink_tokens)
        scores[b, ..., ~seen] = -np.inf
    sums: torch.Tensor = scores.logsumexp(-1).flatten(1)
    return sums


@pytest.mark.parametrize("page_size", [None, 24])
@pytest.mark.parametrize("window", [None, 30])
@pytest.mark.parametrize(("fmt", "dtype"), [("fp16", torch.float16), ("int4", torch.bfloat16)])
def test_a_part_is_in_fp32_with_the_sum_of_its_exponentiated_scores(
    fmt: str, dtype: torch.dtype, window: int | None, page_size: int | None
) -> None:
    case = replace(one_case(), fmt=fmt, q_dtype=dtype, window=window, sink_tokens=3 * bool(window))
    view, q = replace(case, page_size=page_size).view(), case.query()
    out, sums = TRITON.decode_part(q, view)
    assert out.dtype == sums.dtype == torch.float32
    assert error(out, oracle_decode(q, view)) <= MAX_ERROR[dtype]
    assert bool((out != out.to(dtype).float()).any())  # not rounded in between
    flat = case.view()
    for x in flat.tensors().values():  # what is past the end is not looked at here
        for b, n in enumerate(flat.lengths or ()):
            x[b, :, n:] = 0
    assert torch.allclose(sums.double(), log_sums(q, flat), atol=1e-3)


@pytest.mark.parametrize("fmt", ["bf16", "int8"])
def test_parts_merged_are_the_whole(fmt: str) -> None:
    view = make_view(fmt, tokens=170)
    q = make_query(view, 5, torch.bfloat16)
    out, sums = merged([TRITON.decode_part(q, cut(view, *s)) for s in ((0, 129), (129, 170))])
    assert error(out, oracle_decode(q, view)) <= MAX_ERROR[q.dtype]
    assert torch.allclose(sums, TRITON.decode_part(q, view)[1], atol=1e-4)


@pytest.mark.parametrize("fmt", ["fp16", "int8", "int4"])
@pytest.mark.parametrize(("forks", "group"), [(1, 4), (5, 4), (3, 7)])
def test_a_prefix_that_forks_share(fmt: str, forks: int, group: int) -> None:
    prefix = make_view(fmt, batch=1, tokens=200, seed=1)
    own = make_view(fmt, batch=forks, tokens=30, seed=2)
    q = make_query(own, group, torch.float16)
    out = shared_prefix_decode(q, prefix, own, TRITON)
    assert out.dtype == q.dtype
    assert error(out, oracle_decode(q, joined(prefix, own))) <= 2.5e-3


def test_the_operator_under_torchs_own_checks() -> None:
    case = one_case()
    view, q = case.view(), case.query()
    arguments = (
        q, view.k, view.v, None, None, None, None, None, list(view.lengths or ()), "fp16", None, 0,
    )  # fmt: skip
    assert launch.PART_OP == "kvgauge::triton_decode_part"
    torch.library.opcheck(torch.ops.kvgauge.triton_decode_part.default, arguments)
