"""Config.json of the plain families: one line a `model_type`, and the reader that they share.

Sources: each family's configuration and modeling file in transformers. Where its configuration
class falls back on a number that is one checkpoint's (8 KV heads, a window of 4,096), the field is
required here; where it falls back on another field (kv_heads = heads), so does this reader.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvgauge.shapes import windows
from kvgauge.shapes.fields import Fields
from kvgauge.shapes.guard import refuse_unknown_layout
from kvgauge.shapes.plain import Plain
from kvgauge.shapes.types import MAX_LAYERS
from kvgauge.shapes.weights import QKNorm


@dataclass(frozen=True, slots=True)
class Family:
    """What one `model_type` fixes without saying so in its config.

    `kv_heads`: `heads` (as many as query heads unless stated), `stated`, or `multi_query` (that
    flag). `head_dim` None: hidden / heads unless stated. `bias`: `field` means `attention_bias` and
    `mlp_bias`; `use_bias` and `always` mean all projections. `moe` names the family's field names.
    """

    kv_heads: Literal["heads", "stated", "multi_query"] = "stated"
    window: windows.Rule = "none"
    head_dim: int | None = None
    tied: bool = False
    bias: Literal["none", "field", "qkv", "use_bias", "always"] = "none"
    qk_norm: QKNorm = "none"
    gated: bool = True
    norm_bias: bool = False
    moe: Literal["none", "mixtral", "qwen"] = "none"
    gpt2_names: bool = False


FAMILIES: dict[str, Family] = {
    "llama": Family("heads", bias="field"),
    "mistral": Family(window="stated"),
    "mixtral": Family(window="field", moe="mixtral"),
    "qwen2": Family(window="switch", bias="qkv"),
    "qwen2_moe": Family(window="off", bias="qkv", moe="qwen"),
    "qwen3": Family(window="switch", head_dim=128, bias="field", qk_norm="head"),
    "qwen3_moe": Family(window="off", bias="field", qk_norm="head", moe="qwen"),
    "phi3": Family("heads", window="field"),
    "gemma": Family(head_dim=256, tied=True, bias="field"),
    "olmo2": Family("heads", bias="field", qk_norm="all"),
    "starcoder2": Family(window="field", tied=True, bias="use_bias", gated=False, norm_bias=True),
    "gpt2": Family("heads", tied=True, bias="always", gated=False, norm_bias=True, gpt2_names=True),
    "gpt_bigcode": Family(
        "multi_query", tied=True, bias="always", gated=False, norm_bias=True, gpt2_names=True
    ),
}

_UNDERSTOOD = windows.FIELDS | {"decoder_sparse_step"}


def read_plain(fields: Fields) -> Plain:
    """The facts of a model whose `model_type` is in FAMILIES."""
    family = FAMILIES[fields.text("model_type")]
    refuse_unknown_layout(fields, _UNDERSTOOD)
    names = _GPT2_NAMES if family.gpt2_names else _NAMES
    layers = fields.integer(names["layers"], high=MAX_LAYERS)
    hidden = fields.integer(names["hidden"])
    q_heads = fields.integer(names["heads"])
    window, window_layers = windows.read(family.window, fields, layers)
    qkv_bias, out_bias, mlp_bias = _biases(family, fields)
    mixture = _mixture(family, fields, layers)
    return Plain(
        layers=layers,
        hidden=hidden,
        q_heads=q_heads,
        kv_heads=_kv_heads(family, fields, q_heads),
        head_dim=_head_dim(family, fields, hidden, q_heads, names["heads"]),
        ffn=_ffn(family, fields, hidden),
        vocab=fields.integer("vocab_size"),
        tied=fields.flag("tie_word_embeddings", default=family.tied),
        window=window,
        window_layers=window_layers,
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        mlp_bias=mlp_bias,
        qk_norm=family.qk_norm,
        gated=family.gated,
        norm_bias=family.norm_bias,
        position_rows=fields.integer("n_positions") if family.gpt2_names else 0,
        experts=mixture.experts,
        active_experts=mixture.active,
        expert_ffn=mixture.ffn,
        shared_ffn=mixture.shared_ffn,
        dense_layers=mixture.dense_layers,
    )


_NAMES = {"layers": "num_hidden_layers", "hidden": "hidden_size", "heads": "num_attention_heads"}
_GPT2_NAMES = {"layers": "n_layer", "hidden": "n_embd", "heads": "n_head"}


def _kv_heads(family: Family, fields: Fields, q_heads: int) -> int:
    if family.kv_heads == "multi_query":
        return 1 if fields.flag("multi_query", default=True) else q_heads
    stated = "num_key_value_heads" in fields.values
    if family.gpt2_names or (family.kv_heads == "heads" and not stated):
        return q_heads
    if stated and not fields.has("num_key_value_heads"):
        return q_heads  # null says: as many as query heads
    kv_heads = fields.integer("num_key_value_heads")
    if q_heads % kv_heads:
        raise fields.error(
            "num_key_value_heads", f"must divide the {q_heads} query heads, found {kv_heads}"
        )
    return kv_heads


def _head_dim(family: Family, fields: Fields, hidden: int, q_heads: int, heads_name: str) -> int:
    if fields.has("head_dim"):
        return fields.integer("head_dim")
    if family.head_dim is not None:
        return family.head_dim
    if hidden % q_heads:
        raise fields.error(heads_name, f"must divide the hidden size {hidden}, found {q_heads}")
    return hidden // q_heads


def _ffn(family: Family, fields: Fields, hidden: int) -> int:
    if family.gpt2_names:
        return fields.integer("n_inner", default=4 * hidden)
    return fields.integer("intermediate_size", default=0)


def _biases(family: Family, fields: Fields) -> tuple[bool, bool, bool]:
    # Of the Q, K and V projections, of the output projection, of the MLP.
    if family.bias == "qkv":
        return fields.flag("qkv_bias", default=True), False, False
    if family.bias == "field":
        attention = fields.flag("attention_bias", default=False)
        return attention, attention, fields.flag("mlp_bias", default=False)
    if family.bias == "use_bias":
        everywhere = fields.flag("use_bias", default=True)
        return everywhere, everywhere, everywhere
    return (family.bias == "always",) * 3


@dataclass(frozen=True, slots=True)
class _Mixture:
    experts: int = 0
    active: int = 0
    ffn: int = 0
    shared_ffn: int = 0
    dense_layers: int = 0


def _mixture(family: Family, fields: Fields, layers: int) -> _Mixture:
    if family.moe == "none":
        return _Mixture()
    qwen = family.moe == "qwen"
    name = "num_experts" if qwen and fields.has("num_experts") else "num_local_experts"
    experts = fields.integer(name, low=0, default=0 if qwen else None)
    if not experts:
        return _Mixture()
    active = fields.integer("num_experts_per_tok", high=experts)
    if not qwen:
        return _Mixture(experts, active, fields.integer("intermediate_size", default=0))
    step = fields.integer("decoder_sparse_step", default=1)
    dense = fields.layer_indices("mlp_only_layers", layers)
    return _Mixture(
        experts,
        active,
        fields.integer("moe_intermediate_size", default=0),
        fields.integer("shared_expert_intermediate_size", low=0, default=0),
        sum(i in dense or (i + 1) % step != 0 for i in range(layers)),
    )
