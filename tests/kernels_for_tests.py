"""Caches to attend over, an oracle of the naive kind, and a stand-in for the flash-attn package."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kvgauge.caches.huge_pages import ask_for_huge_pages
from kvgauge_kernels import BACKENDS, AttentionBackend, KVView

Array = npt.NDArray[np.float64]

FLOAT8 = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Largest error relative to the largest output. An int8 cache is exact; its dequantized copy rounds.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# The operator that proves each kernel, written down here once more.
EXPECTED_OP = {
    "reference": "aten::mm",
    "eager": "aten::bmm",
    "sdpa-math": "aten::_safe_softmax",
    "sdpa-flash": "aten::_scaled_dot_product_flash_attention",
    "sdpa-efficient": "aten::_scaled_dot_product_efficient_attention",
    "sdpa-cudnn": "aten::_scaled_dot_product_cudnn_attention",
    "flex-attention": "kvgauge::flex_decode",
    "dequant+sdpa": "aten::_scaled_dot_product_flash_attention",
    "cpu": "kvgauge::cpu_decode",
    "cpu-q8": "kvgauge::cpu_decode",
    "triton": "kvgauge::triton_decode",
}


def make_view(
    fmt: str,
    *,
    batch: int = 2,
    kv_heads: int = 2,
    tokens: int = 40,
    k_dim: int = 64,
    v_dim: int | None = None,
    lengths: tuple[int, ...] | None = None,
    tokens_first: bool = False,
    device: str = "cpu",
    seed: int = 0,
) -> KVView:
    """A cache of random numbers; past a sequence's length K and V are large, so that it shows."""
    generator = torch.Generator().manual_seed(seed)

    def rows(dim: int, padding: float) -> torch.Tensor:
        x = torch.randn(batch, kv_heads, tokens, dim, generator=generator)
        for i, n in enumerate(lengths or ()):
            x[i, :, n:] = padding
        if tokens_first:
            x = x.transpose(1, 2).contiguous().transpose(1, 2)
        return x

    k, v = rows(k_dim, 3.0), rows(v_dim or k_dim, 500.0)
    sides = {**as_stored("k", k, fmt), **as_stored("v", v, fmt)}
    return KVView(format=fmt, lengths=lengths, **{name: x.to(device) for name, x in sides.items()})


def as_stored(name: str, x: torch.Tensor, fmt: str) -> dict[str, Any]:
    """Rows of numbers in that format, as the arguments of a KVView that are named `k...` or `v...`."""
    if fmt in DTYPES or fmt in FLOAT8:
        return {name: x.to({**DTYPES, **FLOAT8}[fmt])}
    if fmt == "int8":
        return dict(zip((name, f"{name}_scale"), quantized(x), strict=True))
    names = (name, f"{name}_scale", f"{name}_zero")
    if name == "k" and fmt.startswith("kivi"):
        return dict(zip(names, by_channel(x, fmt), strict=True))
    return dict(zip(names, grouped(x, fmt), strict=True))


