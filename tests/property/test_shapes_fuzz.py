"""Whatever stands in the file: a ModelShape or a UserError of one line, nothing else."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_for_tests import LLAMA, LLAMA_TENSORS, gguf
from kvgauge.errors import UserError
from kvgauge.shapes.gguf import read_gguf
from kvgauge.shapes.hf import READERS, read_config
from kvgauge.shapes.types import MAX_LAYERS, ModelShape

BASE: dict[str, object] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 100,
    "sliding_window": 32,
    "use_sliding_window": False,
    "max_window_layers": 1,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_embd": 64,
    "n_head": 8,
    "n_layer": 2,
    "n_positions": 8,
    "head_dim": 8,
    "multi_query": True,
    "layer_types": ["full_attention", "sliding_attention"],
    "mlp_only_layers": [0],
    "tie_word_embeddings": False,
    "attention_bias": False,
}
# What the readers of latents, states, chunks and differing layers ask for beside that.
MORE: dict[str, object] = {
    "kv_lora_rank": 16, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 8, "index_head_dim": 8, "index_n_heads": 2, "index_topk": 4,
    "indexer_types": ["full", "shared"], "first_k_dense_replace": 1, "n_routed_experts": 4,
    "n_shared_experts": 1, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4,
    "linear_attn_config": {"num_heads": 2, "head_dim": 8, "short_conv_kernel_size": 4,
                           "full_attn_layers": [1], "kda_layers": [2]},
    "hybrid_override_pattern": "M*", "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2,
    "ssm_state_size": 16, "conv_kernel": 4, "mamba_n_heads": 8, "mamba_d_head": "auto",
    "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_d_ssm": 128,
    "attn_layer_indices": [1], "attn_layer_period": 2, "attn_layer_offset": 1,
    "layers_block_type": ["mamba", "hybrid"], "n_mamba_heads": 8, "state_size": 16,
    "num_heads": 8, "conv_L_cache": 3, "full_attn_idxs": [1], "attn_type_list": [0, 1],
    "attention_chunk_size": 16, "no_rope_layers": [1, 0], "interleave_moe_layer_step": 1,
    "intermediate_size_mlp": 64, "num_kv_shared_layers": 1, "global_head_dim": 16,
    "per_layer_config": {"1": {"head_dim": 16}}, "hybrid_layer_pattern": [0, 1],
    "swa_num_key_value_heads": 4, "sliding_window_size": 8, "sliding_window_pattern": 2,
    "block_configs": [{"attention": {"n_heads_in_group": 4}}, {"attention": {"no_op": True}}],
    "num_transformer_layers": 2, "num_query_heads": [4, 8], "num_kv_heads": [2, 2], "model_dim": 64,
    "n_layers": 2, "n_heads": 8, "d_model": 64, "attn_config": {"kv_n_heads": 2}, "num_layers": 2,
    "text_config": {"model_type": "llama", **BASE}, "moe_shared_expert_intermediate_size": 16,
}  # fmt: skip

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from([0, 1, -1, 2**31, 2**63, 10**30, "full_attention", MAX_LAYERS + 1])
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
names = st.sampled_from(sorted({**BASE, **MORE})) | st.text(max_size=20)
MISSING = object()


def check(read: object, data: bytes, file_name: str) -> None:
    assert callable(read)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file_name
        path.write_bytes(data)
        try:
            shape = read(path)
        except UserError as error:
            text = str(error)
            assert file_name in text
            assert "\n" not in text
            assert len(text) < 1000
            return
    assert isinstance(shape, ModelShape)
    assert 1 <= len(shape.layers) <= MAX_LAYERS
    assert all(layer.q_heads % layer.kv_heads == 0 for layer in shape.layers if layer.kv_heads)
    assert all("\n" not in note and len(note) < 500 for note in shape.notes)
    if shape.params_total is not None and shape.params_active is not None:
        assert 0 < shape.params_active <= shape.params_total


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(READERS)),
    st.dictionaries(names, values | st.just(MISSING), max_size=4),
)
def test_mutated_configs(model_type: str, changes: dict[str, object]) -> None:
    config = {"model_type": model_type, **BASE, **changes}
    config = {key: item for key, item in config.items() if item is not MISSING}
    check(read_config, json.dumps(config).encode("utf-8", "surrogatepass"), "config.json")


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(READERS)),
    st.sets(st.sampled_from(sorted(MORE)), max_size=3),
    st.dictionaries(names, values | st.just(MISSING), max_size=3),
)
def test_mutated_configs_of_all_layouts(
    model_type: str, without: set[str], changes: dict[str, object]
) -> None:
    more = {key: item for key, item in MORE.items() if key not in without}
    config = {"model_type": model_type, **BASE, **more, "layer_types": MISSING, **changes}
    config = {key: item for key, item in config.items() if item is not MISSING}
    check(read_config, json.dumps(config).encode("utf-8", "surrogatepass"), "config.json")


@settings(max_examples=100, deadline=None)
@given(values)
def test_any_json(document: object) -> None:
    check(read_config, json.dumps(document).encode(), "config.json")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes(data: bytes) -> None:
    check(read_config, data, "config.json")
    check(read_gguf, b"GGUF" + data, "model.gguf")


GOOD = gguf(LLAMA, LLAMA_TENSORS)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=4),
    st.integers(0, len(GOOD)),
)
def test_mutated_gguf(edits: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(GOOD)
    for at, byte in edits:
        data[at] = byte
    check(read_gguf, bytes(data), "model.gguf")
    check(read_gguf, bytes(data[:cut]), "model.gguf")


def test_a_control_character_anywhere_is_no_second_line() -> None:
    for at in range(len(GOOD)):
        for byte in (10, 27):
            data = bytearray(GOOD)
            data[at] = byte
            check(read_gguf, bytes(data), "model.gguf")
