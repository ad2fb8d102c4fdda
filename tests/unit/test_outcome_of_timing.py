"""A time's ratios and its physics, on a clock and a probe that say what the test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import pytest

from kvgauge.devices.cpu import CpuDevice
from kvgauge.devices.probe import DeviceProbe
from kvgauge.formula.moved import Operation
from kvgauge.schema import BackendRef, Criterion, Measurement, Prediction
from kvgauge.suites.timing import Timed, timed_outcome
from kvgauge.suites.types import Context, Outcome

US = 1e-6
# 4000 bytes and 300 operations; at 2e9 bytes and 1e9 operations a second memory takes longer.
OPERATIONS = [Operation("a", 3000, 100), Operation("b", 1000, 200)]


class ToldDevice(CpuDevice):
    """A CPU whose clock says what the test says."""

    def __init__(self, times_s: Iterator[float]) -> None:
        super().__init__()
        self._times_s = times_s

    def timed(self, step: Callable[[], object]) -> float:
        step()
        return next(self._times_s)


class ToldProbe:
    """Reads at 2 GB/s but for one outlier each way; copies at a third of that."""

    loops = "made-up"

    def __init__(self, ping_pong_ns: Sequence[float | None]) -> None:
        self._reads = iter([2e9, 1e9, 2e9, 2.1e9, 2e9])
        self._distances_ns = iter(ping_pong_ns)

    def read_bytes_per_s(self) -> float:
        return next(self._reads)

    def best_read_bytes_per_s(self) -> float:
        return 2.1e9

    def cached_read_bytes_per_s(self) -> float:
        return 3e9

    def copy_bytes_per_s(self) -> float:
        return 7e8

    def flops_per_s(self) -> float:
        return 1e9

    def integer_ops_per_s(self) -> float:
        return 4e9

    def ping_pong_ns(self) -> float | None:
        return next(self._distances_ns)


def outcome(
    times_s: list[float],
    tokens: int | None = None,
    ping_pong_ns: Sequence[float | None] = (None,) * 5,
    operations: Sequence[Operation] | None = None,
    *,
    integers: bool = False,
) -> Outcome:
    criterion = Criterion(1e-9, min_samples=5, max_samples=5, budget_s=60, max_warm_up=1)
    device = ToldDevice(iter([9 * US, *times_s]))  # the first is warm-up
    context = Context(device, cast(DeviceProbe, ToldProbe(ping_pong_ns)), criterion, seed=0)
    proven = Measurement(kv_bytes=4000, max_error=0.0)
    ref = BackendRef("made-up", "1", "aten::none")
    predicted = Prediction(4000, 4000, 300)
    timed = Timed(
        [lambda: None], operations or OPERATIONS, tokens_per_step=tokens, integers=integers
    )
    return timed_outcome(timed, context, predicted, proven, ref)


SAMPLES = [4 * US, 4 * US, 3.9 * US, 30 * US, 4.1 * US]  # median 4, mean 9.2


def test_ratios_are_against_the_read_probe_and_the_median() -> None:
    found = outcome(SAMPLES)
    assert (found.status, found.reason_code) == ("ok", None)
    assert found.ratio is not None
    assert found.measured is not None
    assert found.measured.bytes_per_s == pytest.approx(1e9)  # 4000 bytes in 4 µs
    assert found.ratio.bandwidth == pytest.approx(0.5)  # of the 2 GB/s that the probe read
    assert found.predicted.floor_s == pytest.approx(2 * US)  # 1.5 and 0.5 µs of memory
    assert found.ratio.floor == pytest.approx(2.0)
    assert found.ratio.kv_bytes == 1
    assert found.probe is not None
    assert (found.probe.read_bytes_per_s, found.probe.copy_bytes_per_s) == (2e9, 7e8)
    assert found.probe.read_samples_bytes_per_s == (2e9, 1e9, 2e9, 2.1e9, 2e9)
    assert found.measured.time_s is not None
    assert found.measured.time_s.samples == tuple(SAMPLES)


def test_a_cache_of_integers_is_bound_by_their_rate() -> None:
    heavy = (Operation("attention", 4000, 3200),)  # 2 µs of memory; 3.2 µs of FLOPs, 0.8 of dots
    plain, of_integers = (outcome(SAMPLES, operations=heavy, integers=x) for x in (False, True))
    assert plain.predicted.floor_s == pytest.approx(3.2 * US)
    assert plain.predicted.bound == "compute"
    assert of_integers.predicted.floor_s == pytest.approx(2 * US)
    assert of_integers.predicted.bound == "memory"


def test_tokens_a_second_are_those_of_the_median_step() -> None:
    found = outcome(SAMPLES, tokens=3)
    assert found.measured is not None
    assert found.measured.tokens_per_s == pytest.approx(750_000)
    none = outcome(SAMPLES).measured
    assert none is not None
    assert none.tokens_per_s is None


def test_a_time_that_the_memory_does_not_allow_is_invalid() -> None:
    # The best read, 2.1 GB/s, with a quarter of margin: 4000 bytes take 1.524 µs at the least.
    possible, impossible = outcome([1.53 * US] * 5), outcome([1.52 * US] * 5)
    assert (possible.status, possible.reason_code) == ("ok", None)
    assert (impossible.status, impossible.reason_code) == ("invalid", "cache_state")
    assert "4000 bytes" in str(impossible.reason)
    assert impossible.measured is not None
    assert impossible.measured.time_s is not None


def test_the_way_between_the_cores_is_kept_beside_the_samples() -> None:
    found = outcome(SAMPLES, ping_pong_ns=[27.04, None, 28.0, 26.0, 27.0])
    assert found.probe is not None
    assert found.probe.ping_pong_ns == (27.0, 28.0, 26.0, 27.0)
    assert (found.probe.source, found.probe.integer_ops_per_s) == ("made-up", 4e9)
    assert "state_changed" not in found.flags
    none = outcome(SAMPLES).probe
    assert none is not None
    assert none.ping_pong_ns is None


def test_samples_in_two_states_of_the_machine_are_flagged() -> None:
    assert "state_changed" in outcome(SAMPLES, ping_pong_ns=[27, 28, 170, 171, 169]).flags
    assert "state_changed" not in outcome(SAMPLES, ping_pong_ns=[27, 28, 27, 171, 28]).flags
