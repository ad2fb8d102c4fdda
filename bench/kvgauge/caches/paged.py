"""A real paged KV cache: for each layer a pool of pages, and a table of which sequence has which.

The pool is a contiguous cache of as many "sequences" as there are pages. Pages are given out in order, one
sequence after the other, as a pool does that nothing was freed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from kvgauge.caches.contiguous import ContiguousCache, allocate_layer
from kvgauge.shapes.types import LayerShape
from kvgauge_kernels import KVView


@dataclass(frozen=True, slots=True)
class PagedCache:
    """The pools of a stack of layers, and for each a block table, int32 `[batch, pages]`.

    `kept`: the valid tokens of each layer, of which the last page need not be full.
    """

    pools: ContiguousCache
    tables: tuple[torch.Tensor, ...]
    kept: tuple[int, ...]
    page_size: int

    @property
    def layer_count(self) -> int:
        """Layers."""
        return len(self.tables)

    def view(self, layer: int) -> KVView:
        """What a kernel sees of one layer."""
        table = self.tables[layer]
        return replace(
            self.pools.view(layer),
            lengths=(self.kept[layer],) * table.shape[0],
            layout="paged",
            page_size=self.page_size,
            block_table=table,
        )

    def storage_bytes(self) -> int:
        """Bytes of the pools; block tables, 4 bytes a page, belong to no layer and are left out."""
        return self.pools.storage_bytes()

    def fill(self, generator: torch.Generator) -> None:
        """Write random data over every page."""
        self.pools.fill(generator)


def allocate_pages(
    layers: Sequence[LayerShape],
    *,
    batch: int,
    tokens: int,
    page_size: int,
    kv_format: str,
    device: torch.device,
) -> PagedCache:
    """Allocate pools of just as many pages as the sequences need; raises as `contiguous.allocate`."""
    pools, tables, kept = [], [], []
    for shape in layers:
        own = tokens if shape.window is None else min(tokens, shape.window)
        per_sequence = -(-own // page_size)
        pages = batch * per_sequence
        # A page is never longer than a window would let it be: the sequence is cut already.
        whole = replace(shape, window=max(shape.window, page_size)) if shape.window else shape
        pools.append(allocate_layer(whole, pages, page_size, kv_format, device))
        table = torch.arange(pages, dtype=torch.int32, device=device)
        tables.append(table.view(batch, per_sequence))
        kept.append(own)
    return PagedCache(
        ContiguousCache(kv_format, tuple(pools)), tuple(tables), tuple(kept), page_size
    )
