"""Quantizing K and V as they are stored: int8 with one fp16 scale a row (one token, one head)."""

from __future__ import annotations

from collections.abc import Callable

import torch

INT8_MAX = 127


def quantize_int8(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric int8: `[..., head_dim]` floats to int8 of that shape and fp16 scales `[...]`.

    The scale is rounded to fp16 first and the elements divided by the rounded one, so that
    `stored * scale` is off by at most half a step.
    """
    values = rows.float()
    scale = (values.abs().amax(dim=-1) / INT8_MAX).to(torch.float16)
    # An all-zero row, or one below fp16's smallest step, is stored as zeros with scale 1.
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    stored = (values / scale.float().unsqueeze(-1)).round_().clamp_(-INT8_MAX, INT8_MAX)
    return stored.to(torch.int8), scale


# By KV format; a format that is not here stores elements as they are.
QUANTIZERS: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]] = {
    "int8": quantize_int8,
}
