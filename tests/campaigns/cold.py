"""How cold is cold: a small buffer read after a flush, alone and taking turns with others of its size.

PYTHONPATH=bench:kernels:reports:tests python -m campaigns.cold [--rounds N] [--out FILE]

The flush is the probe's: a read of four times the last-level cache. Rates are those of a sum over fp32.
"""

from __future__ import annotations

import argparse
import platform
from datetime import UTC, datetime
from pathlib import Path

import torch

from kvgauge.devices.cpu import CpuDevice
from kvgauge.devices.probe import make_probe
from kvgauge.measure.stats import median
from kvgauge.store.provenance import git_state
from kvgauge.suites.decode import input_sets

SIZES_MIB = (1, 2, 8, 16)


def main() -> None:
    """Read, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("results/cold.md"))
    given = parser.parse_args()
    device = CpuDevice()
    probe, cache_bytes = make_probe(device), device.last_level_cache_bytes

    def gb_per_s(sets: list[torch.Tensor], *, flush: bool) -> float:
        rates = []
        for turn in range(given.rounds + len(sets)):
            if flush:
                probe.read_bytes_per_s()
            part = sets[turn % len(sets)]
            rates.append(part.nbytes / device.timed(part.sum) / 1e9)
        return median(rates[len(sets) :])

    lines = []
    for size_mib in SIZES_MIB:
        size_bytes = size_mib * 2**20
        count = input_sets(size_bytes, cache_bytes, "cold")
        sets = [torch.rand(size_bytes // 4) for _ in range(count)]
        memory = median([probe.read_bytes_per_s() / 1e9 for _ in range(9)])
        found = (gb_per_s(sets[:1], flush=False), gb_per_s(sets[:1], flush=True),
                 gb_per_s(sets, flush=True), memory)  # fmt: skip
        lines.append(
            f"| {size_mib} MiB | {count} | " + " | ".join(f"{x:.0f}" for x in found) + " |"
        )
        print(lines[-1], flush=True)
    revision, dirty = git_state()
    body = "\n".join(lines)
    given.out.write_text(f"""# How cold is cold

Run on {datetime.now(UTC):%Y-%m-%d} on {device.ref.name}, last-level cache {cache_bytes // 2**20} MiB, \
Python {platform.python_version()}, torch {torch.__version__}, revision {(revision or "unknown")[:7]}\
{" and changes" if dirty else ""}. Median GB/s of {given.rounds} reads.

Again: `PYTHONPATH=bench:kernels:reports:tests python -m campaigns.cold --rounds {given.rounds}`.

| buffer | sets | one, again and again | one, after a flush | sets in turn, after a flush | memory |
|---|---|---|---|---|---|
{body}
""")


if __name__ == "__main__":
    main()
