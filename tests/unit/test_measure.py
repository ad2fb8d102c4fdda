"""Sampling, statistics and validity, on steps whose time and faults are chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from kvgauge.devices.cpu import CpuDevice
from kvgauge.measure.phases import Phases
from kvgauge.measure.sampler import sample
from kvgauge.measure.stats import half_width, median_interval, relative_noise, summarize
from kvgauge.measure.validity import (
    bytes_fault,
    kernel_fault,
    observe_ops,
    output_fault,
    physics_fault,
    relative_error,
    trust_flags,
)
from kvgauge.schema import Criterion


class ScriptedDevice(CpuDevice):
    """A CPU whose clock says what the test says."""

    def __init__(self, times_s: Iterator[float]) -> None:
        super().__init__()
        self._times_s = times_s

    def timed(self, step: Callable[[], object]) -> float:
        step()
        return next(self._times_s)


class SteadyProbe:
    def read_bytes_per_s(self) -> float:
        return 1e9


def run(times_s: list[float], criterion: Criterion) -> tuple[int, str, int]:
    calls = 0

    def step() -> None:
        nonlocal calls
        calls += 1

    samples = sample(step, ScriptedDevice(iter(times_s)), SteadyProbe(), criterion, Phases())
    assert len(samples.times_s) == len(samples.read_bytes_per_s)
    return len(samples.times_s), samples.stop_reason, calls


def test_sampling_stops_when_the_interval_is_narrow() -> None:
    criterion = Criterion(0.05, min_samples=5, max_samples=100, budget_s=60)
    assert run([1.0] * 200, criterion) == (5, "converged", 7)


def test_sampling_stops_at_the_most_samples() -> None:
    rng = np.random.default_rng(0)
    times = list(rng.uniform(1, 10, 300))
    criterion = Criterion(1e-6, min_samples=5, max_samples=20, budget_s=60)
    assert run(times, criterion)[:2] == (20, "max_samples")


def test_the_least_samples_are_taken_whatever_the_budget() -> None:
    criterion = Criterion(1e-9, min_samples=6, max_samples=100, budget_s=0)
    n, reason, _calls = run([1.0, 2.0, 3.0, 4.0, 5.0] * 40, criterion)
    assert (n, reason) == (6, "budget")


def test_warm_up_goes_on_while_the_time_falls() -> None:
    criterion = Criterion(0.05, min_samples=3, max_samples=3, budget_s=60, max_warmup=5)
    falling = [16.0, 8.0, 4.0, 4.0]
    assert run(falling + [4.0] * 10, criterion)[2] == 4 + 3


def test_interval_holds_the_median_about_95_times_in_100() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for trial in range(200):
        low, high = median_interval(list(rng.normal(10, 1, 25)), seed=trial)
        held += low <= 10 <= high
    assert held >= 180


def test_noise_is_the_standard_deviation_of_a_normal_sample() -> None:
    values = np.random.default_rng(2).normal(100, 3, 20_000)
    assert relative_noise(list(values)) == pytest.approx(0.03, rel=0.05)


def test_summary_keeps_every_sample() -> None:
    timing = summarize([3.0, 1.0, 2.0], "converged")
    assert (timing.median, timing.n, timing.samples) == (2.0, 3, (3.0, 1.0, 2.0))
    assert timing.low <= timing.median <= timing.high


def test_the_kernel_that_ran_is_seen() -> None:
    a = torch.randn(2, 3, 4)
    seen = observe_ops(lambda: torch.bmm(a, a.transpose(1, 2)))
    assert "aten::bmm" in seen
    assert kernel_fault(seen, ["aten::bmm"]) is None
    other = kernel_fault(seen, ["aten::_scaled_dot_product_flash_attention"])
    assert other is not None
    assert other.code == "other_kernel"
    forbidden = kernel_fault(seen, [], ["aten::bmm"])
    assert forbidden is not None
    assert forbidden.code == "other_kernel"


def test_a_wrong_output_is_a_fault_and_a_nan_too() -> None:
    oracle = torch.ones(4, dtype=torch.float64)
    assert output_fault(relative_error(torch.ones(4), oracle), torch.float32) is None
    wrong = output_fault(relative_error(torch.full((4,), 1.1), oracle), torch.float16)
    assert wrong is not None
    assert wrong.code == "wrong_output"
    nan = output_fault(relative_error(torch.tensor([1, 1, 1, torch.nan]), oracle), torch.float16)
    assert nan is not None


def test_faster_than_the_memory_allows_is_a_fault() -> None:
    assert physics_fault(1.0, 10**9, [1e9, 0.9e9]) is None
    fault = physics_fault(0.5, 10**9, [1e9, 0.9e9])
    assert fault is not None
    assert fault.code == "faster_than_physics"


def test_one_byte_is_a_fault() -> None:
    assert bytes_fault(100, 100) is None
    fault = bytes_fault(101, 100)
    assert fault is not None
    assert fault.code == "bytes_differ"


def test_a_shared_cpu_is_flagged() -> None:
    assert trust_flags([1.0] * 9, [1e9] * 9, 0.14) == ()
    assert trust_flags([1.0] * 9, [1e9] * 9, 0.16) == ("cpu_shared",)


def test_disturbed_samples_are_flagged() -> None:
    assert trust_flags([1.0] * 9, [1e9] * 9) == ()
    assert trust_flags([1.0] * 9, [1e9] * 8 + [2e9]) == ()  # one outlier
    assert trust_flags([1.0] * 9, [1e9] * 5 + [2e9] * 4) == ("probe_changed",)
    wide = [1.0, 2.0, 3.0, 1.0, 3.0, 2.0, 1.0]
    assert half_width(wide) > 0.15
    assert trust_flags(wide, [1e9] * 7) == ("wide_interval",)
