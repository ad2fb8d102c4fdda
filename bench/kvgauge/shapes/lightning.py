"""MiniMax-01: lightning attention, a recurrent matrix a head and no convolution, beside full.

Source: transformers' modeling_minimax.py, where the state is `[heads, head_dim, head_dim]`.
"""

from __future__ import annotations

from kvgauge.shapes.fields import Fields
from kvgauge.shapes.linear import linear_layers
from kvgauge.shapes.stack import Stack, attention_layer
from kvgauge.shapes.types import MAX_LAYERS, LayerShape, StatePart

_SCALES = ("_alpha_factor", "_beta_factor", "_attention_alpha", "_attention_beta")


def read(fields: Fields) -> Stack:
    """The layers of a `minimax`."""
    count = fields.integer("num_hidden_layers", high=MAX_LAYERS)
    full = attention_layer(fields)
    if fields.has("layer_types"):
        is_linear = linear_layers(fields, count)
    else:  # as the first release spells it: 1 is full
        is_linear = [not flag for flag in fields.integers("attn_type_list", count)]
    fields.understood("attn_type_list")  # the scales of residuals are no layout
    fields.understood(*(name for name in fields.values if name.endswith(_SCALES)))
    recurrent = StatePart("recurrent", full.q_heads * full.k_dim * full.v_dim, 16)
    layers = tuple(LayerShape("linear", state=(recurrent,)) if f else full for f in is_linear)
    return Stack(layers, fields.integer("hidden_size"), fields.integer("vocab_size"))
