"""Attention in parts: merging by log-sum-exp, and a prefix that several sequences share.

A part is a backend's `decode_part`: the result over some tokens, and the logarithm of the sum of the
exponentiated scores there. Source of the merge: FlashDecoding (Dao et al., 2023); of the shared prefix:
Hydragen (arXiv 2402.05099).
"""

from __future__ import annotations

from typing import Protocol

import torch

from kvgauge_kernels.view import KVView


class PartBackend(Protocol):
    """A backend that can attend to a part of the tokens."""

    def decode_part(self, q: torch.Tensor, view: KVView) -> tuple[torch.Tensor, torch.Tensor]:
        """fp32 `[batch, q_heads, v_dim]` and log-sum-exp `[batch, q_heads]`, as `CpuBackend` has it."""
        ...


def merged(
    parts: list[tuple[torch.Tensor, torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The part that several parts of the same sequences are together; the tokens must not overlap."""
    results, sums = (torch.stack(x) for x in zip(*parts, strict=True))
    total = torch.logsumexp(sums, dim=0)
    # A part all of whose scores are -inf has no weight, whatever its result is.
    shares = (sums - total).exp().masked_fill(sums == -torch.inf, 0.0).unsqueeze(-1)
    return torch.where(shares == 0, 0.0, shares * results).sum(dim=0), total


def shared_prefix_decode(
    q: torch.Tensor, prefix: KVView, forks: KVView, backend: PartBackend
) -> torch.Tensor:
    """One decode step of sequences that share their first tokens: forks of one trace.

    q: `[forks, q_heads, k_dim]`. prefix: the shared tokens, a cache of one sequence; forks: what each
    sequence has of its own behind it. Returns `[forks, q_heads, v_dim]` in q's dtype. The prefix is
    read with the query heads of all forks in one group, so once for each 16 of them in `cpu`, and not
    once a fork. Raises ValueError where the caches do not fit together, or as the backend.
    """
    if prefix.batch != 1:
        raise ValueError(f"a shared prefix is one sequence, not {prefix.batch}")
    if (prefix.kv_heads, prefix.k_dim, prefix.v_dim) != (forks.kv_heads, forks.k_dim, forks.v_dim):
        raise ValueError("the prefix and the forks differ in heads or head dims")
    if prefix.window is not None or forks.window is not None:
        raise ValueError(
            "a window would end within the shared prefix at another token for each fork"
        )
    group, count = forks.group(q), q.shape[0]
    # [forks, kv_heads, group, k_dim] to all the query heads of one K/V head behind one another
    rows = q.view(count, forks.kv_heads, group, -1).transpose(0, 1).reshape(1, -1, q.shape[2])
    out, lse = backend.decode_part(rows, prefix)

    def by_fork(x: torch.Tensor) -> torch.Tensor:
        own = x.view(forks.kv_heads, count, group, *x.shape[2:])
        return own.transpose(0, 1).reshape(count, -1, *x.shape[2:])

    both = [(by_fork(out), by_fork(lse)), backend.decode_part(q, forks)]
    return merged(both)[0].to(q.dtype)
