"""The layers of a .gguf file by its architecture, as llama.cpp reads the keys.

Sources: ggml's gguf.md and the loaders of llama.cpp (`set_swa_pattern(n)`: of n layers all but the
last slide; `full_attention_interval`; the MLA keys). States are those of the same model in
transformers: the convolution's `conv_kernel` columns in 16 bits, the recurrent part in 32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvgauge.shapes.gguf_keys import Keys
from kvgauge.shapes.types import MAX_LAYERS, LayerShape, StatePart

Layers = tuple[LayerShape, ...]


@dataclass(frozen=True, slots=True)
class Architecture:
    """How layers are read, and which keys of layout that covers.

    `period`: of how many layers the last is full, the others sliding; 0 where a window stated holds
    for all layers (`all_slide`) or none is expected.
    """

    read: Callable[[Keys, int, Architecture], Layers]
    period: int = 0
    all_slide: bool = False
    keys: frozenset[str] = frozenset()


def _heads(keys: Keys, hidden: int) -> list[LayerShape]:
    count = keys.integer("block_count", high=MAX_LAYERS)
    heads = keys.per_layer("attention.head_count", count, default=0)
    kv_heads = keys.per_layer("attention.head_count_kv", count, default=heads[0])
    if not keys.states("attention.key_length") and hidden % heads[0]:
        raise keys.error("attention.head_count", f"must divide the hidden size {hidden}")
    k_dim = keys.integer("attention.key_length", default=hidden // heads[0])
    v_dim = keys.integer("attention.value_length", default=k_dim)
    pairs = list(zip(heads, kv_heads, strict=True))
    made = {pair: LayerShape("full", *pair, k_dim, v_dim) for pair in set(pairs)}
    return [made[pair] for pair in pairs]


def _slide(layer: LayerShape, window: int) -> LayerShape:
    return LayerShape("sliding", layer.q_heads, layer.kv_heads, layer.k_dim, layer.v_dim, window)


def _read_heads(keys: Keys, hidden: int, arch: Architecture) -> Layers:
    layers = _heads(keys, hidden)
    key = "attention.sliding_window"
    if not keys.get(key):
        if arch.period:
            raise keys.error(key, "missing, must be the window of the sliding layers")
        return tuple(layers)
    if not arch.period and not arch.all_slide:
        raise keys.unsupported(key, "which layers have the window is not known")
    window = keys.integer(key)
    slides = _sliding(keys, arch, len(layers))
    made = {layer: _slide(layer, window) for layer in set(layers)}
    return tuple(made[layer] if flag else layer for layer, flag in zip(layers, slides, strict=True))


def _sliding(keys: Keys, arch: Architecture, count: int) -> list[bool]:
    if arch.all_slide:
        return [True] * count
    key = "attention.sliding_window_pattern"
    stated = keys.get(key)
    if isinstance(stated, tuple):
        if len(stated) != count or not all(isinstance(flag, bool) for flag in stated):
            raise keys.unsupported(key, "must be a number, or true or false for each layer")
        return [flag is True for flag in stated]
    period = keys.integer(key, default=arch.period)
    return [i % period < period - 1 for i in range(count)]


def _read_latent(keys: Keys, hidden: int, arch: Architecture) -> Layers:  # noqa: ARG001
    count = keys.integer("block_count", high=MAX_LAYERS)
    heads = keys.per_layer("attention.head_count", count, default=0)
    latent = keys.integer("attention.kv_lora_rank")
    rope = keys.integer("rope.dimension_count")
    made = {q: LayerShape("mla", q_heads=q, latent_dim=latent, rope_dim=rope) for q in set(heads)}
    return tuple(made[q] for q in heads)


def _read_delta_net(keys: Keys, hidden: int, arch: Architecture) -> Layers:  # noqa: ARG001
    count = keys.integer("block_count", high=MAX_LAYERS)
    # Older files give the linear layers 0 heads; the interval says which they are.
    kv_heads = _nonzero(keys, "attention.head_count_kv")
    heads = _nonzero(keys, "attention.head_count")
    dims = (keys.integer("attention.key_length"), keys.integer("attention.value_length"))
    full = LayerShape("full", heads, kv_heads, *dims)
    interval = keys.integer("full_attention_interval", default=4)
    inner, groups = keys.integer("ssm.inner_size"), keys.integer("ssm.group_count")
    k_dim, v_heads = keys.integer("ssm.state_size"), keys.integer("ssm.time_step_rank")
    if inner % v_heads:
        raise keys.error("ssm.inner_size", f"must be a multiple of the {v_heads} value heads")
    conv = (inner + 2 * groups * k_dim) * keys.integer("ssm.conv_kernel")
    state = (StatePart("conv", conv, 16), StatePart("recurrent", inner * k_dim, 32))
    linear = LayerShape("linear", state=state)
    return tuple(linear if (i + 1) % interval else full for i in range(count))


def _nonzero(keys: Keys, key: str) -> int:
    stated = keys.get(key)
    if not isinstance(stated, tuple):
        return keys.integer(key)
    values = {value for value in stated if value}
    if len(values) != 1 or not all(isinstance(value, int) and value > 0 for value in values):
        raise keys.error(key, "must be one number of heads, or 0, for each layer")
    return int(values.pop())


_WINDOWS = frozenset({"attention.sliding_window_pattern"})
_MLA = frozenset({"attention.kv_lora_rank", "attention.q_lora_rank", "attention.key_length_mla",
                  "attention.value_length_mla"})  # fmt: skip
_SSM = frozenset({"full_attention_interval", "ssm.conv_kernel", "ssm.group_count", "ssm.inner_size",
                  "ssm.state_size", "ssm.time_step_rank"})  # fmt: skip
_FULL = Architecture(_read_heads)
_DELTA = Architecture(_read_delta_net, keys=_SSM)

ARCHITECTURES: dict[str, Architecture] = {
    "cohere2": Architecture(_read_heads, 4, keys=_WINDOWS),
    "deepseek2": Architecture(_read_latent, keys=_MLA),
    "gemma": _FULL,
    "gemma2": Architecture(_read_heads, 2, keys=_WINDOWS),
    "gemma3": Architecture(_read_heads, 6, keys=_WINDOWS),
    "gpt-oss": Architecture(_read_heads, 2, keys=_WINDOWS),
    "gpt2": _FULL,
    "llama": _FULL,  # Mistral and Mixtral too
    "minimax-m2": _FULL,
    "olmo2": _FULL,
    "phi3": Architecture(_read_heads, all_slide=True),
    "qwen2": _FULL,
    "qwen2moe": _FULL,
    "qwen3": _FULL,
    "qwen35": _DELTA,
    "qwen35moe": _DELTA,
    "qwen3moe": _FULL,
    "qwen3next": _DELTA,
    "starcoder": _FULL,  # gpt_bigcode
    "starcoder2": _FULL,
}
