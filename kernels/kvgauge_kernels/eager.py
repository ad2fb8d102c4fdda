"""eager: attention without FlashAttention, as a plain implementation writes it.

Two matrix products with the scores written to memory between them, in the cache's dtype, and a
softmax in fp32: the steps of transformers' `eager_attention_forward`, save that the query heads of
one K/V head are grouped into one product, where transformers first repeats K and V.
"""

from __future__ import annotations

import torch

from kvgauge_kernels.protocol import no_cuda
from kvgauge_kernels.stored import PLAIN_FORMATS
from kvgauge_kernels.torch_ops import SDPA_OPS
from kvgauge_kernels.view import KVView


class Eager:
    """Scores through memory. Sequences that differ in length are computed at full room, masked."""

    name = "eager"
    kernel_ops = ("aten::bmm",)
    forbidden_ops = SDPA_OPS
    formats = PLAIN_FORMATS
    layouts = frozenset({"contiguous"})

    def version(self) -> str:
        """torch's."""
        return str(torch.__version__)

    def available(self, device: torch.device) -> str | None:
        """Wherever torch is."""
        return no_cuda(device)

    def supports(self, view: KVView, q_dtype: torch.dtype) -> str | None:
        """Contiguous caches of q's dtype, of whatever head dims."""
        return view.refusal(q_dtype, self.formats)

    def decode(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """See AttentionBackend; beside the result, `batch * q_heads * tokens` scores are written."""
        return self.prefill(q.unsqueeze(2), view).squeeze(2)

    def prefill(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """See AttentionBackend; the scores are `batch * q_heads * q_tokens * tokens` elements."""
        view.check(q)
        if _one_matrix_a_head(view.k) and _one_matrix_a_head(view.v):
            return _attend(q, view)
        parts = (
            (q[i : i + 1], view.narrowed(slice(i, i + 1), view.length(i)))
            for i in range(view.batch)
        )
        return torch.cat([_attend(rows, part) for rows, part in parts])


def _attend(q: torch.Tensor, view: KVView) -> torch.Tensor:
    batch, q_heads, q_tokens, k_dim = q.shape
    grouped = (batch, view.kv_heads, q_heads // view.kv_heads, q_tokens)
    rows = q.reshape(batch, view.kv_heads, q_heads // view.kv_heads * q_tokens, k_dim)
    scores = torch.matmul(rows, view.k.transpose(-1, -2)) * k_dim**-0.5
    if q_tokens > 1 or view.ragged:
        hidden = view.visible(q_tokens).logical_not_().unsqueeze(1)
        scores.view(*grouped, view.tokens).masked_fill_(hidden, float("-inf"))
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.matmul(weights, view.v).reshape(batch, q_heads, q_tokens, view.v_dim)


def _one_matrix_a_head(cache: torch.Tensor) -> bool:
    """Whether batch and heads count as one dimension; where not, torch.matmul copies the cache."""
    return cache.shape[0] == 1 or cache.stride(0) == cache.shape[1] * cache.stride(1)
