"""Config.json of the plain families: one line a `model_type`, and the reader that they share.

Sources: each family's configuration and modeling file in transformers. Where its configuration
class falls back on a number that is one checkpoint's (8 KV heads, a window of 4,096), the field is
required here; where it falls back on another field (kv_heads = heads), so does this reader.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvgauge.shapes import moe, windows
from kvgauge.shapes.fields import Fields
from kvgauge.shapes.plain import Plain
from kvgauge.shapes.types import MAX_LAYERS
from kvgauge.shapes.weights import QKNorm


@dataclass(frozen=True, slots=True)
class Family:
    """What one `model_type` fixes without saying so in its config.

    `kv_heads`: `heads` (as many as query heads unless stated), `stated`, or `multi_query` (that
    flag). `head_dim` None: hidden / heads unless stated; with `null_head_dim` also where it is null,
    and `head_dim` where it is absent. `bias`: `field` means `attention_bias` and
    `mlp_bias`; `qkv_field` `attention_bias` without the output projection; `use_bias` and `always`
    mean all projections. `moe` names the family's field names. `every`: of the `alternating`
    window, where neither `layer_types` nor the field `every_field` says it. `counted` off: the
    weights are not counted.
    """

    kv_heads: Literal["heads", "stated", "multi_query"] = "stated"
    window: windows.Rule = "none"
    head_dim: int | None = None
    null_head_dim: bool = False
    tied: bool = False
    bias: Literal["none", "field", "qkv", "qkv_field", "use_bias", "always"] = "none"
    qk_norm: QKNorm = "none"
    gated: bool = True
    norm_bias: bool = False
    norms: int = 2
    sinks: bool = False
    moe: moe.Kind = "none"
    gpt2_names: bool = False
    every: int = 0
    every_field: str = ""
    counted: bool = True


FAMILIES: dict[str, Family] = {
    "afmoe": Family("heads", "alternating", every_field="global_attn_every_n_layers", every=4,
                    head_dim=128, counted=False),
    "apertus": Family("heads", counted=False),
    "arcee": Family("heads", bias="field", gated=False),
    "aria_text": Family("heads", counted=False),
    "bitnet": Family("stated", counted=False),
    "cohere": Family("heads", tied=True, counted=False),
    "cohere2": Family("heads", "alternating", every_field="sliding_window_pattern", every=4,
                      tied=True, bias="field", norms=1),
    "cwm": Family("stated", "listed", head_dim=128, counted=False),
    "dots1": Family("heads", "listed", counted=False),
    "ernie4_5": Family(head_dim=128, null_head_dim=True, tied=True, bias="use_bias"),
    "ernie4_5_moe": Family("stated", counted=False),
    "exaone4": Family("stated", "alternating", every_field="sliding_window_pattern", every=4,
                      qk_norm="head"),
    "exaone_moe": Family("stated", "alternating", every_field="sliding_window_pattern", every=4,
                         counted=False),
    "flex_olmo": Family("heads", counted=False),
    "gemma": Family(head_dim=256, tied=True, bias="field"),
    "gemma2": Family(window="alternating", every=2, head_dim=256, tied=True, bias="field", norms=4),
    "gemma3_text": Family(window="alternating", every_field="sliding_window_pattern", every=6,
                          head_dim=256, tied=True, bias="field", norms=4, qk_norm="head"),
    "glm": Family("stated", head_dim=128, bias="qkv_field"),
    "glm4": Family("stated", head_dim=128, bias="qkv_field", norms=4),
    "glm4_moe": Family("stated", bias="qkv_field", moe="deepseek"),
    "glm4v_text": Family("stated", counted=False),
    "glm4v_moe_text": Family("stated", counted=False),
    "gpt2": Family("heads", tied=True, bias="always", gated=False, norm_bias=True, gpt2_names=True),
    "gpt_bigcode": Family(
        "multi_query", tied=True, bias="always", gated=False, norm_bias=True, gpt2_names=True
    ),
    "gpt_oss": Family(head_dim=64, window="alternating", every=2, bias="always", sinks=True, moe="gpt_oss"),
    "granite": Family("heads", bias="field"),
    "granite_swa": Family("stated", "listed", counted=False),
    "granitemoe": Family("heads", bias="field", moe="mixtral"),
    "granitemoe_swa": Family("heads", "listed", counted=False),
    "granitemoeshared": Family("heads", counted=False),
    "helium": Family("stated", head_dim=128, bias="field"),
    "hunyuan_v1_dense": Family("heads", bias="field", qk_norm="head"),
    "hunyuan_v1_moe": Family("heads", counted=False),
    "hy_v3": Family("stated", head_dim=128, counted=False),
    "hyperclovax": Family("stated", counted=False),
    "internlm2": Family("heads", counted=False),
    "internlm3": Family("stated", counted=False),
    "iquestcoder": Family("stated", counted=False),
    "jais2": Family("heads", counted=False),
    "llama": Family("heads", bias="field"),
    "mellum": Family("stated", "listed", head_dim=128, counted=False),
    "mimo": Family("heads", "switch", bias="qkv"),
    "minimax_m2": Family(head_dim=128, qk_norm="all", moe="mixtral"),
    "ministral": Family("stated", "listed"),
    "ministral3": Family("stated", "field"),
    "mistral": Family(window="stated"),
    "mixtral": Family(window="field", moe="mixtral"),
    "nanochat": Family("stated", counted=False),
    "nemotron": Family("heads", bias="field", gated=False, norm_bias=True),
    "olmo": Family("heads", counted=False),
    "olmo2": Family("heads", bias="field", qk_norm="all"),
    "olmo3": Family("heads", "alternating", every=4, bias="field", qk_norm="all"),
    "olmoe": Family("heads", bias="field", qk_norm="all", moe="olmoe"),
    "phi": Family("heads", counted=False),
    "phi3": Family("heads", window="field"),
    "phi4mm": Family("heads", window="field", counted=False),
    "phimoe": Family("stated", "field", counted=False),
    "qwen2": Family(window="switch", bias="qkv"),
    "qwen2_5_vl_text": Family(window="switch", bias="qkv"),
    "qwen2_moe": Family(window="off", bias="qkv", moe="qwen"),
    "qwen2_vl_text": Family(window="switch", bias="qkv"),
    "qwen3": Family(window="switch", head_dim=128, bias="field", qk_norm="head"),
    "qwen3_moe": Family(window="off", bias="field", qk_norm="head", moe="qwen"),
    "qwen3_vl_moe_text": Family(bias="field", qk_norm="head", moe="qwen"),
    "qwen3_vl_text": Family(head_dim=128, bias="field", qk_norm="head"),
    "seed_oss": Family("stated", head_dim=128, counted=False),
    "smollm3": Family("stated", window="off", tied=True, bias="field"),
    "solar_open": Family("stated", head_dim=128, counted=False),
    "stablelm": Family("stated", counted=False),
    "starcoder2": Family(window="field", tied=True, bias="use_bias", gated=False, norm_bias=True),
    "vaultgemma": Family(window="alternating", every=2, head_dim=256, tied=True, counted=False),
}  # fmt: skip


def read(fields: Fields) -> Plain:
    """The facts of a model whose `model_type` is in FAMILIES."""
    family = FAMILIES[fields.text("model_type")]
    # Qwen's long-context models attend chunk by chunk, and sparsely, to K and V that all stay.
    fields.understood("dual_chunk_attention_config")
    if fields.text("model_type") == "phi4mm":  # Phi-3 beside towers and adapters, all in one object
        fields.understood("audio_processor", "embd_layer", "img_processor", "speech_lora",
                          "vision_lora")  # fmt: skip
        fields.notes.append("the decoder alone: towers for images or sound are not counted")
    names = _GPT2_NAMES if family.gpt2_names else _NAMES
    layers = fields.integer(names["layers"], high=MAX_LAYERS)
    hidden = fields.integer(names["hidden"])
    q_heads = fields.integer(names["heads"])
    window, window_layers = windows.read(
        family.window, fields, layers, windows.Every(family.every, family.every_field)
    )
    qkv_bias, out_bias, mlp_bias = _biases(family, fields)
    mixture = moe.read(family.moe, fields, layers)
    norms_stated = fields.flag("use_qk_norm", default=False) if family.moe == "deepseek" else False
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
        qk_norm="head" if norms_stated else family.qk_norm,
        gated=family.gated,
        norm_bias=family.norm_bias,
        position_rows=fields.integer("n_positions") if family.gpt2_names else 0,
        experts=mixture.experts,
        active_experts=mixture.active,
        expert_ffn=mixture.ffn,
        shared_ffn=mixture.shared_ffn,
        dense_layers=mixture.dense_layers,
        norms=family.norms,
        sinks=family.sinks,
        shared_gate=mixture.shared_gate,
        expert_bias=family.moe == "gpt_oss",
        counted=family.counted,
    )


_NAMES = {"layers": "num_hidden_layers", "hidden": "hidden_size", "heads": "num_attention_heads"}
_GPT2_NAMES = {"layers": "n_layer", "hidden": "n_embd", "heads": "n_head"}


def _kv_heads(family: Family, fields: Fields, q_heads: int) -> int:
    if family.kv_heads == "multi_query":
        return 1 if fields.flag("multi_query", default=True) else q_heads
    fields.understood("num_key_value_heads")
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
    dim = _usual_head_dim(family, fields, hidden, q_heads, heads_name)
    for name in ("attention_head_dim", "kv_channels"):  # by another name: it must agree
        if fields.has(name) and fields.integer(name) != dim:
            raise fields.unsupported(name, f"the head dimension is otherwise {dim}")
    return dim


def _usual_head_dim(
    family: Family, fields: Fields, hidden: int, q_heads: int, heads_name: str
) -> int:
    fields.understood("head_dim")
    if fields.has("head_dim") and not family.gpt2_names:  # which transformers computes there
        return fields.integer("head_dim")
    null = "head_dim" in fields.values and family.null_head_dim
    if family.head_dim is not None and not null:
        return family.head_dim
    if hidden % q_heads:
        raise fields.error(heads_name, f"must divide the hidden size {hidden}, found {q_heads}")
    return hidden // q_heads


def _ffn(family: Family, fields: Fields, hidden: int) -> int:
    if family.gpt2_names:
        return fields.integer("n_inner", default=4 * hidden)
    if not family.counted:
        return 0
    return fields.integer("intermediate_size", default=0)


def _biases(family: Family, fields: Fields) -> tuple[bool, bool, bool]:
    # Of the Q, K and V projections, of the output projection, of the MLP.
    if family.bias == "qkv":
        return fields.flag("qkv_bias", default=True), False, False
    if family.bias == "field":
        attention = fields.flag("attention_bias", default=False)
        return attention, attention, fields.flag("mlp_bias", default=False)
    if family.bias == "qkv_field":
        return fields.flag("attention_bias", default=False), False, False
    if family.bias == "use_bias":
        everywhere = fields.flag("use_bias", default=True)
        return everywhere, everywhere, everywhere
    return (family.bias == "always",) * 3
