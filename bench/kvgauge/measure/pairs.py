"""Two steps compared in one run: a sample of each beside the other, in blocks with fresh data.

On a machine that changes speed within seconds two medians taken one after the other differ by what
the machine did in between. The ratio of two neighbouring samples does not. But two allocations of one and
the same cache differ by a percent or so for as long as they live, however often they are sampled: the data
are made anew for each block, and the interval is that of the blocks (Kalibera and Jones 2013, "Rigorous
benchmarking in reasonable time": repeat at the level at which results vary). An allocator that is given
back a block hands out the same pages again: a coin says whose data are made first.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvgauge.devices.types import Device
from kvgauge.measure.phases import Phases
from kvgauge.measure.sampler import Clock, Step, stop_reason, warm_up
from kvgauge.measure.stats import median, median_interval
from kvgauge.schema import Criterion

PAIRS_A_BLOCK = 8

Make = Callable[[], Sequence[Step]]
"""Makes the data of one side: the same step on input sets that take turns."""
Sides = tuple[Sequence[Step], Sequence[Step]]


@dataclass(frozen=True, slots=True)
class Block:
    """Seconds of A and of B, pair by pair, on one allocation of their data."""

    a_s: tuple[float, ...]
    b_s: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """The median of A's time over B's."""
        return median([a / b for a, b in zip(self.a_s, self.b_s, strict=True)])


@dataclass(frozen=True, slots=True)
class Pairs:
    """All blocks, and why there are no more."""

    blocks: tuple[Block, ...]
    stop_reason: str

    @property
    def ratios(self) -> tuple[float, ...]:
        """A's time over B's, block by block."""
        return tuple(block.ratio for block in self.blocks)

    def ratio(self) -> tuple[float, float, float]:
        """The median over the blocks with its 95% interval."""
        return median(self.ratios), *median_interval(self.ratios)


def sample_pairs(
    make_a: Make,
    make_b: Make,
    device: Device,
    probe: Clock,
    criterion: Criterion,
    phases: Phases,
    seed: int,
) -> Pairs:
    """Sample A and B in turn, a coin saying which goes first, until the ratio's interval is narrow.

    `make_a` and `make_b` allocate and fill the data of a side. The cache is flushed before each sample of
    either. The criterion's samples are blocks.
    """
    rng = random.Random(seed)  # noqa: S311 - an order, not a secret
    blocks: list[Block] = []
    started = time.monotonic()
    reason = None
    while reason is None:
        with phases("fill"):
            sides = _made((make_a, make_b), rng)
        with phases("warm_up"):
            for steps in sides:
                warm_up(steps, device, criterion)
        blocks.append(_block(sides, device, probe, phases, rng))
        del steps, sides  # the next block's data take their place
        ratios = [block.ratio for block in blocks]
        reason = stop_reason(ratios, time.monotonic() - started, criterion)
    return Pairs(tuple(blocks), reason)


def _made(makers: tuple[Make, Make], rng: random.Random) -> Sides:
    if rng.random() < 0.5:
        a = makers[0]()
        return a, makers[1]()
    b = makers[1]()
    return makers[0](), b


def _block(sides: Sides, device: Device, probe: Clock, phases: Phases, rng: random.Random) -> Block:
    times: tuple[list[float], list[float]] = ([], [])
    for pair in range(PAIRS_A_BLOCK):
        for which in rng.sample((0, 1), 2):
            steps = sides[which]
            with phases("probe"):
                probe.read_bytes_per_s()
            with phases("samples"):
                times[which].append(device.timed(steps[pair % len(steps)]))
    return Block(tuple(times[0]), tuple(times[1]))
