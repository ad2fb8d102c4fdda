"""A real KV cache in one piece a sequence: a K and a V tensor a layer, allocated, filled and counted.

MLA's layers have one tensor of latents, which is K, and of which V is a part.

Nothing here knows the formula: sizes come out of torch's own allocation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from kvgauge.caches.huge_pages import ask_for_huge_pages
from kvgauge.errors import UnsupportedLayout
from kvgauge.shapes.types import LayerShape
from kvgauge_kernels import KVView
from kvgauge_kernels.quantize import Rows, quantize, quantize_k, view_of
from kvgauge_kernels.stored import stored_as

# A prime number of random rows, copied over and over: random data at the speed of a copy, and no
# period that lines up with pages or heads.
_POOL_ROWS = 4099
_HELD = "a cache holds K and V heads, or latents without an index and not in groups"


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer: k's codes `[batch, kv_heads, tokens, k_dim]` or packed in bytes, v's likewise.

    Scales and zeros are as in KVView.
    """

    k: Rows
    v: Rows

    def tensors(self) -> Iterator[torch.Tensor]:
        """Every tensor that the layer owns; V's too where it is a part of K's."""
        yield from self.k.tensors()
        yield from self.v.tensors()

    @property
    def latent(self) -> bool:
        """Whether V is a part of K, as in MLA."""
        return (
            self.k.codes.untyped_storage().data_ptr() == self.v.codes.untyped_storage().data_ptr()
        )


@dataclass(frozen=True, slots=True)
class ContiguousCache:
    """The cache of a stack of layers, each with tensors of its own."""

    format: str
    layers: tuple[LayerCache, ...]

    def view(self, layer: int) -> KVView:
        """What a kernel sees of one layer."""
        return view_of(self.layers[layer].k, self.layers[layer].v, self.format)

    @property
    def layer_count(self) -> int:
        """Layers."""
        return len(self.layers)

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
            _fill(self.format, layer.k, generator, spread=float(layer.latent), is_k=True)
            # Were every copy of the pool alike, attention over one of them would be that over all.
            if not layer.latent:
                _fill(self.format, layer.v, generator, spread=1.0)


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
        kv_format,
        tuple(allocate_layer(shape, batch, tokens, kv_format, device) for shape in layers),
    )


def allocate_layer(
    shape: LayerShape, batch: int, tokens: int, kv_format: str, device: torch.device
) -> LayerCache:
    """One layer's tensors, uninitialized; raises as `allocate`."""
    kept = tokens if shape.window is None else min(tokens, shape.window)
    if shape.kind == "mla" and not shape.index_dim and not stored_as(kv_format).group:
        latents = _empty((batch, 1, kept), shape.latent_dim + shape.rope_dim, kv_format, device)
        return LayerCache(latents, replace(latents, codes=latents.codes[..., : shape.latent_dim]))
    if shape.kind not in ("full", "sliding"):
        raise UnsupportedLayout("layer.kind", shape.kind, _HELD)
    rows = (batch, shape.kv_heads, kept)
    kind = stored_as(kv_format)
    return LayerCache(
        _empty(rows, shape.k_dim, kv_format, device, (*rows[:2], *kind.k_sides(kept, shape.k_dim))),
        _empty(rows, shape.v_dim, kv_format, device),
    )


def _empty(
    rows: tuple[int, ...],
    dim: int,
    kv_format: str,
    device: torch.device,
    sides: tuple[int, ...] | None = None,
) -> Rows:
    """Rows of `dim` elements; `sides`: the shape of scales and zeros that are not a row's own."""
    kind = stored_as(kv_format)
    if dim % kind.per_byte:
        raise UnsupportedLayout(
            "layer.head_dim", dim, f"{kv_format} packs {kind.per_byte} elements in a byte"
        )

    def side() -> torch.Tensor:
        own = (*rows, kind.groups(dim)) if kind.group is not None else rows
        return ask_for_huge_pages(torch.empty(sides or own, dtype=torch.float16, device=device))

    codes = torch.empty((*rows, dim // kind.per_byte), dtype=kind.dtype, device=device)
    return Rows(
        ask_for_huge_pages(codes),
        side() if kind.scaled else None,
        side() if kind.group is not None else None,
    )


def _fill(
    kv_format: str,
    target: Rows,
    generator: torch.Generator,
    spread: float,
    *,
    is_k: bool = False,
) -> None:
    """Copies of a random pool; `spread` is how far their sizes differ, around 1."""
    kind = stored_as(kv_format)
    dim = target.codes.shape[-1] * kind.per_byte
    numbers = torch.randn(_POOL_ROWS, dim, generator=generator, device=generator.device)
    pool = (quantize_k if is_k else quantize)(numbers, kv_format)
    # Where tokens share scales those have copies of their own.
    copies = max(
        -(-into.shape[:3].numel() // rows.shape[0])
        for into, rows in zip(target.tensors(), pool.tensors(), strict=True)
    )
    drawn = torch.rand(copies, generator=generator, device=generator.device)
    sizes: list[float] = (1 + spread * (drawn - 0.5)).tolist()
    for into, rows in zip(target.tensors(), pool.tensors(), strict=True):
        # Of scaled rows the scale, and the zero with it, says how large they are.
        sized = not kind.scaled or rows is not pool.codes
        _tile(into.flatten(0, 2), rows.to(into.device), sizes if sized else [1.0] * copies)


def _tile(target: torch.Tensor, pool: torch.Tensor, sizes: Sequence[float]) -> None:
    starts = range(0, target.shape[0], pool.shape[0])
    for start, size in zip(starts, sizes, strict=False):  # there may be more sizes than are needed
        part = target[start : start + pool.shape[0]]
        rows = pool[: part.shape[0]]
        # In fp32: there is no arithmetic in 8-bit floats.
        part.copy_(rows if size == 1 else rows.float() * size)
