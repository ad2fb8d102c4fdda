"""The operators `kvgauge::triton_decode` and `triton_decode_part`: two kernels started, no waiting."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from kvgauge_kernels.audit.elf import SHORT_HASH, code_hash
from kvgauge_kernels.stored import FLOAT8_DTYPE, stored_as
from kvgauge_kernels.triton import configs, tuned
from kvgauge_kernels.triton.lengths import tokens_or_tensor
from kvgauge_kernels.triton.refusals import latents_refusal
from kvgauge_kernels.triton.splits import chunk_tokens, split_count
from kvgauge_kernels.view import KVView

OP = "kvgauge::triton_decode"
PART_OP = "kvgauge::triton_decode_part"
_FORMAT_AT = 6  # of the operators' arguments behind q, k and v


@dataclass(frozen=True, slots=True)
class Processor:
    """What of a device the launch depends on."""

    multiprocessors: int
    room: configs.Room


@lru_cache
def processor(device: torch.device) -> Processor:
    """Of a GPU its own facts; of the CPU, where the interpreter runs, a small H100."""
    if device.type != "cuda":
        return Processor(4, configs.Room(configs.SHARED_BYTES[90]))
    facts = torch.cuda.get_device_properties(device)
    backend = "hip" if torch.version.hip else "cuda"
    room = configs.Room(int(facts.shared_memory_per_multiprocessor), backend)
    return Processor(int(facts.multi_processor_count), room)


# What Triton compiled for the launch before, and which kernel: hashed only when someone asks.
_last: Any = None
_last_kernel = "split_decode"
_last_config: str | None = None


@dataclass(frozen=True, slots=True)
class _Split:
    """The kernel that reads a cache, and what it takes beside what all of them take."""

    kernel: Any
    name: str
    rows: tuple[torch.Tensor | None, ...]
    window: tuple[int | None, ...]
    strides: tuple[int, ...]
    constants: dict[str, int]


def last_code_hash() -> str | None:
    """The hash of the machine code of the last decode kernel, as the audit has it; None before one."""
    binaries = getattr(_last, "asm", {})
    binary = binaries.get("cubin") or binaries.get("hsaco")
    return None if binary is None else code_hash(binary, _last_kernel)[:SHORT_HASH]


def last_config() -> str | None:
    """The configuration of the last launch, and whence it came (`tuned.py`); None before one."""
    return _last_config


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for its compiler (TRITON_INTERPRET=1)."""
    from triton.runtime.interpreter import InterpretedFunction

    from kvgauge_kernels.triton.kernels import split_decode

    return isinstance(split_decode, InterpretedFunction)


def triton_decode(q: torch.Tensor, *cache: Any) -> torch.Tensor:
    """As `AttentionBackend.decode`, of what `_view` takes; raises ValueError where tensors do not fit."""
    view = _view(*cache)
    out = torch.empty(*q.shape[:2], view.v_dim, dtype=q.dtype, device=q.device)
    _decode(q, view, out, None)
    return out


