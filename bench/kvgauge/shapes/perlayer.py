"""Decoders whose attention layers differ in more than the window: heads, dims, sharing, none at all.

Sources: transformers' configuration files of Gemma 3n, Gemma 4 and MiMo-V2-Flash; for Nemotron-NAS,
DeciLM and OpenELM the configuration code beside the public checkpoints.
"""

from __future__ import annotations

from dataclasses import replace

from kvgauge.shapes.fields import Fields
from kvgauge.shapes.stack import Stack, attention_layer
from kvgauge.shapes.types import MAX_DIM, MAX_LAYERS, LayerShape

_FULL, _SLIDING = "full_attention", "sliding_attention"


def _sliding(fields: Fields, count: int, default: list[bool] | None) -> list[bool]:
    # Whether each layer slides: `layer_types`, or the family's rule.
    if not fields.has("layer_types") and default is not None:
        return default
    kinds = fields.texts("layer_types", count)
    unknown = next((kind for kind in kinds if kind not in (_FULL, _SLIDING)), None)
    if unknown is not None:
        raise fields.unsupported("layer_types", f"{unknown[:40]!a} is not understood")
    return [kind == _SLIDING for kind in kinds]


def _stack(fields: Fields, layers: tuple[LayerShape, ...]) -> Stack:
    return Stack(layers, fields.integer("hidden_size"), fields.integer("vocab_size"))


def _with_sharing(
    fields: Fields, layers: list[LayerShape], default: int | None = None
) -> tuple[LayerShape, ...]:
    # The last `num_kv_shared_layers` read what the last layer of their kind before them stored.
    shared = fields.integer("num_kv_shared_layers", low=0, high=len(layers) - 1, default=default)
    first = len(layers) - shared
    if {layer.kind for layer in layers[first:]} - {layer.kind for layer in layers[:first]}:
        raise fields.unsupported("num_kv_shared_layers", "a kind of layer has nothing to share")
    return (*layers[:first], *(replace(layer, shared=True) for layer in layers[first:]))


def read_gemma3n(fields: Fields) -> Stack:
    """Gemma 3n: four of five layers slide, the last layers share."""
    count = fields.integer("num_hidden_layers", high=MAX_LAYERS)
    sliding = _sliding(fields, count, [bool((i + 1) % 5) for i in range(count)])
    full = attention_layer(fields, head_dim=256)
    window = replace(full, kind="sliding", window=fields.integer("sliding_window"))
    fields.understood("vocab_size_per_layer_input", "hidden_size_per_layer_input")
    _refuse_bidirectional(fields)
    return _stack(fields, _with_sharing(fields, [window if s else full for s in sliding]))


def read_gemma4(fields: Fields) -> Stack:
    """Gemma 4: full layers have a head dimension of their own, and perhaps KV heads."""
    count = fields.integer("num_hidden_layers", high=MAX_LAYERS)
    sliding = _sliding(fields, count, [bool((i + 1) % 6) for i in range(count)])
    sliding[-1] = False
    local = attention_layer(fields, head_dim=256)
    window = replace(local, kind="sliding", window=fields.integer("sliding_window"))
    _refuse_bidirectional(fields)
    dim = fields.integer("global_head_dim", default=512)
    kv_heads = local.kv_heads
    fields.understood("num_global_key_value_heads", "vocab_size_per_layer_input",
                      "hidden_size_per_layer_input")  # fmt: skip
    if fields.flag("attention_k_eq_v", default=False):
        kv_heads = fields.integer("num_global_key_value_heads", default=kv_heads)
    full = LayerShape("full", local.q_heads, kv_heads, dim, dim)
    if fields.has("per_layer_config"):
        full = _stated_full(fields, full, sliding)
    return _stack(fields, _with_sharing(fields, [window if s else full for s in sliding], 0))


def _stated_full(fields: Fields, full: LayerShape, sliding: list[bool]) -> LayerShape:
    # As transformers saves it: the same object for each full layer, by its number.
    stated = fields.get("per_layer_config")
    numbers = {str(i) for i, flag in enumerate(sliding) if not flag}
    values = list(stated.values()) if isinstance(stated, dict) else []
    named = {str(key).lstrip("0") or "0" for key in stated} if isinstance(stated, dict) else set()
    first = values[0] if values else None
    if named != numbers or not isinstance(first, dict) or any(each != first for each in values):
        raise fields.unsupported("per_layer_config", "must state the full layers alike")
    if set(first) - {"head_dim", "num_key_value_heads"}:
        raise fields.unsupported("per_layer_config", "only head_dim and KV heads are known here")
    inside = Fields(f"{fields.where}: per_layer_config", first)
    dim = inside.integer("head_dim", default=full.k_dim)
    kv_heads = inside.integer("num_key_value_heads", default=full.kv_heads)
    return replace(full, kv_heads=kv_heads, k_dim=dim, v_dim=dim)


