"""State-space layers: Mamba and Mamba-2 alone, beside attention, or in one layer with it.

Source: the modeling files of transformers, whose caches hold the convolution's last `kernel`
columns in the model's dtype and the recurrent state in fp32.
"""

from __future__ import annotations

from dataclasses import replace

from kvgauge.shapes.fields import Fields
from kvgauge.shapes.stack import Stack, attention_layer
from kvgauge.shapes.types import MAX_LAYERS, LayerShape, StatePart

_MAMBA = frozenset({"mamba", "mamba2", "linear_attention"})
_ATTENTION = frozenset({"attention", "full_attention"})

# What Bamba, Falcon-H1 and Granite-4 call the numbers of Mamba-2.
_MAMBA2_NAMES = {"heads": "mamba_n_heads", "head_dim": "mamba_d_head", "groups": "mamba_n_groups",
                 "state": "mamba_d_state", "kernel": "mamba_d_conv", "expand": "mamba_expand"}  # fmt: skip


def mamba2(
    inner: int, heads: int, head_dim: int, groups: int, state: int, kernel: int
) -> LayerShape:
    """A Mamba-2 layer: the convolution runs over its inputs, B and C."""
    conv = StatePart("conv", (inner + 2 * groups * state) * kernel, 16)
    return LayerShape("ssm", state=(conv, StatePart("recurrent", heads * head_dim * state, 32)))


def mamba1(inner: int, state: int, kernel: int) -> LayerShape:
    """A Mamba layer: the convolution runs over its inputs alone."""
    conv = StatePart("conv", inner * kernel, 16)
    return LayerShape("ssm", state=(conv, StatePart("recurrent", inner * state, 32)))


def _mamba2_layer(fields: Fields, inner: int | None = None) -> LayerShape:
    names = _MAMBA2_NAMES
    fields.understood("mamba_expand", "mamba_chunk_size", "mamba_conv_bias", "mamba_proj_bias",
                      "mamba_rms_norm", "mamba_norm_before_gate", "mamba_use_mlp")  # fmt: skip
    if inner is None:
        inner = fields.integer(names["expand"], default=2) * fields.integer("hidden_size")
    heads = fields.integer(names["heads"])
    stated = fields.values.get(names["head_dim"])
    if stated is None or stated == "auto":
        head_dim = inner // heads
        fields.understood(names["head_dim"])
    else:
        head_dim = fields.integer(names["head_dim"])
    if heads * head_dim != inner:
        raise fields.error(names["heads"], f"times mamba_d_head must be {inner}, found {heads}")
    return mamba2(
        inner,
        heads,
        head_dim,
        fields.integer(names["groups"], default=1),
        fields.integer(names["state"]),
        fields.integer(names["kernel"]),
    )


def _count(fields: Fields) -> int:
    return fields.integer("num_hidden_layers", high=MAX_LAYERS)


def _stack(fields: Fields, layers: tuple[LayerShape, ...]) -> Stack:
    return Stack(layers, fields.integer("hidden_size"), fields.integer("vocab_size"))


def _listed(fields: Fields, name: str, count: int) -> list[bool]:
    # Whether each layer is a Mamba layer.
    kinds = fields.texts(name, count)
    unknown = next((kind for kind in kinds if kind not in _MAMBA | _ATTENTION), None)
    if unknown is not None:
        raise fields.unsupported(name, f"{unknown[:40]!a} is not understood")
    return [kind in _MAMBA for kind in kinds]


def read_bamba(fields: Fields) -> Stack:
    """Bamba: full attention in the layers that `attn_layer_indices` names."""
    count = _count(fields)
    attention = fields.layer_indices("attn_layer_indices", count)
    state, full = _mamba2_layer(fields), attention_layer(fields)
    fields.understood("layer_types", "layers_block_type")
    return _stack(fields, tuple(full if i in attention else state for i in range(count)))


def read_granite(fields: Fields) -> Stack:
    """Granite 4: `layer_types`, or `layers_block_type`, names mamba and attention."""
    count = _count(fields)
    name = "layer_types" if fields.has("layer_types") else "layers_block_type"
    listed = _listed(fields, name, count)
    fields.understood("layer_types", "layers_block_type")
    if not any(listed):  # the hybrid's configuration class around a plain decoder
        for field in fields.values:
            if field.startswith("mamba_"):
                fields.understood(field)
        return _stack(fields, (attention_layer(fields),) * count)
    state, full = _mamba2_layer(fields), attention_layer(fields)
    return _stack(fields, tuple(state if flag else full for flag in listed))


