"""Paired samples: an interval of the ratio that a drifting machine does not fool."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from kvgauge.devices.cpu import CpuDevice
from kvgauge.measure.pairs import PAIRS_A_BLOCK, Block, Pairs, sample_pairs
from kvgauge.measure.phases import Phases
from kvgauge.measure.sampler import Step
from kvgauge.measure.stats import median_interval
from kvgauge.schema import Criterion


class Drifting(CpuDevice):
    """A machine that becomes four times slower and fast again; each call has noise of its own."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self._rng = rng
        self.calls = 0

    def timed(self, step: Callable[[], object]) -> float:
        cost = step()
        assert isinstance(cost, float)
        self.calls += 1
        state = 1 + 3 * (0.5 - 0.5 * np.cos(self.calls / 17))
        return float(cost * state * self._rng.normal(1, 0.05))


class SteadyProbe:
    def read_bytes_per_s(self) -> float:
        return 1e9


CRITERION = Criterion(0.0, min_samples=12, max_samples=12, budget_s=60, max_warm_up=1)


def pairs(cost_b: float, seed: int) -> Pairs:
    rng = np.random.default_rng(seed)
    device = Drifting(rng)

    made = itertools.count()

    def side(cost: float) -> list[Step]:
        # Each allocation has a speed of its own, as long as it lives, and the first of two a better place.
        speed = float(rng.normal(1, 0.02)) + 0.02 * (next(made) % 2)
        return [lambda: cost * speed]

    return sample_pairs(
        lambda: side(1.0), lambda: side(cost_b), device, SteadyProbe(), CRITERION, Phases(), seed
    )


@pytest.mark.parametrize("cost_b", [1.0, 1.25])
def test_the_interval_of_the_ratio_holds_it_although_the_machine_drifts(cost_b: float) -> None:
    held = 0
    for seed in range(200):
        middle, low, high = pairs(cost_b, seed).ratio()
        assert low <= middle <= high
        held += low <= 1 / cost_b <= high
    assert 180 <= held <= 200  # 190 are expected, 3.2 standard deviations to either side


def test_samples_of_one_allocation_alone_would_not() -> None:
    held = 0
    for seed in range(200):
        [first, *_more] = pairs(1.0, seed).blocks
        low, high = median_interval([a / b for a, b in zip(first.a_s, first.b_s, strict=True)] * 10)
        held += low <= 1.0 <= high
    assert held < 170


def test_which_goes_first_is_drawn_and_the_seed_repeats_it() -> None:
    order: list[str] = []

    class Steady(CpuDevice):
        def timed(self, step: Callable[[], object]) -> float:
            step()
            return 1.0

    def run(seed: int) -> str:
        order.clear()

        def side(name: str) -> list[Step]:
            order.append(f"|{name.upper()}")
            return [lambda: order.append(name)]

        sample_pairs(
            lambda: side("a"), lambda: side("b"), Steady(), SteadyProbe(), CRITERION, Phases(), seed
        )
        return "".join(order)

    first, again, other = run(0), run(0), run(1)
    assert first == again != other
    makings = re.findall(r"\|([AB])\|([AB])", first)
    assert set(makings) == {("A", "B"), ("B", "A")}
    blocks = re.split(r"\|[AB]\|[AB]", first)[1:]
    assert len(blocks) == 12
    for block in blocks:  # two warm up; then each pair has both
        taken = [block[i : i + 2] for i in range(2, len(block), 2)]
        assert len(taken) == PAIRS_A_BLOCK
        assert set(taken) <= {"ab", "ba"}
    assert {"ab", "ba"} <= {b[i : i + 2] for b in blocks for i in range(2, len(b), 2)}


def test_input_sets_take_turns_in_a_block() -> None:
    order: list[int] = []

    class Steady(CpuDevice):
        def timed(self, step: Callable[[], object]) -> float:
            step()
            return 1.0

    def sets() -> list[Step]:
        return [partial(order.append, n) for n in range(3)]

    one_block = Criterion(9.0, min_samples=1, max_samples=1, budget_s=60, max_warm_up=1)
    sample_pairs(sets, lambda: [int], Steady(), SteadyProbe(), one_block, Phases(), seed=0)
    assert order[1:] == [n % 3 for n in range(PAIRS_A_BLOCK)]


def test_a_block_is_the_median_of_its_ratios() -> None:
    block = Block((2.0, 3.0, 9.0), (1.0, 2.0, 3.0))
    assert block.ratio == 2.0
    assert Pairs((block, Block((1.0,), (2.0,)), block), "converged").ratio() == (2.0, 0.5, 2.0)
