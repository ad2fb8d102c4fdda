"""What `cache_ops` moves by kernels: launches, for caches and positions that it has checked."""

from __future__ import annotations

from typing import Any

import torch

from kvgauge_kernels.stored import FLOAT8_DTYPE, stored_as
from kvgauge_kernels.triton import configs
from kvgauge_kernels.triton.lengths import tokens_or_tensor
from kvgauge_kernels.view import KVView

# The widest words first; a piece of four words of 4 bytes is what one instruction loads.
_WORDS = (torch.int32, torch.int16, torch.uint8)
_LOAD_BYTES = 16


def append_refusal(view: KVView) -> str | None:
    """Why `append_row` cannot write this cache; None if it can."""
    group = stored_as(view.format).group
    if group is not None and (group & (group - 1) or group < stored_as(view.format).per_byte):
        return f"groups of {group}: triton appends to powers of two of whole bytes"
    for scale, zero in ((view.k_scale, view.k_zero), (view.v_scale, view.v_zero)):
        if scale is not None and scale.dtype != torch.float16:
            return f"{view.format} caches need scales and zero points of float16"
        if zero is None or scale is None:
            continue
        if zero.dtype != torch.float16 or zero.stride() != scale.stride():
            return "zero points that lie otherwise than their scales"
        if scale.shape[3] > 1 and scale.stride(3) != 1:
            return "scales of one row that do not touch each other"
    return None


def keep_refusal() -> str | None:
    """Why `keep_tokens` cannot run here; None if it can."""
    if torch.version.hip:
        return (
            "on AMD's GPUs a barrier does not wait for loads, and what is read is written behind it"
        )
    return None


def append_rows(view: KVView, k: torch.Tensor, v: torch.Tensor) -> None:
    """One row more of K and of V behind each sequence's last; of V where it does not lie in K's rows.

    k: `[batch, kv_heads, k_dim]`, v: `[batch, kv_heads, v_dim]`, floats on the view's device.
    """
    _append(view, k, view.k, view.k_scale, view.k_zero, view.k_dim)
    if not view.shares_rows:
        _append(view, v, view.v, view.v_scale, view.v_zero, view.v_dim)


def _append(
    view: KVView,
    new: torch.Tensor,
    rows: torch.Tensor,
    scale: torch.Tensor | None,
    zero: torch.Tensor | None,
    dim: int,
) -> None:
    from kvgauge_kernels.triton.stores import append_row

    stored = stored_as(view.format)
    tokens, lengths = tokens_or_tensor(view.lengths or (view.tokens,), rows.device)
    if new.stride(2) != 1:
        new = new.contiguous()
    side = (0, 0, 0) if scale is None else scale.stride()[:3]
    with torch.cuda.device_of(rows):
        append_row[(view.kv_heads, view.batch)](
            new, rows.view(torch.uint8) if rows.dtype in FLOAT8_DTYPE.values() else rows,
            scale, zero, view.block_table, lengths, tokens,
            *new.stride()[:2], *rows.stride()[:3], *side, _table_stride(view),
            DIM=dim, PADDED=configs.padded(dim), BITS=stored.bits, GROUP=stored.group or 0,
            FP8_MANTISSA=configs.FP8_MANTISSA_BITS.get(view.format, 0), PAGE=view.page_size or 0,
            num_warps=configs.APPEND_WARPS,
        )  # fmt: skip


def keep_tokens(view: KVView, kept: torch.Tensor) -> None:
    """The tokens at `kept`, int64 or int32 `[batch, n]` rising in each row, to the front, in place."""
    from kvgauge_kernels.triton.moves import keep_tokens as kernel

    kept = kept.to(view.k.device, torch.int64).contiguous()
    for tensor in view.stored_tensors().values():
        rows, wide = words_of(tensor)
        columns = min(configs.KEEP_WORDS, configs.power_of_two(rows.shape[3]))
        with torch.cuda.device_of(rows):
            kernel[(-(-rows.shape[3] // columns), view.kv_heads, view.batch)](
                rows, kept, view.block_table, kept.shape[1], kept.stride(0), _table_stride(view),
                *(stride // wide for stride in rows.stride()[:3]),
                WORDS=rows.shape[3], WIDE=wide, COLUMNS=columns, PAGE=view.page_size or 0,
                BLOCK_N=configs.MOVE_WORDS // columns, num_warps=configs.MOVE_WARPS,
            )  # fmt: skip


def copy_pages(view: KVView, source: torch.Tensor, target: torch.Tensor) -> None:
    """Whole pages onto others; raises ValueError where one is copied onto and copied from."""
    from kvgauge_kernels.triton.moves import copy_rows

    both = set(source.tolist()) & set(target.tolist())
    if both:
        raise ValueError(f"triton copies all pages at once: {sorted(both)} are source and target")
    if not source.numel():
        return
    pages = [x.to(view.k.device, torch.int64).contiguous() for x in (source, target)]
    for tensor in view.stored_tensors().values():
        rows, wide = words_of(tensor)
        size, columns = rows.shape[2], configs.power_of_two(rows.shape[3])
        block_n = max(1, configs.MOVE_WORDS // columns)
        with torch.cuda.device_of(rows):
            copy_rows[(-(-size // block_n), view.kv_heads, source.numel())](
                rows, *pages, *(stride // wide for stride in rows.stride()[:3]),
                WORDS=rows.shape[3], WIDE=wide, COLUMNS=columns,
                PAGE=size, BLOCK_N=block_n, num_warps=configs.MOVE_WARPS,
            )  # fmt: skip


def words_of(tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The tensor's rows `[..., n]` as integers, and of how many the rows' distances are multiples.

    Four of 4 bytes where rows and what lies between them fill whole loads, else one of the widest that
    does. A scale a token is a row of one.
    """
    rows = tensor if tensor.dim() == 4 else tensor.unsqueeze(3)
    size = rows.element_size()
    sizes = [rows.data_ptr(), rows.shape[3] * size, *(s * size for s in rows.stride()[:3])]
    if rows.shape[3] > 1 and rows.stride(3) != 1:
        raise ValueError("rows whose elements do not touch each other")
    if not any(n % _LOAD_BYTES for n in sizes):
        return _as(rows, torch.int32), 4
    dtype: Any = next(each for each in _WORDS if not any(n % each.itemsize for n in sizes))
    return _as(rows, dtype), 1


def _as(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The same bytes in words of that dtype; strides of what has one column count for nothing there."""
    if rows.shape[3] == 1:  # torch asks for a last stride of 1
        strides = (*rows.stride()[:3], 1)
        rows = rows.as_strided(rows.shape, strides)
    return rows.view(dtype)


def _table_stride(view: KVView) -> int:
    return 0 if view.block_table is None else view.block_table.stride(0)
