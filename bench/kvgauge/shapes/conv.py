"""LFM2: short convolutions, whose last columns are all that they keep, beside full attention.

Source: transformers' configuration_lfm2.py, configuration_lfm2_moe.py and their modeling files.
"""

from __future__ import annotations

from kvgauge.shapes.fields import Fields
from kvgauge.shapes.stack import Stack, attention_layer
from kvgauge.shapes.types import MAX_LAYERS, LayerShape, StatePart


def read(fields: Fields) -> Stack:
    """The layers of an `lfm2` or `lfm2_moe`."""
    count = fields.integer("num_hidden_layers", high=MAX_LAYERS)
    hidden = fields.integer("hidden_size")
    fields.understood("conv_bias", "full_attn_idxs", "conv_dim", "conv_dim_out",
                      "conv_use_xavier_init")  # fmt: skip
    if fields.has("layer_types"):
        kinds = fields.texts("layer_types", count)
        unknown = next((kind for kind in kinds if kind not in ("conv", "full_attention")), None)
        if unknown is not None:
            raise fields.unsupported("layer_types", f"{unknown[:40]!a} is not understood")
        is_conv = [kind == "conv" for kind in kinds]
    elif fields.has("full_attn_idxs"):
        full = fields.layer_indices("full_attn_idxs", count)
        is_conv = [i not in full for i in range(count)]
    else:
        raise fields.error("layer_types", "missing, must name the layers that are convolutions")
    columns = StatePart("conv", hidden * fields.integer("conv_L_cache"), 16)
    short, attention = LayerShape("linear", state=(columns,)), attention_layer(fields)
    layers = tuple(short if flag else attention for flag in is_conv)
    return Stack(layers, hidden, fields.integer("vocab_size"))
