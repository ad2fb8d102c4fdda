"""cpu and cpu-q8: the native kernels as backends, and as the torch operator that proves them."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import torch

from kvgauge_kernels.cpu.native_module import NOT_BUILT, native
from kvgauge_kernels.stored import (
    FLOAT8_DTYPE,
    GROUPED_BITS,
    PLAIN_DTYPE,
    PLAIN_FORMATS,
    Stored,
    stored_as,
)
from kvgauge_kernels.torch_prefill import prefill_by_torch
from kvgauge_kernels.view import SDPA_OPS, KVView

# The native code's own limits (native/view.h).
_DIM_STEP, _MAX_DIM, _MAX_GROUPED_DIM = 16, 576, 256
_AVX2_PIECE_BYTES = 16  # native/packed_avx2.h
# As the native code numbers them (native/view.h).
_FORMAT = {
    "fp32": 0, "fp16": 1, "bf16": 2, "int8": 3, "int4": 4, "int2": 5, "fp8_e4m3": 6, "fp8_e5m2": 7
}  # fmt: skip
_Q_FORMAT = {dtype: _FORMAT[name] for name, dtype in PLAIN_DTYPE.items()}
_INTEGERS = frozenset({"int8", *GROUPED_BITS})
_OP = "kvgauge::cpu_decode"


class CpuBackend:
    """The project's own decode kernels, by the instructions that this CPU has.

    fp32, fp16, bf16 and fp8 caches are computed in fp32. Against int8, int4 and int2 caches the query
    and the attention weights are quantized too: to 16 bits in `cpu` (about 4e-5 of error), to 8 bits in
    `cpu-q8` (about 1e-2), which is faster. Those errors are for queries of like-sized numbers: one
    step serves a whole head, so a number that stands out costs the others their precision. Where
    there are no integer kernels `cpu` computes in fp32: with AVX2 those are for int8, and for int4
    and int2 rows and groups of whole 16 bytes.
    Memory past a sequence's length, and pages that no sequence uses, may hold anything.

    Prefill is torch's: it runs through sdpa-flash, or sdpa-math where the K and V dims differ, over a copy
    where the cache is paged or quantized.
    """

    kernel_ops = (_OP,)
    forbidden_ops = SDPA_OPS
    layouts = frozenset({"contiguous", "paged"})

    def __init__(self, int_bits: int = 16) -> None:
        self.name = "cpu" if int_bits == 16 else "cpu-q8"
        accurate = int_bits == 16
        self.formats = PLAIN_FORMATS | _INTEGERS | {*FLOAT8_DTYPE} if accurate else _INTEGERS
        self._int_bits = int_bits

    def version(self) -> str:
        """This package's, and the instructions in use; raises ImportError where it is not built."""
        module = native()
        if module is None:
            raise ImportError(NOT_BUILT)
        try:
            package = metadata.version("kvgauge")
        except metadata.PackageNotFoundError:
            package = "(a checkout)"
        return f"kvgauge {package}, {module.level()}"

    def available(self, device: torch.device) -> str | None:
        """The CPU, where the kernels are built."""
        if device.type != "cpu":
            return f"these kernels run on the CPU, not on {device.type}"
        return NOT_BUILT if native() is None else None

    def supports(self, view: KVView, q_dtype: torch.dtype) -> str | None:
        """Head dims of whole vectors, of both layouts; in 8 bits what the instructions allow."""
        refusal = view.refusal(q_dtype, self.formats, ("contiguous", "paged"), windows=True)
        if refusal is not None:
            return refusal
        group = stored_as(view.format).group
        most = _MAX_DIM if group is None else _MAX_GROUPED_DIM
        for dim in (view.k_dim, view.v_dim):
            if dim % _DIM_STEP or not 0 < dim <= most:
                return f"head_dim {dim}: {self.name} takes multiples of {_DIM_STEP} up to {most}"
        module = native()
        level = "avx512" if module is None else module.level()
        eight_bits = level == "avx512" or (level == "avx2" and _whole_pieces(view))
        if self._int_bits == 8 and not eight_bits:
            return f"{self.name} of this cache needs AVX-512 with VNNI, not {level}"
        if q_dtype not in _Q_FORMAT:
            return f"queries of {q_dtype}: {self.name} takes fp32, fp16 and bf16"
        if group is not None and group % _DIM_STEP:
            return f"groups of {group}: {self.name} takes multiples of {_DIM_STEP} elements"
        if any(x.dtype != torch.float16 for n, x in view.tensors().items() if n not in ("k", "v")):
            return f"{view.format} caches need scales and zero points of float16"
        return None

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


def _whole_pieces(view: KVView) -> bool:
    """Whether AVX2's integer kernels take the rows and groups: of int4 and int2, in whole pieces."""
    kind, dims = stored_as(view.format), (view.k_dim, view.v_dim)
    if kind.group is None:
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


def _cpu_decode(*arguments: Any) -> torch.Tensor:
    return _run(*arguments, with_lse=False)[0]


