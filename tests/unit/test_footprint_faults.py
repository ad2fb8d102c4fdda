"""The footprint against the allocator: on a device that says what the test says, without memory."""

from __future__ import annotations

from typing import cast

import pytest
import torch

from kvgauge.caches import contiguous
from kvgauge.devices.cpu import CpuDevice
from kvgauge.devices.probe import DeviceProbe
from kvgauge.schema import Cell, Criterion
from kvgauge.suites.footprint import Footprint
from kvgauge.suites.types import CellPlan, Context, Outcome
from shapes_for_tests import gqa

TOKEN_BYTES = 2 * 2 * 2 * 16 * 2  # layers, K and V, heads, elements, bytes: 256
CHECKED = 256_000_000 // TOKEN_BYTES  # tokens of the smallest cache that the allocator is held to


class ToldDevice(CpuDevice):
    """A CPU whose process grows by a number of bytes that the test gives."""

    memory_source = "the test"

    def __init__(self, grows_by: int | None) -> None:
        super().__init__()
        self._readings = iter([None, None] if grows_by is None else [5_000, 5_000 + grows_by])

    def memory_bytes(self) -> int | None:
        return next(self._readings)

    def reset_peak(self) -> bool:
        return False

    def available_bytes(self) -> int:
        return 10**12


class NoTensors:
    """A cache that says that it holds what the hand-worked figure says."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    def fill(self, generator: torch.Generator) -> None:
        """Nothing to fill."""

    def storage_bytes(self) -> int:
        return self._tokens * TOKEN_BYTES


def outcome(monkeypatch: pytest.MonkeyPatch, tokens: int, grows_by: int | None) -> Outcome:
    monkeypatch.setattr(contiguous, "allocate", lambda *_a, **_k: NoTensors(tokens))
    shape = gqa()
    cell = Cell("footprint", "memory", "tiny", shape.shape_id, "fp16", think_tokens=tokens)
    context = Context(
        ToldDevice(grows_by), cast(DeviceProbe, None), Criterion(0.1, 1, 1, 1.0), seed=0
    )
    return Footprint().measure(CellPlan(cell, shape), context)


@pytest.mark.parametrize("off_by", [0, 5_120_000, -5_120_000])  # 2% of 256 MB
def test_an_allocator_within_two_percent_agrees(
    monkeypatch: pytest.MonkeyPatch, off_by: int
) -> None:
    found = outcome(monkeypatch, CHECKED, 256_000_000 + off_by)
    assert (found.status, found.reason_code) == ("ok", None)
    assert found.ratio is not None
    assert found.ratio.kv_bytes == 1
    assert found.ratio.allocated_bytes == pytest.approx(1 + off_by / 256_000_000)


@pytest.mark.parametrize("off_by", [7_680_000, -7_680_000, 5_120_001, -256_000_000])
def test_an_allocator_that_differs_makes_the_cell_invalid(
    monkeypatch: pytest.MonkeyPatch, off_by: int
) -> None:
    found = outcome(monkeypatch, CHECKED, 256_000_000 + off_by)
    assert (found.status, found.reason_code) == ("invalid", "allocation_differs")
    assert str(256_000_000 + off_by) in str(found.reason)
    assert found.measured is not None
    assert found.measured.allocated_bytes == 256_000_000 + off_by


def test_a_cache_below_256_mb_is_not_held_to_the_allocator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = outcome(monkeypatch, CHECKED - 1, 300_000_000)
    assert found.status == "ok"
    assert found.measured is not None
    assert found.measured.allocated_bytes == 300_000_000


def test_a_device_that_cannot_count_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    found = outcome(monkeypatch, CHECKED, None)
    assert found.status == "ok"
    assert found.ratio is not None
    assert found.ratio.allocated_bytes is None
