"""Which layers of a plain model keep only a window of tokens, as its config.json says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvgauge.shapes.fields import Fields

# none:   the family has no window.
# field:  `sliding_window`, a number or null, holds for all layers.
# stated: the same, but absence means nothing: Mistral's configurations differ in what they left out.
# switch: `sliding_window` counts only with `use_sliding_window`, from layer `max_window_layers` on.
# off:    `use_sliding_window` must be false: readers differ in which layers it would mean.
# alternating: all but every n-th layer; `layer_types` decides where it is there (Gemma 2 and 3).
# listed: `layer_types` decides; without it no layer has a window unless `sliding_window` is null.
Rule = Literal["none", "field", "stated", "switch", "off", "alternating", "listed"]


@dataclass(frozen=True, slots=True)
class Every:
    """Of `alternating`: each n-th layer is full, n from the field where the config has it."""

    default: int = 0
    field: str = ""


FIELDS = frozenset({"layer_types", "max_window_layers", "sliding_window", "use_sliding_window"})

_FULL, _SLIDING = "full_attention", "sliding_attention"


def read(
    rule: Rule, fields: Fields, layers: int, every: Every = Every()
) -> tuple[int | None, frozenset[int] | None]:
    """The window in tokens and the layers that have it (None: all); (None, None) where none has."""
    fields.understood(*FIELDS)
    if rule in ("alternating", "listed"):
        return _alternating(rule, fields, layers, every)
    if rule == "none":
        if fields.values.get("sliding_window") or fields.values.get("use_sliding_window"):
            raise fields.unsupported("sliding_window", "this model_type has no sliding window")
        window, windowed = None, frozenset[int]()
    elif rule in ("switch", "off"):
        window, windowed = _switched(rule, fields, layers)
    else:
        if rule == "stated" and "sliding_window" not in fields.values:
            raise fields.error("sliding_window", "missing, must be a number of tokens or null")
        window = fields.integer("sliding_window") if fields.has("sliding_window") else None
        windowed = frozenset(range(layers)) if window else frozenset()
    if fields.has("layer_types"):
        windowed = _checked(rule, fields, layers, window, windowed)
    if not windowed:
        return None, None
    return window, None if len(windowed) == layers else windowed


def _alternating(
    rule: Rule, fields: Fields, layers: int, every: Every
) -> tuple[int | None, frozenset[int] | None]:
    if fields.values.get("use_bidirectional_attention"):
        raise fields.unsupported("use_bidirectional_attention", "halves the window")
    fields.understood("_sliding_window_pattern", *([every.field] if every.field else []))
    if "sliding_window" not in fields.values:  # the class falls back on one checkpoint's number
        raise fields.error("sliding_window", "missing, must be a number of tokens or null")
    window = fields.integer("sliding_window") if fields.has("sliding_window") else None
    if fields.has("layer_types"):  # goes before the number, which may then be a word ("LLLG")
        windowed = _listed(fields, layers)
    elif rule == "listed" and window is not None:
        raise fields.unsupported("sliding_window", "without layer_types its layers are not known")
    elif window is None:
        windowed = frozenset()
    else:
        n = fields.integer(every.field, default=every.default) if every.field else every.default
        windowed = frozenset(i for i in range(layers) if (i + 1) % n)
    if windowed and window is None:
        raise fields.unsupported("layer_types", "sliding layers, but no window is stated")
    if not windowed:
        return None, None
    return window, None if len(windowed) == layers else windowed


def _listed(fields: Fields, layers: int) -> frozenset[int]:
    kinds = fields.texts("layer_types", layers)
    unknown = next((kind for kind in kinds if kind not in (_FULL, _SLIDING)), None)
    if unknown is not None:
        raise fields.unsupported("layer_types", f"{unknown[:40]!a} is not understood")
    return frozenset(i for i, kind in enumerate(kinds) if kind == _SLIDING)


def _switched(rule: Rule, fields: Fields, layers: int) -> tuple[int | None, frozenset[int]]:
    if not fields.flag("use_sliding_window", default=False):
        return None, frozenset()
    if rule == "off":
        raise fields.unsupported("use_sliding_window", "which layers have the window is not known")
    window = fields.integer("sliding_window") if fields.has("sliding_window") else None
    if window is None:
        return None, frozenset()
    if fields.has("layer_types"):
        return window, frozenset()
    first = fields.integer("max_window_layers", low=0)
    return window, frozenset(range(min(first, layers), layers))


def _checked(
    rule: Rule, fields: Fields, layers: int, window: int | None, windowed: frozenset[int]
) -> frozenset[int]:
    # The list decides where the family reads it (`switch`); elsewhere it must agree.
    listed = _listed(fields, layers)
    if listed and window is None:
        raise fields.unsupported("layer_types", "sliding layers, but no window is switched on")
    if rule != "switch" and listed != windowed:
        raise fields.unsupported("layer_types", "disagrees with sliding_window")
    return listed
