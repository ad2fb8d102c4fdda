"""Bytes that a KV cache holds. Exact integers; no torch, and nothing measured.

One attention layer holds, for each of min(tokens, window) tokens, `kv_heads * (k_dim + v_dim)`
elements in the KV format; MLA holds one latent of `latent_dim + rope_dim` elements, not doubled and
not divided by tensor parallelism; linear and SSM layers hold a constant state.
"""

from __future__ import annotations

from kvgauge.errors import UserError
from kvgauge.formats import KVFormat
from kvgauge.shapes.types import LayerShape, ModelShape


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


def token_row_bytes(layer: LayerShape, fmt: KVFormat, tensor_parallel: int = 1) -> int:
    """Bytes that one more token costs in this layer while it still grows."""
    if not layer.is_attention:
        return 0
    if layer.kind == "mla":
        return fmt.row_bytes(layer.latent_dim + layer.rope_dim)
    heads = kv_heads_per_rank(layer.kv_heads, tensor_parallel)
    return heads * (fmt.row_bytes(layer.k_dim) + fmt.row_bytes(layer.v_dim))


def tokens_held(layer: LayerShape, tokens: int) -> int:
    """Tokens that the layer keeps of a sequence of `tokens`."""
    if not layer.is_attention:
        return 0
    return tokens if layer.window is None else min(tokens, layer.window)


def page_rounded(tokens: int, page_size: int | None) -> int:
    """Tokens rounded up to whole pages; as they are where the cache is not paged."""
    if page_size is None:
        return tokens
    if page_size < 1:
        raise UserError(f"page size {page_size}: must be at least 1 token")
    return -(-tokens // page_size) * page_size


def layer_bytes(
    layer: LayerShape,
    tokens: int,
    fmt: KVFormat,
    page_size: int | None = None,
    tensor_parallel: int = 1,
) -> int:
    """Bytes that one layer holds of one sequence of `tokens`, on one rank."""
    if layer.state_bytes:
        return layer.state_bytes
    slots = page_rounded(tokens_held(layer, tokens), page_size)
    return slots * token_row_bytes(layer, fmt, tensor_parallel)


def request_bytes(
    shape: ModelShape,
    tokens: int,
    fmt: KVFormat,
    page_size: int | None = None,
    tensor_parallel: int = 1,
) -> int:
    """Bytes that one request of `tokens` holds over all layers, on one rank."""
    return sum(
        count * layer_bytes(layer, tokens, fmt, page_size, tensor_parallel)
        for layer, count in shape.runs()
    )


def marginal_bytes(shape: ModelShape, tokens: int, fmt: KVFormat, tensor_parallel: int = 1) -> int:
    """Bytes that the next token adds to a sequence of `tokens`, without page rounding."""
    return sum(
        count * token_row_bytes(layer, fmt, tensor_parallel)
        for layer, count in shape.runs()
        if tokens_held(layer, tokens + 1) > tokens_held(layer, tokens)
    )


def state_bytes(shape: ModelShape) -> int:
    """Bytes of constant state of one request."""
    return sum(count * layer.state_bytes for layer, count in shape.runs())
