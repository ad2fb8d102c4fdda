"""Bytes of each layer against the cache that transformers' own model fills, at full size.

The models are built on the meta device: real classes, real shapes and dtypes, no memory. Nothing
here is computed by the formula or the readers, and nothing by the same rules.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import shared_models
from kvgauge.formats import FORMATS
from kvgauge.formula.held import Storage, layer_bytes
from kvgauge.shapes.hf import read_config
from kvgauge.shapes.types import LayerShape

pytest.importorskip("transformers")

import caches_of_transformers as theirs

BF16 = Storage(FORMATS["bf16"])

# Not in transformers: the tokens' bytes in each layer, by hand. MiMo-7B: a Qwen2 decoder of 8 KV
# heads of 128, K and V in bf16 (its multi-token-prediction layer left out).
BY_HAND = {"XiaomiMiMo--MiMo-7B-Base": (36, 2 * 8 * 128 * 2)}

# Transformers keeps `window - 1` tokens, for the next query brings its own; the formula counts the
# window that a step attends to.
ONE_LESS = ("sliding", "chunked")


def expected(layer: LayerShape, tokens: int) -> int:
    """The formula's bytes for what transformers keeps of `tokens`."""
    if layer.kind in ONE_LESS and layer.window is not None:
        tokens = min(tokens, layer.window - 1)
    return layer_bytes(layer, tokens, BF16)


def compare(path: Path, config: Any, lengths: tuple[int, ...]) -> None:
    """All layers at all lengths."""
    shape = read_config(path)
    model = theirs.model_of(config)
    for tokens in lengths:
        held = [theirs.bytes_of(layer) for layer in theirs.layers_of(theirs.filled(model, tokens))]
        assert held == [expected(layer, tokens) for layer in shape.layers], tokens


@pytest.mark.parametrize("name", shared_models.names())
def test_each_layer_of_each_model(name: str) -> None:
    raw = shared_models.raw(name)
    path = shared_models.FOLDER / f"{name}.json"
    config = theirs.config_of(raw)
    if config is None:
        layers, token_bytes = BY_HAND[name]
        by_hand = [token_bytes * 7] * layers
        assert [layer_bytes(layer, 7, BF16) for layer in read_config(path).layers] == by_hand
        return
    windows = {layer.window for layer in read_config(path).layers if layer.window}
    compare(path, config, (1, max(windows, default=0) + 7))