def by_channel(x: torch.Tensor, fmt: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `grouped`, for K per channel: steps and smallest numbers `[..., token groups, dim]`."""
    bits, group = bits_and_group(fmt)
    sides, codes = [], []
    for part in torch.split(x, group, dim=-2):
        zero = part.amin(-2, keepdim=True).half()
        scale = ((part.amax(-2, keepdim=True) - zero.float()) / (2**bits - 1)).half()
        sides.append((scale, zero))
        codes.append(((part - zero) / scale.clamp(min=1e-7)).round().clamp(0, 2**bits - 1))
    scales, zeros = (torch.cat(side, dim=-2) for side in zip(*sides, strict=True))
    return _packed(torch.cat(codes, dim=-2), bits), scales, zeros


def _packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    whole, per_byte = codes.to(torch.int32), 8 // bits
    packed = sum(whole[..., i::per_byte] * 2 ** (bits * i) for i in range(per_byte))
    assert isinstance(packed, torch.Tensor)
    return packed.to(torch.uint8)


def grouped(x: torch.Tensor, fmt: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Packed codes, and of each group its step and its smallest number in fp16; `int4`, `int2-g32`."""
    bits, group = bits_and_group(fmt)
    levels = 2**bits - 1
    parts = list(torch.split(x, group, dim=-1))
    zero = torch.stack([part.amin(-1) for part in parts], dim=-1).half()
    top = torch.stack([part.amax(-1) for part in parts], dim=-1)
    scale = ((top - zero.float()) / levels).half()
    codes = [
        ((part - zero[..., i, None]) / scale[..., i, None].clamp(min=1e-7)).round().clamp(0, levels)
        for i, part in enumerate(parts)
    ]
    return _packed(torch.cat(codes, dim=-1), bits), scale, zero


def bits_and_group(fmt: str) -> tuple[int, int]:
    """Of a format in groups: bits of a code, elements of a group."""
    base, _, group = fmt.partition("-g")
    if base.startswith("kivi"):
        return int(base.removeprefix("kivi")), int(group or 32)
    return int(base.removeprefix("int")), int(group or 64)


def as_numbers(view: KVView, which: str) -> Array:
    """The numbers that K or V of a contiguous cache stand for, worked out apart from the kernels."""
    sides = [getattr(view, which + end) for end in ("", "_scale", "_zero")]
    rows, scale, zero = (None if x is None else _array(x) for x in sides)
    assert rows is not None
    if scale is None:
        return rows
    if zero is None:
        out: Array = rows * scale[..., None]
        return out
    bits, group = bits_and_group(view.format)
    fields = [np.floor(rows / 2 ** (bits * i)) % 2**bits for i in range(8 // bits)]
    codes = np.stack(fields, axis=-1).reshape(*rows.shape[:-1], -1)
    if which == "k" and view.format.startswith("kivi"):
        token = np.arange(codes.shape[-2]) // group
        by_token: Array = codes * scale[..., token, :] + zero[..., token, :]
        return by_token
    of = np.arange(codes.shape[-1]) // group
    grouped_out: Array = codes * scale[..., of] + zero[..., of]
    return grouped_out


def random_layer(
    fmt: str, depth: int, layout: str = "contiguous", heads: int = 8, dim: int = 128, page: int = 16,
    *, huge_pages: bool = True,
) -> KVView:  # fmt: skip
    """A large cache of one sequence, filled fast: `contiguous`, `pages in order` or `pages at random`."""
    generator = torch.Generator().manual_seed(0)
    count = depth // page
    shape = (1, heads, depth) if layout == "contiguous" else (count, heads, page)
    where: dict[str, Any] = {}
    if layout != "contiguous":
        order = (
            torch.randperm(count, generator=generator)
            if "random" in layout
            else torch.arange(count)
        )
        table = order.to(torch.int32)[None]
        where = {"layout": "paged", "page_size": page, "block_table": table}

    for name in "kv":
        rows = _random_rows(name, fmt, shape, dim, generator)
        where |= {n: _on_huge_pages(x) for n, x in rows.items()} if huge_pages else rows
    return KVView(format=fmt, **where)


def _on_huge_pages(x: torch.Tensor) -> torch.Tensor:
    return ask_for_huge_pages(torch.empty_like(x)).copy_(x)


def held_bytes(view: KVView) -> int:
    """Bytes of a cache, scales and zeros included; what K and V share counts once."""
    return sum({x.data_ptr(): x.nbytes for x in reversed(view.tensors().values())}.values())


def _random_rows(
    name: str, fmt: str, shape: tuple[int, ...], dim: int, generator: torch.Generator
) -> dict[str, Any]:
    """As `as_stored`, of random codes and equal scales: fast."""
    if fmt in DTYPES or fmt in FLOAT8:
        rows = torch.randn(*shape, dim, generator=generator)
        return {name: rows.to({**DTYPES, **FLOAT8}[fmt])}
    if fmt == "int8":
        codes = torch.randint(-127, 128, (*shape, dim), generator=generator, dtype=torch.int8)
        return {name: codes, f"{name}_scale": torch.full(shape, 0.02, dtype=torch.float16)}
    bits, group = bits_and_group(fmt)
    codes = torch.randint(0, 256, (*shape, dim * bits // 8), generator=generator, dtype=torch.uint8)
    sides = (*shape, -(-dim // group))
    if name == "k" and fmt.startswith("kivi"):
        sides = (*shape[:2], -(-shape[2] // group), dim)
    return {
        name: codes,
        f"{name}_scale": torch.full(sides, 4 / 2**bits, dtype=torch.float16),
        f"{name}_zero": torch.full(sides, -2.0, dtype=torch.float16),
    }


def quantized(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 elements and one fp16 scale a row."""
    scale = (x.abs().amax(-1) / 127).half()
    return (x / scale.float().unsqueeze(-1)).round().clamp(-127, 127).to(torch.int8), scale


def make_query(view: KVView, group: int, dtype: torch.dtype, *tokens: int) -> torch.Tensor:
    """Random queries, `[batch, q_heads, *tokens, k_dim]`."""
    shape = (view.batch, view.kv_heads * group, *tokens, view.k_dim)
    return (
        torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype).to(view.k.device)
    )


def naive(q: torch.Tensor, view: KVView) -> torch.Tensor:
    """Attention head by head in numpy's float64, for q `[batch, q_heads, q_tokens, k_dim]`."""
    queries, keys, values = _array(q), as_numbers(view, "k"), as_numbers(view, "v")
    batch, q_heads, q_tokens, k_dim = queries.shape
    out = np.zeros((batch, q_heads, q_tokens, values.shape[3]))
    for b in range(batch):
        n = view.lengths[b] if view.lengths else keys.shape[2]
        future = np.triu(np.ones((q_tokens, n), dtype=bool), k=n - q_tokens + 1)
        for h in range(q_heads):
            kv_head = h * keys.shape[1] // q_heads
            scores = queries[b, h] @ keys[b, kv_head, :n].T / k_dim**0.5
            scores[future | _outside_window(view, q_tokens, n)] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[b, h] = weights @ values[b, kv_head, :n] / weights.sum(axis=1, keepdims=True)
    return torch.from_numpy(out)


def _outside_window(view: KVView, q_tokens: int, n: int) -> Any:
    """Which tokens `[q_tokens, n]` a window hides."""
    hidden = np.zeros((q_tokens, n), dtype=bool)
    if view.window is not None:
        for i in range(q_tokens):
            hidden[i, view.sink_tokens : max(0, n - q_tokens + i + 1 - view.window)] = True
    return hidden


def naive_decode(q: torch.Tensor, view: KVView) -> torch.Tensor:
    """`naive` of one query token, for q `[batch, q_heads, k_dim]`."""
    return naive(q.unsqueeze(2), view).squeeze(2)


def error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest expected value; inf for a NaN."""
    difference = (out.cpu().double() - expected).abs().max() / expected.abs().max()
    return float(difference) if difference == difference else float("inf")


def observed(step: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, set[str]]:
    """What `step` returns, and the torch operators that it ran."""
    seen: set[str] = set()

    class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.add(str(func._schema.name))
            return func(*args, **(kwargs or {}))

    with Recorder():  # type: ignore[no-untyped-call]
        out = step()
    return out, seen


def assert_right_kernel(backend: AttentionBackend, seen: set[str]) -> None:
    """Whether the backend's own operator ran, and none of another's."""
    if backend.name in EXPECTED_OP:
        assert any(
            op.startswith(EXPECTED_OP[backend.name]) for op in seen & set(backend.kernel_ops)
        )
    assert not seen & set(backend.forbidden_ops)


def usable(view: KVView, dtype: torch.dtype) -> list[AttentionBackend]:
    """Every backend that supports the view: those of a package also where a stand-in runs for it.

    Not flex-attention, which compiles each shape for seconds: its tests draw from few shapes.
    """
    return [
        b
        for b in BACKENDS.values()
        if b.name != "flex-attention"
        and b.supports(view, dtype) is None
        and (b.name == "flash-attn" or b.available(view.k.device) is None)
    ]


def _array(x: torch.Tensor) -> Array:
    return x.cpu().double().numpy()


class FlashAttnStandIn(ModuleType):
    """A module `flash_attn` with the signature and the checks of flash-attn 2.8, in plain torch."""

    __version__ = "2.8.3"

    def __init__(self) -> None:
        super().__init__("flash_attn")
        self.calls: list[dict[str, Any]] = []

    def flash_attn_with_kvcache(
        self, q: Any, k_cache: Any, v_cache: Any, k: Any = None, v: Any = None,
        rotary_cos: Any = None, rotary_sin: Any = None, cache_seqlens: Any = None,
        cache_batch_idx: Any = None, cache_leftpad: Any = None, block_table: Any = None,
        softmax_scale: Any = None, causal: bool = False, window_size: Any = (-1, -1),
        softcap: float = 0.0, rotary_interleaved: bool = True, alibi_slopes: Any = None,
        num_splits: int = 0, return_softmax_lse: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        self.calls.append({"causal": causal, "cache_seqlens": cache_seqlens, "k_cache": k_cache})
        batch, q_tokens, q_heads, head_dim = q.shape
        room, kv_heads = k_cache.shape[1:3]
        assert q.dtype in (torch.float16, torch.bfloat16)
        assert q.dtype == k_cache.dtype == v_cache.dtype
        assert k_cache.shape == v_cache.shape == (batch, room, kv_heads, head_dim)
        assert head_dim <= 256
        assert q_heads % kv_heads == 0
        assert q.stride(-1) == k_cache.stride(-1) == v_cache.stride(-1) == 1
        if cache_seqlens is None or isinstance(cache_seqlens, int):
            cache_seqlens = torch.full((batch,), cache_seqlens or room, dtype=torch.int32)
        assert cache_seqlens.dtype == torch.int32
        assert cache_seqlens.shape == (batch,)
        keys = k_cache.float().repeat_interleave(q_heads // kv_heads, dim=2)
        values = v_cache.float().repeat_interleave(q_heads // kv_heads, dim=2)
        scores = torch.einsum("bshd,bthd->bhst", q.float(), keys)
        scores = scores * (head_dim**-0.5 if softmax_scale is None else softmax_scale)
        last = cache_seqlens[:, None] - 1 + torch.zeros(q_tokens, dtype=torch.int32)
        if causal:
            last = last - torch.arange(q_tokens - 1, -1, -1)
        hidden = torch.arange(room) > last[:, None, :, None]
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        return torch.einsum("bhst,bthd->bshd", weights, values).to(q.dtype)


@contextmanager
def flash_attn_stand_in() -> Iterator[FlashAttnStandIn]:
    """The stand-in, in the place of the package."""
    module, real = FlashAttnStandIn(), sys.modules.pop("flash_attn", None)
    sys.modules["flash_attn"] = module
    try:
        yield module
    finally:
        del sys.modules["flash_attn"]
        if real is not None:
            sys.modules["flash_attn"] = real
