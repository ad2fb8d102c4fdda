"""Sampling, statistics and validity, on steps whose time and faults are chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from kvgauge.devices.cpu import CpuDevice
from kvgauge.measure.phases import Phases
from kvgauge.measure.sampler import Samples, sample
from kvgauge.measure.stats import drift, half_width, median_interval, relative_noise
from kvgauge.measure.validity import (
    bytes_fault,
    device_fault,
    kernel_fault,
    lost_fault,
    observe_ops,
    output_fault,
    physics_fault,
    relative_error,
    trust_flags,
)
from kvgauge.schema import CacheState, Conditions, CpuConditions, Criterion, GpuConditions, Probe


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

    samples = sample([step], ScriptedDevice(iter(times_s)), SteadyProbe(), criterion, Phases())
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
    criterion = Criterion(0.05, min_samples=3, max_samples=3, budget_s=60, max_warm_up=5)
    falling = [16.0, 8.0, 4.0, 4.0]
    assert run(falling + [4.0] * 10, criterion)[2] == 4 + 3


@pytest.mark.parametrize("cache_state", ["cold", "hot"])
def test_input_sets_take_turns_and_a_hot_step_runs_twice(cache_state: CacheState) -> None:
    order: list[str] = []
    steps = [lambda name=name: order.append(name) for name in "abc"]
    criterion = Criterion(0.0, min_samples=4, max_samples=4, budget_s=60, max_warm_up=1)
    device = ScriptedDevice(iter([1.0] * 99))
    sample(steps, device, SteadyProbe(), criterion, Phases(), cache_state)
    assert "".join(order) == {"cold": "aabca", "hot": "aaabbccaa"}[cache_state]


def test_warm_up_meets_every_input_set() -> None:
    order: list[str] = []
    steps = [lambda name=name: order.append(name) for name in "abc"]
    device = ScriptedDevice(iter([8.0, 4.0, 2.0, 1.0, 0.5] + [1.0] * 9))
    criterion = Criterion(0.0, min_samples=3, max_samples=3, budget_s=60, max_warm_up=5)
    samples = sample(steps, device, SteadyProbe(), criterion, Phases())
    assert "".join(order[:5]) == "abcab"
    assert (samples.warm_up_calls, samples.warm_up_reason) == (5, "max_warm_up")


def test_sampling_gives_up_when_more_samples_do_not_help() -> None:
    # Two states that change once: the interval of the median stays as wide as it is.
    times = [1.0, 2.0] * 200
    criterion = Criterion(0.01, min_samples=6, max_samples=400, budget_s=60, max_warm_up=1)
    n, reason, _calls = run([1.0, *times], criterion)
    assert (n, reason) == (24, "no_improvement")


def test_a_step_past_all_patience_is_not_waited_for() -> None:
    criterion = Criterion(0.0, 6, 25, budget_s=0, max_warm_up=1, patience_s=0.0)
    n, reason, _calls = run([1.0, 2.0, 3.0, 4.0] * 9, criterion)
    assert (n, reason) == (3, "patience")


def test_stopping_when_narrow_keeps_most_of_the_level() -> None:
    """Looking at every sample and stopping at a narrow interval costs level: not below 0.9 of 0.95."""
    rng = np.random.default_rng(4)
    criterion = Criterion(0.03, min_samples=6, max_samples=25, budget_s=60, max_warm_up=1)
    held = 0
    for _ in range(600):
        times = iter(rng.normal(1.0, 0.05, 40))
        samples = sample([int], ScriptedDevice(times), SteadyProbe(), criterion, Phases())
        low, high = median_interval(samples.times_s)
        held += low <= 1.0 <= high
    assert held / 600 >= 0.90


@pytest.mark.parametrize("n", [6, 7, 10, 25, 100])
def test_interval_holds_the_median_about_95_times_in_100(n: int) -> None:
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(2000):
        low, high = median_interval(list(rng.normal(10, 1, n)))
        held += low <= 10 <= high
    assert (
        0.935 <= held / 2000 <= 0.975
    )  # 4 standard errors to either side, and the least sample's 0.97


@pytest.mark.parametrize(
    ("n", "low", "high"),
    [
        # By hand from the binomial: n = 6 has 0.96875 of coverage between the ends and 0.78125 one
        # further in; the share of the way is 0.1, its weight 5 * 0.1 / (1 + 4 * 0.1) = 0.35714.
        (6, 1.35714, 5.64286),
        # n = 8: 0.99219 and 0.92969; 0.675; 7 * 0.675 / (1 + 6 * 0.675) = 0.93564.
        (8, 1.93564, 7.06436),
    ],
)
def test_interval_of_the_first_numbers(n: int, low: float, high: float) -> None:
    assert median_interval(range(1, n + 1)) == pytest.approx((low, high), abs=1e-5)


def test_noise_is_the_standard_deviation_of_a_normal_sample() -> None:
    values = np.random.default_rng(2).normal(100, 3, 20_000)
    assert relative_noise(list(values)) == pytest.approx(0.03, rel=0.05)


def test_summary_keeps_every_sample() -> None:
    timing = Samples((3.0, 1.0, 2.0), (1.0,) * 3, "converged", 2, "settled").timing()
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
    assert physics_code(1.0, "cold") is None
    assert physics_code(0.79, "cold") == "faster_than_physics"  # 1e9 / 0.79 is over 1.25e9
    assert physics_code(0.79, "hot") == "faster_than_physics"  # no cache holds half of it


def test_what_a_cache_gives_is_not_cold() -> None:
    held_bytes = 10**9
    assert physics_code(0.5, "cold", held_bytes) == "cache_state"
    assert physics_code(0.5, "cold", held_bytes // 2) == "cache_state"
    assert physics_code(0.5, "cold", held_bytes // 2 - 1) == "faster_than_physics"
    assert physics_code(0.5, "hot", held_bytes) is None
    assert physics_code(0.19, "hot", held_bytes) == "faster_than_physics"  # over 4e9 and a quarter
    assert physics_code(0.19, "cold", held_bytes) == "faster_than_physics"


def test_where_neighbours_slowed_the_probe_the_best_reading_is_what_memory_gives() -> None:
    assert physics_code(0.45, "cold") == "faster_than_physics"
    assert physics_code(0.45, "cold", disturbed=True) is None
    assert physics_code(0.39, "cold", disturbed=True) == "faster_than_physics"  # 2e9 and a quarter


def physics_code(
    time_s: float, cache_state: CacheState, cache_bytes: int = 10**8, *, disturbed: bool = False
) -> str | None:
    probe = Probe(
        1e9, 1e9, 1e9, (1e9, 0.9e9), best_read_bytes_per_s=2e9, cached_read_bytes_per_s=4e9
    )
    fault = physics_fault(time_s, 10**9, cache_state, cache_bytes, probe, disturbed=disturbed)
    return None if fault is None else fault.code


def test_another_device_at_the_end_is_a_fault() -> None:
    assert device_fault("GPU A", "GPU A") is None
    fault = device_fault("GPU A", "GPU B")
    assert fault is not None
    assert fault.code == "device_changed"


def test_a_slope_is_drift_and_noise_is_not() -> None:
    rng = np.random.default_rng(3)
    noise = list(rng.normal(1, 0.05, 25))
    assert trust_flags(noise, [1e9] * 25, host()) == ()
    slope = [t + 0.2 * i / 25 for i, t in enumerate(noise)]
    assert trust_flags(slope, [1e9] * 25, host()) == ("drifting",)
    # Six samples that rise by a fifth may have come by chance: their score is 2.8 at most.
    assert trust_flags([1.0, 1.04, 1.08, 1.12, 1.16, 1.2], [1e9] * 6, host()) == ()
    moved, score = drift([1.0 + 0.01 * i for i in range(21)])
    assert moved == pytest.approx(0.2 / 1.1)
    assert score > 6


def test_too_few_samples_are_flagged() -> None:
    assert trust_flags([1.0] * 6, [1e9] * 6, host()) == ()
    assert trust_flags([1.0] * 5, [1e9] * 5, host()) == ("too_few_samples",)


def test_one_byte_is_a_fault() -> None:
    assert bytes_fault(100, 100) is None
    fault = bytes_fault(101, 100)
    assert fault is not None
    assert fault.code == "bytes_differ"


def host(taken: float | None = None) -> Conditions:
    return Conditions(elapsed_s=1.0, cpu=CpuConditions(taken=taken))


def on_gpu(gpu: GpuConditions) -> tuple[str, ...]:
    busy_host = CpuConditions(taken=0.9)
    return trust_flags([1.0] * 9, [1e9] * 9, Conditions(elapsed_s=2.0, cpu=busy_host, gpu=gpu))


def test_a_throttled_or_shared_gpu_is_flagged_and_a_busy_host_is_not() -> None:
    assert on_gpu(GpuConditions()) == ()
    assert on_gpu(GpuConditions(other_processes=0, throttle_reasons=())) == ()
    assert on_gpu(GpuConditions(other_processes=1)) == ("gpu_shared",)
    assert on_gpu(GpuConditions(throttle_reasons=("applications_clocks_setting",))) == ()
    assert on_gpu(GpuConditions(throttle_reasons=("sw_power_cap",))) == ("throttled",)
    assert on_gpu(GpuConditions(throttled_s={"power": 0.01, "thermal": 0.03})) == ("throttled",)
    assert on_gpu(GpuConditions(throttled_s={"power": 0.01})) == ()


def test_a_lost_gpu_is_a_fault() -> None:
    assert lost_fault(host()) is None
    gone = Conditions(1.0, CpuConditions(), lost=True, unavailable={"device_lost": "Xid 79"})
    fault = lost_fault(gone)
    assert fault is not None
    assert (fault.code, fault.reason) == ("device_lost", "Xid 79")


def test_a_shared_cpu_is_flagged() -> None:
    assert trust_flags([1.0] * 9, [1e9] * 9, host(0.14)) == ()
    assert trust_flags([1.0] * 9, [1e9] * 9, host(0.16)) == ("cpu_shared",)


def test_disturbed_samples_are_flagged() -> None:
    assert trust_flags([1.0] * 9, [1e9] * 9, host()) == ()
    assert trust_flags([1.0] * 9, [1e9] * 8 + [2e9], host()) == ()  # one outlier
    assert trust_flags([1.0] * 9, [1e9] * 5 + [2e9] * 4, host()) == ("probe_changed",)
    steady, far = [1.0] * 9, [27.0] * 4 + [170.0] * 5
    assert trust_flags(steady, [1e9] * 9, host(), far) == ("state_changed",)
    assert trust_flags(steady, [1e9] * 9, host(), [160.0] * 4 + [185.0] * 5) == ()
    assert trust_flags(steady, [1e9] * 9, host(), [27.0] * 8 + [170.0]) == ()  # one outlier
    wide = [1.0, 2.0, 3.0, 1.0, 3.0, 2.0, 1.0]
    assert half_width(wide) > 0.15
    assert trust_flags(wide, [1e9] * 7, host()) == ("wide_interval",)
