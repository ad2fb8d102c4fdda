"""The memory ledger of one rank: where every byte goes, in lines that sum to the total exactly."""

from __future__ import annotations

from dataclasses import dataclass

from kvgauge.formula.capacity import usable_bytes
from kvgauge.formula.held import (
    layer_state_bytes,
    open_group_bytes,
    row_bytes,
    slots_held,
    tokens_held,
)
from kvgauge.formula.setting import Setting
from kvgauge.formula.stack import distinct_layers
from kvgauge.shapes.types import ModelShape

METADATA = "KV metadata (scales, zero points)"
INDEX = "indexer keys"
ROUNDING = "page rounding"
SLACK = "page rounding and window slack"
STATE = "constant state"
WEIGHTS = "weights"
RESERVE = "reserve (context, activations, graphs)"
WITHHELD = "left alone by utilization"
FREE = "free"
SHORT = "short (does not fit)"


@dataclass(frozen=True, slots=True)
class LedgerLine:
    """One use of memory, in bytes; `short` alone is negative."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Ledger:
    """`total_bytes` is the card where one is given, else the sum of what is known to be used."""

    total_bytes: int
    lines: tuple[LedgerLine, ...]


def ledger(shape: ModelShape, tokens: int, setting: Setting, weight_bytes: int | None) -> Ledger:
    """The batch at its full length on one rank; lines of zero bytes are left out."""
    parts = _cache_parts(shape, tokens, setting)
    if weight_bytes is not None:
        parts[WEIGHTS] = weight_bytes
    parts[RESERVE] = setting.reserve_bytes
    used = sum(parts.values())
    if setting.gpu is None or weight_bytes is None:
        return _made(used, parts)
    card = setting.gpu.memory_bytes
    withheld = card - usable_bytes(card, setting.utilization)
    left = card - withheld - used
    parts |= {WITHHELD: withheld, (FREE if left >= 0 else SHORT): left}
    return _made(card, parts)


def _cache_parts(shape: ModelShape, tokens: int, setting: Setting) -> dict[str, int]:
    storage, batch = setting.storage, setting.batch
    rounding = SLACK if storage.engine.window_slack else ROUNDING
    ideal: dict[str, int] = {}
    rest = {METADATA: 0, INDEX: 0, rounding: 0, STATE: 0}
    for layer, count in distinct_layers(shape):
        many = batch * count
        rest[STATE] += many * layer_state_bytes(layer, storage)
        if not layer.is_attention or layer.shared:
            continue
        row, kept = row_bytes(layer, storage), tokens_held(layer, tokens)
        name = "latents, mla layers" if layer.kind == "mla" else f"K and V, {layer.kind} layers"
        ideal[name] = ideal.get(name, 0) + many * kept * row.elements
        slots = slots_held(layer, tokens, storage)
        open_group = open_group_bytes(layer, slots, storage)
        rest[METADATA] += many * (kept * row.metadata + open_group)
        rest[INDEX] += many * kept * row.index
        rest[rounding] += many * (slots - kept) * row.total
    return ideal | rest


def _made(total: int, parts: dict[str, int]) -> Ledger:
    lines = tuple(LedgerLine(name, size) for name, size in parts.items() if size)
    return Ledger(total, lines)
