"""The operations of a prefill: all prompt tokens in one pass, on one rank.

Weights are read once, as by a pass over the whole prompt at once, of a mixture the experts that all its
tokens visit; the output head is applied to the last
token alone, as engines do. Attention is causal: token i sees min(i, window) tokens. Its K and V are
written once and read at least once. MLA attends on the latent, as in decode, unless the shape states the
dimensions of its expanded heads (k_dim, v_dim).
"""

from __future__ import annotations

from kvgauge.errors import UserError
from kvgauge.formula.held import Storage, token_row_bytes
from kvgauge.formula.moved import Operation, layer_read_bytes, params_read, q_heads_per_rank
from kvgauge.formula.stack import distinct_layers
from kvgauge.formula.weights import WeightFormat
from kvgauge.shapes.types import LayerShape, ModelShape


def causal_pairs(tokens: int, window: int | None) -> int:
    """Pairs of a token and one that it sees: the sum over i from 1 to tokens of min(i, window)."""
    if window is None or tokens <= window:
        return tokens * (tokens + 1) // 2
    return window * (window + 1) // 2 + (tokens - window) * window


def prefill_flops(layer: LayerShape, tokens: int, tensor_parallel: int = 1) -> int:
    """FLOPs of one sequence's causal attention in one layer; none for a layer with a state."""
    if not layer.is_attention:
        return 0
    dims = layer.k_dim + layer.v_dim
    if layer.kind == "mla" and not dims:
        dims = 2 * layer.latent_dim + layer.rope_dim
    heads = q_heads_per_rank(layer, tensor_parallel)
    return 2 * heads * dims * causal_pairs(tokens, layer.window)


def prefill_operations(
    shape: ModelShape, tokens: int, storage: Storage, batch: int, weights: WeightFormat
) -> tuple[Operation, ...]:
    """A prompt of `tokens` for each sequence of the batch, in one pass."""
    # Every token of every prompt visits experts of its own: a pass reads nearly all of them.
    read = params_read(shape, max(1, batch * tokens))
    if read is None or shape.params_active is None:
        raise UserError(f"{shape.name}: weight counts unknown, no prefill can be predicted")
    ranks, head = storage.tensor_parallel, min(shape.hidden * shape.vocab, shape.params_active)
    layers = distinct_layers(shape)
    written = tokens * sum(count * token_row_bytes(layer, storage) for layer, count in layers)
    body_flops = 2 * tokens * (shape.params_active - head) + 2 * head
    return (
        *(
            Operation(
                f"attention {layer.kind}",
                batch * count * layer_read_bytes(layer, tokens, storage),
                batch * count * prefill_flops(layer, tokens, ranks),
            )
            for layer, count in layers
            if layer.kind != "none"
        ),
        Operation(
            "weights",
            -(-weights.bytes_of(read) // ranks),
            -(-batch * body_flops // ranks),
            eight_bit=weights.name == "fp8",
        ),
        Operation("append", batch * written, 0),
    )
