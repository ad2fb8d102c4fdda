"""Where the bound of a decode step flips, as the batch or the depth grows.

The weights are read once for the batch: their bytes stay, their arithmetic grows with it. Attention reads
each sequence's own cache: bytes and arithmetic grow alike, so that no batch changes what bounds it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from kvgauge.formula.floor import Rates, operation_times
from kvgauge.formula.moved import Operation, step_operations
from kvgauge.formula.setting import Setting
from kvgauge.formula.stack import ByIdentity
from kvgauge.shapes.types import ModelShape
from kvgauge.traces.types import MAX_TOKENS


@dataclass(frozen=True, slots=True)
class Flips:
    """None means that it never flips.

    `weights_batch`: from this batch on, the weights' arithmetic takes longer than reading them.
    `step_batch`: from this batch on, most of the whole step is compute-bound at this depth.
    `cache_tokens`: from this depth on, the cache takes longer than the weights at this batch.
    """

    weights_batch: int | None
    step_batch: int | None
    cache_tokens: int | None


def flips(shape: ModelShape, tokens: int, chosen: Setting, rates: Rates) -> Flips:
    """Of a step at a depth of `tokens`; the weights of the shape must be known."""
    one = _operations(shape, tokens, chosen, batch=1)
    read_s, compute_s = operation_times(_weights(one), rates)
    weights_batch = math.floor(read_s / compute_s) + 1 if compute_s else None
    rest = [operation_times(op, rates) for op in one if op.name != "weights"]
    memory_s = sum(m for m, c in rest if m >= c)  # for each sequence of the batch
    arithmetic_s = sum(c for m, c in rest if m < c)
    candidates = []
    if weights_batch is not None and compute_s + arithmetic_s > memory_s:
        candidates.append(weights_batch)
    if arithmetic_s > memory_s:  # before the weights themselves flip
        candidates.append(math.floor(read_s / (arithmetic_s - memory_s)) + 1)
    cache_tokens = _cache_tokens(ByIdentity(shape), chosen, rates)
    return Flips(weights_batch, min(candidates, default=None), cache_tokens)


def _operations(shape: ModelShape, tokens: int, chosen: Setting, batch: int) -> Sequence[Operation]:
    return step_operations(shape, tokens, chosen.storage, batch, chosen.weights)


def _weights(operations: Sequence[Operation]) -> Operation:
    return next(op for op in operations if op.name == "weights")


@lru_cache(maxsize=1024)
def _cache_tokens(key: ByIdentity, chosen: Setting, rates: Rates) -> int | None:
    def cache_leads(tokens: int) -> bool:
        operations = _operations(key.shape, tokens, chosen, chosen.batch)
        cache = [op for op in operations if op.name.startswith("attention")]
        cache_s = sum(max(operation_times(op, rates)) for op in cache)
        return cache_s > max(operation_times(_weights(operations), rates))

    if not cache_leads(MAX_TOKENS):
        return None
    low, high = -1, MAX_TOKENS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if cache_leads(middle) else (middle, high)
    return high
