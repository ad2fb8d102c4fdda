"""A config field that may bear on the cache layout and is not understood is refused, not skipped.

A new layout announces itself by a field. Readers ask for the fields that they understand; any other
whose name has a word of layout in it, and whose value does not switch it off, is UnsupportedLayout.
Names with a weaker hint are read past, and reported as a note of the shape.
"""

from __future__ import annotations

import re

from kvgauge.errors import short
from kvgauge.shapes.fields import Fields

LAYOUT_WORDS = frozenset({
    "blocksparse", "chunk", "chunked", "cla", "compress", "compressed", "compression", "conv",
    "cross", "hybrid", "indexer", "kv", "latent", "linear", "lora", "mamba", "mla", "pattern",
    "query", "recurrent", "reuse", "rwkv", "share", "shared", "sharing", "sliding", "sparse", "ssm",
    "state", "swa", "types", "window", "yoco",
})  # fmt: skip
LAYOUT_NAMES = frozenset({
    "attention_layers", "attention_other_setting", "attention_types", "attn_layer_indices",
    "attn_layer_offset", "attn_layer_period", "attn_type_list", "block_configs", "compress_ratios",
    "compress_rates", "decoder", "encoder", "full_attention_interval", "full_attn_idxs",
    "global_attn_every_n_layers", "index_head_dim", "index_n_heads", "index_topk",
    "is_encoder_decoder", "kda_layers", "layers_block_type", "llm_config", "language_config",
    "no_rope_layers_config", "per_layer_config", "qk_rope_head_dim", "text_config", "v_head_dim",
})  # fmt: skip
# Words of layout in names that say nothing of it: training, the MLP, and limits of an engine.
HARMLESS = frozenset({
    "activation_sparsity_pattern", "attention_sink_size", "chunk_size_feed_forward",
    "context_window_size", "decoder_sparse_step", "kv_cache_dtype", "mlp_layer_types",
    "prefill_chunk_size", "query_pre_attn_scalar", "shared_intermediate_size",
})  # fmt: skip
# Sharing of what is no cache.
_NO_CACHE = frozenset({"embed", "embedding", "embeddings", "expert", "experts", "lm", "mlp"})
_SHARING = frozenset({"share", "shared"})
# Objects that describe no decoder: towers beside it, positions, how weights are stored, code.
_OTHER_OBJECTS = frozenset({
    "audio", "code", "codec", "image", "map", "projector", "quant", "quantization", "quantizer",
    "rope", "sam", "speech", "task", "vision", "visual", "vit",
})  # fmt: skip
_MAX_DEPTH = 8
_WEAK_WORDS = frozenset({"compress", "head", "heads", "kv", "latent", "share", "shared", "sparse",
                         "sparsity", "state", "states", "window"})  # fmt: skip
# Heads that are no attention heads, and outputs of a training run.
_SILENT = frozenset({"output_hidden_states", "shared_intermediate_size", "lm_head_bias"})


def refuse_unknown_layout(fields: Fields) -> None:
    """Raise UnsupportedLayout for the first field that may bear on layout and was not asked for."""
    if not fields.values.get("use_cla"):  # Hunyuan's sharing between layers, switched off
        fields.understood("cla_share_factor")
    for name, value in fields.values.items():
        switched_off = not value  # null, false, 0, "", [] and {}
        if not switched_off and name not in fields.asked and bears_on_layout(name):
            raise fields.unsupported(name, "this field is not understood")
        if name not in fields.asked and not _words(name) & _OTHER_OBJECTS:
            _refuse_inside(fields.where, name, value)
    for inside in fields.inner:
        refuse_unknown_layout(inside)


def _refuse_inside(where: str, name: str, value: object, depth: int = 0) -> None:
    # An object that nobody asked for, or a list of them: what stands in it counts by its name too.
    if isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                _refuse_inside(where, name, item, depth)
    if not isinstance(value, dict) or depth > _MAX_DEPTH:
        return
    inside = Fields(f"{where}: {short(name)}", value)
    of_attention = bool(_words(name) & {"attn", "attention"})
    for inner, item in value.items():
        if item and (bears_on_layout(inner) or (of_attention and _hints(inner))):
            raise inside.unsupported(inner, "this field is not understood")
        _refuse_inside(inside.where, inner, item, depth + 1)


def read_past(fields: Fields) -> tuple[str, ...]:
    """A note for each field that hints at layout by a word, and that the reader did not ask for."""
    known = fields.asked | _SILENT | HARMLESS
    here = tuple(
        f"read past: {short(name)}={short(value, 40)}"
        for name, value in fields.values.items()
        if value and name not in known and _hints(name)
    )
    return here + tuple(note for inside in fields.inner for note in read_past(inside))


def bears_on_layout(name: str) -> bool:
    """Whether a field of that name may say something about the cache."""
    if name in HARMLESS:
        return False
    words = _words(name)
    if words & _NO_CACHE:
        words -= _SHARING
    return name in LAYOUT_NAMES or bool(words & LAYOUT_WORDS) or "per_layer" in name.lower()


def _hints(name: str) -> bool:
    words = _words(name)
    return bool(words & _WEAK_WORDS) and not words & {"expert", "experts"}


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", name.lower()))
