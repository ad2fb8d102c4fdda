"""Multi-head latent attention as decode sees it: one latent a token, which is K and, its rope part aside, V.

DeepSeek-V2 (arXiv 2405.04434), with the up-projections absorbed into the query and the output.
"""

from __future__ import annotations

import torch

from kvgauge_kernels.stored import stored_as
from kvgauge_kernels.view import KVView


def latent_view(
    latent: torch.Tensor,
    latent_dim: int,
    kv_format: str,
    scale: torch.Tensor | None = None,
    lengths: tuple[int, ...] | None = None,
) -> KVView:
    """A cache of latents as one K/V head: V is the first `latent_dim` elements of K, not a copy.

    latent: `[batch, tokens, latent_dim + rope_dim]` in the storage dtype of the format; scale: fp16
    `[batch, tokens]` where it is int8. Raises ValueError as KVView, and for formats that are packed.
    """
    if stored_as(kv_format).per_byte > 1:
        raise ValueError(
            f"latents of {kv_format}: V's part of a row would not have groups of its own"
        )
    if latent.dim() != 3 or not 0 < latent_dim <= latent.shape[2]:
        raise ValueError(f"{list(latent.shape)} holds no latents of {latent_dim}")
    k = latent.unsqueeze(1)
    side = None if scale is None else scale.unsqueeze(1)
    return KVView(k, k[..., :latent_dim], kv_format, side, side, lengths)


def latent_query(q_latent: torch.Tensor, q_rope: torch.Tensor, head_dim: int) -> torch.Tensor:
    """The query that a backend's `decode` scores by `head_dim ** -0.5`, as the model means it.

    q_latent: `[batch, q_heads, latent_dim]`, the query through K's up-projection; q_rope:
    `[batch, q_heads, rope_dim]`. head_dim: that of the model's own queries, rope part included (192 in
    DeepSeek-V3); decode itself scales by that of the latents.
    """
    q = torch.cat([q_latent, q_rope], dim=-1)
    return q * float((q.shape[-1] / head_dim) ** 0.5)
