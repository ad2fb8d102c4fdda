"""`--compare`: other plans beside the one that was asked for.

    --compare int8                    the same in another KV format
    --compare H200,L40S               on two other cards: one more column each
    --compare qwen3-8b                of another model
    --compare gpu=H200+tp=2           two settings changed at once
    --compare engine=vllm --compare weight-format=int4

A comma begins another column, `+` joins settings of one. A bare word is a KV format, a card or a model, in
that order; KEY=VALUE is an option of `kvgauge plan` without its dashes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kvgauge.errors import UserError, did_you_mean, short
from kvgauge.formats import FORMATS, kv_format
from kvgauge.formula.hardware import gpu_named
from kvgauge.shapes.resolve import resolve
from kvgauge.traces.axis import parse_count
from kvgauge.units import GB

MAX_VARIANTS = 12
MAX_RESERVE_GB = 1e6


def reserve_bytes_of(reserve_gb: float) -> int:
    """GB of 10^9 to bytes; raises UserError where it is negative or not a number."""
    if not 0 <= reserve_gb <= MAX_RESERVE_GB:
        raise UserError(f"reserve of {reserve_gb:g} GB: must be between 0 and {MAX_RESERVE_GB:g}")
    return round(reserve_gb * GB)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"'{short(text)}': must be a number") from None


_KEYS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "model": ("model", str),
    "kv-format": ("kv_format", str),
    "weight-format": ("weight_format", str),
    "gpu": ("gpu", str),
    "engine": ("engine", str),
    "tp": ("tp", parse_count),
    "batch": ("batch", parse_count),
    "page-size": ("page_size", parse_count),
    "prompt": ("prompt", parse_count),
    "think": ("think", parse_count),
    "answer": ("answer", parse_count),
    "utilization": ("utilization", _number),
    "reserve-gb": ("reserve_bytes", lambda text: reserve_bytes_of(_number(text))),
}


@dataclass(frozen=True, slots=True)
class Variant:
    """A label and what differs from the plan that was asked for; `model` may be among it."""

    label: str
    changes: dict[str, Any]


def parse_variants(texts: Sequence[str]) -> tuple[Variant, ...]:
    """All columns of all `--compare`; raises UserError for an unknown key or an empty one."""
    labels = [label for text in texts for label in text.split(",")]
    if len(labels) > MAX_VARIANTS:
        raise UserError(f"--compare: {len(labels)} columns, at most {MAX_VARIANTS}")
    return tuple(Variant(label, _changes(label)) for label in labels)


def _changes(label: str) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for part in label.split("+"):
        name, value = _change(part)
        if name in changes:
            raise UserError(f"--compare '{short(label)}': {name.replace('_', '-')} is said twice")
        changes[name] = value
    return changes


def _change(part: str) -> tuple[str, Any]:
    key, equals, value = part.partition("=")
    if equals and key not in _KEYS:
        raise UserError(f"--compare '{short(part)}': the key must be one of {', '.join(_KEYS)}")
    if equals:
        name, read = _KEYS[key]
        return name, read(value)
    if not part:
        raise UserError("--compare: an empty name; a KV format, a card, a model or KEY=VALUE")
    if _known(kv_format, part):
        return "kv_format", part
    if _known(gpu_named, part):
        return "gpu", part
    hint = did_you_mean(part, FORMATS)
    if hint and not _known(resolve, part):
        raise UserError(f"--compare '{short(part)}': no KV format, card or model; {hint}")
    return "model", part


def _known(lookup: Callable[[str], object], name: str) -> bool:
    try:
        lookup(name)
    except UserError:
        return False
    return True
