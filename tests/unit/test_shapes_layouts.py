"""Layouts that no public file beside the checkout shows: each field against the layers it makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvgauge.errors import UnsupportedLayout, UserError
from kvgauge.formats import FORMATS
from kvgauge.formula.held import request_bytes
from kvgauge.formula.moved import attention_flops as decode_flops
from kvgauge.formula.prefill import prefill_flops
from kvgauge.shapes.hf import read_config
from kvgauge.shapes.types import LayerShape, ModelShape

BF16 = FORMATS["bf16"]
BASE: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2,
    "intermediate_size": 128, "vocab_size": 1000, "head_dim": 8,
}  # fmt: skip
LATENT: dict[str, Any] = {
    "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "q_lora_rank": 8, "first_k_dense_replace": 1, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}  # fmt: skip


def shape_of(tmp_path: Path, model_type: str, **changes: Any) -> ModelShape:
    path = tmp_path / "config.json"
    config = {**BASE, "model_type": model_type, **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    return read_config(path)


def test_only_layers_with_an_indexer_of_their_own_hold_its_key(tmp_path: Path) -> None:
    index = {"index_head_dim": 8, "index_n_heads": 2, "index_topk": 4}

    def dims(**more: Any) -> list[int]:
        shape = shape_of(tmp_path, "glm_moe_dsa", **LATENT, **index, **more)
        return [layer.index_dim for layer in shape.layers]

    assert dims() == [8, 8, 8, 8]
    assert dims(indexer_types=["full", "shared", "shared", "full"]) == [8, 0, 0, 8]
    assert dims(index_topk_pattern="FSFS") == [8, 0, 8, 0]
    assert dims(index_topk_freq=2, index_skip_topk_offset=1) == [8, 0, 8, 0]
    with pytest.raises(UnsupportedLayout, match="index_head_dim=8"):
        shape_of(tmp_path, "deepseek_v3", **LATENT, index_head_dim=8)


def test_last_layers_share(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention"] * 2
    shape = shape_of(
        tmp_path, "gemma3n_text", layer_types=kinds, sliding_window=16, num_kv_shared_layers=2
    )
    assert [(layer.kind, layer.shared) for layer in shape.layers] == [
        ("sliding", False), ("full", False), ("sliding", True), ("full", True)
    ]  # fmt: skip
    with pytest.raises(UnsupportedLayout, match="num_kv_shared_layers=3"):
        shape_of(
            tmp_path, "gemma3n_text", layer_types=kinds, sliding_window=16, num_kv_shared_layers=3
        )


def test_blocks_with_heads_of_their_own_and_without_attention(tmp_path: Path) -> None:
    blocks: list[dict[str, Any]] = [
        {"attention": {"n_heads_in_group": 4, "no_op": False, "replace_with_linear": False}},
        {"attention": {"n_heads_in_group": None, "no_op": True}},
        {"attention": {"n_heads_in_group": None, "replace_with_linear": True}},
        {"attention": {"n_heads_in_group": 8}, "ffn": {"no_op": True}},
    ]
    shape = shape_of(tmp_path, "nemotron-nas", block_configs=blocks, num_key_value_heads=None)
    full, none = LayerShape("full", 8, 2, 8, 8), LayerShape("none")
    assert shape.layers == (full, none, none, LayerShape("full", 8, 1, 8, 8))
    blocks[0]["attention"]["window_length"] = 32
    with pytest.raises(UnsupportedLayout, match="window_length=32"):
        shape_of(tmp_path, "nemotron-nas", block_configs=blocks)


def test_sliding_layers_with_heads_and_dims_of_their_own(tmp_path: Path) -> None:
    shape = shape_of(
        tmp_path, "mimo_v2_flash", head_dim=12, v_head_dim=8, hybrid_layer_pattern=[0, 1, 1, 0],
        swa_num_key_value_heads=4, swa_head_dim=12, swa_v_head_dim=8, sliding_window_size=16,
    )  # fmt: skip
    full, local = LayerShape("full", 8, 2, 12, 8), LayerShape("sliding", 8, 4, 12, 8, 17)
    assert shape.layers == (full, local, local, full)


def test_openelm_lists(tmp_path: Path) -> None:
    shape = shape_of(
        tmp_path, "openelm", num_transformer_layers=2, num_query_heads=[8, 12], num_kv_heads=[2, 3],
        model_dim=64,
    )  # fmt: skip
    assert [(layer.q_heads, layer.kv_heads) for layer in shape.layers] == [(8, 2), (12, 3)]


def test_a_decoder_in_text_config(tmp_path: Path) -> None:
    inner = {**BASE, "model_type": "mistral", "sliding_window": None}
    shape = shape_of(tmp_path, "llava", text_config=inner, hidden_size=...)
    assert shape.layers == (LayerShape("full", 8, 2, 8, 8),) * 4
    assert any("towers" in note for note in shape.notes)
    with pytest.raises(UnsupportedLayout, match="mamba_d_state=16"):
        shape_of(tmp_path, "llava", text_config={**inner, "mamba_d_state": 16})
    with pytest.raises(UnsupportedLayout, match="model_type=new"):
        shape_of(tmp_path, "llava", text_config={**inner, "model_type": "new"})
    with pytest.raises(UserError, match="text_config: missing"):
        shape_of(tmp_path, "llava")


def test_what_is_read_past_is_reported(tmp_path: Path) -> None:
    shape = shape_of(tmp_path, "llama", head_scale=3, num_nextn_predict_layers=1, frobnicate=9)
    assert "read past: head_scale=3" in shape.notes
    assert any("multi-token" in note for note in shape.notes)
    assert not any("frobnicate" in note for note in shape.notes)
    assert shape.shape_id == shape_of(tmp_path, "llama").shape_id


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("deepseek_v4", {}),
        ("minimax_m3_vl_text", {}),
        ("recurrent_gemma", {}),
        ("gemma3_text", {"sliding_window": 16, "use_bidirectional_attention": True}),
        ("gemma2", {"layer_types": ["full_attention"] * 3 + ["chunked_attention"], "sliding_window": 8}),
        ("cwm", {"sliding_window": 8}),
        ("hunyuan_v1_dense", {"use_cla": True, "cla_share_factor": 2}),
        ("nemotron_h", {"hybrid_override_pattern": "M*X-"}),
        ("falcon", {"compress_cache": 4}),
    ],
)  # fmt: skip
def test_refused_by_field(tmp_path: Path, model_type: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedLayout, match=r"^unsupported layout: \w+="):
        shape_of(tmp_path, model_type, **changes)


def test_step_s_lists_run_on_over_the_layers_for_prediction(tmp_path: Path) -> None:
    other = {"attention_type": "sliding_attention", "num_attention_heads": 12, "head_dim": 8}
    config: dict[str, Any] = {
        "num_key_value_heads": ..., "num_attention_groups": 2, "sliding_window": 16,
        "layer_types": ["full_attention", "sliding_attention"] * 3, "num_nextn_predict_layers": 2,
        "attention_other_setting": {**other, "num_attention_groups": 2},
    }  # fmt: skip
    shape = shape_of(tmp_path, "step3p5", **config)
    full, local = LayerShape("full", 8, 2, 8, 8), LayerShape("sliding", 12, 2, 8, 8, 16)
    assert shape.layers == (full, local) * 2
    config["attention_other_setting"] = {**other, "num_attention_groups": 4}
    with pytest.raises(UnsupportedLayout, match="num_attention_groups=4"):
        shape_of(tmp_path, "step3p5", **config)


def test_deci_list(tmp_path: Path) -> None:
    shape = shape_of(
        tmp_path, "deci", num_key_value_heads=..., num_key_value_heads_per_layer=[4, 4, 2, 1]
    )
    assert [layer.kv_heads for layer in shape.layers] == [4, 4, 2, 1]


def test_a_head_dim_by_another_name_must_agree(tmp_path: Path) -> None:
    assert shape_of(tmp_path, "llama", attention_head_dim=8).layers
    with pytest.raises(UnsupportedLayout, match="attention_head_dim=16"):
        shape_of(tmp_path, "llama", attention_head_dim=16)


def test_numbers_that_the_smaller_gemma_3_leaves_out(tmp_path: Path) -> None:
    inner = {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34,
             "intermediate_size": 10240, "sliding_window": 1024}  # fmt: skip
    shape = shape_of(tmp_path, "gemma3", text_config=inner)
    assert shape.layers[5] == LayerShape("full", 8, 4, 256, 256)
    assert shape.layers[0] == LayerShape("sliding", 8, 4, 256, 256, 1024)
    assert shape.vocab == 262208


# Absent, each of these would be one checkpoint's number in the class that transformers has.
@pytest.mark.parametrize(
    ("model_type", "field", "others"),
    [
        ("gemma2", "sliding_window", {}),
        ("gpt_oss", "sliding_window", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        ("cohere2", "sliding_window", {"layer_types": ["full_attention"] * 4}),
        ("llama4_text", "attention_chunk_size", {}),
        ("gemma3n_text", "num_kv_shared_layers", {"sliding_window": 8}),
        ("minimax", "num_key_value_heads", {"attn_type_list": [0, 1, 0, 1]}),
    ],
)
def test_a_number_that_decides_must_be_stated(
    tmp_path: Path, model_type: str, field: str, others: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=f"{field}: missing"):
        shape_of(tmp_path, model_type, **{**others, field: ...})


def config_shape(tmp_path: Path, **config: Any) -> ModelShape:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    return read_config(path)


MPT = {"model_type": "mpt", "d_model": 3072, "n_heads": 24, "n_layers": 32, "vocab_size": 32768}


def test_mpt_kv_heads_by_the_kind_of_attention(tmp_path: Path) -> None:
    def kv_heads(**attn: Any) -> int:
        shape = config_shape(tmp_path, **MPT, attn_config=attn)
        assert {(layer.k_dim, layer.q_heads) for layer in shape.layers} == {(128, 24)}
        return shape.layers[0].kv_heads

    grouped = {"attn_type": "grouped_query_attention", "kv_n_heads": 8}
    assert kv_heads(**grouped) == 8
    assert request_bytes(config_shape(tmp_path, **MPT, attn_config=grouped), 1, BF16) == 131_072
    assert kv_heads(attn_type="multiquery_attention", sliding_window_size=-1) == 1
    assert kv_heads(attn_type="multihead_attention", sliding_window_size=None) == 24
    assert config_shape(tmp_path, **MPT).layers[0].kv_heads == 24
    for refused in (
        {"sliding_window_size": 4096}, {"attn_type": "ring"}, {"kv_n_heads": 8},
        {"attn_type": "grouped_query_attention", "kv_n_heads": 8, "sliding_window_size": 1},
    ):  # fmt: skip
        with pytest.raises(UnsupportedLayout):
            kv_heads(**refused)


FALCON = {"hidden_size": 8192, "n_head": 128, "n_layer": 60, "vocab_size": 65024}


def test_falcon_kv_heads(tmp_path: Path) -> None:
    newer = {"new_decoder_architecture": True, "num_kv_heads": 8}
    shape = config_shape(tmp_path, model_type="falcon", **FALCON, **newer)
    assert {layer.kv_heads for layer in shape.layers} == {8}
    assert any("16 times the 8 KV heads" in note for note in shape.notes)
    first = config_shape(tmp_path, model_type="RefinedWeb", **FALCON, n_head_kv=8)
    assert first.layers == shape.layers
    single = config_shape(tmp_path, model_type="RefinedWebModel", **FALCON, multi_query=True)
    assert {layer.kv_heads for layer in single.layers} == {1}
    assert not any("transformers caches" in note for note in single.notes)
    every = config_shape(
        tmp_path, model_type="falcon", **FALCON, multi_query=False, num_kv_heads=128
    )
    assert {layer.kv_heads for layer in every.layers} == {128}
    with pytest.raises(UnsupportedLayout, match="num_kv_heads=8"):
        config_shape(tmp_path, model_type="falcon", **FALCON, multi_query=False, num_kv_heads=8)


def test_falcon_mamba_of_the_hub(tmp_path: Path) -> None:
    shape = config_shape(
        tmp_path, model_type="falcon_mamba", expand=16, hidden_size=4096, intermediate_size=8192,
        state_size=16, conv_kernel=4, num_hidden_layers=64, vocab_size=65024,
    )  # fmt: skip
    assert sum(layer.state_bytes for layer in shape.layers) == 37_748_736


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attn_config", {"kv_n_heads": 2, "sliding_window_size": 4096}),
        ("attention_setting", {"n_heads_of_group": 2, "heads": 4}),
        ("block_overrides", [{"order": {"reuse_layer": 3}}]),
        ("multi_query_group_num", 2),
        ("layer_sharing", 2),
        ("reuse_layers", [1, 2]),
        ("shared_attention", True),
    ],
)
def test_hints_of_a_layout_are_refused(tmp_path: Path, field: str, value: Any) -> None:
    with pytest.raises(UnsupportedLayout, match="not understood"):
        shape_of(tmp_path, "llama", **{field: value}, multi_query_attention=False)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vision_config", {"window_size": 8, "num_query_tokens": 4}),
        ("rope_parameters", {"sliding_attention": {"rope_theta": 1.0}}),
        ("quantization_config", {"ignore": [], "kv_cache_scheme": {"num_bits": 8}}),
        ("auto_map", {"AutoModelForTypes": "x"}),
        ("share_embeddings", True),
        ("moe_num_shared_experts", 2),
    ],
)
def test_objects_that_describe_no_cache_are_read_past(
    tmp_path: Path, field: str, value: Any
) -> None:
    assert (
        shape_of(tmp_path, "llama", **{field: value}).layers == shape_of(tmp_path, "llama").layers
    )


def test_how_a_checkpoint_is_stored_is_a_note(tmp_path: Path) -> None:
    def said(**fields: Any) -> str:
        return "; ".join(shape_of(tmp_path, "llama", **fields).notes)

    def stored(**config: Any) -> str:
        return said(quantization_config=config)

    assert "stored as mxfp4: --weight-format mxfp4" in stored(quant_method="mxfp4")
    assert "stored as fp8: --weight-format fp8" in stored(quant_method="fp8")
    assert "stored as awq: --weight-format int4" in stored(quant_method="awq", bits=4)
    assert "stored as gptq: --weight-format int4" in stored(quant_method="gptq", bits=4)
    assert "stored as gptq: give" in stored(quant_method="gptq", bits=3)
    assert "stored as quip: give" in stored(quant_method="quip")
    assert "not named: give" in stored(quant_method=7)
    scheme = stored(quant_method="compressed-tensors", kv_cache_scheme={"num_bits": 8})
    assert "kv_cache_scheme=" in scheme
    assert "--weight-format fp32" in said(torch_dtype="float32")
    assert "weight-format" not in said(torch_dtype="bfloat16")


def test_scales_of_latents_and_chunked_prefills_change_nothing(tmp_path: Path) -> None:
    longcat = {**LATENT, "num_layers": 2, "mla_scale_q_lora": True, "mla_scale_kv_lora": True}
    assert len(shape_of(tmp_path, "longcat_flash", **longcat).layers) == 4
    chunks = {"chunk_size": 262144, "local_size": 8192, "original_max_position_embeddings": 262144}
    plain = shape_of(tmp_path, "qwen2")
    assert shape_of(tmp_path, "qwen2", dual_chunk_attention_config=chunks).layers == plain.layers


def test_latents_state_the_heads_that_a_prefill_expands_them_to(tmp_path: Path) -> None:
    shape = shape_of(tmp_path, "deepseek_v3", **LATENT)
    assert {(layer.k_dim, layer.v_dim) for layer in shape.layers} == {(12, 8)}
    assert request_bytes(shape, 5, BF16) == 4 * 5 * (16 + 4) * 2
    assert decode_flops(shape.layers[0], 5) == 2 * 8 * 5 * (2 * 16 + 4)
    assert prefill_flops(shape.layers[0], 5) == 2 * 8 * (12 + 8) * 15


def test_decoders_that_leave_out_what_their_class_knows(tmp_path: Path) -> None:
    llava = config_shape(tmp_path, model_type="llava", text_config={"vocab_size": 32064})
    assert llava.layers == (LayerShape("full", 32, 32, 128, 128),) * 32
    pixtral = {
        "hidden_size": 5120, "head_dim": 128, "intermediate_size": 14336, "model_type": "mistral",
        "num_hidden_layers": 40, "num_key_value_heads": 8, "sliding_window": None,
        "vocab_size": 131072,
    }  # fmt: skip
    shape = config_shape(tmp_path, model_type="llava", text_config=pixtral)
    assert shape.layers == (LayerShape("full", 32, 8, 128, 128),) * 40
    inner = {**BASE, **LATENT, "model_type": "deepseek_v3"}
    kimi = config_shape(tmp_path, model_type="kimi_vl", text_config=inner)
    assert kimi.layers == shape_of(tmp_path, "deepseek_v3", **LATENT).layers


def test_a_stack_of_states_alone_has_no_attention(tmp_path: Path) -> None:
    mamba = {"hidden_size": 64, "state_size": 16, "conv_kernel": 4, "num_hidden_layers": 2}
    shape = config_shape(tmp_path, model_type="mamba", vocab_size=100, **mamba)
    assert shape.attention == "none"


def test_phi_4_multimodal_is_a_phi_3_beside_its_towers(tmp_path: Path) -> None:
    towers = {
        "embd_layer": {"audio_embd_layer": {"compression_rate": 8}},
        "audio_processor": {"config": {"chunk_size": -1, "conv_activation": "swish"}},
        "speech_lora": {"r": 320}, "vision_lora": {"r": 256},
    }  # fmt: skip
    decoder = {"head_dim": None, "sliding_window": 262144}
    shape = shape_of(tmp_path, "phi4mm", **decoder, **towers)
    assert shape.layers == shape_of(tmp_path, "phi3", **decoder).layers
