"""Multi-head latent attention: one latent and one rotary key a token, for K and V of all heads.

Sources: DeepSeek-V2 (arXiv 2405.04434); the modeling files of transformers, whose caches hold the
latent `[tokens, kv_lora_rank]` beside the rotary key `[tokens, qk_rope_head_dim]`, and for DeepSeek
sparse attention the indexer's key `[tokens, index_head_dim]` in each layer with an indexer of its
own (GLM lets layers share one).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvgauge.shapes import moe, weights
from kvgauge.shapes.fields import Fields
from kvgauge.shapes.stack import Stack
from kvgauge.shapes.types import MAX_LAYERS, LayerShape
from kvgauge.shapes.weights import Weights, dense, linear


@dataclass(frozen=True, slots=True)
class Latent:
    """What one `model_type` fixes.

    `indexer`: `all` layers have one, or those that `indexer_types` or a schedule names (`listed`).
    `caches_a_layer`: LongCat attends twice in each of its layers.
    `counted` off: the weights are not counted. `tied`: the default of `tie_word_embeddings`.
    """

    indexer: Literal["none", "all", "listed"] = "none"
    counted: bool = True
    tied: bool = False
    mixture: bool = True
    layers_field: str = "num_hidden_layers"
    caches_a_layer: int = 1


LATENT: dict[str, Latent] = {
    "axk1": Latent(counted=False),
    "deepseek_v2": Latent(),
    "deepseek_v3": Latent(),
    "deepseek_v32": Latent("all"),
    "glm4_moe_lite": Latent(),
    "glm_moe_dsa": Latent("listed"),
    "kimi_k2": Latent(),  # DeepSeek-V3 by another name
    "longcat_flash": Latent(counted=False, layers_field="num_layers", caches_a_layer=2),
    "minicpm3": Latent(counted=False),
    "mistral4": Latent(counted=False),
    "youtu": Latent(tied=True, mixture=False),
}


def read(fields: Fields) -> Stack:
    """The layers of a model whose `model_type` is in LATENT."""
    family = LATENT[fields.text("model_type")]
    most = MAX_LAYERS // family.caches_a_layer
    count = fields.integer(family.layers_field, high=most) * family.caches_a_layer
    hidden, vocab = fields.integer("hidden_size"), fields.integer("vocab_size")
    indexed = _indexed(family, fields, count)
    made = {flag: _layer(fields, indexer=flag) for flag in set(indexed)}
    layers = tuple(made[flag] for flag in indexed)
    found = _weights(family, fields, layers, hidden, vocab) if family.counted else None
    return Stack(layers, hidden, vocab, found)


def layer(fields: Fields) -> LayerShape:
    """One layer without an indexer."""
    return _layer(fields, indexer=False)


def _layer(fields: Fields, *, indexer: bool) -> LayerShape:
    # num_key_value_heads and head_dim are leftovers here: the latent has no heads.
    fields.understood("num_key_value_heads", "head_dim", "qk_head_dim", "qk_nope_head_dim",
                      "q_lora_rank", "v_head_dim", "kv_lora_rank", "n_shared_experts",
                      "mla_scale_q_lora", "mla_scale_kv_lora")  # fmt: skip
    rope = fields.integer("qk_rope_head_dim")
    # Of the heads that a prefill may expand the latent to; where stated in full.
    nope = fields.integer("qk_nope_head_dim", low=0, default=0)
    v_dim = fields.integer("v_head_dim", low=0, default=0)
    stated = nope > 0 and v_dim > 0
    return LayerShape(
        "mla",
        q_heads=fields.integer("num_attention_heads"),
        latent_dim=fields.integer("kv_lora_rank"),
        rope_dim=rope,
        k_dim=nope + rope if stated else 0,
        v_dim=v_dim if stated else 0,
        index_dim=fields.integer("index_head_dim") if indexer else 0,
    )


def _indexed(family: Latent, fields: Fields, count: int) -> list[bool]:
    if family.indexer == "none":
        return [False] * count
    fields.understood("index_n_heads", "index_topk", "indexer_rope_interleave", "index_head_dim")
    _check_types(fields, count)
    if family.indexer == "all":
        return [True] * count
    if fields.has("indexer_types"):
        kinds = fields.texts("indexer_types", count)
    elif fields.has("index_topk_pattern"):
        pattern = fields.get("index_topk_pattern")
        kinds = ["full" if mark == "F" else "shared" if mark == "S" else "?" for mark in pattern] \
            if isinstance(pattern, str) else fields.texts("index_topk_pattern", count)  # fmt: skip
    else:
        freq = fields.integer("index_topk_freq", default=1)
        offset = fields.integer("index_skip_topk_offset", low=0, default=2)
        return [max(i - offset + 1, 0) % freq == 0 for i in range(count)]
    if len(kinds) != count or set(kinds) - {"full", "shared"}:
        raise fields.error("indexer_types", f"must be full or shared, {count} times")
    return [kind == "full" for kind in kinds]


def _check_types(fields: Fields, count: int) -> None:
    known = {"indexed_attention", "deepseek_sparse_attention"}
    if fields.has("layer_types") and set(fields.texts("layer_types", count)) - known:
        raise fields.unsupported("layer_types", "only indexed attention is known here")


def _weights(
    family: Latent, fields: Fields, layers: tuple[LayerShape, ...], hidden: int, vocab: int
) -> Weights:
    mixture = moe.read("deepseek" if family.mixture else "none", fields, len(layers))
    mixed = len(layers) - mixture.dense_layers if mixture.experts else 0
    ffn = fields.integer("intermediate_size")
    total = weights.embedding(
        hidden, vocab, tied=fields.flag("tie_word_embeddings", default=family.tied)
    )
    total += dense(hidden) + (attention(fields, hidden) + dense(2 * hidden)) * len(layers)
    total += weights.mlp(hidden, ffn) * (len(layers) - mixed) + mixture.weights(hidden) * mixed
    indexers = sum(bool(each.index_dim) for each in layers)
    return total + _indexer(fields, hidden) * indexers if indexers else total


def attention(fields: Fields, hidden: int) -> Weights:
    """Down and up projections of queries (where compressed) and latents, and the output."""
    heads, latent = fields.integer("num_attention_heads"), fields.integer("kv_lora_rank")
    nope, rope = fields.integer("qk_nope_head_dim"), fields.integer("qk_rope_head_dim")
    v_dim, bias = fields.integer("v_head_dim"), fields.flag("attention_bias", default=False)
    q_dim = heads * (nope + rope)
    count = linear(hidden, latent + rope, bias=bias) + latent
    if "q_lora_rank" not in fields.values:
        fields.notes.append("q_lora_rank is not stated: queries are counted as not compressed")
    count += linear(latent, heads * (nope + v_dim)) + linear(heads * v_dim, hidden, bias=bias)
    if not fields.has("q_lora_rank"):
        return dense(count + linear(hidden, q_dim))
    rank = fields.integer("q_lora_rank")
    return dense(count + linear(hidden, rank, bias=bias) + rank + linear(rank, q_dim))


def _indexer(fields: Fields, hidden: int) -> Weights:
    # Queries from the compressed query, one key with a LayerNorm, one weight a head.
    heads, dim = fields.integer("index_n_heads"), fields.integer("index_head_dim")
    rank = fields.integer("q_lora_rank")
    return dense(linear(rank, heads * dim) + linear(hidden, dim) + 2 * dim + linear(hidden, heads))
