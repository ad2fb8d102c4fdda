"""config.json -> ModelShape: layouts against hand-read facts, hostile files against one line."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

import shared_models
from kvgauge.errors import UnsupportedLayout, UserError
from kvgauge.shapes.hf import MAX_CONFIG_BYTES, read_config
from kvgauge.shapes.resolve import resolve
from kvgauge.shapes.types import ModelShape

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 1000,
}


def shape_of(tmp_path: Path, **changes: object) -> ModelShape:
    path = tmp_path / "config.json"
    config = {k: v for k, v in {**LLAMA, **changes}.items() if v is not ...}
    path.write_text(json.dumps(config))
    return read_config(path)


def kinds(shape: ModelShape) -> list[tuple[str, int | None]]:
    return [(layer.kind, layer.window) for layer in shape.layers]


# What a person reads off each file: heads, kv heads, head dim, layers, window.
SHARED = {
    "HuggingFaceTB--SmolLM2-135M": (9, 3, 64, 30, None),
    "Qwen--Qwen2-7B": (28, 4, 128, 28, None),  # sliding_window 131072, switched off
    "Qwen--Qwen2.5-3B": (16, 2, 128, 36, None),
    "Qwen--Qwen3-0.6B": (16, 8, 128, 28, None),  # head_dim is not 1024 / 16
    "Qwen--Qwen3-1.7B": (16, 8, 128, 28, None),
    "Qwen--Qwen3-235B-A22B": (64, 4, 128, 94, None),
    "Qwen--Qwen3-30B-A3B": (32, 4, 128, 48, None),
    "Qwen--Qwen3-32B": (64, 8, 128, 64, None),
    "Qwen--Qwen3-8B": (32, 8, 128, 36, None),
    "Qwen--Qwen3-Coder-480B-A35B-Instruct": (96, 8, 128, 62, None),
    "TinyLlama--TinyLlama-1.1B-Chat-v1.0": (32, 4, 64, 22, None),
    "allenai--OLMo-2-32B": (40, 8, 128, 64, None),
    "bigcode--gpt_bigcode": (16, 1, 128, 24, None),
    "bigcode--starcoder2-7b": (36, 4, 128, 32, 4096),
    "google--gemma-2b": (8, 1, 256, 18, None),
    "meta-llama--Llama-2-70b": (64, 8, 128, 80, None),
    "meta-llama--Llama-2-7b": (32, 32, 128, 32, None),
    "meta-llama--Llama-3.2-1B": (32, 8, 64, 16, None),
    "meta-llama--Llama-3.2-3B": (24, 8, 128, 28, None),
    "meta-llama--Meta-Llama-3.1-405B": (128, 8, 128, 126, None),
    "meta-llama--Meta-Llama-3.1-70B": (64, 8, 128, 80, None),
    "meta-llama--Meta-Llama-3.1-8B": (32, 8, 128, 32, None),
    "microsoft--Phi-3.5-mini": (32, 32, 96, 32, 262144),
    "microsoft--phi-4": (24, 8, 128, 32, 262144),
    "mistralai--Mistral-7B-v0.1": (32, 8, 128, 32, 4096),
    "mistralai--Mixtral-8x22B-v0.1": (48, 8, 128, 56, None),
    "mistralai--Mixtral-8x7B-v0.1": (32, 8, 128, 32, None),
    "openai--gpt2": (12, 12, 64, 12, None),
}


@pytest.mark.parametrize(("name", "facts"), SHARED.items())
def test_shared_config(name: str, facts: tuple[int, int, int, int, int | None]) -> None:
    shared_models.raw(name)  # skips where the folder is not there
    shape = read_config(shared_models.FOLDER / f"{name}.json")
    heads, kv_heads, head_dim, layers, window = facts
    assert len(shape.layers) == layers
    for layer in shape.layers:
        assert (layer.q_heads, layer.kv_heads) == (heads, kv_heads)
        assert layer.k_dim == layer.v_dim == head_dim
        assert (layer.kind, layer.window) == ("sliding" if window else "full", window)


@pytest.mark.parametrize("name", shared_models.names())
def test_every_shared_config_is_read(name: str) -> None:
    shape = read_config(shared_models.FOLDER / f"{name}.json")
    assert shape.params_total
    assert shape.params_active


def test_a_folder_names_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "My-Model-8B"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    shape = resolve(str(folder))
    assert shape.name == "My-Model-8B"
    assert (shape.hidden, shape.vocab, shape.attention) == (64, 1000, "gqa")


@pytest.mark.parametrize(
    ("changes", "attention"),
    [
        ({"num_key_value_heads": 1}, "mqa"),
        ({"num_key_value_heads": 8}, "mha"),
        ({"num_key_value_heads": None}, "mha"),
        ({"num_key_value_heads": ...}, "mha"),
    ],
)
def test_attention(tmp_path: Path, changes: dict[str, object], attention: str) -> None:
    assert shape_of(tmp_path, **changes).attention == attention


def test_mistral_window(tmp_path: Path) -> None:
    mistral = {"model_type": "mistral"}
    assert kinds(shape_of(tmp_path, **mistral, sliding_window=None)) == [("full", None)] * 4
    assert kinds(shape_of(tmp_path, **mistral, sliding_window=8)) == [("sliding", 8)] * 4
    with pytest.raises(UserError, match="sliding_window: missing"):
        shape_of(tmp_path, **mistral)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_qwen_window_counts_from_max_window_layers_on(tmp_path: Path, model_type: str) -> None:
    on = {"model_type": model_type, "sliding_window": 8, "use_sliding_window": True}
    full, sliding = ("full", None), ("sliding", 8)
    assert kinds(shape_of(tmp_path, **on, max_window_layers=3)) == [full, full, full, sliding]
    assert kinds(shape_of(tmp_path, **on, max_window_layers=0)) == [sliding] * 4
    assert kinds(shape_of(tmp_path, **on, max_window_layers=70)) == [full] * 4
    off = {**on, "use_sliding_window": False}
    assert kinds(shape_of(tmp_path, **off, max_window_layers=0)) == [full] * 4
    with pytest.raises(UserError, match="max_window_layers: missing"):
        shape_of(tmp_path, **on)
    listed = ["full_attention", "sliding_attention"] * 2
    assert kinds(shape_of(tmp_path, **on, layer_types=listed)) == [full, sliding] * 2


@pytest.mark.parametrize(
    ("model_type", "extra"),
    [("qwen2", {}), ("qwen3", {}), ("mistral", {}), ("phi3", {}), ("starcoder2", {}),
     ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2})],
)  # fmt: skip
@pytest.mark.parametrize(
    "window",
    [{}, {"sliding_window": None}, {"sliding_window": 16},
     {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1}],
)  # fmt: skip
def test_windows_match_the_cache_that_transformers_makes(
    tmp_path: Path, model_type: str, extra: dict[str, object], window: dict[str, object]
) -> None:
    transformers = pytest.importorskip("transformers")
    if model_type == "mistral" and not window:
        pytest.skip("required here: transformers falls back on a checkpoint's number")
    config = {**LLAMA, "model_type": model_type, **extra, **window}
    shape = shape_of(tmp_path, **config)
    cache = transformers.DynamicCache(
        config=transformers.CONFIG_MAPPING[model_type].from_dict(config)
    )
    expected = [(True, layer.sliding_window) if layer.is_sliding else (False, None)
                for layer in cache.layers]  # fmt: skip
    assert [(layer.kind == "sliding", layer.window) for layer in shape.layers] == expected


def test_gpt2_field_names_and_multi_query(tmp_path: Path) -> None:
    gpt = {"n_embd": 64, "n_head": 8, "n_layer": 2, "n_positions": 16, "vocab_size": 10}
    path = tmp_path / "config.json"
    for model_type, flag, kv_heads in [
        ("gpt2", {}, 8),
        ("gpt_bigcode", {}, 1),
        ("gpt_bigcode", {"multi_query": False}, 8),
    ]:
        path.write_text(json.dumps({"model_type": model_type, **gpt, **flag}))
        assert [layer.kv_heads for layer in read_config(path).layers] == [kv_heads] * 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "a_new_one"),
        ("sliding_window", 4096),
        ("use_sliding_window", True),
        ("kv_lora_rank", 512),
        ("attention_chunk_size", 8192),
        ("sliding_window_pattern", 6),
        ("mamba_d_state", 16),
        ("text_config", {"hidden_size": 64}),
        ("block_configs", [{}]),
        ("layer_types", ["full_attention"] * 3 + ["linear_attention"]),
        ("layer_types", ["sliding_attention"] * 4),
        ("num_kv_shared_layers", 2),
        ("is_encoder_decoder", True),
        ("hybrid_override_pattern", "M-*"),
    ],
)
def test_layout_field_that_is_not_understood(tmp_path: Path, field: str, value: object) -> None:
    with pytest.raises(UnsupportedLayout) as caught:
        shape_of(tmp_path, **{field: value})
    assert caught.value.field in (field, "sliding_window")
    assert "\n" not in str(caught.value)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize("value", [None, False, 0, [], {}])
def test_layout_field_that_is_switched_off(tmp_path: Path, value: object) -> None:
    assert shape_of(tmp_path, mamba_d_state=value, text_config=value).layers


@pytest.mark.parametrize("model_type", ["qwen2_moe", "qwen3_moe"])
def test_moe_window_is_refused(tmp_path: Path, model_type: str) -> None:
    with pytest.raises(UnsupportedLayout, match="use_sliding_window=True"):
        shape_of(tmp_path, model_type=model_type, use_sliding_window=True, sliding_window=8)


HUGE = 10**9
BAD_FIELDS = [
    ("num_hidden_layers", HUGE), ("num_hidden_layers", 0), ("num_hidden_layers", -1),
    ("num_hidden_layers", True), ("num_hidden_layers", 2.0), ("num_hidden_layers", "4"),
    ("num_hidden_layers", None), ("num_hidden_layers", ...), ("num_hidden_layers", [4]),
    ("num_hidden_layers", float("nan")), ("num_hidden_layers", float("inf")),
    ("num_hidden_layers", 10**4000), ("hidden_size", 10**12), ("hidden_size", {}),
    ("hidden_size", 65), ("num_attention_heads", 7), ("num_key_value_heads", 3),
    ("num_key_value_heads", 0), ("num_key_value_heads", 16), ("head_dim", 0),
    ("head_dim", 1 << 30), ("vocab_size", ...), ("vocab_size", -5), ("model_type", ...),
    ("model_type", 5), ("model_type", ""), ("tie_word_embeddings", "yes"),
    ("tie_word_embeddings", 1), ("intermediate_size", 1.5), ("attention_bias", 3),
    ("layer_types", "full_attention"), ("layer_types", ["full_attention"]), ("layer_types", [1]),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS)
def test_bad_field_is_one_line_that_names_file_and_field(
    tmp_path: Path, field: str, value: object
) -> None:
    with pytest.raises(UserError) as caught:
        shape_of(tmp_path, **{field: value})
    text = str(caught.value)
    # Two fields that do not go together: the message may name the other one.
    other_name = {
        "hidden_size": "num_attention_heads",
        "num_attention_heads": "num_key_value_heads",
    }.get(field, field)
    assert "config.json" in text
    assert field in text or other_name in text
    assert "\n" not in text
    assert len(text) < 500


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"{", "not JSON"),
        (json.dumps(LLAMA).encode()[:-20], "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"[]", "one JSON object"),
        (b"[" * 600 + b"]" * 600, "one JSON object"),
        (b"17", "one JSON object"),
        (b"null", "one JSON object"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b'{"model_type": "llama", "model_type": "qwen2"}', "stands twice"),
        (b'{"model_type": ' + b"9" * 5000 + b"}", "not JSON"),
        (b" " * (MAX_CONFIG_BYTES + 1), "at most"),
    ],
)
def test_bad_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, says: str) -> None:
    monkeypatch.chdir(tmp_path)  # a long path is cut in the message
    path = Path("config.json")
    path.write_bytes(data)
    with pytest.raises(UserError, match=says) as caught:
        read_config(path)
    assert "\n" not in str(caught.value)
    assert "config.json" in str(caught.value)


def test_infinity_in_a_field_nobody_asks_for(tmp_path: Path) -> None:
    assert shape_of(tmp_path, time_step_limit=[0.0, float("inf")]).layers


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(LLAMA).encode())
    assert read_config(path).hidden == 64


def test_a_terabyte_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    started = time.process_time()
    with pytest.raises(UserError, match=str(1 << 40)):
        read_config(path)
    assert time.process_time() - started < 1.0


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path(os.devnull)):
        with pytest.raises(UserError, match="not a regular file"):
            read_config(path)
    with pytest.raises(UserError, match="cannot be opened"):
        read_config(tmp_path / "absent.json")
    with pytest.raises(UserError, match="NUL"):
        read_config("a\0b")


def test_a_hostile_name_stays_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "two\nlines\x1b[31m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    shape = read_config(folder / "config.json")
    assert shape.name.isprintable()
    assert shape.source.isprintable()
