"""The torch operators `kvgauge::cpu_decode` and `cpu_decode_part`: the native code as torch sees it.

They check what they are given: a wrong shape here would read memory that is not ours.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

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
        Q_FORMAT[q.dtype],
        int_bits,
        (
            batch,
            kv_heads,
            q_heads // kv_heads,
            k_dim,
            v_dim,
            kind.group or 0,
            kind.k_tokens if kind.k_by_channel else 0,
        ),
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
    if {k.dtype, v.dtype} != {kind.dtype} or q.dtype not in Q_FORMAT:
        raise ValueError(f"no kernel for q {q.dtype}, k {k.dtype}, v {v.dtype} as {kv_format}")
    if any(x.stride(-1) != 1 for x in (q, k, v)):
        raise ValueError("the elements of a row must lie next to each other")
    along_rows = replace(kind, k_by_channel=False)
    for sides, cache, stored in ((of_k, k, kind), (of_v, v, along_rows)):
        _check_sides(sides, stored, cache)
    if block_table is None:
        sequences = k.shape[0]
    elif block_table.dim() != 2 or block_table.dtype != torch.int32:
        raise ValueError("a block table must be int32 [batch, pages]")
    else:
        sequences = block_table.shape[0]
    if q.shape[0] != sequences:
        raise ValueError(f"{q.shape[0]} queries for {sequences} sequences")


def _check_sides(sides: _Sides, kind: Stored, cache: torch.Tensor) -> None:
    tokens, dim = cache.shape[2], cache.shape[3] * kind.per_byte
    wanted = [*cache.shape[:2], *kind.k_sides(tokens, dim)]
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
torch.library.register_fake(OP, _like_query, lib=_library)
torch.library.register_fake("kvgauge::cpu_decode_part", _part_like_query, lib=_library)
