"""cpu and cpu-q8: the native kernels as backends."""

from __future__ import annotations

from functools import lru_cache
from importlib import metadata
from typing import Any

import torch

from kvgauge_kernels.cpu.native_module import NOT_BUILT, instructions
from kvgauge_kernels.cpu.operators import OP, Q_FORMAT
from kvgauge_kernels.stored import (
    CHANNEL_BITS,
    FLOAT8_DTYPE,
    GROUPED_BITS,
    PLAIN_DTYPE,
    PLAIN_FORMATS,
    Stored,
    stored_as,
)
from kvgauge_kernels.torch_ops import SDPA_OPS
from kvgauge_kernels.torch_prefill import prefill_by_torch
from kvgauge_kernels.view import KVView

# The native code's own limits (native/view.h).
_DIM_STEP, _MAX_DIM, _MAX_GROUPED_DIM = 16, 576, 256
_AVX2_PIECE_BYTES = 16  # native/attend_avx2.cpp
_NAME = {16: "cpu", 8: "cpu-q8"}
_INTEGERS = frozenset({"int8", *GROUPED_BITS, *CHANNEL_BITS})


class CpuBackend:
    """The project's own decode kernels, by the instructions that this CPU has.

    fp32, fp16, bf16 and fp8 caches are computed in fp32. Against caches of integers the query
    and the attention weights are quantized too: to 16 bits in `cpu` (an error of about 5e-5, with AVX2
    1e-4), in `cpu-q8` to 8 bits (about 1e-2), which is faster; with AVX2 `cpu` gives weights 15 bits.
    Those errors are for like-sized numbers: one step serves a whole head, so a number that stands out, in
    the query or in a channel of K, costs the others their precision (up to 1e-3 and 2e-1:
    results/cpu_error.md); and for queries of about that size, as an error of a score grows with the score.
    Where there are no integer kernels `cpu` computes in fp32: with AVX2 those are
    for int8, and for int4 and int2 rows and groups of whole 16 bytes, but not for K per channel.
    Memory past a sequence's length, and pages that no sequence uses, may hold anything.

    Prefill is torch's: it runs through sdpa-flash, or sdpa-math where the K and V dims differ, over a copy
    where the cache is paged or quantized.
    """

    kernel_ops = (OP,)
    forbidden_ops = SDPA_OPS
    layouts = frozenset({"contiguous", "paged"})

    def __init__(self, int_bits: int = 16) -> None:
        self.name = _NAME[int_bits]
        accurate = int_bits == 16
        self.formats = PLAIN_FORMATS | _INTEGERS | {*FLOAT8_DTYPE} if accurate else _INTEGERS
        self._int_bits = int_bits

    def version(self) -> str:
        """This package's, and the instructions in use; raises ImportError where it is not built."""
        level = instructions()
        if level is None:
            raise ImportError(NOT_BUILT)
        try:
            package = metadata.version("kvgauge")
        except metadata.PackageNotFoundError:
            package = "(a checkout)"
        return f"kvgauge {package}, {level}"

    def available(self, device: torch.device) -> str | None:
        """The CPU, where the kernels are built."""
        if device.type != "cpu":
            return f"these kernels run on the CPU, not on {device.type}"
        return NOT_BUILT if instructions() is None else None

    def supports(self, view: KVView, q_dtype: torch.dtype) -> str | None:
        """Head dims of whole vectors, of both layouts; in 8 bits what the instructions allow."""
        refusal = view.refusal(q_dtype, self.formats, ("contiguous", "paged"), windows=True)
        if refusal is not None:
            return refusal
        for side in (view.k_scale, view.v_scale, view.k_zero, view.v_zero):
            if side is not None and side.dtype != torch.float16:
                return f"{view.format} caches need scales and zero points of float16"
        return _refusal(
            self._int_bits, view.format, view.k_dim, view.v_dim, q_dtype, instructions()
        )

    def decode(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """See AttentionBackend. Above 16 query heads to one K/V head the cache is read again for each 16."""
        out: torch.Tensor = torch.ops.kvgauge.cpu_decode(*self._arguments(q, view, q.dtype))
        return out

    def decode_part(self, q: torch.Tensor, view: KVView) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention over a part of each sequence, to be merged with that over the rest.

        The result in fp32 `[batch, q_heads, v_dim]`, and of each query head the logarithm of the sum of
        its exponentiated scores, fp32 `[batch, q_heads]`. q as in `decode`, or fp32. Raises as `decode`.
        """
        stored = PLAIN_DTYPE.get(view.format, q.dtype) if q.dtype == torch.float32 else q.dtype
        arguments = self._arguments(q.float(), view, stored)
        out: tuple[torch.Tensor, torch.Tensor] = torch.ops.kvgauge.cpu_decode_part(*arguments)
        return out

    def _arguments(self, q: torch.Tensor, view: KVView, q_dtype: torch.dtype) -> tuple[Any, ...]:
        view.group(q)
        reason = self.available(q.device) or self.supports(view, q_dtype)
        if reason is not None:
            raise ValueError(f"backend {self.name}: {reason}")
        return (
            q if q.stride(2) == 1 else q.contiguous(),
            view.k,
            view.v,
            _whole_rows(view.k_scale),
            _whole_rows(view.v_scale),
            _whole_rows(view.k_zero),
            _whole_rows(view.v_zero),
            view.block_table,
            view.lengths,
            view.format,
            self._int_bits,
            view.window or 0,
            view.sink_tokens,
        )

    def prefill(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """See AttentionBackend; torch's sdpa-flash or sdpa-math. Raises ValueError for a window."""
        return prefill_by_torch(q, view)


@lru_cache(maxsize=256)
def _refusal(
    int_bits: int, kv_format: str, k_dim: int, v_dim: int, q_dtype: torch.dtype, level: str | None
) -> str | None:
    """What the native code cannot compute of a sound cache; where it is not built, with AVX-512."""
    name, kind = _NAME[int_bits], stored_as(kv_format)
    most = _MAX_DIM if kind.group is None else _MAX_GROUPED_DIM
    for dim in (k_dim, v_dim):
        if dim % _DIM_STEP or not 0 < dim <= most:
            return f"head_dim {dim}: {name} takes multiples of {_DIM_STEP} up to {most}"
    wide = level in (None, "avx512")
    if int_bits == 8 and not wide and not (level == "avx2" and _whole_pieces(kind, k_dim, v_dim)):
        return f"{name} of this cache needs AVX-512 with VNNI, not {level}"
    if q_dtype not in Q_FORMAT:
        return f"queries of {q_dtype}: {name} takes fp32, fp16 and bf16"
    if kind.group is not None and kind.group % _DIM_STEP:
        return f"groups of {kind.group}: {name} takes multiples of {_DIM_STEP} elements"
    return None


def _whole_pieces(kind: Stored, *dims: int) -> bool:
    """Whether AVX2's integer kernels take the rows and groups: of int4 and int2, in whole pieces."""
    if kind.group is None or kind.k_by_channel:
        return False
    sizes = [dim * kind.bits // 8 for dim in dims]
    if any(kind.groups(dim) > 1 for dim in dims):
        sizes.append(kind.group * kind.bits // 8)
    return all(size % _AVX2_PIECE_BYTES == 0 for size in sizes)


def _whole_rows(side: torch.Tensor | None) -> torch.Tensor | None:
    """Scales or zeros of which those of one token lie next to each other."""
    if side is None or side.dim() == 3 or side.shape[3] == 1 or side.stride(3) == 1:
        return side
    return side.contiguous()
