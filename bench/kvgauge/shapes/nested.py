"""Models around a decoder (images, speech): the decoder stands in `text_config`.

Source: the configuration classes of transformers. Their towers hold no cache between steps, and
their weights are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvgauge.shapes.fields import Fields

# The outer `model_type`, and the decoder's where `text_config` does not name one. Empty: it must.
INNER = {
    "aya_vision": "",
    "cohere2_vision": "cohere2",
    "exaone4_5": "",
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text",
    "gemma4_unified": "gemma4_unified_text",
    "glm46v": "",
    "glm4v": "glm4v_text",
    "glm4v_moe": "glm4v_moe_text",
    "idefics3": "",
    "internvl": "",
    "kimi_k25": "",
    "llama4": "llama4_text",
    "kimi_vl": "",
    "llava": "llama",
    "llava_next": "llama",
    "llava_onevision": "",
    "mistral3": "",
    "paligemma": "",
    "qwen2_audio": "",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen2_vl": "qwen2_vl_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen3_vl": "qwen3_vl_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
    "smolvlm": "",
    "step3p7": "step3p5",
    "voxtral": "",
}
# What transformers' class falls back on, where public models leave it out (Gemma 3 4B, LLaVA 1.5,
# Pixtral). The window of a Mistral has to be stated all the same.
_LEFT_OUT: dict[str, dict[str, object]] = {
    "gemma3_text": {"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262208},
    "llama": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
              "num_attention_heads": 32, "vocab_size": 32000},
    "mistral": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000},
}  # fmt: skip
# Written flat by older releases: the decoder's fields stand beside `vision_config`.
_FLAT = frozenset({"qwen2_vl", "qwen2_5_vl"})


def reader(outer: str, decoders: Mapping[str, Callable[[Fields], Any]]) -> Callable[[Fields], Any]:
    """The reader of one outer `model_type`."""

    def read(fields: Fields) -> Any:
        fields.notes.append("the decoder alone: towers for images or sound are not counted")
        inside = fields.nested("text_config")
        if inside is None:
            if outer not in _FLAT:
                raise fields.error("text_config", "missing, must be the decoder's configuration")
            inside = fields
            inner = INNER[outer]
        else:
            if not inside.has("model_type") and not INNER[outer]:
                raise inside.error("model_type", "missing, must name the decoder")
            inner = inside.text("model_type") if inside.has("model_type") else INNER[outer]
        if inner not in decoders:
            raise inside.unsupported("model_type", "this decoder is not known")
        return decoders[inner](_with_outer_ties(fields, inside, inner))

    return read


def _with_outer_ties(fields: Fields, inside: Fields, inner: str) -> Fields:
    # The outer model owns the output head: where it says something of ties, that holds.
    values = {**_LEFT_OUT.get(inner, {}), **inside.values, "model_type": inner}
    if fields.has("tie_word_embeddings"):
        values["tie_word_embeddings"] = fields.values["tie_word_embeddings"]
    return Fields(inside.where, values, inside.asked, inside.inner, inside.notes)
