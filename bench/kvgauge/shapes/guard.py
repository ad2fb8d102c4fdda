"""A config field that may bear on the cache layout and is not understood is refused, not skipped.

A new layout announces itself by a field. Readers name the fields that they understand; any other
whose name has a word of layout in it, and whose value does not switch it off, is UnsupportedLayout.
"""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet

from kvgauge.shapes.fields import Fields

LAYOUT_WORDS = frozenset({
    "blocksparse", "chunk", "chunked", "cla", "compress", "conv", "cross", "hybrid", "indexer",
    "kv", "latent", "linear", "lora", "mamba", "mla", "pattern", "recurrent", "rwkv", "sliding",
    "sparse", "ssm", "state", "swa", "types", "window", "yoco",
})  # fmt: skip
LAYOUT_NAMES = frozenset({
    "attn_layer_indices", "attn_layer_offset", "attn_layer_period", "block_configs", "decoder",
    "encoder", "full_attention_interval", "full_attn_idxs", "global_attn_every_n_layers",
    "index_head_dim", "index_n_heads", "index_topk", "is_encoder_decoder", "layers_block_type",
    "llm_config", "language_config", "text_config", "v_head_dim",
})  # fmt: skip
# Words of layout in names that say nothing of it: training, and limits of an engine.
HARMLESS = frozenset({
    "attention_sink_size", "chunk_size_feed_forward", "context_window_size", "kv_cache_dtype",
    "prefill_chunk_size",
})  # fmt: skip


def refuse_unknown_layout(fields: Fields, understood: AbstractSet[str]) -> None:
    """Raise UnsupportedLayout for the first field that may bear on layout and is not understood."""
    for name, value in fields.values.items():
        switched_off = not value  # null, false, 0, "", [] and {}
        if not switched_off and name not in understood and bears_on_layout(name):
            raise fields.unsupported(name, "this field is not understood")


def bears_on_layout(name: str) -> bool:
    """Whether a field of that name may say something about the cache."""
    if name in HARMLESS:
        return False
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    return name in LAYOUT_NAMES or bool(words & LAYOUT_WORDS) or "per_layer" in name.lower()
