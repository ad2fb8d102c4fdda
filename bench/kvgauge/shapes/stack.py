"""Stack: the layers of a model one by one, with its weights where they can be counted exactly."""

from __future__ import annotations

from dataclasses import dataclass

from kvgauge.shapes import weights
from kvgauge.shapes.fields import Fields
from kvgauge.shapes.types import LayerShape, ModelShape
from kvgauge.shapes.weights import Weights


@dataclass(frozen=True, slots=True)
class Stack:
    """What a reader returns whose layers differ; `weights` None where they are not counted."""

    layers: tuple[LayerShape, ...]
    hidden: int
    vocab: int
    weights: Weights | None = None

    def shape(self, name: str, source: str) -> ModelShape:
        """The model as its cache and its weights see it."""
        return weights.model(name, self.layers, self.hidden, self.vocab, self.weights, source)


def attention_layer(
    fields: Fields, *, head_dim: int | None = None, kv_heads: str = "num_key_value_heads"
) -> LayerShape:
    """A full layer from the usual field names; as many KV heads as query heads where null.

    Absent is an error: each class falls back on the number of one checkpoint.
    """
    q_heads = fields.integer("num_attention_heads")
    if kv_heads not in fields.values:
        raise fields.error(kv_heads, "missing, must be a number of heads or null")
    kv = fields.integer(kv_heads, default=q_heads)
    if q_heads % kv:
        raise fields.error(kv_heads, f"must divide the {q_heads} query heads, found {kv}")
    if fields.has("head_dim"):
        dim = fields.integer("head_dim")
    elif head_dim is not None:
        dim = head_dim
    else:
        hidden = fields.integer("hidden_size")
        if hidden % q_heads:
            raise fields.error("num_attention_heads", f"must divide the hidden size {hidden}")
        dim = hidden // q_heads
    return LayerShape("full", q_heads, kv, dim, dim)
