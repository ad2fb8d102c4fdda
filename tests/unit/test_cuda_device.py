"""The CUDA device against a recording stand-in for torch.cuda: what is called, and in which order."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import kvgauge
from cuda_for_tests import GPU_BYTES, StandInCuda
from kvgauge.devices import cuda_kernels, probe, select
from kvgauge.devices.cuda import CudaDevice
from kvgauge.errors import UnsupportedLayout, UserError
from kvgauge.measure.phases import Phases
from kvgauge.measure.sampler import sample
from kvgauge.schema import Criterion
from nvml_for_tests import Gpu, NvmlLibrary

MIB = 2**20


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> StandInCuda:
    NvmlLibrary(Gpu("GPU-abc", [(os.getpid(), 700 * MIB)])).install(monkeypatch)
    return StandInCuda().install(monkeypatch)


def test_time_is_between_two_events_in_seconds(gpu: StandInCuda) -> None:
    device = CudaDevice(1)
    gpu.launch("before", 1000)
    gpu.calls.clear()
    assert device.timed(lambda: gpu.launch("step", 250)) == pytest.approx(0.25)
    # Nothing waits between the two events, and the second is waited for before it is read.
    assert gpu.calls == ["record", "step on default", "record", "event.synchronize"]
    assert (device.ref.kind, device.ref.name, device.ref.index) == ("cuda", "Stand-in GPU", 1)


def test_memory_is_the_allocators_after_cached_blocks_are_freed(gpu: StandInCuda) -> None:
    device = CudaDevice(0)
    gpu.allocate(513)
    gpu.calls.clear()
    assert device.memory_bytes() == 1024  # whole blocks
    assert gpu.calls == ["synchronize", "empty_cache", "memory_allocated"]
    assert device.available_bytes() == GPU_BYTES - 2 * MIB
    assert device.last_level_cache_bytes == 50 * MIB
    assert device.properties()["compute_capability"] == "9.0"
    assert device.driver_bytes() == 700 * MIB


def test_each_count_of_memory_is_named_for_what_it_is(gpu: StandInCuda) -> None:
    device = CudaDevice(0)
    gpu.allocate(30 * MIB)
    gpu.free(30 * MIB)
    assert device.memory_bytes() == 0  # and the freed block is given back
    assert device.reset_peak()
    gpu.allocate(4 * MIB)
    gpu.allocate(1000)
    gpu.free(4 * MIB)
    use = device.memory_use()
    assert use.requested_bytes == 1000
    assert use.allocated_bytes == 1024
    assert use.reserved_bytes == 6 * MIB  # the freed block is kept
    assert use.inactive_split_bytes == 2 * MIB - 1024
    assert use.fragmentation == pytest.approx(1 - 1024 / (6 * MIB))
    assert use.peak_allocated_bytes == 4 * MIB + 1024  # since the reset, not 30 MiB
    assert use.peak_reserved_bytes == 6 * MIB
    assert use.process_bytes == 700 * MIB
    assert (use.total_bytes, use.free_bytes) == (GPU_BYTES, GPU_BYTES - 6 * MIB)
    assert use.unavailable == {}
    assert device.memory_bytes() == 1024  # what was kept is given back, and the peak stays
    later = device.memory_use()
    assert (later.reserved_bytes, later.peak_reserved_bytes) == (2 * MIB, 6 * MIB)


def test_what_another_allocator_does_not_count_is_not_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    NvmlLibrary(Gpu("GPU-abc")).install(monkeypatch)
    gpu = StandInCuda(backend="cudaMallocAsync").install(monkeypatch)
    gpu.allocate(1000)
    use = CudaDevice(0).memory_use()
    assert (use.requested_bytes, use.inactive_split_bytes, use.process_bytes) == (None,) * 3
    assert use.allocated_bytes == 1024
    assert "does not count" in use.unavailable["requested_bytes"]
    assert "process ids" in use.unavailable["process_bytes"]


def test_nothing_reserved_is_not_fragmented(gpu: StandInCuda) -> None:
    use = CudaDevice(0).memory_use()
    assert (use.reserved_bytes, use.fragmentation) == (0, None)


def test_a_graph_is_warmed_up_on_a_side_stream_and_replayed_whole(gpu: StandInCuda) -> None:
    device = CudaDevice(0)
    gpu.calls.clear()

    def step() -> str:
        gpu.launch("k1", 3)
        gpu.launch("k2", 4)
        return "output"

    replay = device.captured(step)
    assert gpu.calls == [
        "side1 waits for default",
        *["k1 on side1", "k2 on side1"] * 3,
        "default waits for side1",
        "capture begins", "k1 on capture", "k2 on capture", "capture ends",
    ]  # fmt: skip
    assert device.timed(replay) == pytest.approx(0.007)
    assert replay() == "output"
    assert gpu.calls[-1] == "replay"


def test_a_step_that_no_graph_holds_is_unsupported_and_leaves_the_stream(gpu: StandInCuda) -> None:
    device = CudaDevice(0)
    gpu.capture_fails = True
    with pytest.raises(UnsupportedLayout, match="not permitted when stream is capturing"):
        device.captured(lambda: gpu.launch("k", 1))
    assert gpu.stream_name == "default"

    def full() -> None:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):  # a finding of its own
        device.captured(full)


def test_each_sample_is_cold_and_nothing_waits_inside_it(
    gpu: StandInCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(probe._MATMUL_SIZE, "cuda", 8)
    device = CudaDevice(0)
    device.torch_device = torch.device("cpu")  # where tensors can be, here
    read = device.timed

    def timed(step: object) -> float:  # torch's own kernels launch nothing on the stand-in
        def launched() -> None:
            step()  # type: ignore[operator]
            gpu.launch("work", 1)

        return read(launched)

    monkeypatch.setattr(device, "timed", timed)
    made = probe.make_probe(device)
    assert made.source.nbytes >= 4 * 50 * MIB  # it evicts all of the L2
    gpu.calls.clear()
    criterion = Criterion(0.1, min_samples=3, max_samples=3, budget_s=60, max_warm_up=1)
    sample(
        [lambda: gpu.launch("step", 2)], device, made, criterion, Phases(),
        look=lambda: gpu.calls.append("look"),
    )  # fmt: skip
    flush = ["record", "work on default", "record", "event.synchronize"]
    step = ["record", "step on default", *flush[1:]]
    assert gpu.calls == [*step, *["look", *flush, *step] * 3]


@pytest.mark.parametrize("sees", [True, False])
def test_kernels_are_those_that_the_gpu_ran(
    gpu: StandInCuda, monkeypatch: pytest.MonkeyPatch, sees: bool
) -> None:
    def event(name: str, where: str, microseconds: float, named: bool = False) -> SimpleNamespace:
        took = SimpleNamespace(elapsed_us=lambda: microseconds)
        return SimpleNamespace(
            name=name,
            device_type=SimpleNamespace(name=where),
            time_range=took,
            is_user_annotation=named,
        )

    class Profile:
        def __init__(self, activities: list[str]) -> None:
            assert activities == ["CUDA"]

        def __enter__(self) -> Profile:
            gpu.calls.append("profile begins")
            return self

        def __exit__(self, *_error: object) -> None:
            gpu.calls.append("profile ends")

        def events(self) -> list[SimpleNamespace]:
            host = event("cudaLaunchKernel", "CPU", 900)
            flash, copy = event("flash_fwd", "CUDA", 20), event("Memcpy DtoD", "CUDA", 5)
            whole = event("a layer", "CUDA", 45, named=True)
            return [host, whole, flash, copy, flash] if sees else [host]

    monkeypatch.setattr(cuda_kernels, "ProfilerActivity", SimpleNamespace(CUDA="CUDA"))
    monkeypatch.setattr(cuda_kernels, "supported_activities", lambda: {"CUDA"})
    monkeypatch.setattr(cuda_kernels, "profile", Profile)
    device = CudaDevice(0)
    gpu.calls.clear()
    seconds = device.kernel_seconds(lambda: gpu.launch("step", 1))
    expected = {"flash_fwd": 40e-6, "Memcpy DtoD": 5e-6}
    assert seconds == (pytest.approx(expected) if sees else None)
    # Once without the profiler, so that what is set up at the first call is not counted.
    assert gpu.calls == [
        "step on default", "synchronize",
        "profile begins", "step on default", "synchronize", "profile ends",
    ]  # fmt: skip


def test_without_cupti_no_kernel_is_known(gpu: StandInCuda) -> None:
    if torch.version.cuda is not None:
        pytest.skip("this torch has CUPTI")
    ran: list[int] = []
    assert CudaDevice(0).kernel_seconds(lambda: ran.append(1)) is None
    assert ran == []


def test_auto_takes_the_gpu_and_checks_its_index(gpu: StandInCuda) -> None:
    assert select.select_device("auto").ref.kind == "cuda"
    assert select.select_device("cpu").ref.kind == "cpu"
    with pytest.raises(UserError, match="this machine has 2"):
        select.select_device("cuda", 2)


def test_torch_cuda_is_called_in_one_file_alone() -> None:
    harness = Path(kvgauge.__file__).parent
    # The doctor examines torch, also one that does not import: it asks by itself.
    files = [p for p in harness.rglob("*.py") if p.parent.name != "doctor"]
    users = {path.name for path in files if uses_torch_cuda(path)}
    assert users == {"cuda_calls.py"}


def uses_torch_cuda(path: Path) -> bool:
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Attribute(value=ast.Name(id="torch"), attr="cuda"):
                return True
            case ast.Import(names=names) if any(n.name.startswith("torch.cuda") for n in names):
                return True
            case ast.ImportFrom(module=str(module), names=names):
                from_torch = module == "torch" and any(n.name == "cuda" for n in names)
                if from_torch or module.startswith("torch.cuda"):
                    return True
    return False
