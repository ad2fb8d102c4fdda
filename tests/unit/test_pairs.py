"""Paired samples: an interval of the ratio that a drifting machine does not fool."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from kvgauge.devices.cpu import CpuDevice
from kvgauge.measure.pairs import Pairs, sample_pairs
from kvgauge.measure.phases import Phases
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


CRITERION = Criterion(0.03, min_samples=10, max_samples=60, budget_s=60)


def pairs(cost_b: float, seed: int) -> Pairs:
    device = Drifting(np.random.default_rng(seed))
    a, b = [lambda: 1.0], [lambda: cost_b]
    return sample_pairs(a, b, device, SteadyProbe(), CRITERION, Phases(), seed)


@pytest.mark.parametrize("cost_b", [1.0, 1.25])
def test_the_interval_of_the_ratio_holds_it_although_the_machine_drifts(cost_b: float) -> None:
    held = 0
    for seed in range(200):
        middle, low, high = pairs(cost_b, seed).ratio()
        assert low <= middle <= high
        held += low <= 1 / cost_b <= high
    assert 180 <= held <= 200  # 190 are expected, 3.2 standard deviations to either side


def test_which_goes_first_is_drawn_and_the_seed_repeats_it() -> None:
    order: list[str] = []
    times = iter([1.0] * 1000)

    class Steady(CpuDevice):
        def timed(self, step: Callable[[], object]) -> float:
            step()
            return next(times)

    def run(seed: int) -> str:
        order.clear()
        criterion = Criterion(0.0, min_samples=20, max_samples=20, budget_s=60, max_warm_up=1)
        a, b = [lambda: order.append("a")], [lambda: order.append("b")]
        sample_pairs(a, b, Steady(), SteadyProbe(), criterion, Phases(), seed)
        return "".join(order[2:])  # two warm up

    first, again, other = run(0), run(0), run(1)
    assert first == again != other
    taken = [first[i : i + 2] for i in range(0, len(first), 2)]
    assert set(taken) == {"ab", "ba"}


def test_ratios_pair_by_pair() -> None:
    def numbers() -> Iterator[float]:
        yield from (2.0, 3.0, 9.0)

    found = Pairs(tuple(numbers()), (1.0, 2.0, 3.0), (1.0, 1.0, 1.0), "converged")
    assert found.ratios == (2.0, 1.5, 3.0)
    assert found.ratio() == (2.0, 1.5, 3.0)
