"""How many weights a decoder has, and how many of them one decode step reads.

Counts are elements, not bytes. Sources: the parameter lists of the models' public implementations
(transformers' modeling files), against which the tests check every total.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from kvgauge.shapes.types import LayerShape, ModelShape

QKNorm = Literal["none", "head", "all"]


@dataclass(frozen=True, slots=True)
class Weights:
    """`total` counts every weight, `active` those that one decode step of one sequence reads.

    `routed` are those of all `experts` of which a token visits `per_token`: the same numbers of them
    in each layer that has any.
    """

    total: int
    active: int
    routed: int = 0
    experts: int = 0
    per_token: int = 0

    def __add__(self, other: Weights) -> Weights:
        return Weights(
            self.total + other.total,
            self.active + other.active,
            self.routed + other.routed,
            max(self.experts, other.experts),
            max(self.per_token, other.per_token),
        )

    def __mul__(self, count: int) -> Weights:
        if not count:
            return NO_WEIGHTS
        return replace(
            self, total=self.total * count, active=self.active * count, routed=self.routed * count
        )


NO_WEIGHTS = Weights(0, 0)


def dense(count: int) -> Weights:
    """Weights that every step reads."""
    return Weights(count, count)


def linear(inputs: int, outputs: int, *, bias: bool = False) -> int:
    """A matrix and perhaps its bias."""
    return inputs * outputs + (outputs if bias else 0)


def attention(
    hidden: int,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    qkv_bias: bool = False,
    out_bias: bool = False,
    qk_norm: QKNorm = "none",
) -> Weights:
    """Q, K, V and output projections of one layer.

    `qk_norm` `head`: one scale of head_dim shared by the heads (Qwen3); `all`: one scale over all
    heads together (OLMo 2).
    """
    q_dim, kv_dim = q_heads * head_dim, kv_heads * head_dim
    projections = linear(hidden, q_dim + 2 * kv_dim, bias=qkv_bias)
    norms = {"none": 0, "head": 2 * head_dim, "all": q_dim + kv_dim}[qk_norm]
    return dense(projections + linear(q_dim, hidden, bias=out_bias) + norms)


def mlp(hidden: int, ffn: int, *, gated: bool = True, bias: bool = False) -> Weights:
    """Gate, up and down (gated), or up and down."""
    up = linear(hidden, ffn, bias=bias)
    return dense((2 if gated else 1) * up + linear(ffn, hidden, bias=bias))


def experts(
    hidden: int,
    expert_ffn: int,
    count: int,
    active: int,
    *,
    gated: bool = True,
    bias: bool = False,
) -> Weights:
    """A router, read whole, and `count` experts of which a token visits `active`."""
    router = dense(linear(hidden, count, bias=bias))
    one = mlp(hidden, expert_ffn, gated=gated, bias=bias).total
    return router + Weights(count * one, active * one, count * one, count, active)


def embedding(hidden: int, vocab: int, *, tied: bool) -> Weights:
    """Input table and output head: one table where tied, and one of two is read either way.

    A step looks up a single row of the input table, which is not counted.
    """
    table = vocab * hidden
    return Weights(table if tied else 2 * table, table)


def model(
    name: str,
    layers: tuple[LayerShape, ...],
    hidden: int,
    vocab: int,
    count: Weights | None,
    source: str,
) -> ModelShape:
    """The shape of a model with these weights; without any where `count` is None."""
    if count is None:
        return ModelShape(name, layers, hidden, vocab, None, None, source)
    return ModelShape(
        name,
        layers,
        hidden,
        vocab,
        count.total,
        count.active,
        source,
        experts=count.experts,
        experts_per_token=count.per_token,
        params_routed=count.routed,
    )
