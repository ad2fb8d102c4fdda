"""A whole run of the harness as on a GPU: torch.cuda and NVML stand in, tensors are on the CPU."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pynvml
import pytest
import torch

from cuda_for_tests import StandInCuda
from kvgauge import jobs, runner
from kvgauge.devices import probe
from kvgauge.devices.cuda import CudaDevice
from kvgauge.schema import Run, Span
from kvgauge.store.folder import RunFolder
from kvgauge.store.reader import load_run
from nvml_for_tests import Gpu, NvmlLibrary
from records_for_tests import record, run_of

MIB = 2**20
TINY = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 100, "intermediate_size": 96,
}  # fmt: skip


class CudaDeviceWithCpuTensors(CudaDevice):
    """The CUDA device, whose steps take 10 ms each; `after` is called then."""

    def __init__(self, gpu: StandInCuda, after: Callable[[], None]) -> None:
        super().__init__(0)
        self.torch_device = torch.device("cpu")
        self.last_level_cache_bytes = 1024
        self._gpu, self._after = gpu, after

    def timed(self, step: Callable[[], object]) -> float:
        def launched() -> None:
            step()
            self._gpu.launch("step", 10)

        elapsed_s = super().timed(launched)
        self._after()
        return elapsed_s


@pytest.fixture
def card() -> Gpu:
    return Gpu("GPU-abc", [(os.getpid(), 700 * MIB), (1, 50 * MIB)])


def run(
    card: Gpu, suite: str, folder: Path, monkeypatch: pytest.MonkeyPatch, after: Callable[[], None]
) -> Run:
    monkeypatch.setitem(probe._MATMUL_SIZE, "cuda", 8)
    NvmlLibrary(card).install(monkeypatch)
    device = CudaDeviceWithCpuTensors(StandInCuda().install(monkeypatch), after)
    (folder / "config.json").write_text(json.dumps(TINY))
    options = jobs.Options(
        suites=(suite,), models=(str(folder),), think_tokens=(33,), kv_formats=("fp16",),
        backends=("eager",) if suite == "decode" else (),
    )  # fmt: skip
    made = RunFolder.create(folder / "run")
    result = runner.execute(options, device, made, ["kvgauge", "run"])
    assert load_run(made.path) == result
    return result


def nothing() -> None:
    """Changes nothing."""


def test_a_timed_cell_says_what_the_gpu_did(
    card: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw() -> None:
        card.energy_mj += 3000

    result = run(card, "decode", tmp_path, monkeypatch, draw)
    [found] = result.records
    assert (found.status, found.device.kind) == ("ok", "cuda")
    assert found.measured is not None
    assert found.measured.time_s is not None
    assert found.measured.time_s.median == pytest.approx(0.01)
    seen = found.conditions
    assert seen is not None
    assert seen.gpu is not None
    assert seen.gpu.sm_clock_mhz == Span(1980, 1980)
    assert (seen.gpu.other_processes, seen.gpu.other_bytes) == (1, 50 * MIB)
    assert seen.energy_j is not None
    assert seen.energy_j >= 2 * 3 * found.measured.time_s.n  # each sample, and a flush before it
    assert result.manifest.machine["uuid"] == "GPU-abc"


def test_a_footprint_says_who_counts_how_much(
    card: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [found] = run(card, "footprint", tmp_path, monkeypatch, nothing).records
    assert found.status == "ok"
    assert found.measured is not None
    assert found.measured.memory is not None
    assert found.measured.memory.process_bytes == 700 * MIB
    assert found.measured.allocated_source == "torch.cuda.memory_allocated"
    assert found.conditions is None  # nothing was timed


def test_a_gpu_lost_while_sampling_fails_the_cell(
    card: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose() -> None:
        card.refuses["*"] = pynvml.NVML_ERROR_GPU_IS_LOST

    result = run(card, "decode", tmp_path, monkeypatch, lose)
    [found] = result.records
    assert (found.status, found.reason_code) == ("failed", "device_lost")
    assert "GPU is lost" in str(found.reason)
    assert not found.trust.ok
    assert result.manifest.status == "incomplete"


def test_a_record_from_before_conditions_is_read(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "old")
    folder.write_manifest(run_of(record()).manifest)
    folder.append(record())
    path = folder.path / "records.jsonl"
    old = json.loads(path.read_text())
    del old["conditions"], old["measured"]["memory"]
    old["measured"]["cpu_taken"] = 0.25  # where it was
    path.write_text(json.dumps(old) + "\n")
    [found] = load_run(folder.path).records
    assert found.conditions is None
    assert found.measured is not None
    assert found.measured.memory is None
