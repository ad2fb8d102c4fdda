"""Older decoders with field names of their own; all layers store K and V heads of all tokens.

Sources: the configuration classes of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvgauge.shapes.fields import Fields
from kvgauge.shapes.stack import Stack
from kvgauge.shapes.types import MAX_LAYERS, LayerShape


@dataclass(frozen=True, slots=True)
class Names:
    """How one family spells its numbers; `kv` empty where there are as many KV heads as heads."""

    layers: str = "num_hidden_layers"
    hidden: str = "hidden_size"
    heads: str = "num_attention_heads"
    read_past: tuple[str, ...] = ()


NAMES: dict[str, Names] = {
    "bloom": Names("n_layer", "hidden_size", "n_head"),
    "codegen": Names("n_layer", "n_embd", "n_head"),
    # Transformers keeps all tokens of the local layers too.
    "gpt_neo": Names("num_layers", "hidden_size", "num_heads",
                     ("attention_layers", "attention_types", "window_size")),
    "gpt_neox": Names(),
    "gptj": Names("n_layer", "n_embd", "n_head"),
    "opt": Names(),
    "persimmon": Names(),
}  # fmt: skip


def read(fields: Fields) -> Stack:
    """The layers of a model whose `model_type` is in NAMES."""
    names = NAMES[fields.text("model_type")]
    fields.understood(*names.read_past)
    # Bloom's first configurations call these by the newer names.
    hidden = _first(fields, names.hidden, "n_embed")
    heads = _first(fields, names.heads, "num_attention_heads")
    return _stack(fields, names.layers, hidden, heads, heads)


def read_falcon(fields: Fields) -> Stack:
    """Falcon: one KV head (`multi_query`), or `num_kv_heads` of the newer architecture."""
    hidden = fields.integer("hidden_size")
    layers = "num_hidden_layers" if fields.has("num_hidden_layers") else "n_layer"
    heads = _first(fields, "num_attention_heads", "n_head")
    # By its first name the newer architecture needed no flag.
    first_name = fields.text("model_type") == "RefinedWeb"
    newer = fields.flag("new_decoder_architecture", default=first_name)
    fields.understood("num_kv_heads", "n_head_kv", "multi_query")
    if newer:
        kv_heads = _first(fields, "num_kv_heads", "n_head_kv")
        if kv_heads < heads:
            fields.notes.append(
                f"transformers caches K and V of all {heads} heads of this architecture, "
                f"{heads / kv_heads:g} times the {kv_heads} KV heads that are counted here"
            )
        return _stack(fields, layers, hidden, heads, kv_heads)
    # Null is false to transformers, absent is true.
    single = fields.flag("multi_query", default="multi_query" not in fields.values)
    for name in ("num_kv_heads", "n_head_kv"):
        if not single and fields.has(name) and fields.integer(name) != heads:
            raise fields.unsupported(name, f"without multi_query there are {heads} KV heads")
    return _stack(fields, layers, hidden, heads, 1 if single else heads)


def read_mpt(fields: Fields) -> Stack:
    """MPT: KV heads by the `attn_type` of its `attn_config`, as llm-foundry writes it."""
    heads, hidden = fields.integer("n_heads"), fields.integer("d_model")
    inside = fields.nested("attn_config")
    kv_heads = heads if inside is None else _mpt_kv_heads(inside, heads)
    return _stack(fields, "n_layers", hidden, heads, kv_heads)


def _mpt_kv_heads(inside: Fields, heads: int) -> int:
    if inside.get("sliding_window_size") not in (None, -1):
        raise inside.unsupported("sliding_window_size", "no window is known here")
    kind = inside.text("attn_type") if inside.has("attn_type") else "multihead_attention"
    if kind == "grouped_query_attention":
        return inside.integer("kv_n_heads")
    if kind not in ("multihead_attention", "multiquery_attention"):
        raise inside.unsupported("attn_type", "not known here")
    kv_heads = 1 if kind == "multiquery_attention" else heads
    if inside.integer("kv_n_heads", default=kv_heads) != kv_heads:
        raise inside.unsupported("kv_n_heads", f"{kind} has {kv_heads} KV heads")
    return kv_heads


def read_dbrx(fields: Fields) -> Stack:
    """DBRX: KV heads stand in `attn_config`."""
    inside = fields.nested("attn_config")
    if inside is None:
        raise fields.error("attn_config", "missing, must hold kv_n_heads")
    heads, kv_heads = fields.integer("n_heads"), inside.integer("kv_n_heads")
    return _stack(fields, "n_layers", fields.integer("d_model"), heads, kv_heads)


def _first(fields: Fields, *names: str) -> int:
    return fields.integer(next((name for name in names if fields.has(name)), names[0]))


def _stack(fields: Fields, layers: str, hidden: int, heads: int, kv_heads: int) -> Stack:
    count = fields.integer(layers, high=MAX_LAYERS)
    if hidden % heads:
        raise fields.error("hidden_size", f"must be a multiple of the {heads} heads")
    dim = hidden // heads
    layer = LayerShape("full", heads, kv_heads, dim, dim)
    return Stack((layer,) * count, hidden, fields.integer("vocab_size"))
