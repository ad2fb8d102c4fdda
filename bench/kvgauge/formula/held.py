"""Bytes that a KV cache holds. Exact integers; no torch, and nothing measured.

One attention layer holds, for each of min(tokens, window) tokens, `kv_heads * (k_dim + v_dim)`
elements in the KV format; MLA holds one latent of `latent_dim + rope_dim` elements, not doubled and
not divided by tensor parallelism; beside either may stand one indexer key a token, not divided; linear
and SSM layers hold a constant state, whatever the length. Two numbers so describe a request at any
length: what the next token adds (`marginal_bytes`) and what is there at length zero (`state_bytes`).
"""

from __future__ import annotations

from dataclasses import dataclass

from kvgauge.errors import UserError
from kvgauge.formats import KVFormat
from kvgauge.formula.engines import HF, Engine
from kvgauge.formula.stack import distinct_layers
from kvgauge.shapes.types import LayerShape, ModelShape


@dataclass(frozen=True, slots=True)
class Storage:
    """How a cache is stored: format, pages, ranks and the engine's conventions."""

    fmt: KVFormat
    page_size: int | None = None
    tensor_parallel: int = 1
    engine: Engine = HF

    def __post_init__(self) -> None:
        if self.page_size is not None and self.page_size < 1:
            raise UserError(f"page size {self.page_size}: must be at least 1 token")
        if self.tensor_parallel < 1:
            raise UserError(f"tensor parallel size {self.tensor_parallel}: must be at least 1")
        page, together = self.page_tokens, self.fmt.k_group_tokens
        if page is not None and together is not None and page % together:
            raise UserError(
                f"pages of {page} tokens: {self.fmt.name} shares scales of K among {together} tokens, "
                f"and a page holds whole groups; set --page-size to a multiple of {together}"
            )

    @property
    def page_tokens(self) -> int | None:
        """Tokens a page: as asked for, or the engine's own."""
        return self.engine.page_tokens if self.page_size is None else self.page_size


def kv_heads_per_rank(kv_heads: int, tensor_parallel: int) -> int:
    """K/V heads that one rank stores: divided, and replicated to one a rank where they run out."""
    if tensor_parallel < 1:
        raise UserError(f"tensor parallel size {tensor_parallel}: must be at least 1")
    if tensor_parallel <= kv_heads:
        if kv_heads % tensor_parallel:
            raise UserError(
                f"tensor parallel size {tensor_parallel} does not divide {kv_heads} KV heads"
            )
        return kv_heads // tensor_parallel
    if tensor_parallel % kv_heads:
        raise UserError(
            f"tensor parallel size {tensor_parallel} is not a multiple of {kv_heads} KV heads"
        )
    return 1


@dataclass(frozen=True, slots=True)
class RowBytes:
    """What one token costs in one layer on one rank, stored or read from an earlier layer."""

    elements: int = 0
    metadata: int = 0
    index: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.elements + self.metadata + self.index


def row_bytes(layer: LayerShape, storage: Storage) -> RowBytes:
    """The parts of one token's bytes; a shared layer reads as much and stores none of it."""
    if not layer.is_attention:
        return RowBytes()
    fmt = storage.fmt
    index = storage.engine.index_format.row_bytes(layer.index_dim)
    if layer.kind == "mla":
        latent = layer.latent_dim + layer.rope_dim
        return RowBytes(fmt.row_element_bytes(latent), fmt.k_row_metadata_bytes(latent), index)
    heads = kv_heads_per_rank(layer.kv_heads, storage.tensor_parallel)
    k_dim, v_dim = layer.k_dim, layer.v_dim
    return RowBytes(
        heads * (fmt.row_element_bytes(k_dim) + fmt.row_element_bytes(v_dim)),
        heads * (fmt.k_row_metadata_bytes(k_dim) + fmt.row_metadata_bytes(v_dim)),
        index,
    )


