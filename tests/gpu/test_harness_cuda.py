"""The harness on a real GPU, against others who measure the same: triton, torch's profiler, NVML."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import torch

from gpu_checks import (
    assert_each_count_is_more_than_the_last,
    assert_known_or_explained,
    assert_watts_are_possible,
    cold_median_s,
    hot_median_s,
)
from kvgauge.devices.cuda import CudaDevice
from kvgauge.devices.probe import DeviceProbe, make_probe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

MIB = 2**20


@pytest.fixture(scope="module")
def device() -> CudaDevice:
    return CudaDevice(0)


@pytest.fixture(scope="module")
def probe(device: CudaDevice) -> DeviceProbe:
    return make_probe(device)


def large_copy() -> Callable[[], object]:
    """Far over 100 us on any GPU: 1 GiB read and 1 GiB written."""
    source = torch.rand(256 * MIB, device="cuda")
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def many_small_kernels(x: torch.Tensor, out: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Launching takes longer than each of them."""

    def step() -> torch.Tensor:
        y = x
        for _ in range(100):
            y = y * 0.5 + 1.0
        return out.copy_(y)

    return step


def test_our_time_is_tritons(device: CudaDevice, probe: DeviceProbe) -> None:
    testing = pytest.importorskip("triton.testing")
    step = large_copy()
    theirs_ms = testing.do_bench(step, warmup=100, rep=500, return_mode="median")
    ours_s = cold_median_s(step, device, probe)
    assert ours_s > 100e-6
    assert ours_s == pytest.approx(theirs_ms / 1e3, rel=0.05)


def test_our_time_is_the_sum_of_the_kernels(device: CudaDevice, probe: DeviceProbe) -> None:
    step = large_copy()
    kernels = device.kernel_seconds(step)
    if kernels is None:
        pytest.skip("CUPTI is not open to this process")
    assert sum(kernels.values()) == pytest.approx(cold_median_s(step, device, probe), rel=0.1)


def test_a_wait_inside_the_step_is_in_its_time(device: CudaDevice) -> None:
    kernel_s = hot_median_s(large_copy(), device)
    step = large_copy()

    def twice_with_a_wait() -> None:
        step()
        torch.cuda.synchronize()
        step()

    assert hot_median_s(twice_with_a_wait, device) > 1.9 * kernel_s


def test_our_bytes_are_the_profilers_and_the_allocators(device: CudaDevice) -> None:
    before = device.memory_bytes()
    assert before is not None
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        held = [torch.empty(n, dtype=torch.uint8, device="cuda") for n in (513, 64 * MIB + 1)]
    after = device.memory_bytes()
    assert after is not None
    assert sum(t.nbytes for t in held) <= after - before
    seen = sum(event.self_device_memory_usage for event in profile.key_averages())
    assert after - before == seen
    assert after == torch.cuda.memory_stats()["allocated_bytes.all.current"]


def test_memory_is_counted_by_all_who_count_it(device: CudaDevice) -> None:
    device.reset_peak()
    kept = torch.empty(100 * MIB + 1, dtype=torch.uint8, device="cuda")
    passing = torch.empty(50 * MIB, dtype=torch.uint8, device="cuda")
    del passing
    use = device.memory_use()
    assert_each_count_is_more_than_the_last(use)
    assert use.allocated_bytes is not None
    assert use.allocated_bytes >= kept.nbytes
    assert use.peak_allocated_bytes is not None
    assert use.peak_allocated_bytes >= use.allocated_bytes + 50 * MIB
    if use.process_bytes is None:
        pytest.skip(f"NVML does not tell this process: {use.unavailable['process_bytes']}")
    assert use.process_bytes >= use.allocated_bytes


def test_a_replayed_graph_gives_the_same_and_is_not_slower(device: CudaDevice) -> None:
    x = torch.rand(1024, device="cuda")
    eager_out, graph_out = torch.empty_like(x), torch.empty_like(x)
    eager = many_small_kernels(x, eager_out)
    replay = device.captured(many_small_kernels(x, graph_out))
    x.copy_(torch.rand_like(x))  # a replay reads what is there now
    eager()
    replay()
    torch.cuda.synchronize()
    assert torch.equal(graph_out, eager_out)
    assert hot_median_s(replay, device) <= hot_median_s(eager, device)


def test_a_step_that_no_graph_holds_leaves_the_stream_as_it_was() -> None:
    # In a process of its own: a capture that failed may leave the allocator in its state.
    script = (
        "import torch\n"
        "from kvgauge.devices.cuda import CudaDevice\n"
        "from kvgauge.errors import UnsupportedLayout\n"
        "device, x = CudaDevice(0), torch.ones(8, device='cuda')\n"
        "before = torch.cuda.current_stream()\n"
        "try:\n"
        "    device.captured(lambda: x.sum().item())\n"
        "except UnsupportedLayout:\n"
        "    assert torch.cuda.current_stream() == before\n"
        "    print('unsupported')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "unsupported", done.stderr


def test_the_watch_sees_the_gpu_at_work(device: CudaDevice) -> None:
    step = large_copy()
    watch = device.watch()
    until_s = time.monotonic() + 2.0
    while time.monotonic() < until_s:
        device.timed(step)
        watch.look()
    seen = watch.stop()
    assert_known_or_explained(seen)
    assert not seen.lost
    assert seen.gpu is not None
    if seen.gpu.sm_clock_mhz is not None:
        assert 100 < seen.gpu.sm_clock_mhz.low <= seen.gpu.sm_clock_mhz.high < 5000
    if seen.gpu.throttled_s is not None:
        assert all(0 <= s <= 1.1 * seen.elapsed_s for s in seen.gpu.throttled_s.values())


def test_the_energy_counter_grows_as_fast_as_the_card_may_draw(device: CudaDevice) -> None:
    step = large_copy()
    watch = device.watch()
    until_s = time.monotonic() + 2.0
    while time.monotonic() < until_s:
        device.timed(step)
    seen = watch.stop()
    limit_mw = device.properties().get("power_limit_mw")
    if seen.energy_j is None or limit_mw is None:
        pytest.skip(f"no energy counter: {seen.unavailable}")
    assert_watts_are_possible(seen, limit_mw / 1e3)


def test_a_look_costs_less_than_a_sample_may(device: CudaDevice) -> None:
    watch = device.watch()
    started_s = time.monotonic()
    for _ in range(1000):
        watch.look()
    assert time.monotonic() - started_s < 0.5
    watch.stop()


def test_the_probe_flushes_the_l2(device: CudaDevice, probe: DeviceProbe) -> None:
    assert probe.source.nbytes >= 4 * torch.cuda.get_device_properties(0).L2_cache_size
    small = torch.rand(device.last_level_cache_bytes // 2 // 4, device="cuda")
    # Half of what the L2 holds comes from it when hot, and from memory when cold.
    assert cold_median_s(small.sum, device, probe) > hot_median_s(small.sum, device)