def read_falcon_h1(fields: Fields) -> Stack:
    """Falcon-H1: attention and Mamba-2 side by side in each layer."""
    inner = fields.integer("mamba_d_ssm") if fields.has("mamba_d_ssm") else None
    state = _mamba2_layer(fields, inner)
    fields.understood("layers_block_type", "layer_types", "ssm_multipliers", "ssm_in_multiplier",
                      "ssm_out_multiplier")  # fmt: skip
    layer = replace(attention_layer(fields), state=state.state)
    return _stack(fields, (layer,) * _count(fields))


def read_jamba(fields: Fields) -> Stack:
    """Jamba: attention once in `attn_layer_period` layers, from `attn_layer_offset` on."""
    count = _count(fields)
    period = fields.integer("attn_layer_period")
    offset = fields.integer("attn_layer_offset", low=0)
    state, full = _mamba1_layer(fields), attention_layer(fields)
    fields.understood("layers_block_type", "layer_types")
    return _stack(fields, tuple(full if i % period == offset else state for i in range(count)))


def _mamba1_layer(fields: Fields) -> LayerShape:
    inner = fields.integer("mamba_expand") * fields.integer("hidden_size")
    fields.understood("use_mamba_kernels", "mamba_dt_rank", "mamba_conv_bias", "mamba_proj_bias",
                      "mamba_inner_layernorms")  # fmt: skip
    return mamba1(inner, fields.integer("mamba_d_state"), fields.integer("mamba_d_conv"))


def read_zamba2(fields: Fields) -> Stack:
    """Zamba2: Mamba-2 in all layers; the `hybrid` ones attend too, at twice the hidden size."""
    count, hidden = _count(fields), fields.integer("hidden_size")
    kinds = fields.texts("layers_block_type", count)
    if set(kinds) - _MAMBA - {"hybrid"}:
        raise fields.unsupported("layers_block_type", "only mamba and hybrid are known here")
    fields.understood("layer_types", "kv_channels", "mamba_headdim", "use_mamba_kernels",
                      "use_conv_bias", "chunk_size", "attention_head_dim", "head_dim",
                      "hybrid_layer_ids", "num_query_groups", "use_shared_attention_adapter",
                      "use_shared_mlp_adapter")  # fmt: skip
    heads = fields.integer("n_mamba_heads")
    inner = fields.integer("mamba_expand") * hidden
    if inner % heads:
        raise fields.error("n_mamba_heads", f"must divide {inner}, found {heads}")
    groups = fields.integer("mamba_ngroups", default=1)
    state, kernel = fields.integer("mamba_d_state"), fields.integer("mamba_d_conv")
    mamba = mamba2(inner, heads, inner // heads, groups, state, kernel)
    q_heads = fields.integer("num_attention_heads")
    kv_heads = fields.integer("num_key_value_heads", default=q_heads)
    dim = 2 * hidden // q_heads
    both = LayerShape("full", q_heads, kv_heads, dim, dim, state=mamba.state)
    return _stack(fields, tuple(both if kind == "hybrid" else mamba for kind in kinds))


def read_mamba(fields: Fields) -> Stack:
    """Mamba and Falcon-Mamba: no attention at all; a stated `intermediate_size` wins over `expand`."""
    inner = fields.integer("expand", default=2) * fields.integer("hidden_size")
    inner = fields.integer("intermediate_size", default=inner)
    fields.understood("use_conv_bias", "use_mambapy", "layer_types")
    layer = mamba1(inner, fields.integer("state_size"), fields.integer("conv_kernel"))
    return _stack(fields, (layer,) * _count(fields))


def read_mamba2(fields: Fields) -> Stack:
    """Mamba-2: no attention at all."""
    heads, dim = fields.integer("num_heads"), fields.integer("head_dim")
    inner = fields.integer("expand", default=2) * fields.integer("hidden_size")
    if heads * dim != inner:
        raise fields.error("num_heads", f"times head_dim must be {inner}, found {heads}")
    fields.understood("use_conv_bias", "layer_types", "chunk_size")
    groups, state = fields.integer("n_groups"), fields.integer("state_size")
    layer = mamba2(inner, heads, dim, groups, state, fields.integer("conv_kernel"))
    return _stack(fields, (layer,) * _count(fields))
