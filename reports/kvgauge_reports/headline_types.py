"""What each figure of the first screen consists of. `headline` says how each is computed."""

from __future__ import annotations

from dataclasses import dataclass

from kvgauge.schema import Record


@dataclass(frozen=True, slots=True)
class BytesPerToken:
    """Bytes of the whole cache over tokens of the whole batch."""

    record: Record
    measured: float
    formula: float


@dataclass(frozen=True, slots=True)
class Footprint:
    """The largest cache measured, and how many of all caches are as large as the formula says."""

    record: Record
    measured_bytes: int
    formula_bytes: int
    ratio: float
    exact: int
    counted: int


@dataclass(frozen=True, slots=True)
class Speedup:
    """How many times faster `fast` is than `slow`: over 1 is faster.

    The interval takes the far ends of both 95% intervals, so it is wider than 95%. `normalized`
    multiplies each time by the probe.read_bytes_per_s beside it first: the speed-up had the memory
    been equally fast under both. None where a record has no probe.
    """

    slow: Record
    fast: Record
    ratio: float
    low: float
    high: float
    normalized: float | None

    @property
    def verdict(self) -> str:
        """faster, slower, or undecided where the interval includes 1."""
        if self.low > 1:
            return "faster"
        return "slower" if self.high < 1 else "undecided"


@dataclass(frozen=True, slots=True)
class BytesSaved:
    """Measured bytes of a quantized cache over those of a 16-bit one of the same tokens."""

    quantized: Record
    plain: Record
    ratio: float


@dataclass(frozen=True, slots=True)
class Best:
    """The fastest backend of a setting at a depth; ratios as the record states them."""

    record: Record
    floor_ratio: float | None
    bandwidth_ratio: float | None


@dataclass(frozen=True, slots=True)
class Steps:
    """A real model's decode at its smallest and its largest depth (one record where it has one)."""

    first: Record
    deepest: Record
    bytes_per_token: float | None
    formula_bytes_per_token: float
    first_tokens_per_s: float | None
    deepest_tokens_per_s: float | None


@dataclass(frozen=True, slots=True)
class Cells:
    """`total` is every cell that the manifest lists or a record names."""

    total: int
    ok: int
    counted: int
    unreached: int
    by_status: dict[str, int]


@dataclass(frozen=True, slots=True)
class Headline:
    """All figures of the first screen; `withheld` names those that only flagged records would give,
    and as `quantized_time int4` the formats whose times are missing for that alone.
    """

    bytes_per_token: tuple[BytesPerToken, ...]
    footprint: Footprint | None
    fused: tuple[Speedup, ...]
    quantized_bytes: tuple[BytesSaved, ...]
    quantized_time: tuple[Speedup, ...]
    pages: tuple[Speedup, ...]
    best: tuple[Best, ...]
    steps: tuple[Steps, ...]
    cells: Cells
    withheld: frozenset[str]
