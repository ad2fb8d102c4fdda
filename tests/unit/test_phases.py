"""Where wall time goes, on a clock that says what the test says."""

from __future__ import annotations

import pytest

from kvgauge.measure import phases as module
from kvgauge.measure.phases import Phases, total
from kvgauge.schema import Spent


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def test_an_inner_phase_stops_the_outer_ones_clock_and_the_rest_is_counted(clock: Clock) -> None:
    phases = Phases()
    clock.now_s += 1
    with phases("check"):
        clock.now_s += 2
        with phases("samples"):
            clock.now_s += 4
        clock.now_s += 8
    clock.now_s += 16
    assert phases.take() == Spent(samples_s=4, check_s=10, rest_s=17)
    assert phases.take() == Spent()


def test_a_workers_parts_are_taken_off_the_phase_in_which_it_ran(clock: Clock) -> None:
    phases = Phases()
    with phases("isolation"):
        clock.now_s += 10
        phases.merge(Spent(samples_s=3, fill_s=2, rest_s=1))
    spent = phases.take()
    assert spent.isolation_s == 10 - 3 - 2 - 1
    assert (spent.samples_s, spent.fill_s) == (3, 2)
    assert sum(getattr(spent, f"{part}_s") for part in PARTS) == pytest.approx(10)


PARTS = ("samples", "probe", "warm_up", "fill", "generate", "check", "isolation", "rest")


def test_a_total_adds_part_by_part() -> None:
    assert total([Spent(samples_s=1, rest_s=2), Spent(samples_s=3)]) == Spent(samples_s=4, rest_s=2)
