"""The caches that transformers' own models fill, at full size and without memory (meta tensors)."""

from __future__ import annotations

import importlib
from typing import Any

import torch
import transformers

# Whose `model_type` transformers does not know, and whose own code is a class that it has.
SAME_AS = {"kimi_k2": "deepseek_v3"}

# Decoders that have no automatic class, only a larger model around them.
ONLY_INSIDE = {"step3p5": ("step3p7.modeling_step3p7", "Step3p7TextModel")}


def config_of(raw: dict[str, Any]) -> Any | None:
    """The decoder's configuration, or None where transformers has no such class."""
    model_type = SAME_AS.get(raw["model_type"], raw["model_type"])
    if model_type not in transformers.CONFIG_MAPPING:
        return None
    # Each load edits nested objects in place.
    made = transformers.CONFIG_MAPPING[model_type].from_dict(
        _copied({**raw, "model_type": model_type})
    )
    return made.get_text_config(decoder=True)


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def model_of(config: Any) -> Any:
    """The decoder on the meta device in bf16; without a head where that is part of a larger model."""
    if config.model_type in ONLY_INSIDE:
        file, name = ONLY_INSIDE[config.model_type]
        build = getattr(importlib.import_module(f"transformers.models.{file}"), name)._from_config
    else:
        headed = type(config) in transformers.AutoModelForCausalLM._model_mapping
        auto: Any = transformers.AutoModelForCausalLM if headed else transformers.AutoModel
        build = auto.from_config
    with torch.device("meta"):
        model = build(config, dtype=torch.bfloat16, attn_implementation="eager")
    for module in model.modules():
        if type(module).__name__.endswith("Experts"):  # routing reads values, which meta has not
            module.forward = lambda hidden, *_, **__: torch.zeros_like(hidden)
    return model.eval()


def filled(model: Any, tokens: int) -> Any:
    """The cache after one forward pass over `tokens`."""
    ids = torch.zeros((1, tokens), dtype=torch.long, device="meta")
    own = importlib.import_module(type(model).__module__)
    name = "MiniMaxCache"  # which refuses the general one
    cache = getattr(own, name)() if hasattr(own, name) else None
    with torch.no_grad():
        if cache is None:
            cache = transformers.DynamicCache(config=model.config)
        keyword = "cache_params" if "mamba" in model.config.model_type else "past_key_values"
        model(input_ids=ids, use_cache=True, **{keyword: cache})
    return cache


def tensors_of(layer: Any) -> list[torch.Tensor]:
    """What one layer of a cache holds."""
    found = [getattr(layer, name, None) for name in ("keys", "values", "indexer_keys")]
    for name in ("conv_states", "recurrent_states"):
        found += list((getattr(layer, name, None) or {}).values())
    return [tensor for tensor in found if tensor is not None]


def bytes_of(layer: Any) -> int:
    """Bytes of one layer of a cache."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(layer))


def layers_of(cache: Any) -> list[Any]:
    """One object a layer, whatever the cache's class."""
    states = getattr(cache, "linear_cache", None)  # MiniMaxCache: beside the layers
    if states is None:
        return list(cache.layers)
    return [
        _State(state) if len(state) else layer for state, layer in _padded(states, cache.layers)
    ]


class _State:
    def __init__(self, state: torch.Tensor) -> None:
        self.recurrent_states = {0: state}


def _padded(states: list[Any], layers: list[Any]) -> list[tuple[Any, Any]]:
    count = max(len(states), len(layers))
    return [
        (states[i] if i < len(states) else [], layers[i] if i < len(layers) else None)
        for i in range(count)
    ]
