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
from kvgauge_kernels.cache_ops import append, copy_pages, keep
from triton_for_tests import FORMATS, TritonCase, one_latent_case, triton_cases

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


@pytest.mark.parametrize("fmt", [*FORMATS, "fp32"])
@pytest.mark.parametrize("in_pages", [False, True])
def test_between_steps_every_byte_is_as_torch_leaves_it(fmt: str, in_pages: bool) -> None:
    """On a CPU: on a GPU torch divides less exactly. So many tokens that a kept block is many threads'."""
    room, page = 4096, 64
    view = make_view(fmt, batch=2, tokens=room, k_dim=128, lengths=(room - 1, 777))
    if in_pages:
        pools: dict[str, Any] = {
            n: x.view(2, 2, -1, page, *x.shape[3:]).transpose(1, 2).flatten(0, 1).contiguous()
            for n, x in view.tensors().items()
        }
        pages = torch.arange(2 * room // page, dtype=torch.int32).view(2, -1)
        view = replace(view, layout="paged", page_size=page, block_table=pages, **pools)
    new = torch.randn(2, 2, 128, dtype=torch.bfloat16)
    kept = torch.stack([torch.randperm(700)[:600].sort().values for _ in range(2)])
    source, target = torch.tensor([0, 3]), torch.tensor([70, 9])
    there = on_gpu(view)

    def steps(cache: KVView, by: str, device: str) -> KVView:
        longer = append(cache, new.to(device), -new.to(device), by)
        shorter = keep(longer, kept.to(device), by)
        if in_pages:
            copy_pages(shorter, source.to(device), target.to(device), by)
        return shorter

    found, expected = steps(there, "triton", "cuda"), steps(view, "torch", "cpu")
    for name, x in found.tensors().items():
        left = expected.tensors()[name]
        assert torch.equal(x.cpu().view(torch.uint8), left.view(torch.uint8)), name


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
