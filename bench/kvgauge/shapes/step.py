"""Step 3.5: sliding layers have query heads of their own, KV heads are the same in all layers.

Source: transformers' configuration_step3p7.py. The per-layer lists of the hub's files run on over the
multi-token-prediction layers, which are cut off.
"""

from __future__ import annotations

from dataclasses import replace

from kvgauge.shapes.fields import Fields
from kvgauge.shapes.stack import Stack, attention_layer
from kvgauge.shapes.types import MAX_LAYERS, LayerShape

_FULL, _SLIDING = "full_attention", "sliding_attention"
# Of the sliding layers' own settings: those that may differ from the other layers' without harm.
_HARMLESS = frozenset({"attention_type", "num_attention_heads"})


def read(fields: Fields) -> Stack:
    """The layers of a `step3p5`."""
    count = fields.integer("num_hidden_layers", high=MAX_LAYERS)
    hub = fields.has("num_attention_groups")
    groups = "num_attention_groups" if hub else "num_key_value_heads"
    fields.integer(groups)  # required: the class falls back on one checkpoint's number
    full = attention_layer(fields, head_dim=128, kv_heads=groups)
    q_heads = fields.integer("num_sliding_attention_heads", default=full.q_heads)
    other = fields.nested("attention_other_setting")
    if other is not None:
        q_heads = other.integer("num_attention_heads", default=q_heads)
        same = {"num_attention_groups": full.kv_heads, "num_key_value_heads": full.kv_heads,
                "head_dim": full.k_dim, "true_head_dim": full.k_dim}  # fmt: skip
        for name, value in other.values.items():
            if name not in _HARMLESS and value is not None and same.get(name) != value:
                raise other.unsupported(name, "must be that of the other layers")
            other.understood(name)
    fields.understood("per_layer_config", "mtp_layer_types", "mtp_mlp_layer_types")
    _check_overrides(fields)
    kinds = _kinds(fields, count)
    if _SLIDING not in kinds:
        fields.understood("sliding_window")
        return _stack(fields, (full,) * count)
    window = fields.integer("sliding_window")
    local = replace(full, kind="sliding", window=window, q_heads=q_heads)
    return _stack(fields, tuple(local if kind == _SLIDING else full for kind in kinds))


def _stack(fields: Fields, layers: tuple[LayerShape, ...]) -> Stack:
    return Stack(layers, fields.integer("hidden_size"), fields.integer("vocab_size"))


def _kinds(fields: Fields, count: int) -> list[str]:
    if not fields.has("layer_types"):
        if fields.has("sliding_window"):
            raise fields.unsupported(
                "sliding_window", "without layer_types its layers are not known"
            )
        return [_FULL] * count
    stated = fields.get("layer_types")
    padded = count + fields.integer("num_nextn_predict_layers", low=0, high=MAX_LAYERS, default=0)
    length = padded if isinstance(stated, list) and len(stated) == padded else count
    kinds = fields.texts("layer_types", length)[:count]
    unknown = next((kind for kind in kinds if kind not in (_FULL, _SLIDING)), None)
    if unknown is not None:
        raise fields.unsupported("layer_types", f"{unknown[:40]!a} is not understood")
    return kinds


def _check_overrides(fields: Fields) -> None:
    # As transformers saves it: query heads by the number of the layer.
    stated = fields.get("per_layer_config")
    values = stated.values() if isinstance(stated, dict) else []
    if any(not isinstance(each, dict) or set(each) - {"num_attention_heads"} for each in values):
        raise fields.unsupported("per_layer_config", "only num_attention_heads is known here")
