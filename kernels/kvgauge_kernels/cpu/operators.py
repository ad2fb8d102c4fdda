"""The torch operators `kvgauge::cpu_decode` and `cpu_decode_part`: the native code as torch sees it.

They check what they are given: a wrong shape here would read memory that is not ours.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple, overload

import torch

from kvgauge_kernels.cpu.native_module import NOT_BUILT, native
from kvgauge_kernels.stored import PLAIN_DTYPE, Stored, stored_as

OP = "kvgauge::cpu_decode"
# As the native code numbers them (native/view.h).
_FORMAT = {
    "fp32": 0, "fp16": 1, "bf16": 2, "int8": 3, "int4": 4, "int2": 5, "fp8_e4m3": 6, "fp8_e5m2": 7,
    "kivi4": 4, "kivi2": 5,
}  # fmt: skip
Q_FORMAT = {dtype: _FORMAT[name] for name, dtype in PLAIN_DTYPE.items()}


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
    if block_table is not None and block_table.dim() == 2 and block_table.stride(1) != 1:
        block_table = block_table.contiguous()
    of_q, of_k, of_v, of_table = _form(q), _form(k), _form(v), _form(block_table)
    of_ks, of_vs, of_kz, of_vz = _form(k_scale), _form(v_scale), _form(k_zero), _form(v_zero)
    plan = _plan(kv_format, of_q, of_k, of_v, (of_ks, of_kz), (of_vs, of_vz), of_table)
    torch.get_num_threads()  # gives OpenMP torch's count on this Python thread
    if lengths is None:
        lengths = [plan.room] * of_q.shape[0]
    elif max(lengths, default=0) > plan.room:
        raise ValueError(f"lengths must be at most {plan.room}: {lengths}")
    out = torch.empty(plan.out_shape, dtype=of_q.dtype)
    lse = torch.empty(plan.out_shape[:2] if with_lse else 0, dtype=torch.float32)
    module.decode(
        plan.kv_format,
        Q_FORMAT[of_q.dtype],
        int_bits,
        plan.sizes,
        (q.data_ptr(), *of_q.stride[:2], out.data_ptr(), lse.data_ptr() if with_lse else 0),
        (_address(k, of_k), _address(k_scale, of_ks), _address(k_zero, of_kz)),
        (_address(v, of_v), _address(v_scale, of_vs), _address(v_zero, of_vz)),
        (0 if block_table is None else block_table.data_ptr(), *plan.pages),
        lengths,
        (window, sink_tokens),
    )
    return out, lse


class _Form(NamedTuple):
    """What a tensor is, but for where it lies."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


@overload
def _form(tensor: torch.Tensor) -> _Form: ...
@overload
def _form(tensor: torch.Tensor | None) -> _Form | None: ...
def _form(tensor: torch.Tensor | None) -> _Form | None:
    return None if tensor is None else _Form(tensor.shape, tensor.stride(), tensor.dtype)


def _address(tensor: torch.Tensor | None, form: _Form | None) -> tuple[int, ...]:
    if tensor is None or form is None:
        return (0, 0, 0, 0)
    return (tensor.data_ptr(), *form.stride[:3])


# The scales and the zero points of K or of V.
_Sides = tuple[_Form | None, _Form | None]


class _Plan(NamedTuple):
    """What the native code is told of tensors of such forms, and `room`: tokens that a sequence can have."""

    kv_format: int
    sizes: tuple[int, ...]
    pages: tuple[int, int, int, int]
    out_shape: tuple[int, int, int]
    room: int


# One step is like the last: what a kernel has just pushed out of the caches need not all be fetched again.
@lru_cache(maxsize=256)
def _plan(
    kv_format: str, q: _Form, k: _Form, v: _Form, of_k: _Sides, of_v: _Sides, table: _Form | None
) -> _Plan:
    """Raises ValueError where they do not fit together: also for those who call the operator itself."""
    kind = stored_as(kv_format)
    _check(q, k, v, kv_format, of_k, of_v, table)
    batch, q_heads, k_dim = q.shape
    kv_heads, v_dim = k.shape[1], v.shape[3] * kind.per_byte
    group = (kind.group or 0, kind.k_tokens if kind.k_by_channel else 0)
    of_table = (0, 0) if table is None else (table.shape[1], table.stride[0])
    return _Plan(
        kv_format=_FORMAT[kind.base],
        sizes=(batch, kv_heads, q_heads // kv_heads, k_dim, v_dim, *group),
        pages=(*of_table, *((0, 0) if table is None else (k.shape[0], k.shape[2]))),
        out_shape=(batch, q_heads, v_dim),
        room=k.shape[2] if table is None else k.shape[2] * table.shape[1],
    )


def _check(
    q: _Form, k: _Form, v: _Form, kv_format: str, of_k: _Sides, of_v: _Sides, table: _Form | None
) -> None:
    kind = stored_as(kv_format)
    shapes = f"q {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)}"
    if len(q.shape) != 3 or len(k.shape) != 4 or len(v.shape) != 4 or k.shape[:3] != v.shape[:3]:
        raise ValueError(f"{shapes} do not fit")
    if q.shape[2] != k.shape[3] * kind.per_byte or not k.shape[1] or q.shape[1] % k.shape[1]:
        raise ValueError(f"q {list(q.shape)} is not of a cache with k {list(k.shape)}")
    if {k.dtype, v.dtype} != {kind.dtype} or q.dtype not in Q_FORMAT:
        raise ValueError(f"no kernel for q {q.dtype}, k {k.dtype}, v {v.dtype} as {kv_format}")
    if any(x.stride[-1] != 1 for x in (q, k, v)):
        raise ValueError("the elements of a row must lie next to each other")
    along_rows = replace(kind, k_by_channel=False)
    for sides, cache, stored in ((of_k, k, kind), (of_v, v, along_rows)):
        _check_sides(sides, stored, cache)
    if table is not None and (len(table.shape) != 2 or table.dtype != torch.int32):
        raise ValueError("a block table must be int32 [batch, pages]")
    sequences = (k if table is None else table).shape[0]
    if q.shape[0] != sequences:
        raise ValueError(f"{q.shape[0]} queries for {sequences} sequences")


def _check_sides(sides: _Sides, kind: Stored, cache: _Form) -> None:
    tokens, dim = cache.shape[2], cache.shape[3] * kind.per_byte
    wanted = (*cache.shape[:2], *kind.k_sides(tokens, dim))
    needed = (kind.scaled, kind.group is not None)
    for name, side, must in zip(("scales", "zero points"), sides, needed, strict=True):
        if (side is not None) != must:
            raise ValueError(f"{kind.base} has {'' if must else 'no '}{name}")
        if side is None:
            continue
        if side.shape != wanted or side.dtype != torch.float16:
            raise ValueError(f"{name} must be float16 {list(wanted)}")
        if len(wanted) == 4 and wanted[3] > 1 and side.stride[3] != 1:
            raise ValueError(f"the {name} of a token must lie next to each other")


def _like_query(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *others: object) -> torch.Tensor:
    devices = {x.device for x in (q, k, v, *others) if isinstance(x, torch.Tensor)}
    if len(devices) > 1:
        raise ValueError(f"tensors of several devices: {', '.join(sorted(map(str, devices)))}")
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
torch.library.register_fake(OP, _like_query, lib=_library)
torch.library.register_fake("kvgauge::cpu_decode_part", _part_like_query, lib=_library)
