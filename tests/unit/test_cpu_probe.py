"""The native probe of the CPU: it touches all bytes, and its rates are some that a machine can have."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from kvgauge.devices.cpu import CpuDevice
from kvgauge.devices.probe import make_probe
from kvgauge.errors import UserError
from kvgauge.schema import Probe
from kvgauge.store.reader import check_measured
from kvgauge_kernels.cpu import probe
from kvgauge_kernels.cpu.native_module import NOT_BUILT

LEVELS = ("portable", "avx2", "avx512")
THREADS = ("openmp", "own")
SIZES = (0, 1, 7, 8, 63, 64, 65, 511, 512, 4097, 65_536, 65_537, 131_071, 3_000_001, 40_000_003)


@pytest.fixture
def native() -> Iterator[Any]:
    """The extension, its level and its threads put back afterwards."""
    if probe.why_not() is not None:
        pytest.skip(f"{probe.why_not()}")
    module = importlib.import_module("kvgauge_kernels.cpu._native")
    level = module.level()
    yield module
    module.force_level(level)
    module.set_thread_count(0)
    module.force_own_threads("KVGAUGE_OWN_THREADS" in os.environ)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def use(native: Any, level: str, threads: str | None = None) -> None:
    if LEVELS.index(level) > LEVELS.index(native.best_level()):
        pytest.skip(f"this CPU has no {level}")
    if threads is not None:
        native.force_own_threads(threads == "own")
        if native.thread_source() != threads:
            pytest.skip("torch's threads are none of GNU OpenMP's")
    native.force_level(level)


def bytes_of(size: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8))


def sum_by_numpy(data: torch.Tensor) -> int:
    raw = data.numpy().tobytes()
    words = np.frombuffer(raw + bytes(-len(raw) % 8), dtype="<u8")
    return int(words.sum(dtype=np.uint64))


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("level", LEVELS)
def test_a_read_covers_every_byte(native: Any, level: str, threads: str) -> None:
    use(native, level, threads)
    for size in SIZES:
        for offset in (0, 1, 24):
            data = bytes_of(size + offset, size)[offset:]
            assert probe.read(data) == sum_by_numpy(data), (size, offset)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("level", LEVELS)
def test_a_copy_writes_every_byte_and_no_other(
    native: Any, level: str, threads: str, streaming: bool
) -> None:
    use(native, level, threads)
    for size in SIZES:
        for offset in (0, 3):
            source = bytes_of(size, size)
            target = torch.full((size + offset + 16,), 7, dtype=torch.uint8)
            probe.copy(target[offset : offset + size], source, streaming=streaming)
            assert torch.equal(target[offset : offset + size], source), (size, offset)
            assert bool((target[:offset] == 7).all())
            assert bool((target[offset + size :] == 7).all())


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("level", LEVELS)
def test_rates_are_some_that_a_cpu_can_have(native: Any, level: str, count: int) -> None:
    use(native, level)
    native.set_thread_count(count)
    data = bytes_of(3_000_001, count)
    assert probe.read(data) == sum_by_numpy(data)
    # Thousands of cores at most, and no core so slow: the loops are bound by neither.
    assert 1e8 < probe.multiply_adds_per_s() < 1e15
    for bits in (8, 16):
        rate = probe.integer_dots_per_s(8 if bits == 8 else 16)
        assert (rate is None) == (level == "portable")
        assert rate is None or 1e8 < rate < 1e16


def test_one_thread_has_nobody_to_play_with(native: Any) -> None:
    native.set_thread_count(1)
    assert probe.ping_pong_ns() is None


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("count", [2, 3])
def test_a_line_takes_some_nanoseconds_to_the_next_core(
    native: Any, count: int, threads: str
) -> None:
    use(native, "portable", threads)
    native.set_thread_count(count)
    if cores() < 2:
        assert probe.ping_pong_ns() is None
        return
    told = [ns for ns in (probe.ping_pong_ns() for _ in range(20)) if ns is not None]
    if not told:
        pytest.skip("no reading of twenty had both cores: others use them")
    assert all(1 < ns < 1e5 for ns in told)


@pytest.mark.parametrize("threads", THREADS)
def test_threads_are_left_where_they_were(native: Any, threads: str) -> None:
    use(native, "portable", threads)
    native.set_thread_count(2)
    before = cores()
    probe.ping_pong_ns()
    probe.read(bytes_of(1_000_000, 1))
    assert cores() == before


def test_the_threads_are_as_many_as_torchs(native: Any) -> None:
    use(native, "portable", "openmp")
    assert native.thread_count() == torch.get_num_threads()


def test_only_contiguous_memory_of_the_cpu_is_read(native: Any) -> None:
    with pytest.raises(ValueError, match="contiguous"):
        probe.read(torch.zeros(8, 8).T[1:])
    with pytest.raises(ValueError, match="as many bytes"):
        probe.copy(torch.zeros(7), torch.zeros(8), streaming=False)
    with pytest.raises(ValueError, match="8 or 16"):
        native.probe_dot_rate(4)


def test_without_the_extension_the_loops_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "native", lambda: None)
    assert probe.why_not() == NOT_BUILT
    with pytest.raises(RuntimeError, match="not built"):
        probe.read(torch.zeros(8))
    made = make_probe(CpuDevice())
    assert made.loops == "torch"
    assert (made.integer_ops_per_s(), made.ping_pong_ns()) == (None, None)
    assert made.flops_per_s() > 0


def test_the_probe_of_a_cpu_uses_the_native_loops(native: Any) -> None:
    made = make_probe(CpuDevice())
    assert made.loops == f"kvgauge native, {native.level()}"
    made.target.zero_()
    assert 1e8 < made.copy_bytes_per_s() < 2e12
    assert torch.equal(made.target, made.source)
    assert 1e8 < made.read_bytes_per_s() < 1e12
    assert 1e8 < made.cached_read_bytes_per_s() < 1e14


def test_the_best_reading_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_probe(CpuDevice())
    taken_s = iter([2.0, 0.5, 1.0])
    made.readings.clear()
    monkeypatch.setattr(CpuDevice, "timed", lambda _self, _step: next(taken_s))
    held_bytes = made.source.numel() * made.source.element_size()
    assert [made.read_bytes_per_s() for _ in range(3)] == [
        held_bytes / 2, held_bytes * 2, held_bytes
    ]  # fmt: skip
    assert made.best_read_bytes_per_s() == held_bytes * 2


OLD = {"read_bytes_per_s": 1e9, "copy_bytes_per_s": 1e9, "flops_per_s": 1e9}


def test_records_from_before_are_read() -> None:
    old = msgspec.convert(OLD, Probe)
    assert (old.source, old.integer_ops_per_s, old.ping_pong_ns) == (None, None, None)
    check_measured(None, old, "here")
    new = Probe(1e9, 1e9, 1e9, source="torch", integer_ops_per_s=1e9, ping_pong_ns=(27.0, 170.0))
    assert msgspec.convert(msgspec.json.decode(msgspec.json.encode(asdict(new))), Probe) == new
    check_measured(None, new, "here")


@pytest.mark.parametrize("bad", [{"ping_pong_ns": [27.0, 0.0]}, {"integer_ops_per_s": -1.0}])
def test_readings_that_no_machine_gives_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(UserError, match="probe rates"):
        check_measured(None, msgspec.convert({**OLD, **bad}, Probe), "here")