def _refuse_bidirectional(fields: Fields) -> None:
    if fields.get("use_bidirectional_attention") not in (None, False, "vision"):
        raise fields.unsupported("use_bidirectional_attention", "halves the window")


def read_mimo_v2(fields: Fields) -> Stack:
    """MiMo-V2-Flash: KV heads and dims of the sliding layers are their own; K and V dims differ."""
    count = fields.integer("num_hidden_layers", high=MAX_LAYERS)
    if fields.has("hybrid_layer_pattern"):
        default = [flag == 1 for flag in fields.integers("hybrid_layer_pattern", count)]
    else:
        default = [bool(i and (i + 1) % 6) for i in range(count)]
    fields.understood("hybrid_layer_pattern", "hybrid_block_size", "add_swa_attention_sink_bias",
                      "add_full_attention_sink_bias", "swa_rope_theta", "attention_chunk_size",
                      "sliding_window_size", "sliding_window", "attention_value_scale")  # fmt: skip
    sliding = _sliding(fields, count, default)
    full = replace(attention_layer(fields, head_dim=192), v_dim=fields.integer("v_head_dim"))
    # One more than the checkpoint's own name: the window of transformers holds the query's token.
    stated = fields.has("sliding_window_size")
    window = (
        fields.integer("sliding_window_size") + 1 if stated else fields.integer("sliding_window")
    )
    local = LayerShape(
        "sliding",
        fields.integer("swa_num_attention_heads", default=full.q_heads),
        fields.integer("swa_num_key_value_heads", default=2 * full.kv_heads),
        fields.integer("swa_head_dim", default=full.k_dim),
        fields.integer("swa_v_head_dim", default=full.v_dim),
        window,
    )
    return _stack(fields, tuple(local if flag else full for flag in sliding))


def read_nas(fields: Fields) -> Stack:
    """Nemotron-NAS: `block_configs` gives each layer its heads in a group, or no attention."""
    count = fields.integer("num_hidden_layers", high=MAX_LAYERS)
    blocks = fields.get("block_configs")
    if not isinstance(blocks, list) or len(blocks) != count:
        raise fields.error("block_configs", f"must be a list of {count} blocks")
    q_heads, hidden = fields.integer("num_attention_heads"), fields.integer("hidden_size")
    dim = fields.integer("head_dim", default=max(hidden // q_heads, 1))
    fields.understood("num_key_value_heads")  # null: the blocks state it
    layers = tuple(_block(fields, i, block, q_heads, dim) for i, block in enumerate(blocks))
    return _stack(fields, layers)


def _block(fields: Fields, i: int, block: object, q_heads: int, dim: int) -> LayerShape:
    where = f"{fields.where}: block_configs[{i}]"
    attention = block.get("attention") if isinstance(block, dict) else None
    if not isinstance(attention, dict):
        raise fields.error("block_configs", f"block {i} must have an object `attention`")
    inside = Fields(where, attention)
    known = {"no_op", "n_heads_in_group", "replace_with_linear", "num_sink_tokens",
             "use_prefill_window_in_sink_attention", "unshifted_sink", "window_length", "sparsify",
             "sparse"}  # fmt: skip
    strange = next((name for name in attention if name not in known and attention[name]), None)
    for name in ("window_length", "num_sink_tokens"):
        strange = name if attention.get(name) else strange
    if strange is not None:
        raise inside.unsupported(strange, "this kind of block is not known")
    if inside.flag("no_op", default=False) or inside.flag("replace_with_linear", default=False):
        return LayerShape("none")
    group = inside.integer("n_heads_in_group", high=MAX_DIM)
    if q_heads % group:
        raise inside.error("n_heads_in_group", f"must divide the {q_heads} query heads")
    return LayerShape("full", q_heads, q_heads // group, dim, dim)


def read_deci(fields: Fields) -> Stack:
    """DeciLM-7B: KV heads are a list, one entry a layer."""
    count = fields.integer("num_hidden_layers", high=MAX_LAYERS)
    kv_heads = fields.integers("num_key_value_heads_per_layer", count, low=1)
    fields.understood("num_key_value_heads")
    base = attention_layer(Fields(fields.where, {**fields.values, "num_key_value_heads": None}))
    return _stack(fields, tuple(replace(base, kv_heads=kv) for kv in kv_heads))


def read_openelm(fields: Fields) -> Stack:
    """OpenELM: query and KV heads are lists, one entry a layer."""
    count = fields.integer("num_transformer_layers", high=MAX_LAYERS)
    q_heads = fields.integers("num_query_heads", count, low=1)
    kv_heads = fields.integers("num_kv_heads", count, low=1)
    dim, hidden = fields.integer("head_dim"), fields.integer("model_dim")
    layers = tuple(
        LayerShape("full", q, kv, dim, dim) for q, kv in zip(q_heads, kv_heads, strict=True)
    )
    fields.understood("num_gqa_groups", "share_input_output_layers")
    return Stack(layers, hidden, fields.integer("vocab_size"))
