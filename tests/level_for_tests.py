"""Records of runs of every backend that is here, on whatever CPU the tests run."""

from __future__ import annotations

from collections.abc import Iterable

from kvgauge.schema import Record
from kvgauge_kernels.cpu.native_module import instructions


def of_this_cpu(records: Iterable[Record]) -> list[Record]:
    """Those that are not refused for want of AVX-512, where the CPU has none."""
    level = instructions()
    refusal = f"of this cache needs AVX-512 with VNNI, not {level}"
    return [r for r in records if level == "avx512" or refusal not in (r.reason or "")]
