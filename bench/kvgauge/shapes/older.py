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
    "mpt": Names("n_layers", "d_model", "n_heads"),
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
    newer = fields.flag("new_decoder_architecture", default=False)
    fields.understood("num_kv_heads", "n_head_kv", "multi_query")
    if newer:
        kv_heads = _first(fields, "num_kv_heads", "n_head_kv")
    else:
        kv_heads = 1 if fields.flag("multi_query", default=True) else heads
    return _stack(fields, layers, hidden, heads, kv_heads)


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
