"""The Triton kernels on a real GPU: the cases of the interpreter's proof, and what only a GPU shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from kernels_for_tests import error, make_query, make_view
from kvgauge.devices import cuda_calls
from kvgauge_kernels import BACKENDS, KVView, oracle_decode
from triton_for_tests import TritonCase, one_latent_case, triton_cases

TRITON = BACKENDS["triton"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or TRITON.available(torch.device("cuda")) is not None,
        reason="needs a CUDA GPU and triton",
    ),
]
MAX_ERROR = {torch.float16: 2.5e-3, torch.bfloat16: 1.6e-2}


def on_gpu(view: KVView) -> KVView:
    """The same cache in the GPU's memory, strides and all."""

    sides: dict[str, Any] = {name: x.to("cuda") for name, x in view.tensors().items()}
    if view.block_table is not None:
        sides["block_table"] = view.block_table.to("cuda")
    return replace(view, **sides)


@given(triton_cases())
@settings(max_examples=60, deadline=None)
def test_drawn_caches(case: TritonCase) -> None:
    view, q = case.view(), case.query()
    out = TRITON.decode(q.cuda(), on_gpu(view))
    assert error(out, oracle_decode(q, view)) <= MAX_ERROR[q.dtype]


@pytest.mark.parametrize("page_size", [None, 16, 64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_latents(dtype: torch.dtype, page_size: int | None) -> None:
    fmt = {torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    case = replace(
        one_latent_case(), fmt=fmt, q_dtype=dtype, page_size=page_size, group=128,
        lengths=(3000, 1777), room=3000,
    )  # fmt: skip
    view, q = case.latents(), case.query()
    there = on_gpu(view)
    out = TRITON.decode(q.cuda(), replace(there, v=there.k[..., : view.v_dim]))
    assert error(out, oracle_decode(q, view)) <= MAX_ERROR[q.dtype]


@pytest.mark.parametrize("lengths", [None, (70, 300)])
def test_a_graph_holds_it(lengths: tuple[int, ...] | None) -> None:
    view = make_view("bf16", tokens=300, k_dim=128, lengths=lengths, device="cuda")
    q = make_query(view, 4, torch.bfloat16)
    replay = cuda_calls.capture(lambda: TRITON.decode(q, view))
    view.v.neg_()
    out = replay().clone()
    assert error(out, oracle_decode(q, view).cpu()) <= MAX_ERROR[torch.bfloat16]


def test_the_host_does_not_wait_for_the_gpu() -> None:
    view = make_view("bf16", tokens=300, k_dim=128, lengths=(70, 299), device="cuda")
    q = make_query(view, 4, torch.bfloat16)
    TRITON.decode(q, view)
    torch.cuda.set_sync_debug_mode("error")
    try:
        TRITON.decode(q, replace(view, lengths=(71, 300)))
    finally:
        torch.cuda.set_sync_debug_mode("default")
