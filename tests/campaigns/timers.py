"""Our clock against `torch.utils.benchmark`: the same step, sampled by both in turn.

PYTHONPATH=bench:kernels:reports:tests python -m campaigns.timers [--rounds N] [--seed S] [--out FILE]

In each round a coin says whose turn comes first. Timer calls the step twice before it times one call;
so do we here. The caches are larger than the last-level cache, so both read from memory.
"""

from __future__ import annotations

import argparse
import platform
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch.utils.benchmark import Timer

from kvgauge.devices.cpu import CpuDevice
from kvgauge.devices.probe import make_probe
from kvgauge.measure.stats import median, median_interval
from kvgauge.schema import Criterion
from kvgauge.shapes.catalogue import shape_named
from kvgauge.store.provenance import git_state
from kvgauge.suites.decode import input_work
from kvgauge.suites.types import CellPlan, Context, trace_cell
from kvgauge.traces.types import Trace
from kvgauge_kernels import BACKENDS

CELLS = (
    ("eager", "bf16", 4096), ("eager", "fp16", 4096), ("eager", "fp32", 8192), ("sdpa-flash", "bf16", 4096),
    ("sdpa-flash", "fp32", 8192), ("sdpa-math", "bf16", 2048), ("dequant+sdpa", "int8", 4096),
)  # fmt: skip
MODEL, LAYERS = "llama-3.1-8b", 2
WANTED = 0.03


@dataclass(frozen=True, slots=True)
class Row:
    """Both clocks on one cell: seconds."""

    label: str
    ours_s: list[float]
    torch_s: list[float]

    @property
    def apart(self) -> float:
        """How far the medians are apart, over torch's."""
        return median(self.ours_s) / median(self.torch_s) - 1


def sample(step: Callable[[], object], rounds: int, seed: int) -> tuple[list[float], list[float]]:
    """Both clocks in turn on one step."""
    device, rng = CpuDevice(), random.Random(seed)
    timer = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
    ours: list[float] = []
    theirs: list[float] = []

    def our_turn() -> None:
        step()
        step()
        ours.append(device.timed(step))

    def their_turn() -> None:
        theirs.append(timer.timeit(1).median)

    for _ in range(rounds):
        for turn in rng.sample((our_turn, their_turn), 2):
            turn()
    return ours, theirs


def measured(backend: str, kv_format: str, depth: int, given: argparse.Namespace) -> Row:
    """One cell by both clocks."""
    device, shape = CpuDevice(), shape_named(MODEL)
    cell = trace_cell("decode", "attention", shape, kv_format, Trace(think_tokens=depth), batch=1)
    plan = CellPlan(replace(cell, backend=backend, layers_timed=LAYERS), shape)
    context = Context(device, make_probe(device), Criterion(0, 1, 1, 0), given.seed)
    work = input_work(plan, context, BACKENDS[backend], sets=1)[0][0]
    return Row(plan.cell.label(), *sample(work.step, given.rounds, given.seed))


def main() -> None:
    """Time every cell and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/timers.md"))
    given = parser.parse_args()
    rows = [measured(*cell, given) for cell in CELLS]
    revision, dirty = git_state()
    lines = []
    for row in rows:
        low, high = median_interval([a / b for a, b in zip(row.ours_s, row.torch_s, strict=True)])
        lines.append(
            f"| {row.label} | {median(row.ours_s) * 1e3:.3f} | {median(row.torch_s) * 1e3:.3f} "
            f"| {row.apart:+.1%} | {low:.3f} to {high:.3f} |"
        )
        print(lines[-1], flush=True)
    body = "\n".join(lines)
    held = sum(abs(row.apart) <= WANTED for row in rows)
    given.out.write_text(f"""# Our clock against torch.utils.benchmark

Run on {datetime.now(UTC):%Y-%m-%d} on {CpuDevice().ref.name}, Python {platform.python_version()}, torch \
{torch.__version__}, revision {(revision or "unknown")[:7]}{" and changes" if dirty else ""}. \
The same step sampled by both clocks in turn, {given.rounds} times each; {held} of {len(rows)} medians \
are within {WANTED:.0%}.

Again: `PYTHONPATH=bench:kernels:reports:tests python -m campaigns.timers --rounds {given.rounds} \
--seed {given.seed}`.

| cell, {LAYERS} layers | ours, ms | torch's, ms | apart | 95% interval of the paired ratio |
|---|---|---|---|---|
{body}
""")


if __name__ == "__main__":
    main()
