"""A .gguf file -> ModelShape, from its metadata and its tensor table.

Metadata keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Weight counts are sums
over the tensor table, so they are what the file holds.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

from kvgauge.errors import UnsupportedLayout, UserError, short
from kvgauge.shapes.gguf_header import Header, Scalar, read_header
from kvgauge.shapes.guard import bears_on_layout
from kvgauge.shapes.types import MAX_DIM, MAX_LAYERS, LayerShape, ModelShape
from kvgauge.shapes.weights import NO_WEIGHTS, Weights

# Whose layers all store K and V heads. The value: whether a window stated holds for all layers
# (`all`), or none is expected (`none`).
ARCHITECTURES = {
    "gemma": "none",
    "gpt2": "none",
    "llama": "none",  # Mistral and Mixtral too
    "olmo2": "none",
    "phi3": "all",
    "qwen2": "none",
    "qwen2moe": "none",
    "qwen3": "none",
    "qwen3moe": "none",
    "starcoder": "none",  # gpt_bigcode
    "starcoder2": "none",
}
_UNDERSTOOD = frozenset({"attention.head_count_kv", "attention.sliding_window"})
# Tables of rotary factors, which are computed in other formats and no weights.
_NOT_WEIGHTS = frozenset(
    {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
)
# A step looks one row up in these; the token table too, unless it is the output head as well.
_LOOKED_UP = frozenset({"position_embd.weight"})
_EXPERT = re.compile(r"blk\.\d+\.ffn_(gate|up|down|gate_up)(_exps|\.\d+)\.(weight|bias)")


def read_gguf(path: str | os.PathLike[str]) -> ModelShape:
    """The shape of the model in a .gguf file; UserError for anything else.

    Of a model split into several files any one will do, but its weights are then not counted.
    """
    header = read_header(path)
    arch = header.metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in ARCHITECTURES:
        hint = f"{header.where}: known: {', '.join(ARCHITECTURES)}"
        raise UnsupportedLayout("general.architecture", arch, hint)
    kind = header.metadata.get("general.type", "model")
    if kind != "model":
        raise UserError(f"{header.where}: general.type={short(kind)}: must be model")
    keys = _Keys(header, arch)
    keys.refuse_unknown_layout()
    hidden = keys.integer("embedding_length")
    vocab = _vocab(header, keys, hidden)
    try:
        layers = _layers(keys, hidden)
        weights = _weights(header, keys)
        total, active = (weights.total, weights.active) if weights else (None, None)
        return ModelShape(
            short(Path(path).stem), layers, hidden, vocab, total, active, header.where
        )
    except UserError as error:
        raise keys.located(error) from None


class _Keys:
    """The keys of one architecture, checked where they are asked for."""

    def __init__(self, header: Header, arch: str) -> None:
        self.header = header
        self.arch = arch

    def integer(self, key: str, *, high: int = MAX_DIM, default: int | None = None) -> int:
        """An integer in [1, high]; `default` where the key is absent, if one is given."""
        value = self.header.metadata.get(f"{self.arch}.{key}", default)
        return self._checked(key, value, high)

    def states(self, key: str) -> bool:
        """Whether the key is there."""
        return f"{self.arch}.{key}" in self.header.metadata

    def per_layer(self, key: str, layers: int, default: int) -> list[int]:
        """One integer a layer, written as one number or as a list."""
        value = self.header.metadata.get(f"{self.arch}.{key}", default)
        if not isinstance(value, tuple):
            return [self._checked(key, value, MAX_DIM)] * layers
        if len(value) != layers:
            raise self.error(key, f"must have one entry a layer ({layers}), found {len(value)}")
        return [self._checked(key, item, MAX_DIM) for item in value]

    def refuse_unknown_layout(self) -> None:
        """Raise UnsupportedLayout for a key that may bear on layout and is not understood."""
        prefix = f"{self.arch}."
        for full, value in self.header.metadata.items():
            key = full.removeprefix(prefix)
            if not full.startswith(prefix) or key in _UNDERSTOOD or not value:
                continue
            if bears_on_layout(key):
                hint = f"{self.header.where}: this key is not understood"
                raise UnsupportedLayout(full, value, hint)

    def window(self) -> int | None:
        """The window of all layers, in tokens."""
        key = "attention.sliding_window"
        value = self.header.metadata.get(f"{self.arch}.{key}")
        if not value:
            return None
        if ARCHITECTURES[self.arch] != "all":
            hint = f"{self.header.where}: which layers have the window is not known"
            raise UnsupportedLayout(f"{self.arch}.{key}", value, hint)
        return self.integer(key)

    def error(self, key: str, problem: str) -> UserError:
        """A UserError that names file and key."""
        return UserError(f"{self.header.where}: {self.arch}.{key}: {problem}")

    def located(self, error: UserError) -> UserError:
        """The error with the file's name in it."""
        text = str(error)
        named = self.header.where in text
        return error if named else UserError(f"{self.header.where}: {text}")

    def _checked(self, key: str, value: object, high: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= high:
            found = "nothing" if value is None else short(value)
            raise self.error(key, f"must be an integer in [1, {high}], found {found}")
        return value


def _layers(keys: _Keys, hidden: int) -> tuple[LayerShape, ...]:
    count = keys.integer("block_count", high=MAX_LAYERS)
    heads = keys.per_layer("attention.head_count", count, default=0)
    kv_heads = keys.per_layer("attention.head_count_kv", count, default=heads[0])
    if not keys.states("attention.key_length") and hidden % heads[0]:
        raise keys.error("attention.head_count", f"must divide the hidden size {hidden}")
    k_dim = keys.integer("attention.key_length", default=hidden // heads[0])
    v_dim = keys.integer("attention.value_length", default=k_dim)
    window = keys.window()
    made = {
        pair: LayerShape("sliding" if window else "full", *pair, k_dim, v_dim, window)
        for pair in set(zip(heads, kv_heads, strict=True))
    }
    return tuple(made[pair] for pair in zip(heads, kv_heads, strict=True))


def _vocab(header: Header, keys: _Keys, hidden: int) -> int:
    table = header.tensors.get("token_embd.weight")
    if table is None:  # another file of the set holds it
        return keys.integer("vocab_size")
    if len(table) != 2 or table[0] != hidden or table[1] > MAX_DIM:
        raise UserError(
            f"{header.where}: token_embd.weight: must be {hidden} x vocabulary, found {short(table)}"
        )
    return table[1]


def _weights(header: Header, keys: _Keys) -> Weights | None:
    files: Scalar | object = header.metadata.get("split.count", 1)
    if not header.tensors or files not in (0, 1):
        return None
    tied = "output.weight" not in header.tensors
    experts = used = 1
    if header.metadata.get(f"{keys.arch}.expert_count"):
        experts = keys.integer("expert_count")
        used = keys.integer("expert_used_count", high=experts)
    count = NO_WEIGHTS
    for name, dims in header.tensors.items():
        elements = math.prod(dims)
        if name in _NOT_WEIGHTS:
            continue
        looked_up = name in _LOOKED_UP or (name == "token_embd.weight" and not tied)
        if looked_up:
            count += Weights(elements, 0)
        elif _EXPERT.fullmatch(name):
            count += Weights(elements, elements * used // experts)
        else:
            count += Weights(elements, elements)
    return count
