"""Every model type that transformers has, read from the configuration its own class writes.

A family that no public file beside the checkout shows is so held against the real model's cache.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvgauge.formats import FORMATS
from kvgauge.formula.held import Storage, layer_bytes
from kvgauge.shapes.hf import DECODERS, read_config

transformers = pytest.importorskip("transformers")

import caches_of_transformers as theirs  # noqa: E402

BF16 = Storage(FORMATS["bf16"])
SHORT = 5  # below any window

# Where the class's defaults make no model, or not the kind of layers that the family is known for.
CHANGES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [9, 18, 27]},
    "deepseek_v2": {"num_experts_per_tok": 6, "first_k_dense_replace": 1, "topk_method": "greedy"},
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "glm4_moe": {"head_dim": 128},
    "glm4v_moe_text": {"head_dim": 128},
    "glm4v_text": {"rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12],
                                       "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    "glm_moe_dsa": {"indexer_types": ["full", "shared"] * 39},
    "granitemoehybrid": {
        "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 8, "hidden_size": 4096,
    },
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "step3p5": {
        "layer_types": (["full_attention"] + ["sliding_attention"] * 2) * 15, "sliding_window": 512,
        "num_sliding_attention_heads": 96,
    },
    "nemotron_h": {
        "layer_types": ["linear_attention", "moe", "full_attention", "mlp"] * 2,
        "num_hidden_layers": 8,
    },
}  # fmt: skip
# Written by no class of transformers, and held against facts in tests/unit.
ELSEWHERE = {
    "RefinedWeb", "RefinedWebModel", "deci", "internlm2", "kimi_k2", "mimo", "nemotron-nas", "openelm",
    "phi4mm",
}  # fmt: skip
# Whose class does not run at its own defaults: by the reason.
BROKEN = {
    "dbrx": "DbrxAttentionConfig has no rope_theta",
}


def test_each_model_type_is_known_to_transformers_or_listed() -> None:
    unknown = {name for name in DECODERS if name not in transformers.CONFIG_MAPPING}
    assert unknown == ELSEWHERE


@pytest.mark.parametrize("model_type", sorted(set(DECODERS) - ELSEWHERE))
def test_each_layer(tmp_path: Path, model_type: str) -> None:
    if model_type in BROKEN:
        pytest.skip(BROKEN[model_type])
    made = transformers.CONFIG_MAPPING[model_type](**CHANGES.get(model_type, {}))
    raw = json.loads(json.dumps(made.to_dict()))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(raw))
    model = theirs.model_of(theirs.config_of(raw))
    held = [theirs.bytes_of(layer) for layer in theirs.layers_of(theirs.filled(model, SHORT))]
    shape = read_config(path)
    assert held == [layer_bytes(layer, SHORT, BF16) for layer in shape.layers]
    if shape.params_total is not None and model.get_output_embeddings() is not None:
        assert shape.params_total == sum(weight.numel() for weight in model.parameters())


# Fields that the class reads in a way of its own, at few layers.
OWN_WAYS: dict[str, dict[str, Any]] = {
    "falcon_mamba": {"expand": 16, "hidden_size": 64, "intermediate_size": 128, "state_size": 16,
                     "conv_kernel": 4},
    "mamba": {"expand": 16, "hidden_size": 64, "intermediate_size": 128, "state_size": 16,
              "conv_kernel": 4},
    "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 128, "head_dim": 32},
    "gpt_bigcode": {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 128, "head_dim": 32},
    "ernie4_5": {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
                 "intermediate_size": 64, "head_dim": None},
    "falcon": {"hidden_size": 64, "num_attention_heads": 4, "multi_query": None,
               "new_decoder_architecture": False},
}  # fmt: skip


@pytest.mark.parametrize("model_type", OWN_WAYS)
def test_fields_that_a_class_reads_in_its_own_way(tmp_path: Path, model_type: str) -> None:
    raw = {"model_type": model_type, "num_hidden_layers": 2, "vocab_size": 1000}
    raw |= {"bos_token_id": 0, "eos_token_id": 0} | OWN_WAYS[model_type]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(raw))
    filled = theirs.filled(theirs.model_of(theirs.config_of(raw)), SHORT)
    held = [theirs.bytes_of(layer) for layer in theirs.layers_of(filled)]
    assert held == [layer_bytes(layer, SHORT, BF16) for layer in read_config(path).layers]