def triton_decode_part(q: torch.Tensor, *cache: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """As `PartBackend.decode_part`, of the arguments of `triton_decode`; raises as it."""
    view = _view(*cache)
    out = torch.empty(*q.shape[:2], view.v_dim, dtype=torch.float32, device=q.device)
    sums = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    _decode(q, view, out, sums)
    return out, sums


def _view(
    k: torch.Tensor,
    v: torch.Tensor,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    k_zero: torch.Tensor | None,
    v_zero: torch.Tensor | None,
    block_table: torch.Tensor | None,
    lengths: list[int] | None,
    kv_format: str,
    window: int | None,
    sink_tokens: int,
) -> KVView:
    view = KVView(
        k, v, kv_format, k_scale, v_scale,
        None if lengths is None else tuple(lengths),
        "contiguous" if block_table is None else "paged",
        None if block_table is None else k.shape[2],
        block_table, k_zero, v_zero, window, sink_tokens,
    )  # fmt: skip
    if window is None:
        return view
    # "All" is often said by a number so large that the kernel's sums of 32 bits would overflow.
    return replace(view, window=min(window, view.tokens), sink_tokens=min(sink_tokens, view.tokens))


def _decode(q: torch.Tensor, view: KVView, out: torch.Tensor, sums: torch.Tensor | None) -> None:
    """Into `out`, and of a part the logarithm of its sum of weights into `sums`."""
    group = view.group(q)
    if q.dim() != 3 or q.stride(2) != 1:
        raise ValueError(f"q must be [batch, q_heads, k_dim], rows contiguous: {q.stride()}")
    if view.block_table is not None and view.block_table.stride(1) != 1:
        raise ValueError("the entries of a block table's row must lie next to each other")
    if (view.k_dim, view.v_dim) in configs.LATENT_DIMS and (said := latents_refusal(view)):
        raise ValueError(said)
    if not view.batch:
        return
    on = processor(q.device)
    global _last_config
    cache = tuned.Cache(view.format, view.k_dim, view.v_dim, view.block_table is not None)
    config, origin = tuned.config_for(q.device, on.room, cache)
    _last_config = f"{tuned.named(config)} ({origin})"
    programs = view.kv_heads * -(-group // configs.ROWS)
    at_once = on.multiprocessors * config.programs_per_sm
    read = read_tokens(view)
    chunk = chunk_tokens(read, programs, at_once, config.block_n)
    splits = split_count(max(read), chunk)
    with torch.cuda.device_of(
        q
    ):  # Triton launches on the current device; nothing for a CPU's tensor
        _start(q, view, out, sums, config, group, (programs, splits, view.batch), chunk)


def read_tokens(view: KVView) -> tuple[int, ...]:
    """Tokens of each sequence that a step reads: all, or the window's and the sinks."""
    known = view.lengths or (view.tokens,) * view.batch
    if view.window is None:
        return known
    return tuple(min(n, view.window + view.sink_tokens) for n in known)


def _start(
    q: torch.Tensor,
    view: KVView,
    out: torch.Tensor,
    sums: torch.Tensor | None,
    config: configs.Config,
    group: int,
    grid: tuple[int, int, int],
    chunk: int,
) -> None:
    from kvgauge_kernels.triton.kernels import merge_splits

    splits = grid[1]
    tokens, lengths = tokens_or_tensor(view.lengths or (view.tokens,), q.device)
    parts = torch.empty(*q.shape[:2], splits, view.v_dim, dtype=torch.float32, device=q.device)
    part_sums = torch.empty(*q.shape[:2], splits, dtype=torch.float32, device=q.device)
    # NVIDIA's compiler alone takes a cap: neither AMD's nor the interpreter.
    nvidia = not torch.version.hip and not interpreted()
    options = {"maxnreg": config.max_registers} if nvidia else {}
    split = _split(view)
    global _last, _last_kernel
    _last_kernel = split.name
    _last = split.kernel[grid](
        q, *split.rows, view.block_table, lengths,
        parts, part_sums, tokens, chunk, group, *split.window,
        view.k_dim**-0.5 * math.log2(math.e),
        *q.stride()[:2], *split.strides,
        0 if view.block_table is None else view.block_table.stride(0),
        V_DIM=view.v_dim, PAGE=view.page_size or 0, ROWS=configs.ROWS, BLOCK_N=config.block_n,
        UPCAST=interpreted() and q.dtype == torch.bfloat16,
        num_warps=config.num_warps, num_stages=config.num_stages, **split.constants, **options,
    )  # fmt: skip
    tokens, lengths = tokens_or_tensor(read_tokens(view), q.device)
    merge_splits[(q.shape[1], q.shape[0])](
        parts, part_sums, lengths, out, sums, tokens, chunk, splits,
        V_DIM=view.v_dim, V_PADDED=configs.padded(view.v_dim), BLOCK_S=configs.MERGE_BLOCK_S,
        num_warps=configs.MERGE_WARPS,
    )  # fmt: skip


def _split(view: KVView) -> _Split:
    """Of MLA's latents the kernel that loads what K and V share once; of packed codes theirs."""
    from kvgauge_kernels.triton.kernels import split_decode
    from kvgauge_kernels.triton.latents import split_decode_latents
    from kvgauge_kernels.triton.packed import split_decode_packed

    if (view.k_dim, view.v_dim) in configs.LATENT_DIMS:
        rope = {"ROPE_DIM": view.k_dim - view.v_dim}
        strides = view.k.stride()[:3]
        return _Split(split_decode_latents, "split_decode_latents", (view.k,), (), strides, rope)
    stored = stored_as(view.format)
    window = (view.window, None if view.window is None else view.sink_tokens)
    strides = (
        *view.k.stride()[:3], *view.v.stride()[:3], *_strides(view.k_scale), *_strides(view.v_scale),
    )  # fmt: skip
    constants = {
        "K_DIM": view.k_dim,
        "K_PADDED": configs.padded(view.k_dim), "V_PADDED": configs.padded(view.v_dim),
    }  # fmt: skip
    rows: tuple[torch.Tensor | None, ...]
    rows = (_readable(view.k), _readable(view.v), view.k_scale, view.v_scale)
    if stored.group is None:
        constants["FP8_MANTISSA"] = configs.FP8_MANTISSA_BITS.get(view.format, 0)
        return _Split(split_decode, "split_decode", rows, window, strides, constants)
    rows = (*rows, view.k_zero, view.v_zero)
    constants |= {"BITS": stored.bits, "GROUP": stored.group}
    return _Split(split_decode_packed, "split_decode_packed", rows, window, strides, constants)


def _readable(rows: torch.Tensor) -> torch.Tensor:
    """fp8 as bytes: Triton refuses e4m3 for sm_80 and 86, and its numbers are made by shifts."""
    return rows.view(torch.uint8) if rows.dtype in FLOAT8_DTYPE.values() else rows


def _strides(scale: torch.Tensor | None) -> tuple[int, int, int]:
    if scale is None:
        return (0, 0, 1)  # 1 is specialised away, as for scales that are there: the audit's code
    outer, head, token = scale.stride()[:3]
    return (outer, head, token)


def _like_query(q: torch.Tensor, _k: torch.Tensor, v: torch.Tensor, *others: Any) -> torch.Tensor:
    v_dim = v.shape[3] * stored_as(others[_FORMAT_AT]).per_byte
    return torch.empty((*q.shape[:2], v_dim), dtype=q.dtype, device=q.device)


def _part_like_query(q: torch.Tensor, *cache: Any) -> tuple[torch.Tensor, torch.Tensor]:
    sums = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    return _like_query(q, *cache).float(), sums


_library = torch.library.Library("kvgauge", "FRAGMENT")
_ARGUMENTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? k_scale, Tensor? v_scale, "
    "Tensor? k_zero, Tensor? v_zero, Tensor? block_table, int[]? lengths, str kv_format, "
    "int? window, int sink_tokens"
)
_library.define(f"triton_decode({_ARGUMENTS}) -> Tensor")
_library.define(f"triton_decode_part({_ARGUMENTS}) -> (Tensor, Tensor)")
for _key in ("CUDA", "CPU"):  # on the CPU the interpreter alone runs them
    _library.impl("triton_decode", triton_decode, _key)
    _library.impl("triton_decode_part", triton_decode_part, _key)
torch.library.register_fake(OP, _like_query, lib=_library)
torch.library.register_fake(PART_OP, _part_like_query, lib=_library)
