"""Bytes of one request's cache by transformers' own cache classes, and by the conventions that differ.

The decoder is built on the meta device from the configuration and filled by one forward pass, as in
tests/oracle. Nothing here comes from kvgauge's readers or formula.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import caches_of_transformers as theirs

# Not in transformers: bytes of a token in all layers. MiMo-7B is a Qwen2 decoder: 36 layers of 8 KV
# heads of 128, K and V in bf16 (its multi-token-prediction layer left out).
BY_HAND = {"XiaomiMiMo--MiMo-7B-Base": 36 * 2 * 8 * 128 * 2}


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's bytes: of a token, and of the state; the window is None where all tokens are kept."""

    token: int
    index: int = 0  # of the token's bytes: the indexer's key
    window: int | None = None
    kept: int | None = None  # by transformers: the window less one
    conv: int = 0
    conv_less: int = 0  # of a kernel less one
    recurrent: int = 0
    recurrent_items: int = 0

    def at(self, tokens: int, convention: Convention) -> int:
        """Bytes at that length."""
        limits = {"window": self.window, "window - 1": self.kept, "whole": None, "no windows": 0}
        limit = None if self.window is None else limits[convention.window]
        token = self.token
        if convention.index_fp8 and self.index:
            token += self.index // 2 + 4 - self.index
        held = token * (tokens if limit is None else min(tokens, limit))
        if not convention.state:
            return held
        width = convention.state_bytes
        state = self.recurrent if width is None else self.recurrent_items * width
        return held + state + (self.conv_less if convention.conv_less else self.conv)


@dataclass(frozen=True, slots=True)
class Convention:
    """What is counted: the default is what kvgauge states for the `hf` engine."""

    window: str = "window"
    state: bool = True
    state_bytes: int | None = None
    conv_less: bool = False
    index_fp8: bool = False

    def __str__(self) -> str:
        said = {
            "window - 1": "window - 1 kept", "whole": "windowed layers at full length",
            "no windows": "without the windowed layers",
        }  # fmt: skip
        parts = [said[self.window]] if self.window in said else []
        if not self.state:
            parts.append("without the constant state")
        if self.state_bytes is not None:
            parts.append(f"recurrent state in {8 * self.state_bytes} bits")
        if self.conv_less:
            parts.append("convolution of kernel - 1")
        if self.index_fp8:
            parts.append("indexer keys in fp8 with a scale of 4 bytes")
        return ", ".join(parts)


# Any peer may follow these: engines differ in them.
COMMON = tuple(
    Convention(window, True, width, less, index)
    for window in ("window", "window - 1")
    for width in (None, 2, 4)
    for less in (False, True)
    for index in (False, True)
)


def layers_of(path: Path) -> list[Layer]:
    """Every layer of the model that the configuration describes."""
    if path.parent.name in BY_HAND:
        return [Layer(BY_HAND[path.parent.name])]
    config = theirs.config_of(json.loads(path.read_text()))
    if config is None:
        raise LookupError(f"{path.parent.name}: no class in transformers and not in the hand table")
    model = theirs.model_of(config)
    short = theirs.layers_of(theirs.filled(model, 1))
    windows = [_window(layer) for layer in short]
    longest = max((window for window in windows if window), default=0)
    if not longest:
        return [_layer(layer, None, None) for layer in short]
    long = theirs.layers_of(theirs.filled(model, longest + 7))
    return [
        _layer(layer, window, None if window is None else full.keys.shape[-2])
        for layer, full, window in zip(short, long, windows, strict=True)
    ]


def _window(layer: Any) -> int | None:
    window = getattr(layer, "sliding_window", None)
    return None if window is None else int(window)


def _layer(layer: Any, window: int | None, kept: int | None) -> Layer:
    keyed = [getattr(layer, name, None) for name in ("keys", "values", "indexer_keys")]
    token = sum(each.numel() * each.element_size() for each in keyed if each is not None)
    convs = list((getattr(layer, "conv_states", None) or {}).values())
    states = list((getattr(layer, "recurrent_states", None) or {}).values())
    index = getattr(layer, "indexer_keys", None)
    return Layer(
        token, 0 if index is None else index.numel() * index.element_size(), window, kept,
        conv=sum(each.numel() * each.element_size() for each in convs),
        conv_less=sum(
            each.numel() * each.element_size() // each.shape[-1] * (each.shape[-1] - 1)
            for each in convs
        ),
        recurrent=sum(each.numel() * each.element_size() for each in states),
        recurrent_items=sum(each.numel() for each in states),
    )  # fmt: skip


STATED = Convention()


def request_bytes(layers: list[Layer], tokens: int, convention: Convention = STATED) -> int:
    """Bytes of the request by that convention."""
    return sum(layer.at(tokens, convention) for layer in layers)
