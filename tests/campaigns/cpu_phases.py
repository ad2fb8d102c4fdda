"""Where the time of the CPU kernels goes when memory costs nothing: phase by phase, on one core.

PYTHONPATH=bench:kernels:reports:tests python -m campaigns.cpu_phases [--runs N] [--out FILE]
Needs: a C++ compiler, and the native kernels built (for the rates of the probe).

The second-level cache of one core holds K and V of 512 tokens of one head, to which 4 query heads of 128
elements belong. All is ns a token of that head on that core (8 heads on two cores take four times as long):
the least of 2,000 times each, the median over so many runs of the program, which is compiled from the
kernels' own sources. `whole` is the kernel over those tokens, with its beginning and end (the query rounded,
sums put in order), which the phases leave out; `products alone` what its multiply-adds or integer dot
products take at the rate that the probe finds for one core.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from campaigns.arguments import count, page
from kvgauge.devices.cpu import CpuDevice
from kvgauge.measure.stats import median
from kvgauge.store.provenance import git_state
from kvgauge_kernels.cpu import probe
from kvgauge_kernels.cpu.native_module import native

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "kernels" / "kvgauge_kernels" / "cpu" / "native"
FLAGS = {
    "avx2": ("-DLEVEL=2", "-mavx2", "-mfma", "-mf16c"),
    "avx512": (
        "-DLEVEL=512", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni",
        "-mavx512bf16", "-mavx2", "-mfma", "-mf16c", "-mprefer-vector-width=512",
    ),
}  # fmt: skip
PHASES = ("find", "scales", "K", "softmax", "V")
READINGS = 20
OPERATIONS = 2 * 2 * 4 * 128
"""Of one token: a product and a sum, in K and in V, of 4 query heads of 128 elements."""


def times(level: str, runs: int) -> dict[str, dict[str, float]]:
    """case -> phase -> ns a token."""
    asked = os.environ.get("CXX", "c++")
    compiler = shutil.which(asked)
    if compiler is None:
        raise SystemExit(f"needs a C++ compiler: there is no command {asked!r} (CXX names another)")
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "cpu_phases"
        compiled = subprocess.run(
            [compiler, "-std=c++17", "-O3", "-w", "-fno-math-errno", "-fno-trapping-math", *FLAGS[level],
             f"-I{SOURCE}", str(ROOT / "tests" / "campaigns" / "cpu_phases.cpp"), "-o", str(program)],
            check=False,
        )  # fmt: skip
        if compiled.returncode:
            raise SystemExit(f"{compiler} could not compile cpu_phases.cpp (above)")
        for _ in range(runs):
            told = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
            for line in told.splitlines():
                name, phase, ns = line.split("\t")
                found.setdefault(name, {}).setdefault(phase, []).append(float(ns))
    return {name: {p: median(ns) for p, ns in at.items()} for name, at in found.items()}


def products_ns(name: str) -> float | None:
    """Of one core at the level in force; None where the level has no such instruction."""

    def rate() -> float | None:
        if "fp16" in name:
            return probe.multiply_adds_per_s()
        return probe.integer_dots_per_s(8 if "q8" in name else 16)

    best = max(filter(None, (rate() for _ in range(READINGS))), default=None)
    return best and OPERATIONS / best * 1e9


def table(level: str, runs: int) -> list[str]:
    """A line a case."""
    lines = ["| case | rows found | scales | K | softmax | V | together | whole | products alone |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, at in times(level, runs).items():
        alone = products_ns(name)
        cells = [at[phase] for phase in PHASES]
        told = [f"{ns:.2f}" for ns in (*cells, sum(cells), at["whole"])]
        lines.append(
            f"| {name} | {' | '.join(told)} | {'-' if alone is None else f'{alone:.1f}'} |"
        )
    return lines


def main() -> None:
    """Measure at each level that this CPU has, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=count, default=7)
    parser.add_argument("--out", type=page, default="results/cpu_phases.md")
    given = parser.parse_args()
    module = native()
    if module is None:
        raise SystemExit(str(probe.why_not()))
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    module.set_thread_count(1)
    levels = list(FLAGS)
    parts: list[str] = []
    for level in levels[: levels.index(str(module.best_level())) + 1]:
        module.force_level(level)
        parts += [f"\n## {level}\n", *table(level, given.runs)]
    revision, dirty = git_state()
    given.out.write_text(f"""# The CPU kernels phase by phase

Run on {datetime.now(UTC):%Y-%m-%d} on {CpuDevice().ref.name}, Python {platform.python_version()}, revision \
{(revision or "unknown")[:7]}{" with changes" if dirty else ""}.

{(__doc__ or "").split(chr(10) * 2)[2].strip()}

Again: `PYTHONPATH=bench:kernels:reports:tests python -m campaigns.cpu_phases --runs {given.runs} \
--out {given.out}`.
{chr(10).join(parts)}
""")


if __name__ == "__main__":
    main()
