"""A real contiguous KV cache: one K and one V tensor a layer, allocated, filled and counted.

Nothing here knows the formula: sizes come out of torch's own allocation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from kvgauge.caches.codec import QUANTIZERS
from kvgauge.errors import UnsupportedLayout
from kvgauge.shapes.types import LayerShape
from kvgauge_kernels import KVView

STORAGE_DTYPE: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.int8,
}
# A prime number of random rows, copied over and over: random data at the speed of a copy, and no
# period that lines up with pages or heads.
_POOL_ROWS = 4099


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer: k `[batch, kv_heads, tokens, k_dim]`, v likewise, scales `[batch, kv_heads, tokens]`."""

    k: torch.Tensor
    v: torch.Tensor
    k_scale: torch.Tensor | None
    v_scale: torch.Tensor | None

    def tensors(self) -> Iterator[torch.Tensor]:
        """Every tensor that the layer owns."""
        for tensor in (self.k, self.v, self.k_scale, self.v_scale):
            if tensor is not None:
                yield tensor


@dataclass(frozen=True, slots=True)
class ContiguousCache:
    """The cache of a stack of layers, each with tensors of its own."""

    format: str
    layers: tuple[LayerCache, ...]

    def view(self, layer: int) -> KVView:
        """What a kernel sees of one layer."""
        c = self.layers[layer]
        return KVView(c.k, c.v, self.format, k_scale=c.k_scale, v_scale=c.v_scale)

    def storage_bytes(self) -> int:
        """Bytes of the distinct storages behind all tensors."""
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for layer in self.layers
            for tensor in layer.tensors()
        }
        return sum(storages.values())

    def fill(self, generator: torch.Generator) -> None:
        """Write random data over everything, so that every page is really there."""
        for layer in self.layers:
            _fill(self.format, layer.k, layer.k_scale, generator, spread=0.0)
            # Were every copy of the pool alike, attention over one of them would be that over all.
            _fill(self.format, layer.v, layer.v_scale, generator, spread=1.0)


def allocate(
    layers: Sequence[LayerShape],
    *,
    batch: int,
    tokens: int,
    kv_format: str,
    device: torch.device,
) -> ContiguousCache:
    """Allocate a cache of `tokens` tokens for every layer; contents are undefined until `fill`.

    Raises UnsupportedLayout for a layer that a contiguous K/V cache cannot hold, and torch's
    OutOfMemoryError (or MemoryError) where the device is full.
    """
    return ContiguousCache(
        kv_format, tuple(_layer(shape, batch, tokens, kv_format, device) for shape in layers)
    )


def _layer(
    shape: LayerShape, batch: int, tokens: int, kv_format: str, device: torch.device
) -> LayerCache:
    if shape.kind not in ("full", "sliding"):
        raise UnsupportedLayout("layer.kind", shape.kind, "a contiguous cache holds K and V heads")
    kept = tokens if shape.window is None else min(tokens, shape.window)
    rows = (batch, shape.kv_heads, kept)
    dtype = STORAGE_DTYPE[kv_format]

    def scale() -> torch.Tensor | None:
        if kv_format not in QUANTIZERS:
            return None
        return torch.empty(rows, dtype=torch.float16, device=device)

    return LayerCache(
        torch.empty((*rows, shape.k_dim), dtype=dtype, device=device),
        torch.empty((*rows, shape.v_dim), dtype=dtype, device=device),
        scale(),
        scale(),
    )


def _fill(
    kv_format: str,
    target: torch.Tensor,
    scale: torch.Tensor | None,
    generator: torch.Generator,
    spread: float,
) -> None:
    """Copies of a random pool; `spread` is how far their sizes differ, around 1."""
    dim = target.shape[-1]
    pool = torch.randn(_POOL_ROWS, dim, generator=generator, device=generator.device)
    pool_scale: torch.Tensor | None = None
    if scale is None:
        pool = pool.to(target.dtype)
    else:
        pool, pool_scale = QUANTIZERS[kv_format](pool)
    copies = -(-target.shape[:-1].numel() // _POOL_ROWS)
    drawn = torch.rand(copies, generator=generator, device=generator.device)
    sizes: list[float] = (1 + spread * (drawn - 0.5)).tolist()
    if scale is None or pool_scale is None:
        _tile(target.view(-1, dim), pool.to(target.device), sizes)
    else:
        _tile(target.view(-1, dim), pool.to(target.device), [1.0] * copies)
        _tile(scale.view(-1), pool_scale.to(target.device), sizes)


def _tile(target: torch.Tensor, pool: torch.Tensor, sizes: Sequence[float]) -> None:
    starts = range(0, target.shape[0], pool.shape[0])
    for start, size in zip(starts, sizes, strict=True):
        part = target[start : start + pool.shape[0]]
        rows = pool[: part.shape[0]]
        part.copy_(rows if size == 1 else rows * size)
