"""KVView: what a kernel sees of one layer's cache, and the Protocol of a backend.

Tensors and nothing of the harness: no model names, no formula, no run folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True, slots=True)
class KVView:
    """One layer's cache.

    k: `[batch, kv_heads, tokens, k_dim]`, v: `[batch, kv_heads, tokens, v_dim]`, both of the
    storage dtype of `format`; any strides with the last dimension contiguous. For quantized
    formats k_scale and v_scale are `[batch, kv_heads, tokens]` fp16, and an element is
    `stored * scale`. `lengths` says how many tokens of each sequence are valid; None means all.
    """

    k: torch.Tensor
    v: torch.Tensor
    format: str
    k_scale: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None
    lengths: tuple[int, ...] | None = None
    layout: str = "contiguous"
    page_size: int | None = None

    def __post_init__(self) -> None:
        if self.k.dim() != 4 or self.v.dim() != 4:
            raise ValueError("k and v must be [batch, kv_heads, tokens, head_dim]")
        if self.k.shape[:3] != self.v.shape[:3]:
            raise ValueError(
                f"k {list(self.k.shape)} and v {list(self.v.shape)} differ in batch, heads or tokens"
            )
        for scale in (self.k_scale, self.v_scale):
            if scale is not None and scale.shape != self.k.shape[:3]:
                raise ValueError(f"scales must be {list(self.k.shape[:3])}, got {list(scale.shape)}")
        if self.lengths is not None:
            if len(self.lengths) != self.batch:
                raise ValueError(f"{len(self.lengths)} lengths for a batch of {self.batch}")
            if not all(1 <= n <= self.tokens for n in self.lengths):
                raise ValueError(f"lengths must be between 1 and {self.tokens}: {self.lengths}")

    @property
    def batch(self) -> int:
        """Sequences."""
        return self.k.shape[0]

    @property
    def kv_heads(self) -> int:
        """Heads of K and V."""
        return self.k.shape[1]

    @property
    def tokens(self) -> int:
        """Tokens that there is room for."""
        return self.k.shape[2]

    @property
    def ragged(self) -> bool:
        """Whether sequences differ in length, or are shorter than the room."""
        return self.lengths is not None and any(n != self.tokens for n in self.lengths)


class AttentionBackend(Protocol):
    """One way of computing attention over a cache."""

    @property
    def name(self) -> str:
        """What `--backend` takes and a record states."""
        ...

    @property
    def kernel_ops(self) -> tuple[str, ...]:
        """The torch operators of which at least one must be seen to run, e.g. `aten::bmm`."""
        ...

    @property
    def formats(self) -> frozenset[str]:
        """KV formats that the backend reads at all, on whatever machine."""
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
        """
        ...

    def prefill(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """Causal attention of the last q_tokens tokens of each sequence, themselves cached.

        q: `[batch, q_heads, q_tokens, k_dim]`; returns `[batch, q_heads, q_tokens, v_dim]`. Query i
        of a sequence of n tokens sees the first `n - q_tokens + i + 1`.
        """
        ...
