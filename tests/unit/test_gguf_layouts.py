"""Layouts that a .gguf file states by its architecture, against the same model's config.json facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gguf_for_tests import gguf
from kvgauge.errors import UnsupportedLayout, UserError
from kvgauge.shapes.gguf import read_gguf
from kvgauge.shapes.types import LayerShape, ModelShape, StatePart

TENSORS = {"token_embd.weight": (64, 100)}


def shape_of(tmp_path: Path, arch: str, **keys: Any) -> ModelShape:
    metadata: dict[str, Any] = {
        "general.architecture": arch,
        f"{arch}.block_count": 12,
        f"{arch}.embedding_length": 64,
        f"{arch}.attention.head_count": 8,
        f"{arch}.attention.head_count_kv": 2,
    }
    metadata |= {f"{arch}.{key.replace('__', '.')}": item for key, item in keys.items()}
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf({k: v for k, v in metadata.items() if v is not None}, TENSORS))
    return read_gguf(path)


@pytest.mark.parametrize(
    ("arch", "period"), [("gemma2", 2), ("gemma3", 6), ("gpt-oss", 2), ("cohere2", 4)]
)
def test_all_but_every_nth_layer_slides(tmp_path: Path, arch: str, period: int) -> None:
    shape = shape_of(tmp_path, arch, attention__sliding_window=32, attention__key_length=16)
    full = [i for i, layer in enumerate(shape.layers) if layer.kind == "full"]
    assert full == list(range(period - 1, 12, period))
    assert {layer.window for layer in shape.layers} == {None, 32}
    stated = shape_of(
        tmp_path, arch, attention__sliding_window=32, attention__sliding_window_pattern=3
    )
    assert [i for i, layer in enumerate(stated.layers) if layer.kind == "full"] == [2, 5, 8, 11]
    with pytest.raises(UserError, match="sliding_window: missing"):
        shape_of(tmp_path, arch)


def test_latent(tmp_path: Path) -> None:
    shape = shape_of(
        tmp_path, "deepseek2", attention__head_count_kv=1, attention__kv_lora_rank=512,
        attention__key_length=576, attention__value_length=512, attention__key_length_mla=192,
        attention__value_length_mla=128, rope__dimension_count=64,
    )  # fmt: skip
    assert shape.layers == (LayerShape("mla", q_heads=8, latent_dim=512, rope_dim=64),) * 12


# Qwen3-Next-80B-A3B, as llama.cpp's converter writes it.
NEXT: dict[str, Any] = {
    "attention__key_length": 256, "attention__value_length": 256, "ssm__conv_kernel": 4,
    "ssm__inner_size": 4096, "ssm__state_size": 128, "ssm__time_step_rank": 32,
    "ssm__group_count": 16,
}  # fmt: skip


def test_delta_net(tmp_path: Path) -> None:
    for heads in (2, [0, 0, 0, 2] * 3):
        shape = shape_of(tmp_path, "qwen3next", attention__head_count_kv=heads, **NEXT)
        assert shape.layers[3] == LayerShape("full", 8, 2, 256, 256)
        state = (StatePart("conv", 8192 * 4, 16), StatePart("recurrent", 32 * 128 * 128, 32))
        assert shape.layers[0] == LayerShape("linear", state=state)
        assert [layer.kind for layer in shape.layers] == (["linear"] * 3 + ["full"]) * 3


@pytest.mark.parametrize(
    ("arch", "key"),
    [
        ("qwen3next", "nextn_predict_layers"),
        ("gemma3", "attention__shared_kv_layers"),
        ("gpt-oss", "attention__key_length_swa"),
        ("llama", "attention__sliding_window_pattern"),
        ("deepseek2", "attention__indexer.key_length"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path: Path, arch: str, key: str) -> None:
    base = NEXT if arch == "qwen3next" else {"attention__sliding_window": 32}
    with pytest.raises(UnsupportedLayout, match="unsupported layout: "):
        shape_of(tmp_path, arch, **{**base, key: 3})
