"""A run of models whose layers no contiguous K/V cache holds: records that say so, nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvgauge import jobs, runner
from kvgauge.devices.cpu import CpuDevice
from kvgauge.schema import Record
from kvgauge.shapes.types import LayerShape, ModelShape, StatePart
from kvgauge.store.folder import RunFolder
from kvgauge.store.reader import load_run
from level_for_tests import of_this_cpu
from shapes_for_tests import gqa

FULL = gqa().layers[0]
STACKS = {
    "mla": (LayerShape("mla", q_heads=8, latent_dim=64, rope_dim=8, index_dim=16),) * 2,
    "ssm": (
        LayerShape("ssm", state=(StatePart("conv", 64, 16), StatePart("recurrent", 64, 32))),
        FULL,
    ),
    "none": (LayerShape("none"), FULL),
    "chunked": (LayerShape("chunked", 8, 2, 16, 16, window=32), FULL),
}


@pytest.mark.parametrize("name", STACKS)
def test_what_cannot_be_measured_is_unsupported_by_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = ModelShape(name, STACKS[name], 64, 100, 1000, 900, "test")
    monkeypatch.setattr(jobs, "resolve", lambda _name: shape)
    options = jobs.Options(
        suites=("footprint", "decode"), models=(name,), think_tokens=(50,), kv_formats=("fp16",)
    )
    folder = RunFolder.create(tmp_path / "run")
    result = runner.execute(options, CpuDevice(), folder, ["kvgauge"])
    assert load_run(folder.path) == result
    assert result.records

    def as_expected(record: Record) -> bool:
        return record.status == "unsupported" and record.reason_code == "layout"

    assert all(as_expected(r) for r in result.records), [
        (r.status, r.reason) for r in result.records
    ]


def test_layers_that_differ_in_heads_get_a_query_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = LayerShape("sliding", 6, 3, 32, 32, window=20)
    shape = ModelShape("mixed", (FULL, other), 64, 100, 1000, 900, "test")
    monkeypatch.setattr(jobs, "resolve", lambda _name: shape)
    options = jobs.Options(
        suites=("decode",), models=("x",), think_tokens=(50,), kv_formats=("fp16", "int8")
    )
    result = runner.execute(options, CpuDevice(), RunFolder.create(tmp_path / "run"), ["kvgauge"])
    records = of_this_cpu(result.records)
    assert {r.status for r in records} == {"ok"}, [r.reason for r in records]


def test_a_stack_of_full_and_sliding_layers_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sliding = LayerShape("sliding", 8, 2, 16, 16, window=20)
    shape = ModelShape("alternating", (sliding, FULL) * 2, 64, 100, 1000, 900, "test")
    monkeypatch.setattr(jobs, "resolve", lambda _name: shape)
    options = jobs.Options(
        suites=("footprint", "decode"), models=("x",), think_tokens=(50,), kv_formats=("fp16",),
        backends=("eager",),
    )  # fmt: skip
    result = runner.execute(options, CpuDevice(), RunFolder.create(tmp_path / "run"), ["kvgauge"])
    assert {r.status for r in result.records} == {"ok"}, [r.reason for r in result.records]
    row = 2 * 2 * 16 * 2
    held = {r.suite: r.measured.kv_bytes for r in result.records if r.measured}
    assert held["footprint"] == 2 * (20 + 50) * row
    assert held["decode"] == (20 + 50) * row
