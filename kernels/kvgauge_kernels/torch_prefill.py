"""Prefill by torch's kernels, for backends whose own kernels are for decode."""

from __future__ import annotations

import torch

from kvgauge_kernels.dequant import dequantized
from kvgauge_kernels.sdpa import SdpaFlash, SdpaMath
from kvgauge_kernels.stored import PLAIN_FORMATS
from kvgauge_kernels.view import KVView


def prefill_by_torch(q: torch.Tensor, view: KVView) -> torch.Tensor:
    """`AttentionBackend.prefill` by sdpa-flash, or by sdpa-math where the K and V dims differ.

    q: `[batch, q_heads, q_tokens, k_dim]`. A paged or quantized cache is copied for it. Raises
    ValueError where q does not belong to the view, and for a sliding window.
    """
    view.check(q)
    if view.window is not None:
        raise ValueError("torch's prefill has no sliding window")
    torchs = SdpaFlash() if view.k_dim == view.v_dim else SdpaMath()

    def plain(part: KVView) -> KVView:
        return part if part.format in PLAIN_FORMATS else dequantized(part, q.dtype)

    if view.layout == "contiguous":
        return torchs.prefill(q, plain(view))
    parts = (torchs.prefill(q[i : i + 1], plain(view.gathered(i))) for i in range(view.batch))
    return torch.cat(list(parts))
