"""The cache of a cell, in its layout."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvgauge.caches.contiguous import ContiguousCache, allocate
from kvgauge.caches.paged import PagedCache, allocate_pages
from kvgauge.schema import Cell
from kvgauge.shapes.types import LayerShape


def allocate_for(
    cell: Cell, layers: Sequence[LayerShape], device: torch.device
) -> ContiguousCache | PagedCache:
    """A cache of those layers as the cell says; contents are undefined until `fill`.

    Raises UnsupportedLayout for a layer that no cache here holds, and torch's OutOfMemoryError (or
    MemoryError) where the device is full.
    """
    batch, tokens, fmt = cell.batch, cell.depth_tokens, cell.kv_format
    if cell.page_size is None:
        return allocate(layers, batch=batch, tokens=tokens, kv_format=fmt, device=device)
    return allocate_pages(
        layers,
        batch=batch,
        tokens=tokens,
        page_size=cell.page_size,
        kv_format=fmt,
        device=device,
    )
