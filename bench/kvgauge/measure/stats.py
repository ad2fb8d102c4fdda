"""Many samples to one number: the median, its 95% interval, the noise of a sample, and its drift."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np

LEVEL = 0.95
# With fewer samples even their whole range holds the median less than 95 times in 100.
MIN_SAMPLES_OF_AN_INTERVAL = 6
_MAD_TO_SIGMA = 1.4826  # a normal distribution's standard deviation over its MAD


def median_interval(samples: Sequence[float]) -> tuple[float, float]:
    """95% interval of the median from order statistics, interpolated between two of them.

    Hettmansperger and Sheather 1986 (Statistics & Probability Letters 4): no distribution is assumed,
    and unlike the bootstrap it keeps its level with few samples. Under 6 samples: their range.
    """
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    n = len(ordered)
    if n < MIN_SAMPLES_OF_AN_INTERVAL:
        return float(ordered[0]), float(ordered[-1])
    rank, weight = _order_statistics(n)
    low = (1 - weight) * ordered[rank - 1] + weight * ordered[rank]
    high = (1 - weight) * ordered[n - rank] + weight * ordered[n - rank - 1]
    return float(low), float(high)


@lru_cache(maxsize=1024)
def _order_statistics(n: int) -> tuple[int, float]:
    """The largest rank whose interval still has the level, and the weight of the next one inwards."""
    coverage = [
        1 - 2 * below / 2**n for below in accumulate(math.comb(n, i) for i in range(n // 2))
    ]
    rank = sum(share >= LEVEL for share in coverage)
    held, inner = coverage[rank - 1], coverage[rank]
    share = (held - LEVEL) / (held - inner)
    return rank, (n - rank) * share / (rank + (n - 2 * rank) * share)


def relative_noise(samples: Sequence[float]) -> float:
    """1.4826 * median absolute deviation / median: the spread of single samples."""
    values = np.asarray(samples, dtype=np.float64)
    median = float(np.median(values))
    return float(_MAD_TO_SIGMA * np.median(np.abs(values - median)) / median) if median else 0.0


def half_width(samples: Sequence[float]) -> float:
    """Half the interval of the median, relative to the median."""
    low, high = median_interval(samples)
    middle = float(np.median(samples))
    return (high - low) / 2 / middle if middle else 0.0


def drift(samples: Sequence[float]) -> tuple[float, float]:
    """How far the samples moved from the first to the last, over the median, and how surely.

    The move is the Theil-Sen slope times their number; the second value is Kendall's tau as a normal
    score (Mann 1945): beyond 3 in either direction chance makes it 3 times in 1,000.
    """
    values = np.asarray(samples, dtype=np.float64)
    n = len(values)
    if n < MIN_SAMPLES_OF_AN_INTERVAL:
        return 0.0, 0.0
    earlier, later = np.triu_indices(n, k=1)
    rises = values[later] - values[earlier]
    slope = float(np.median(rises / (later - earlier)))
    score = float(np.sign(rises).sum()) / math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    return slope * (n - 1) / float(np.median(values)), score


def quartiles(samples: Sequence[float]) -> tuple[float, float]:
    """The lower and the upper quartile: one outlier moves neither."""
    low, high = np.percentile(samples, (25, 75))
    return float(low), float(high)


def median(samples: Sequence[float]) -> float:
    """The median."""
    return float(np.median(samples))
