"""How many weights a decoder has, and how many of them one decode step reads.

Counts are elements, not bytes. Sources: the parameter lists of the models' public implementations
(transformers' modeling files), against which the tests check every total.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

QKNorm = Literal["none", "head", "all"]


@dataclass(frozen=True, slots=True)
class Weights:
    """`total` counts every weight, `active` those that one decode step of one sequence reads."""

    total: int
    active: int

    def __add__(self, other: Weights) -> Weights:
        return Weights(self.total + other.total, self.active + other.active)

    def __mul__(self, count: int) -> Weights:
        return Weights(self.total * count, self.active * count)


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
    return router + Weights(count * one, active * one)


def embedding(hidden: int, vocab: int, *, tied: bool) -> Weights:
    """Input table and output head: one table where tied, and one of two is read either way.

    A step looks up a single row of the input table, which is not counted.
    """
    table = vocab * hidden
    return Weights(table if tied else 2 * table, table)
