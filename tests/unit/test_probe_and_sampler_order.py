"""Each sample is cold: the probe reads a buffer larger than the caches just before it."""

from __future__ import annotations

from collections.abc import Callable

from kvgauge.devices.cpu import CpuDevice
from kvgauge.devices.probe import make_probe
from kvgauge.measure.phases import Phases
from kvgauge.measure.sampler import sample
from kvgauge.schema import Criterion

MIB = 2**20


class OneSecond(CpuDevice):
    """Every call takes a second."""

    def timed(self, step: Callable[[], object]) -> float:
        step()
        return 1.0


def test_the_probe_reads_just_before_each_sample() -> None:
    order: list[str] = []

    class Probe:
        def read_bytes_per_s(self) -> float:
            order.append("probe")
            return float(len(order))

    criterion = Criterion(0.0, min_samples=4, max_samples=4, budget_s=60, max_warm_up=1)
    samples = sample([lambda: order.append("step")], OneSecond(), Probe(), criterion, Phases())
    # One call warms up; converged at once would be 4 as well, since all times are alike.
    assert order == ["step", *["probe", "step"] * 4]
    assert samples.read_bytes_per_s == (2.0, 4.0, 6.0, 8.0)  # each beside its own sample


def test_the_buffer_is_four_times_a_large_cache() -> None:
    device = OneSecond()
    device.last_level_cache_bytes = 40 * MIB
    probe = make_probe(device)
    assert probe.source.nbytes >= 160 * MIB
    assert probe.target.nbytes >= 160 * MIB
    # At one second a call the rate is the bytes: all of the buffer is counted, and read.
    assert probe.read_bytes_per_s() == probe.source.nbytes
    assert probe.copy_bytes_per_s() == 2 * probe.source.nbytes
