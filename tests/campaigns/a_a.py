"""A/A: the same cell against itself, over and over: how often does the interval hold a ratio of 1?

PYTHONPATH=bench:kernels:reports:tests python -m campaigns.a_a [--comparisons N] [--seed S] [--out FILE]

Each comparison makes two sets of caches of one cell for each of its blocks, samples them in turn and forms
the 95% interval of the ratio. A comparison is flagged out where `kvgauge run` would flag a time. Beside
FILE goes FILE.jsonl with every sample. Leave the machine alone meanwhile, or do not: what others take is
in the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from kvgauge.devices.cpu import CpuDevice
from kvgauge.devices.probe import make_probe
from kvgauge.measure.pairs import PAIRS_A_BLOCK, Pairs, sample_pairs
from kvgauge.measure.sampler import Step
from kvgauge.measure.stats import half_width, median
from kvgauge.measure.validity import trust_flags
from kvgauge.schema import Criterion
from kvgauge.shapes.catalogue import shape_named
from kvgauge.store.provenance import git_state
from kvgauge.suites.decode import input_sets, input_work
from kvgauge.suites.types import CellPlan, Context, cell_kv_bytes, trace_cell
from kvgauge.traces.types import Trace
from kvgauge_kernels import BACKENDS

CRITERION = Criterion(0.02, min_samples=10, max_samples=16, budget_s=10.0, max_warm_up=2)
MODEL, FORMAT, BACKEND, DEPTH, LAYERS = "llama-3.1-8b", "bf16", "eager", 2048, 2
HELD = (183, 197)  # of 200: a binomial of 0.95 lies in it 95 times in 100


def plan() -> CellPlan:
    """The cell."""
    shape = shape_named(MODEL)
    cell = trace_cell("decode", "attention", shape, FORMAT, Trace(think_tokens=DEPTH), batch=1)
    return CellPlan(replace(cell, backend=BACKEND, layers_timed=LAYERS), shape)


def compare(cell: CellPlan, context: Context) -> tuple[Pairs, tuple[str, ...], float | None]:
    """One comparison on fresh caches, its flags, and the share of core time that others took."""
    device = context.device
    sets = input_sets(cell_kv_bytes(cell), device.last_level_cache_bytes, "cold")

    def side() -> list[Step]:
        return [work.step for work in input_work(cell, context, BACKENDS[BACKEND], sets)[0]]

    watch = device.watch()
    pairs = sample_pairs(
        side,
        side,
        device,
        context.probe,
        context.criterion,
        context.phases,
        context.seed,
    )
    conditions = watch.stop()
    # Drift of the machine cancels in a ratio: the ratios are held to the rules of a time.
    flags = trust_flags(pairs.ratios, [1.0] * len(pairs.ratios), conditions)
    return pairs, flags, conditions.cpu.taken


def main() -> None:
    """Run the comparisons and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comparisons", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/a_a.md"))
    given = parser.parse_args()
    cell, device = plan(), CpuDevice()
    probe, started = make_probe(device), time.monotonic()
    rows, lines = [], []
    for number in range(given.comparisons):
        context = Context(device, probe, CRITERION, given.seed + number)
        pairs, flags, taken = compare(cell, context)
        ratio, low, high = pairs.ratio()
        rows.append((low <= 1 <= high, half_width(pairs.ratios), flags, pairs))
        lines.append(
            json.dumps({
                "comparison": number, "ratio": ratio, "low": low, "high": high,
                "flags": flags, "cpu_taken": taken, "stop_reason": pairs.stop_reason,
                "a_us": [[round(t * 1e6, 1) for t in block.a_s] for block in pairs.blocks],
                "b_us": [[round(t * 1e6, 1) for t in block.b_s] for block in pairs.blocks],
            })
        )  # fmt: skip
        print(f"{number + 1}: {ratio:.4f} [{low:.4f}, {high:.4f}] {' '.join(flags)}", flush=True)
    given.out.with_suffix(".jsonl").write_text("\n".join(lines) + "\n")
    given.out.write_text(table(rows, cell, device.ref.name, time.monotonic() - started, given.seed))


def table(
    rows: list[tuple[bool, float, tuple[str, ...], Pairs]],
    cell: CellPlan,
    device: str,
    elapsed_s: float,
    seed: int,
) -> str:
    """The document."""
    clean = [row for row in rows if not row[2]]
    taken = [len(row[3].blocks) for row in rows]
    medians = [median([t for block in row[3].blocks for t in block.a_s]) for row in rows]
    revision, dirty = git_state()
    found = {
        "comparisons": str(len(rows)),
        "the interval holds 1": f"{sum(row[0] for row in rows)} ({HELD[0]} to {HELD[1]} of 200 are wanted)",
        "the same, of those not flagged": f"{sum(row[0] for row in clean)} of {len(clean)}",
        "median half-width of the interval": f"{median([row[1] for row in rows]):.2%} (at most 3% is wanted)",
        "largest half-width": f"{max(row[1] for row in rows):.2%}",
        "flagged out": f"{len(rows) - len(clean)} ({flag_words(rows)}; at most 10% are wanted)",
        f"blocks of {PAIRS_A_BLOCK} pairs a comparison": f"{min(taken)} to {max(taken)}",
        "the cell's median time over the campaign": (
            f"{min(medians) * 1e3:.2f} to {max(medians) * 1e3:.2f} ms, "
            f"{max(medians) / min(medians):.2f} times from the fastest to the slowest comparison"
        ),
    }
    body = "\n".join(f"| {name} | {value} |" for name, value in found.items())
    return f"""# A/A: one cell against itself

Run on {datetime.now(UTC):%Y-%m-%d} on {device}, {os.cpu_count()} cores, Python {platform.python_version()}, \
revision {(revision or "unknown")[:7]}{" and changes" if dirty else ""}, in {elapsed_s:.0f} s. \
Cell: {cell.cell.label()}, {LAYERS} layers. Each block has caches of its own on both sides.

Again: `PYTHONPATH=bench:kernels:reports:tests python -m campaigns.a_a --comparisons {len(rows)} \
--seed {seed}`. Every sample stands in `a_a.jsonl`.

| what | found |
|---|---|
{body}
"""


def flag_words(rows: list[tuple[bool, float, tuple[str, ...], Pairs]]) -> str:
    """How often each flag came."""
    names = sorted({flag for row in rows for flag in row[2]})
    counts = [f"{name} {sum(name in row[2] for row in rows)}" for name in names]
    return ", ".join(counts) or "no flag"


if __name__ == "__main__":
    main()
