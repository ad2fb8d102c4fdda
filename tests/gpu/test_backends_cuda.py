"""The matrix of backends on a CUDA GPU, small: the same oracle, the same question which kernel ran."""

from __future__ import annotations

import pytest
import torch

from kernels_for_tests import (
    DTYPES,
    TOLERANCE,
    assert_right_kernel,
    error,
    make_query,
    make_view,
    naive,
    naive_decode,
    observed,
)
from kvgauge_kernels import BACKENDS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
# In fp32 a matrix product may run in TF32 where a user's torch is set so.
CUDA_TOLERANCE = {**TOLERANCE, torch.float32: 1e-4}
# What a profile of the GPU calls the kernels of FlashAttention, torch's and the package's.
FLASH_KERNEL = "flash_fwd"


# The prefill of the first is torch's, the others have none here.
DECODE_ONLY = (
    "triton", "flashinfer", "flashinfer-xqa", "flash-attn-4", "sdpa-efficient", "sdpa-cudnn",
    "flex-attention",
)  # fmt: skip


@pytest.mark.parametrize("lengths", [None, (200, 200), (57, 300)])
@pytest.mark.parametrize(("k_dim", "v_dim"), [(64, 64), (80, 80), (128, 128), (192, 128)])
@pytest.mark.parametrize("fmt", [*DTYPES, "int8"])
@pytest.mark.parametrize("name", list(BACKENDS))
def test_decode_and_prefill(
    name: str, fmt: str, k_dim: int, v_dim: int, lengths: tuple[int, ...] | None
) -> None:
    backend = BACKENDS[name]
    view = make_view(fmt, tokens=300, k_dim=k_dim, v_dim=v_dim, lengths=lengths, device="cuda")
    dtype = DTYPES.get(fmt, torch.bfloat16)
    reason = backend.available(view.k.device) or backend.supports(view, dtype)
    if reason is not None:
        pytest.skip(reason)
    q = make_query(view, 4, dtype)
    out, seen = observed(lambda: backend.decode(q, view))
    assert_right_kernel(backend, seen)
    assert error(out, naive_decode(q, view)) <= CUDA_TOLERANCE[dtype]
    if name in DECODE_ONLY:
        return
    for q_tokens in (1, 9, min(lengths or (300,))):
        q = make_query(view, 4, dtype, q_tokens)
        out, seen = observed(lambda q=q: backend.prefill(q, view))  # type: ignore[misc]
        assert_right_kernel(backend, seen)
        assert error(out, naive(q, view)) <= CUDA_TOLERANCE[dtype]


@pytest.mark.parametrize("name", ["sdpa-flash", "flash-attn"])
def test_the_gpu_itself_ran_a_flash_kernel(name: str) -> None:
    backend = BACKENDS[name]
    view = make_view("bf16", tokens=4096, k_dim=128, device="cuda")
    reason = backend.available(view.k.device)
    if reason is not None:
        pytest.skip(reason)
    q = make_query(view, 4, torch.bfloat16)
    backend.decode(q, view)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        backend.decode(q, view)
        torch.cuda.synchronize()
    kernels = [event.key for event in profile.key_averages()]
    assert any(FLASH_KERNEL in kernel for kernel in kernels), kernels
