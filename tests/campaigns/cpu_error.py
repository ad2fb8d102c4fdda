"""The error of the native CPU kernels against the float64 oracle, for caches of four kinds.

PYTHONPATH=bench:kernels:reports:tests python -m campaigns.cpu_error [--seeds N] [--out FILE]

512 tokens, 8 query heads over 1 K/V head, a head_dim of 128; K, V and queries (fp32) drawn from a standard
normal distribution. `channels of 10` and `of 30`: four of K's channels are so many times larger, as models
have them (KIVI, arXiv 2402.02750); the softmax is sharper then too, and where K is per channel an integer
step must serve the largest of the query's numbers times their scales. `a token of 300`: V of one token is so
many times larger, and its step serves a block of tokens. The oracle reads the quantized cache:
this is the kernels' error and not the formats'. Largest difference over the largest result: the median of
all seeds, and the worst.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from kernels_for_tests import error
from kvgauge.measure.stats import median
from kvgauge_kernels import BACKENDS, oracle_decode
from kvgauge_kernels.cpu.native_module import native
from kvgauge_kernels.quantize import quantize, quantize_k, view_of

FORMATS = ("int8", "int4", "int2", "kivi4", "kivi2")
LEVELS = ("portable", "avx2", "avx512")
# How many times larger some of K's channels are, and V of one token.
KINDS = {
    "like-sized": (1.0, 1.0),
    "channels of 10": (10.0, 1.0),
    "channels of 30": (30.0, 1.0),
    "a token of 300": (1.0, 300.0),
}


def one(fmt: str, name: str, of_k: float, of_v: float, seed: int) -> float | None:
    """The error of one draw; None where the backend does not read the format here."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(1, n, t, 128, generator=generator) for n, t in ((8, 1), (1, 512), (1, 512))
    )
    k[..., :4] *= of_k
    v[:, :, 100] *= of_v
    view = view_of(quantize_k(k, fmt), quantize(v, fmt), fmt)
    if BACKENDS[name].supports(view, q.dtype) is not None:
        return None
    return error(BACKENDS[name].decode(q[:, :, 0], view), oracle_decode(q[:, :, 0], view))


def rows(seeds: int) -> list[str]:
    """A line a format, backend and level of instructions."""
    module = native()
    if module is None:
        raise SystemExit("the native kernels are not built")
    lines = []
    for fmt in FORMATS:
        for name in ("cpu", "cpu-q8"):
            for level in LEVELS[: LEVELS.index(module.best_level()) + 1]:
                module.force_level(level)
                cells = []
                for of_k, of_v in KINDS.values():
                    found = [one(fmt, name, of_k, of_v, seed) for seed in range(seeds)]
                    known = [x for x in found if x is not None]
                    cells.append(f"{median(known):.0e}, {max(known):.0e}" if known else "")
                if any(cells):
                    lines.append(f"| {fmt} | `{name}` | {level} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Compute, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("results/cpu_error.md"))
    given = parser.parse_args()
    about = (__doc__ or "").split("\n\n")
    table = "\n".join(rows(given.seeds))
    given.out.write_text(f"""# The error of the CPU kernels

{about[2].strip()}

Again: `PYTHONPATH=bench:kernels:reports:tests python -m campaigns.cpu_error --seeds {given.seeds}`.

| format | backend | instructions | {" | ".join(KINDS)} |
|---|---|---|{"---|" * len(KINDS)}
{table}
""")


if __name__ == "__main__":
    main()
