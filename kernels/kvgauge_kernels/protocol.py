"""AttentionBackend: one way of computing attention over a cache, as everything here knows it."""

from __future__ import annotations

from typing import Protocol

import torch

from kvgauge_kernels.view import KVView


class AttentionBackend(Protocol):
    """One way of computing attention over a cache."""

    @property
    def name(self) -> str:
        """What `--backend` takes and a record states."""
        ...

    @property
    def kernel_ops(self) -> tuple[str, ...]:
        """The torch operators of which at least one must be seen to run, e.g. `aten::bmm`.

        Empty where the kernel is no torch operator; then only `forbidden_ops` says something.
        """
        ...

    @property
    def forbidden_ops(self) -> tuple[str, ...]:
        """The torch operators of which none may be seen to run: those of other backends' kernels."""
        ...

    @property
    def formats(self) -> frozenset[str]:
        """KV formats that the backend reads at all, on whatever machine; groups by their base name."""
        ...

    @property
    def layouts(self) -> frozenset[str]:
        """The layouts that it reads: contiguous, paged."""
        ...

    def version(self) -> str:
        """The version of the package that holds the kernel."""
        ...

    def available(self, device: torch.device) -> str | None:
        """None where the backend can run on that device, else the reason why not."""
        ...

    def supports(self, view: KVView, q_dtype: torch.dtype) -> str | None:
        """None where this view can be computed, else the reason (dtype, head_dim, page size, ...)."""
        ...

    def decode(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """Attention of one new token a sequence over all valid tokens of the cache.

        q: `[batch, q_heads, k_dim]`; returns `[batch, q_heads, v_dim]` in q's dtype. Scores are
        scaled by `k_dim ** -0.5`. Query head h reads K/V head `h // (q_heads // kv_heads)`.
        Raises ValueError where q does not belong to the view.
        """
        ...

    def prefill(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """Causal attention of the last q_tokens tokens of each sequence, themselves cached.

        q: `[batch, q_heads, q_tokens, k_dim]`; returns `[batch, q_heads, q_tokens, v_dim]`. Query i
        of a sequence of n tokens sees the first `n - q_tokens + i + 1`.
        Raises ValueError where q does not belong to the view.
        """
        ...


def no_cuda(device: torch.device) -> str | None:
    """Why this torch cannot compute on that device; None if it can, or the device is no GPU."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return "this torch has no CUDA device that it can use"
    return None
