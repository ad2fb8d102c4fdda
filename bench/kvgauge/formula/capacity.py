"""What a card holds: requests, tokens, and the longest trace.

Capacity = (card bytes * utilization - weights - reserve_bytes) / request bytes, in whole bytes and whole
requests, never negative. All of it on one rank: the ranks of a tensor-parallel group are alike.
"""

from __future__ import annotations

import math
from fractions import Fraction

from kvgauge.errors import UserError
from kvgauge.formula.held import Storage, growth_bytes, held_bytes
from kvgauge.shapes.types import ModelShape
from kvgauge.traces.types import MAX_TOKENS

MAX_RESERVE_BYTES = 10**15


def checked_utilization(utilization: float) -> float:
    """The share of the card that an engine may fill; raises UserError outside (0, 1]."""
    if not (math.isfinite(utilization) and 0 < utilization <= 1):
        raise UserError(f"utilization {utilization:g}: must be above 0 and at most 1")
    return utilization


def checked_reserve_bytes(reserve_bytes: int) -> int:
    """Bytes set aside for context, activations and graphs; raises UserError where negative."""
    if not 0 <= reserve_bytes <= MAX_RESERVE_BYTES:
        raise UserError(
            f"reserve of {reserve_bytes} bytes: must be between 0 and {MAX_RESERVE_BYTES}"
        )
    return reserve_bytes


def usable_bytes(card_bytes: int, utilization: float = 1.0) -> int:
    """The card's bytes times utilization, rounded down; the decimal is taken as it is written."""
    return math.floor(card_bytes * Fraction(str(checked_utilization(utilization))))


def available_bytes(
    card_bytes: int, weight_bytes: int = 0, utilization: float = 1.0, reserve_bytes: int = 0
) -> int:
    """What is left for the cache; 0 where the weights and the reserve do not fit."""
    reserve_bytes = checked_reserve_bytes(reserve_bytes)
    return max(0, usable_bytes(card_bytes, utilization) - weight_bytes - reserve_bytes)


def max_requests(available: int, request_bytes: int) -> int | None:
    """Whole requests that fit; None where a request holds nothing."""
    return available // request_bytes if request_bytes else None


def max_cached_tokens(
    shape: ModelShape, tokens: int, storage: Storage, available: int
) -> int | None:
    """Tokens in the cache when requests of `tokens` fill it, whole or in part.

    For a model whose layers all grow this is the available bytes over the bytes a token. With windows
    or a state it depends on the length of the requests, and only this length is answered. At length
    zero, the next token's bytes count; None where they are none.
    """
    if tokens:
        held = held_bytes(shape, tokens, storage)
        return available * tokens // held if held else None
    growth = growth_bytes(shape, 0, storage)
    return available // growth if growth else None


def longest_tokens(
    shape: ModelShape, storage: Storage, available: int, batch: int = 1
) -> int | None:
    """The longest length at which `batch` requests fit; None where any length does, 0 where none."""
    share = available // batch
    if held_bytes(shape, MAX_TOKENS, storage) <= share:
        return None
    low, high = 0, MAX_TOKENS  # `low` fits, or is 0; `high` does not
    while high - low > 1:
        middle = (low + high) // 2
        if held_bytes(shape, middle, storage) <= share:
            low = middle
        else:
            high = middle
    return low
