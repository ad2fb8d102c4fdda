"""How vLLM pools the pages of a model whose layers differ, which makes its token count another number.

Source: `v1/core/kv_cache_utils.py`, `_get_kv_cache_groups_uniform_page_size` and
`_report_kv_cache_config`: layers of one kind are cut into groups of equal size (the size of the smaller
kind, or of the larger where that is less than a quarter more), a group that is not full is padded, all
groups draw from one pool of blocks, and the reported tokens are `blocks // groups * block_size`: every
layer is counted as if it kept every token.
"""

from __future__ import annotations

from collections import Counter

from kvgauge.audit.sizes import Case, token_bytes
from kvgauge.shapes.types import ModelShape

_NOT_MUCH_MORE = 1.25


def pooled_token_bytes(case: Case) -> int | None:
    """Bytes of the pool for each token that vLLM reports; None where its layers do not pool so."""
    kinds = Counter((layer.kind, layer.window) for layer in case.shape.layers)
    if len(kinds) != 2 or any(window is None and kind != "full" for kind, window in kinds):
        return None
    if len({(x.kv_heads, x.k_dim, x.v_dim, x.shared) for x in case.shape.layers}) != 1:
        return None
    size, groups = _groups(case.shape)
    return token_bytes(case) // len(case.shape.layers) * size * groups


def _groups(shape: ModelShape) -> tuple[int, int]:
    """Layers a group, and groups."""
    counts = Counter((layer.kind, layer.window) for layer in shape.layers).values()
    size = max(counts) if max(counts) < min(counts) * _NOT_MUCH_MORE else min(counts)
    return size, sum(-(-count // size) for count in counts)
