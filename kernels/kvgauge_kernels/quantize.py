"""Quantizing K and V as they are stored (`kvgauge_kernels.stored`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from kvgauge_kernels.stored import packed, stored_as
from kvgauge_kernels.view import KVView

INT8_MAX = 127


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of K or V as a cache of some format holds them; what the format has not is None.

    codes: `[..., head_dim]`, or packed in bytes; scale and zero: fp16 `[...]` or `[..., groups]`, and
    of K per channel `[..., token groups, head_dim]` for codes `[..., tokens, head_dim]`.
    """

    codes: torch.Tensor
    scale: torch.Tensor | None = None
    zero: torch.Tensor | None = None

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Those that there are."""
        return tuple(x for x in (self.codes, self.scale, self.zero) if x is not None)


def view_of(k: Rows, v: Rows, kv_format: str, **where: Any) -> KVView:
    """A layer's cache of rows `[batch, kv_heads, tokens, ...]`; `where`: lengths, layout, ... of KVView.

    Raises ValueError as KVView.
    """
    sides = {"k_scale": k.scale, "v_scale": v.scale, "k_zero": k.zero, "v_zero": v.zero}
    return KVView(k.codes, v.codes, kv_format, **sides, **where)  # type: ignore[arg-type]


def quantize(rows: torch.Tensor, kv_format: str) -> Rows:
    """`[..., head_dim]` floats in that format; of K's, see also `quantize_k`.

    Raises ValueError for a format that no cache here has, and for rows that do not fill bytes.
    """
    kind = stored_as(kv_format)
    if kind.group is not None:
        if not rows.shape[-1] or rows.shape[-1] * kind.bits % 8:
            raise ValueError(
                f"rows of {rows.shape[-1]} elements do not fill whole bytes of {kv_format}"
            )
        return quantize_groups(rows, kind.bits, kind.group)
    return quantize_int8(rows) if kind.scaled else Rows(rows.to(kind.dtype))


def quantize_k(rows: torch.Tensor, kv_format: str) -> Rows:
    """As `quantize`, of K's rows `[..., tokens, head_dim]`: per channel where the format says so.

    The last group of tokens may not be full; its scales are those of the tokens that there are.
    Raises ValueError for no tokens, and as `quantize`.
    """
    kind = stored_as(kv_format)
    if not kind.k_by_channel:
        return quantize(rows, kv_format)
    if not rows.shape[-2]:
        raise ValueError(f"no tokens to quantize: {list(rows.shape)}")
    codes, scale, zero = _grouped(rows.mT, kind.bits, kind.k_tokens)
    return Rows(
        packed(codes.mT.contiguous(), kind.bits), scale.mT.contiguous(), zero.mT.contiguous()
    )


def quantize_int8(rows: torch.Tensor) -> Rows:
    """Symmetric int8: `[..., head_dim]` floats to int8 of that shape and fp16 scales `[...]`.

    The scale is rounded to fp16 first and the elements divided by the rounded one, so that
    `stored * scale` is off by at most half a step. In rows whose largest element is below 0.0078 the
    scale is a denormal of fp16 with fewer bits, and the largest elements may be off by more: by two
    steps at 1e-4.
    """
    values = rows.float()
    scale = _usable((values.abs().amax(dim=-1) / INT8_MAX).to(torch.float16))
    stored = (values / scale.float().unsqueeze(-1)).round_().clamp_(-INT8_MAX, INT8_MAX)
    return Rows(stored.to(torch.int8), scale)


def quantize_groups(rows: torch.Tensor, bits: int, group: int) -> Rows:
    """Asymmetric codes of `bits` bits: from each group's least number (zero) in equal steps (scale).

    Both are rounded to fp16 first. The step is so long that the group's greatest number is within half
    a step of the last code. Source: KIVI (arXiv 2402.02750), eq. 1.
    """
    codes, scale, zero = _grouped(rows, bits, group)
    return Rows(packed(codes, bits), scale, zero)


def _grouped(
    rows: torch.Tensor, bits: int, group: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, uint8 of the shape of `rows`, and scales and zeros of the groups along the last dimension."""
    values, levels = rows.float(), 2**bits - 1
    parts = torch.split(values, group, dim=-1)
    zero = torch.stack([part.amin(dim=-1) for part in parts], dim=-1).to(torch.float16)
    top = torch.stack([part.amax(dim=-1) for part in parts], dim=-1)
    scale = _usable(((top - zero.float()) / levels).to(torch.float16))
    codes = [
        ((part - zero[..., i, None].float()) / scale[..., i, None].float()).round_()
        for i, part in enumerate(parts)
    ]
    return torch.cat(codes, dim=-1).clamp_(0, levels).to(torch.uint8), scale, zero


def _usable(scale: torch.Tensor) -> torch.Tensor:
    """A row that is all alike, or steps below fp16's smallest one: scale 1 instead of 0."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)
