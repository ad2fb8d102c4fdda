"""Bytes that a decode step moves and operations that it does, as a list of operations.

Decode reads the held bytes once a step, tokens and not pages. With scope `step` or `engine` it also
reads the active weights once a step (shared by the batch, whose tokens visit more experts than one does)
and writes the appended token. Scope
`attention` is the attention alone over a cache that stays as it is. A layer that shares another's cache
stores nothing and reads all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal, localcontext
from typing import Literal

from kvgauge.errors import UserError
from kvgauge.formats import KVFormat
from kvgauge.formula.held import (
    Storage,
    layer_state_bytes,
    open_group_bytes,
    row_bytes,
    token_row_bytes,
    tokens_held,
)
from kvgauge.formula.stack import Counted, counted, distinct_layers
from kvgauge.formula.weights import WeightFormat
from kvgauge.shapes.types import LayerShape, ModelShape

DecodeScope = Literal["attention", "step"]


@dataclass(frozen=True, slots=True)
class Operation:
    """Work that runs as one: its bytes and its floating-point operations overlap.

    `eight_bit`: both inputs are 8-bit floats, for which a card may have a rate of its own.
    """

    name: str
    moved_bytes: int
    flops: int
    eight_bit: bool = False


def layer_read_bytes(layer: LayerShape, tokens: int, storage: Storage) -> int:
    """Bytes that one step of one sequence reads in a layer, on one rank."""
    kept = tokens_held(layer, tokens)
    rows = kept * row_bytes(layer, storage).total + open_group_bytes(layer, kept, storage)
    return rows + layer_state_bytes(layer, storage) if layer.state else rows


def q_heads_per_rank(layer: LayerShape, tensor_parallel: int) -> int:
    """Query heads of the fullest rank."""
    return -(-layer.q_heads // tensor_parallel)


def attention_flops(layer: LayerShape, tokens: int, tensor_parallel: int = 1) -> int:
    """FLOPs of one sequence's decode attention: a multiply and an add for each q·K and p·V term.

    MLA decodes on the latent (absorbed): scores over latent_dim + rope_dim, values over latent_dim.
    """
    n, heads = tokens_held(layer, tokens), q_heads_per_rank(layer, tensor_parallel)
    if layer.kind == "mla":
        return 2 * heads * n * (2 * layer.latent_dim + layer.rope_dim)
    return 2 * heads * n * (layer.k_dim + layer.v_dim)


def attention_operations(
    layers: Counted, tokens: int, storage: Storage, batch: int
) -> list[Operation]:
    """One operation for each distinct layer: equal layers take equal times, so a sum is a product."""
    eight_bit = storage.fmt.name.startswith("fp8")
    return [
        Operation(
            f"attention {layer.kind}",
            batch * count * layer_read_bytes(layer, tokens, storage),
            batch * count * attention_flops(layer, tokens, storage.tensor_parallel),
            eight_bit,
        )
        for layer, count in layers
        if layer.kind != "none"
    ]


def decode_operations(
    shape: ModelShape,
    tokens: int,
    fmt: KVFormat,
    *,
    batch: int = 1,
    scope: DecodeScope = "attention",
    layers_timed: int | None = None,
    weight_bits: int = 16,
) -> tuple[Operation, ...]:
    """The operations of one decode step at a depth of `tokens`, on one device.

    `layers_timed` counts the first layers alone (scope `attention`); None means all.
    """
    storage = Storage(fmt)
    if scope == "step":
        return step_operations(
            shape, tokens, storage, batch, WeightFormat(f"{weight_bits} bits", weight_bits)
        )
    timed = distinct_layers(shape) if layers_timed is None else counted(shape.layers[:layers_timed])
    return tuple(attention_operations(timed, tokens, storage, batch))


def params_read(shape: ModelShape, batch: int) -> int | None:
    """Weights that one step of a batch reads; None where the source does not say.

    Of E experts of which each token visits k at random, a batch of B visits E * (1 - (1 - k/E)^B).
    """
    active, routed = shape.params_active, shape.params_routed
    if active is None or not routed or batch == 1:
        return active
    with localcontext(Context(prec=60)):
        missed = 1 - Decimal(shape.experts_per_token) / shape.experts
        more = (routed * (missed - missed**batch)).to_integral_value(ROUND_CEILING)
    return active + int(more)


def step_operations(
    shape: ModelShape, tokens: int, storage: Storage, batch: int, weights: WeightFormat
) -> tuple[Operation, ...]:
    """The operations of one decode step of the whole stack on one rank, communication left out."""
    read = params_read(shape, batch)
    if read is None or shape.params_active is None:
        raise UserError(f"{shape.name}: weight counts unknown, no step can be predicted")
    layers, ranks = distinct_layers(shape), storage.tensor_parallel
    append = sum(count * token_row_bytes(layer, storage) for layer, count in layers)
    return (
        *attention_operations(layers, tokens, storage, batch),
        Operation(
            "weights",
            -(-weights.bytes_of(read) // ranks),
            -(-2 * batch * shape.params_active // ranks),
            eight_bit=weights.name == "fp8",
        ),
        Operation("append", batch * append, 0),
    )


def total_bytes(operations: Sequence[Operation]) -> int:
    """All bytes moved."""
    return sum(op.moved_bytes for op in operations)


def total_flops(operations: Sequence[Operation]) -> int:
    """All floating-point operations."""
    return sum(op.flops for op in operations)
