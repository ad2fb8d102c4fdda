"""Sizes and times as text. GB is 10^9 bytes, GiB is 2^30: never mixed, always written out."""

from __future__ import annotations

GB = 10**9
GIB = 2**30
MIB = 2**20

_DECIMAL = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
_BINARY = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def decimal_bytes(count_bytes: float) -> str:
    """`16384000000` -> `16.38 GB`."""
    return _scaled(count_bytes, _DECIMAL)


def binary_bytes(count_bytes: float) -> str:
    """`327680` -> `320 KiB`."""
    return _scaled(count_bytes, _BINARY)


def seconds(time_s: float) -> str:
    """`0.00123` -> `1.23 ms`."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(time_s) >= scale:
            return f"{time_s / scale:.3g} {unit}"
    return f"{time_s / 1e-9:.3g} ns"


def rate(bytes_per_s: float) -> str:
    """`3.3e10` -> `33 GB/s`."""
    return f"{decimal_bytes(bytes_per_s)}/s"


def _scaled(value: float, steps: tuple[tuple[int, str], ...]) -> str:
    for scale, unit in steps:
        if abs(value) >= scale:
            return f"{value / scale:.4g} {unit}"
    return f"{value:.0f} B"
