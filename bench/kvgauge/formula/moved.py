"""Bytes that a decode step moves and operations that it does, as a list of operations.

Decode reads the held bytes once a step. With scope `step` or `engine` it also reads the active
weights once a step (shared by the batch) and writes the appended token. Scope `attention` is the
attention alone over a cache that stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kvgauge.errors import UserError
from kvgauge.formats import KVFormat
from kvgauge.formula.held import layer_bytes, token_row_bytes, tokens_held
from kvgauge.shapes.types import LayerShape, ModelShape

DecodeScope = Literal["attention", "step"]


@dataclass(frozen=True, slots=True)
class Operation:
    """Work that runs as one: its bytes and its floating-point operations overlap."""

    name: str
    moved_bytes: int
    flops: int


def attention_flops(layer: LayerShape, tokens: int) -> int:
    """FLOPs of one sequence's decode attention: a multiply and an add for each q·K and p·V term.

    MLA decodes on the latent (absorbed): scores over latent_dim + rope_dim, values over latent_dim.
    """
    n = tokens_held(layer, tokens)
    if layer.kind == "mla":
        return 2 * layer.q_heads * n * (2 * layer.latent_dim + layer.rope_dim)
    return 2 * layer.q_heads * n * (layer.k_dim + layer.v_dim)


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
    layers = shape.layers if layers_timed is None else shape.layers[:layers_timed]
    operations = [
        Operation(
            f"attention {layer.kind}",
            batch * layer_bytes(layer, tokens, fmt),
            batch * attention_flops(layer, tokens),
        )
        for layer in layers
        if layer.kind != "none"
    ]
    if scope == "attention":
        return tuple(operations)
    if shape.params_active is None:
        raise UserError(f"{shape.name}: weight counts unknown, no step can be predicted")
    append = batch * sum(token_row_bytes(layer, fmt) for layer in layers)
    weights = Operation(
        "weights", shape.params_active * weight_bits // 8, 2 * batch * shape.params_active
    )
    return (*operations, weights, Operation("append", append, 0))


def total_bytes(operations: Sequence[Operation]) -> int:
    """All bytes moved."""
    return sum(op.moved_bytes for op in operations)


def total_flops(operations: Sequence[Operation]) -> int:
    """All floating-point operations."""
    return sum(op.flops for op in operations)
