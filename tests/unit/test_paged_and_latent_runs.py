"""Runs over paged caches and over MLA's latents: real bytes, proven kernels, refusals by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kvgauge import jobs, rerun, runner
from kvgauge.caches.paged import allocate_pages
from kvgauge.devices.cpu import CpuDevice
from kvgauge.errors import UserError
from kvgauge.schema import Cell, Record
from kvgauge.shapes.types import LayerShape, ModelShape
from kvgauge.store.folder import RunFolder
from kvgauge_kernels.cpu.native_module import native
from level_for_tests import of_this_cpu

built = pytest.mark.skipif(native() is None, reason="the native kernels are not built")
FULL = LayerShape("full", 8, 2, 32, 32)
SLIDING = LayerShape("sliding", 8, 2, 32, 32, window=20)
MLA = LayerShape("mla", q_heads=20, latent_dim=64, rope_dim=16)


def shape(*layers: LayerShape) -> ModelShape:
    return ModelShape("x", layers, 64, 100, 1000, 900, "test")


def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: tuple[LayerShape, ...], **options: Any
) -> tuple[Record, ...]:  # fmt: skip
    monkeypatch.setattr(jobs, "resolve", lambda _name: shape(*layers))
    chosen = jobs.Options(
        suites=("footprint", "decode"), models=("x",), think_tokens=(50,), **options
    )
    folder = RunFolder.create(tmp_path / "run")
    return tuple(runner.execute(chosen, CpuDevice(), folder, ["kvgauge"]).records)


def cell(record: Record) -> Cell:
    assert record.cell is not None
    return record.cell


@built
@pytest.mark.parametrize("fmt", ["fp16", "int8", "int4"])
def test_pages_are_held_whole_and_read_by_those_who_can(
    fmt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = of_this_cpu(
        run(tmp_path, monkeypatch, (FULL, SLIDING), kv_formats=(fmt,), page_sizes=(16,))
    )
    assert {r.status for r in records} <= {"ok", "disturbed"}, [r.reason for r in records]
    row = {"fp16": 2 * 32, "int8": 32 + 2, "int4": 16 + 4}[fmt]
    held = {(r.suite, cell(r).page_size): r.measured.kv_bytes for r in records if r.measured}
    for suite in ("footprint", "decode"):
        assert held[suite, None] == (50 + 20) * 2 * 2 * row
        assert held[suite, 16] == (64 + 32) * 2 * 2 * row
    paged = {cell(r).backend for r in records if cell(r).page_size == 16 and r.suite == "decode"}
    assert "cpu" in paged
    assert not paged & {"eager", "sdpa-math", "sdpa-flash", "dequant+sdpa"}


@built
def test_keys_per_channel_hold_whole_groups_of_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = of_this_cpu(
        run(tmp_path, monkeypatch, (FULL, SLIDING), kv_formats=("kivi4",), page_sizes=(64,))
    )
    assert {r.status for r in records} <= {"ok", "disturbed"}, [r.reason for r in records]
    row = 16 + 16 + 4  # codes of K, codes and a scale and a zero of V
    held = {(r.suite, cell(r).page_size): r.measured.kv_bytes for r in records if r.measured}
    for suite in ("footprint", "decode"):
        assert held[suite, None] == 2 * ((50 + 20) * row + (2 + 1) * 32 * 4)
        assert held[suite, 64] == 2 * ((64 + 64) * row + (2 + 2) * 32 * 4)


def test_pages_that_hold_no_whole_group_of_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "resolve", lambda _name: shape(FULL))
    with pytest.raises(UserError, match=r"pages of 16 tokens: kivi4 .* multiple of 32"):
        run(tmp_path, monkeypatch, (FULL,), kv_formats=("kivi4",), page_sizes=(16,))
    listed = jobs.list_jobs(jobs.Options(profile="nightly", models=("x",), page_sizes=(16,)), "cpu")
    assert listed.left_out["kivi2"] == "pages must hold whole groups of 32 tokens"
    formats = {job.plan.cell.kv_format for job in listed.jobs}
    assert "int2" in formats
    assert "kivi2" not in formats


@built
def test_latents_are_stored_once_and_read_by_those_who_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = run(
        tmp_path, monkeypatch, (MLA, MLA), kv_formats=("fp16", "int8", "int4"), page_sizes=(16,)
    )
    by = {(r.suite, cell(r).kv_format, cell(r).page_size, cell(r).backend): r for r in records}
    for key, fmt_bytes in (("fp16", 2 * 80), ("int8", 80 + 2)):
        for size, tokens in ((None, 50), (16, 64)):
            for suite, backend in (("footprint", None), ("decode", "cpu")):
                found = by[suite, key, size, backend]
                assert found.status == "ok", found.reason
                assert found.measured is not None
                assert found.measured.kv_bytes == 2 * tokens * fmt_bytes
    assert by["decode", "fp16", None, "eager"].status == "ok"
    assert by["decode", "int4", None, "cpu"].reason_code == "layout"
    refused = by["footprint", "int4", None, None]
    assert refused.reason_code == "layout"
    assert (refused.reason or "").startswith("layer.kind=mla (")  # the code has said the rest


@built
def test_a_paged_record_is_measured_again_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = run(tmp_path, monkeypatch, (FULL,), kv_formats=("fp16",), page_sizes=(16,))
    found = next(r for r in records if cell(r).page_size == 16 and cell(r).backend == "cpu")
    plan = rerun._planned(cell(found), shape(FULL), cell(found).cell_id, CpuDevice())
    assert plan.cell == found.cell


def test_the_last_page_of_a_sequence_need_not_be_full() -> None:
    cache = allocate_pages(
        [FULL], batch=3, tokens=37, page_size=16, kv_format="fp16", device=torch.device("cpu")
    )
    view = cache.view(0)
    assert view.lengths == (37,) * 3
    assert view.k.shape == (9, 2, 16, 32)
    assert view.block_table is not None
    assert sorted(view.block_table.flatten().tolist()) == list(range(9))


def test_a_page_is_whole_where_a_window_is_shorter() -> None:
    cache = allocate_pages(
        [SLIDING], batch=1, tokens=90, page_size=32, kv_format="fp16", device=torch.device("cpu")
    )
    view = cache.view(0)
    assert view.lengths == (20,)
    assert view.k.shape == (1, 2, 32, 32)


@pytest.mark.parametrize("size", [0, -1, 10**6])
def test_a_page_size_that_cannot_be(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=f"--page-size {size}: must be between 1 and 65536"):
        run(tmp_path, monkeypatch, (FULL,), page_sizes=(size,))
