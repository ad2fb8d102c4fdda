"""Many samples to one number: the median, a bootstrap interval of it, and the noise of a sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvgauge.schema import Timing

RESAMPLES = 1000
_MAD_TO_SIGMA = 1.4826  # a normal distribution's standard deviation over its MAD


def median_interval(samples: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap 95% interval of the median (Efron 1979); the seed makes it repeatable."""
    values = np.asarray(samples, dtype=np.float64)
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(values), size=(RESAMPLES, len(values)))
    medians = np.median(values[draws], axis=1)
    low, high = np.percentile(medians, (2.5, 97.5))
    return float(low), float(high)


def relative_noise(samples: Sequence[float]) -> float:
    """1.4826 * median absolute deviation / median: the spread of single samples."""
    values = np.asarray(samples, dtype=np.float64)
    median = float(np.median(values))
    return float(_MAD_TO_SIGMA * np.median(np.abs(values - median)) / median) if median else 0.0


def summarize(samples: Sequence[float], stop_reason: str) -> Timing:
    """All samples with their median, interval and noise."""
    low, high = median_interval(samples)
    return Timing(
        median=float(np.median(samples)),
        low=low,
        high=high,
        n=len(samples),
        noise=relative_noise(samples),
        samples=tuple(samples),
        stop_reason=stop_reason,
    )


def half_width(samples: Sequence[float]) -> float:
    """Half the interval of the median, relative to the median."""
    low, high = median_interval(samples)
    return (high - low) / 2 / float(np.median(samples))


def quartiles(samples: Sequence[float]) -> tuple[float, float]:
    """The lower and the upper quartile: one outlier moves neither."""
    low, high = np.percentile(samples, (25, 75))
    return float(low), float(high)


def median(samples: Sequence[float]) -> float:
    """The median."""
    return float(np.median(samples))
