"""What of a cache keeps these kernels from reading it, each in words; None where nothing does."""

from __future__ import annotations

import torch

from kvgauge_kernels.stored import PLAIN_DTYPE, stored_as
from kvgauge_kernels.triton.configs import LATENT_DIMS, PACKED_DIMS, PACKED_GROUPS
from kvgauge_kernels.view import KVView

_DIM_STEP, _MAX_DIM = 16, 256
# Rows of V of one byte an element are read as words, packed ones by loads as wide as there are.
_WORD_BYTES, _LOAD_BYTES = 4, 16


def dims_refusal(view: KVView) -> str | None:
    """Head dims of whole steps, or MLA's latents."""
    for dim in (view.k_dim, view.v_dim):
        if dim % _DIM_STEP:
            return f"head_dim {dim}: triton takes multiples of {_DIM_STEP}"
    if max(view.k_dim, view.v_dim) <= _MAX_DIM:
        return None
    return latents_refusal(view)


def latents_refusal(view: KVView) -> str | None:
    """What of a cache with rows above the other kernels' keeps the one for latents from reading it."""
    dims = (view.k_dim, view.v_dim)
    if not view.shares_rows:
        return f"head_dim {max(dims)}: triton takes up to {_MAX_DIM} where V is no part of K"
    if not _among(*dims, LATENT_DIMS):
        taken = " or ".join(f"{k} of which {v} are V" for k, v in LATENT_DIMS)
        return f"latents of {dims[0]} of which {dims[1]} are V: triton takes {taken}, or up to {_MAX_DIM}"
    if view.format not in PLAIN_DTYPE:
        return f"latents of {view.format}: numbers made of bytes would spill registers beside 512 columns"
    if view.window is not None:
        return "a sliding window over latents: its places would spill registers beside 512 columns"
    return None


def quantized_refusal(view: KVView) -> str | None:
    """What of rows of one byte an element or less, or of what belongs to them, is not as the kernels read."""
    stored = stored_as(view.format)
    sides = [x for name, x in view.tensors().items() if name not in ("k", "v")]
    if any(x.dtype != torch.float16 for x in sides):
        return f"{view.format} caches need scales and zero points of float16"
    if stored.group is None:
        return _apart(view.v, _WORD_BYTES, f"{view.format} rows of V")
    dims = PACKED_DIMS[stored.base]
    if not _among(view.k_dim, view.v_dim, dims):
        taken = ", ".join(f"{k}/{v}" for k, v in dims)
        return f"{stored.base} of head dims {view.k_dim}/{view.v_dim} (K/V): triton takes {taken}"
    if stored.group not in PACKED_GROUPS:
        return f"groups of {stored.group}: triton takes {', '.join(map(str, PACKED_GROUPS))}"
    for rows in (view.k, view.v):
        if (apart := _apart(rows, _LOAD_BYTES, f"{view.format} rows")) is not None:
            return apart
    for scale, zero in ((view.k_scale, view.k_zero), (view.v_scale, view.v_zero)):
        if scale is None or zero is None or scale.stride() != zero.stride():
            return "zero points that lie otherwise than their scales"
        if scale.shape[3] > 1 and scale.stride(3) != 1:
            return "scales of one row that do not touch each other"
    return None


def _apart(rows: torch.Tensor, step: int, named: str) -> str | None:
    """Of rows of bytes: whether each starts at a multiple of `step`."""
    # torch.compile traces no addresses; a GPU faults on words that start elsewhere.
    start = 0 if torch.compiler.is_compiling() else rows.data_ptr()
    if start % step or any(s % step for s in rows.stride()[:3]):
        return f"{named} that start at no multiple of {step} bytes"
    return None


def _among(k_dim: int, v_dim: int, table: tuple[tuple[int, int], ...]) -> bool:
    """`(k_dim, v_dim) in table`, one by one: of that torch.compile makes a single condition.

    Where it takes the dims for symbols it brings the condition into a normal form, which takes forever.
    """
    for k, v in table:  # noqa: SIM110
        if k_dim == k and v_dim == v:
            return True
    return False
