"""The table of backends, and the one signature of attention over a cache."""

from __future__ import annotations

import torch

from kvgauge_kernels.cpu.backend import CpuBackend
from kvgauge_kernels.dequant import DequantSdpa
from kvgauge_kernels.eager import Eager
from kvgauge_kernels.flash_attn import FlashAttn
from kvgauge_kernels.flash_attn_4 import FlashAttn4
from kvgauge_kernels.flashinfer import FlashInfer
from kvgauge_kernels.flashinfer_xqa import FlashInferXqa
from kvgauge_kernels.flex_attention import FlexAttention
from kvgauge_kernels.protocol import AttentionBackend
from kvgauge_kernels.reference import Reference
from kvgauge_kernels.sdpa import SdpaFlash, SdpaMath
from kvgauge_kernels.sdpa_fused import SDPA_CUDNN, SDPA_EFFICIENT
from kvgauge_kernels.triton.backend import TritonBackend
from kvgauge_kernels.view import KVView

# A new backend is one file and one line here.
_ALL: tuple[AttentionBackend, ...] = (
    Reference(),
    Eager(),
    SdpaMath(),
    SdpaFlash(),
    SDPA_EFFICIENT,
    SDPA_CUDNN,
    FlashAttn(),
    FlashAttn4(),
    FlashInfer(),
    FlashInferXqa(),
    FlexAttention(),
    DequantSdpa(),
    CpuBackend(),
    CpuBackend(int_bits=8),
    TritonBackend(),
)
BACKENDS: dict[str, AttentionBackend] = {b.name: b for b in _ALL}


def backend(name: str) -> AttentionBackend:
    """The backend of that name; raises ValueError with the known names."""
    try:
        return BACKENDS[name]
    except KeyError:
        raise ValueError(f"unknown backend {name!r}: one of {', '.join(BACKENDS)}") from None


def decode(q: torch.Tensor, view: KVView, backend: str = "sdpa-flash") -> torch.Tensor:
    """Attention of one new token a sequence over the cache, by the backend of that name.

    q: `[batch, q_heads, k_dim]`; returns `[batch, q_heads, v_dim]` in q's dtype, as
    `AttentionBackend.decode` says. Raises ValueError where the backend is unknown, cannot run on
    q's device or cannot read the view, with the reason: no other backend is taken instead.
    """
    return _able(backend, q, view).decode(q, view)


def prefill(q: torch.Tensor, view: KVView, backend: str = "sdpa-flash") -> torch.Tensor:
    """Causal attention of the last q_tokens tokens, by the backend of that name.

    q: `[batch, q_heads, q_tokens, k_dim]`; returns `[batch, q_heads, q_tokens, v_dim]` in q's
    dtype, as `AttentionBackend.prefill` says. Raises as `decode`.
    """
    return _able(backend, q, view).prefill(q, view)


def _able(name: str, q: torch.Tensor, view: KVView) -> AttentionBackend:
    chosen = backend(name)
    reason = chosen.available(q.device) or chosen.supports(view, q.dtype)
    if reason is not None:
        raise ValueError(f"backend {name}: {reason}")
    return chosen
