"""What was predicted for a cell, what was measured, and what the number is worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvgauge.schema.cell import CacheState
from kvgauge.schema.memory import MemoryUse


@dataclass(frozen=True, slots=True)
class Prediction:
    """What arithmetic says, for the same scope as the measurement."""

    kv_bytes: int
    moved_bytes: int | None = None
    flops: int | None = None
    floor_s: float | None = None
    bound: Literal["memory", "compute"] | None = None
    rates_source: Literal["probe", "datasheet"] | None = None


@dataclass(frozen=True, slots=True)
class Criterion:
    """When to stop: the interval's relative half-width is under target, or time or samples run out.

    Past `patience_s` even `min_samples` are not waited for: the time is then flagged.
    """

    target_half_width: float
    min_samples: int
    max_samples: int
    budget_s: float
    max_warm_up: int = 5
    patience_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Spent:
    """Where the wall time of a cell or of a run went, in seconds; the parts add up to all of it."""

    samples_s: float = 0.0
    """In the timed steps."""
    probe_s: float = 0.0
    """Reading the device's rates, which also flushes its cache."""
    warm_up_s: float = 0.0
    fill_s: float = 0.0
    """Allocating and filling caches, loading a model."""
    generate_s: float = 0.0
    """A real model's own steps up to the depth, and its prefill."""
    check_s: float = 0.0
    """The oracle, and observing which kernel runs."""
    isolation_s: float = 0.0
    """Starting and ending worker processes."""
    rest_s: float = 0.0
    """All else: the harness itself."""


@dataclass(frozen=True, slots=True)
class Timing:
    """All samples of one quantity and what they are worth.

    `low` and `high` are the 95% interval of the median from order statistics; `noise` is
    1.4826 * MAD / median, the spread of single samples. `stop_reason`: `converged`, `no_improvement`,
    `budget`, `max_samples` or `patience`; `warm_up_reason`: `settled`, `budget` or `max_warm_up`.
    """

    median: float
    low: float
    high: float
    n: int
    noise: float
    samples: tuple[float, ...]
    stop_reason: str
    warm_up_calls: int | None = None
    warm_up_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """What the machine said."""

    kv_bytes: int | None = None
    allocated_bytes: int | None = None
    allocated_source: str | None = None
    driver_bytes: int | None = None
    peak_bytes: int | None = None
    memory: MemoryUse | None = None
    """Who counts how much while the cache stands; in records of the suite `footprint`."""
    time_s: Timing | None = None
    tokens_per_s: float | None = None
    bytes_per_s: float | None = None
    cache_state: CacheState | None = None
    kernel_s: dict[str, float] | None = None
    """Seconds of each kernel of one step, by its name on the GPU, as CUPTI saw them; None elsewhere."""
    max_error: float | None = None
    """Largest difference from the float64 oracle, relative to the largest value of the oracle."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What the device's memory and arithmetic units gave beside these samples (medians).

    `read_samples_bytes_per_s` pairs with the samples of the time: one just before each.
    """

    read_bytes_per_s: float
    copy_bytes_per_s: float
    flops_per_s: float
    read_samples_bytes_per_s: tuple[float, ...] = ()
    best_read_bytes_per_s: float | None = None
    """The best reading of this process so far: what the memory can give when nobody disturbs."""
    cached_read_bytes_per_s: float | None = None
    """Reading a quarter of the last-level cache again and again."""
    source: str | None = None
    """Whose loops gave the rates: `torch`, or `kvgauge native` with the instructions."""
    integer_ops_per_s: float | None = None
    """Dot products of 8-bit integers, a multiply and an add counted as two."""
    ping_pong_ns: tuple[float, ...] | None = None
    """How long a cache line took from the first core to the second, beside each sample that allowed it."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Measured against predicted."""

    kv_bytes: float | None = None
    allocated_bytes: float | None = None
    bandwidth: float | None = None
    """Predicted moved bytes / time / probe read bandwidth."""
    floor: float | None = None
    """Time / floor: 1 is the best that arithmetic allows."""


@dataclass(frozen=True, slots=True)
class Trust:
    """Whether the number may be compared, and the reason codes of what disturbed it."""

    ok: bool
    flags: tuple[str, ...] = ()
