"""Nemotron-H and Nemotron 3: each layer is Mamba-2, attention, an MLP or a mixture of experts.

Source: transformers' configuration_nemotron_h.py and modeling_nemotron_h.py.
"""

from __future__ import annotations

from kvgauge.shapes import weights
from kvgauge.shapes.fields import Fields
from kvgauge.shapes.ssm import mamba2
from kvgauge.shapes.stack import Stack, attention_layer
from kvgauge.shapes.types import MAX_LAYERS, LayerShape
from kvgauge.shapes.weights import Weights, dense, linear

_PATTERN = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
_SPELLINGS = {"linear_attention": "mamba", "full_attention": "attention"}
_NAMES = ("layer_types", "layers_block_type")


def read(fields: Fields) -> Stack:
    """The layers of a `nemotron_h`."""
    kinds = _kinds(fields)
    hidden, vocab = fields.integer("hidden_size"), fields.integer("vocab_size")
    fields.understood("use_mamba_kernels", "mamba_proj_bias", "use_conv_bias", "expand",
                      "mamba_ssm_cache_dtype", "chunk_size", "conv_kernel", "ssm_state_size",
                      "mamba_hidden_act", "mamba_num_heads", "mamba_head_dim", "moe_latent_size",
                      "n_shared_experts",
                      "mtp_hybrid_override_pattern", "mtp_layers_block_type")  # fmt: skip
    if fields.has("sliding_window"):
        raise fields.unsupported("sliding_window", "no window is known here")
    found = {kind: _layer(kind, fields) for kind in dict.fromkeys(kinds)}
    layers = tuple(found[kind] for kind in kinds)
    if fields.values.get("moe_latent_size"):  # experts on a projection of the hidden size
        return Stack(layers, hidden, vocab)
    total = weights.embedding(hidden, vocab, tied=fields.flag("tie_word_embeddings", default=False))
    total += dense(hidden * (1 + len(kinds)))
    for kind in found:
        total += _weights(kind, fields, hidden, found[kind]) * kinds.count(kind)
    return Stack(layers, hidden, vocab, total)


def _kinds(fields: Fields) -> list[str]:
    name = next((name for name in _NAMES if fields.has(name)), None)
    fields.understood(*_NAMES, "hybrid_override_pattern")
    if name is not None:
        stated = fields.get(name)
        kinds = fields.texts(name, len(stated) if isinstance(stated, list) else 0)
    else:
        kinds = [_PATTERN.get(mark, mark) for mark in fields.text("hybrid_override_pattern")]
        name = "hybrid_override_pattern"
    kinds = [_SPELLINGS.get(kind, kind) for kind in kinds]
    if set(kinds) - set(_PATTERN.values()):
        raise fields.unsupported(name, f"each layer must be one of {', '.join(_PATTERN.values())}")
    if fields.has("num_hidden_layers"):
        count = fields.integer("num_hidden_layers", high=MAX_LAYERS)
        if count != len(kinds):
            raise fields.error(name, f"must state {count} layers, found {len(kinds)}")
    return kinds


def _layer(kind: str, fields: Fields) -> LayerShape:
    if kind == "attention":
        # The first releases say attention_head_dim.
        stated = fields.integer("attention_head_dim", default=128)
        return attention_layer(fields, head_dim=stated)
    if kind != "mamba":
        return LayerShape("none")
    heads, dim = fields.integer("mamba_num_heads"), fields.integer("mamba_head_dim")
    groups = fields.integer("n_groups")
    state = fields.integer("ssm_state_size")
    return mamba2(heads * dim, heads, dim, groups, state, fields.integer("conv_kernel"))


def _weights(kind: str, fields: Fields, hidden: int, layer: LayerShape) -> Weights:
    if kind == "mamba":
        return _mamba_weights(fields, hidden)
    if kind == "attention":
        bias = fields.flag("attention_bias", default=False)
        heads = (layer.q_heads, layer.kv_heads, layer.k_dim)
        return weights.attention(hidden, *heads, qkv_bias=bias, out_bias=bias)
    bias = fields.flag("mlp_bias", default=False)
    if kind == "mlp":
        return weights.mlp(hidden, fields.integer("intermediate_size"), gated=False, bias=bias)
    count = fields.integer("n_routed_experts")
    active = fields.integer("num_experts_per_tok", high=count)
    ffn = fields.integer("moe_intermediate_size")
    shared = fields.integer("moe_shared_expert_intermediate_size")
    routed = weights.experts(hidden, ffn, count, active, gated=False)
    return routed + weights.mlp(hidden, shared, gated=False, bias=bias)


def _mamba_weights(fields: Fields, hidden: int) -> Weights:
    heads, dim = fields.integer("mamba_num_heads"), fields.integer("mamba_head_dim")
    inner = heads * dim
    both = 2 * fields.integer("n_groups") * fields.integer("ssm_state_size")
    bias = fields.flag("use_bias", default=False)
    conv = (inner + both) * fields.integer("conv_kernel")
    if fields.flag("use_conv_bias", default=True):
        conv += inner + both
    projections = linear(hidden, 2 * inner + both + heads, bias=bias)
    projections += linear(inner, hidden, bias=bias)
    return dense(projections + conv + inner + 3 * heads)
