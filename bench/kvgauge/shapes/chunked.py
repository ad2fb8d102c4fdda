"""Llama 4: chunked layers with rotary positions, and full ones without.

Source: transformers' configuration_llama4.py and modeling_llama4.py.
"""

from __future__ import annotations

from kvgauge.shapes.fields import Fields
from kvgauge.shapes.plain import Plain
from kvgauge.shapes.types import MAX_LAYERS

_CHUNKED, _FULL = "chunked_attention", "full_attention"


def read(fields: Fields) -> Plain:
    """The facts of a `llama4_text`."""
    layers = fields.integer("num_hidden_layers", high=MAX_LAYERS)
    q_heads = fields.integer("num_attention_heads")
    hidden = fields.integer("hidden_size")
    if "attention_chunk_size" not in fields.values:
        raise fields.error("attention_chunk_size", "missing, must be a number of tokens or null")
    chunk = fields.integer("attention_chunk_size") if fields.has("attention_chunk_size") else None
    chunked = _chunked(fields, layers) if chunk else frozenset[int]()
    kv_heads = fields.integer("num_key_value_heads")
    if q_heads % kv_heads:
        raise fields.error("num_key_value_heads", f"must divide the {q_heads} query heads")
    ffn = fields.integer("intermediate_size", default=0)
    experts = fields.integer("num_local_experts")
    bias = fields.flag("attention_bias", default=False)
    return Plain(
        layers=layers,
        hidden=hidden,
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=fields.integer("head_dim", default=max(hidden // q_heads, 1)),
        ffn=fields.integer("intermediate_size_mlp", default=0),
        vocab=fields.integer("vocab_size"),
        tied=fields.flag("tie_word_embeddings", default=False),
        window=chunk if chunked else None,
        window_layers=chunked,
        chunked=True,
        qkv_bias=bias,
        out_bias=bias,
        experts=experts,
        active_experts=fields.integer("num_experts_per_tok", high=experts),
        expert_ffn=ffn,
        shared_ffn=ffn,
        shared_gate=False,
        dense_layers=layers - len(_mixture_layers(fields, layers)),
    )


def _chunked(fields: Fields, layers: int) -> frozenset[int]:
    # In transformers layer_types goes before no_rope_layers, whose 1 means: with rotary positions.
    fields.understood("no_rope_layers", "no_rope_layer_interval", "layer_types")
    if fields.has("layer_types"):
        kinds = fields.texts("layer_types", layers)
        unknown = next((kind for kind in kinds if kind not in (_CHUNKED, _FULL)), None)
        if unknown is not None:
            raise fields.unsupported("layer_types", f"{unknown[:40]!a} is not understood")
        return frozenset(i for i, kind in enumerate(kinds) if kind == _CHUNKED)
    if fields.values.get("no_rope_layers"):  # [] stands for the default
        rope = fields.integers("no_rope_layers", layers)
        return frozenset(i for i, flag in enumerate(rope) if flag)
    interval = fields.integer("no_rope_layer_interval", default=4)
    return frozenset(i for i in range(layers) if (i + 1) % interval)


def _mixture_layers(fields: Fields, layers: int) -> frozenset[int]:
    if fields.has("moe_layers"):
        return fields.layer_indices("moe_layers", layers)
    step = fields.integer("interleave_moe_layer_step", default=1)
    return frozenset(range(step - 1, layers, step))