def _cpu_decode_part(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return _run(*arguments, with_lse=True)


def _run(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    k_zero: torch.Tensor | None,
    v_zero: torch.Tensor | None,
    block_table: torch.Tensor | None,
    lengths: list[int] | None,
    kv_format: str,
    int_bits: int,
    window: int,
    sink_tokens: int,
    *,
    with_lse: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    module = native()
    if module is None:
        raise ImportError(NOT_BUILT)
    kind = stored_as(kv_format)
    _check(q, k, v, kv_format, (k_scale, k_zero), (v_scale, v_zero), block_table)
    torch.get_num_threads()  # gives OpenMP torch's count on this Python thread
    batch, q_heads, k_dim = q.shape
    kv_heads, v_dim = k.shape[1], v.shape[3] * kind.per_byte
    pages = (0, 0, 0, 0, 0)
    room = k.shape[2]
    if block_table is not None:
        if block_table.stride(1) != 1:
            block_table = block_table.contiguous()
        pages = (
            block_table.data_ptr(), block_table.shape[1], block_table.stride(0), k.shape[0], room
        )  # fmt: skip
        room *= block_table.shape[1]
    if lengths is None:
        lengths = [room] * batch
    elif max(lengths, default=0) > room:
        raise ValueError(f"lengths must be at most {room}: {lengths}")
    out = torch.empty(batch, q_heads, v_dim, dtype=q.dtype)
    lse = torch.empty((batch, q_heads) if with_lse else 0, dtype=torch.float32)
    module.decode(
        _FORMAT[kind.base],
        _Q_FORMAT[q.dtype],
        int_bits,
        (batch, kv_heads, q_heads // kv_heads, k_dim, v_dim, kind.group or 0),
        (q.data_ptr(), q.stride(0), q.stride(1), out.data_ptr(), lse.data_ptr() if with_lse else 0),
        (_address(k), _address(k_scale), _address(k_zero)),
        (_address(v), _address(v_scale), _address(v_zero)),
        pages,
        lengths,
        (window, sink_tokens),
    )
    return out, lse


# The scales and the zero points of K or of V.
_Sides = tuple[torch.Tensor | None, torch.Tensor | None]


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kv_format: str,
    of_k: _Sides,
    of_v: _Sides,
    block_table: torch.Tensor | None,
) -> None:
    """What KVView and the backend have checked, for those who call the operator itself."""
    kind = stored_as(kv_format)
    if q.dim() != 3 or k.dim() != 4 or v.dim() != 4 or k.shape[:3] != v.shape[:3]:
        raise ValueError(f"q {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)} do not fit")
    if q.shape[2] != k.shape[3] * kind.per_byte or not k.shape[1] or q.shape[1] % k.shape[1]:
        raise ValueError(f"q {list(q.shape)} is not of a cache with k {list(k.shape)}")
    if {k.dtype, v.dtype} != {kind.dtype} or q.dtype not in _Q_FORMAT:
        raise ValueError(f"no kernel for q {q.dtype}, k {k.dtype}, v {v.dtype} as {kv_format}")
    if any(x.stride(-1) != 1 for x in (q, k, v)):
        raise ValueError("the elements of a row must lie next to each other")
    for sides, cache in ((of_k, k), (of_v, v)):
        _check_sides(sides, kind, cache)
    if block_table is None:
        sequences = k.shape[0]
    elif block_table.dim() != 2 or block_table.dtype != torch.int32:
        raise ValueError("a block table must be int32 [batch, pages]")
    else:
        sequences = block_table.shape[0]
    if q.shape[0] != sequences:
        raise ValueError(f"{q.shape[0]} queries for {sequences} sequences")


def _check_sides(sides: _Sides, kind: Stored, cache: torch.Tensor) -> None:
    wanted = list(cache.shape[:3])
    if kind.group is not None:
        wanted.append(kind.groups(cache.shape[3] * kind.per_byte))
    needed = (kind.scaled, kind.group is not None)
    for name, side, must in zip(("scales", "zero points"), sides, needed, strict=True):
        if (side is not None) != must:
            raise ValueError(f"{kind.base} has {'' if must else 'no '}{name}")
        if side is None:
            continue
        if list(side.shape) != wanted or side.dtype != torch.float16:
            raise ValueError(f"{name} must be float16 {wanted}")
        if side.dim() == 4 and side.shape[3] > 1 and side.stride(3) != 1:
            raise ValueError(f"the {name} of a token must lie next to each other")


def _address(tensor: torch.Tensor | None) -> tuple[int, int, int, int]:
    if tensor is None:
        return (0, 0, 0, 0)
    outer, head, token = tensor.stride()[:3]
    return (tensor.data_ptr(), outer, head, token)


def _like_query(
    q: torch.Tensor, _k: torch.Tensor, v: torch.Tensor, *others: object
) -> torch.Tensor:
    per_byte = stored_as(str(others[6])).per_byte  # kv_format
    return torch.empty((*q.shape[:2], v.shape[3] * per_byte), dtype=q.dtype, device=q.device)


def _part_like_query(q: torch.Tensor, *others: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return _like_query(q, *others), torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)


# torch.library.custom_op would do this in one decorator and add tens of microseconds to a call.
_library = torch.library.Library("kvgauge", "FRAGMENT")
_ARGUMENTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? k_scale, Tensor? v_scale, Tensor? k_zero, "
    "Tensor? v_zero, Tensor? block_table, int[]? lengths, str kv_format, int int_bits, "
    "int window, int sink_tokens"
)
_library.define(f"cpu_decode({_ARGUMENTS}) -> Tensor")
_library.define(f"cpu_decode_part({_ARGUMENTS}) -> (Tensor, Tensor)")
_library.impl("cpu_decode", _cpu_decode, "CPU")
_library.impl("cpu_decode_part", _cpu_decode_part, "CPU")
torch.library.register_fake(_OP, _like_query, lib=_library)
torch.library.register_fake("kvgauge::cpu_decode_part", _part_like_query, lib=_library)