def open_group_bytes(layer: LayerShape, tokens: int, storage: Storage) -> int:
    """Metadata of K beyond its tokens' shares, where the last group of `tokens` tokens is not full."""
    missing = storage.fmt.k_whole_groups(tokens) - tokens
    if not missing or not layer.is_attention:
        return 0
    if layer.kind == "mla":
        return missing * storage.fmt.k_row_metadata_bytes(layer.latent_dim + layer.rope_dim)
    heads = kv_heads_per_rank(layer.kv_heads, storage.tensor_parallel)
    return missing * heads * storage.fmt.k_row_metadata_bytes(layer.k_dim)


def token_row_bytes(layer: LayerShape, storage: Storage) -> int:
    """Bytes that one more token costs in this layer while it still grows."""
    return 0 if layer.shared else row_bytes(layer, storage).total


def tokens_held(layer: LayerShape, tokens: int, window_slack: int = 0) -> int:
    """Tokens that the layer keeps of a sequence of `tokens`."""
    if not layer.is_attention:
        return 0
    return tokens if layer.window is None else min(tokens, layer.window + window_slack)


def page_rounded(tokens: int, page_size: int | None) -> int:
    """Tokens rounded up to whole pages; as they are where the cache is not paged."""
    if page_size is None:
        return tokens
    if page_size < 1:
        raise UserError(f"page size {page_size}: must be at least 1 token")
    return -(-tokens // page_size) * page_size


def slots_held(layer: LayerShape, tokens: int, storage: Storage) -> int:
    """Tokens that the layer has room for: those that it keeps, in whole pages."""
    kept = tokens_held(layer, tokens, storage.engine.window_slack)
    return page_rounded(kept, storage.page_tokens)


def layer_state_bytes(layer: LayerShape, storage: Storage) -> int:
    """The constant state on one rank: a part is divided where the ranks divide it, or copied whole."""
    ranks, width = storage.tensor_parallel, storage.engine.state_bits
    total = 0
    for part in layer.state:
        elements = part.elements if part.elements % ranks else part.elements // ranks
        total += elements * (width or part.bits) // 8
    return total


def layer_bytes(layer: LayerShape, tokens: int, storage: Storage) -> int:
    """Bytes that one layer holds of one sequence of `tokens`, on one rank."""
    slots = slots_held(layer, tokens, storage)
    rows = slots * token_row_bytes(layer, storage)
    if not layer.shared:
        rows += open_group_bytes(layer, slots, storage)
    return rows + layer_state_bytes(layer, storage) if layer.state else rows


def held_bytes(shape: ModelShape, tokens: int, storage: Storage) -> int:
    """Bytes that one request of `tokens` holds over all layers, on one rank."""
    return sum(
        count * layer_bytes(layer, tokens, storage) for layer, count in distinct_layers(shape)
    )


def request_bytes(
    shape: ModelShape,
    tokens: int,
    fmt: KVFormat,
    page_size: int | None = None,
    tensor_parallel: int = 1,
    engine: Engine = HF,
) -> int:
    """`held_bytes`, its storage spelled out."""
    return held_bytes(shape, tokens, Storage(fmt, page_size, tensor_parallel, engine))


def growth_bytes(shape: ModelShape, tokens: int, storage: Storage) -> int:
    """Bytes that the next token adds to a sequence of `tokens` on one rank, without page rounding."""
    slack = storage.engine.window_slack
    return sum(
        count * token_row_bytes(layer, storage)
        for layer, count in distinct_layers(shape)
        if tokens_held(layer, tokens + 1, slack) > tokens_held(layer, tokens, slack)
    )


def marginal_bytes(
    shape: ModelShape,
    tokens: int,
    fmt: KVFormat,
    tensor_parallel: int = 1,
    engine: Engine = HF,
) -> int:
    """`growth_bytes`, its storage spelled out."""
    return growth_bytes(shape, tokens, Storage(fmt, None, tensor_parallel, engine))


def state_bytes(shape: ModelShape, tensor_parallel: int = 1, engine: Engine = HF) -> int:
    """Bytes of constant state of one request, on one rank."""
    storage = Storage(KVFormat("none", 0), None, tensor_parallel, engine)
    return sum(count * layer_state_bytes(layer, storage) for layer, count in distinct_layers(shape))
