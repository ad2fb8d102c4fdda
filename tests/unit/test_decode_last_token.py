"""A backend that forgets the newest of thousands of tokens: a random query alone does not see it."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from kvgauge.devices.cpu import CpuDevice
from kvgauge.devices.probe import DeviceProbe
from kvgauge.schema import Cell, Criterion
from kvgauge.suites import decode
from kvgauge.suites.types import CellPlan, Context, Outcome
from kvgauge_kernels import BACKENDS, KVView
from shapes_for_tests import gqa

DEPTH = 2000


class Forgetful:
    """A real backend that leaves out the last token."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    def decode(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        k_scale, v_scale = (
            None if s is None else s[:, :, :-1] for s in (view.k_scale, view.v_scale)
        )
        short = KVView(view.k[:, :, :-1], view.v[:, :, :-1], view.format, k_scale, v_scale)
        return cast(torch.Tensor, self._real.decode(q, short))


class NoProbe:
    def read_bytes_per_s(self) -> float:
        return 1e13

    copy_bytes_per_s = flops_per_s = read_bytes_per_s


def measured(name: str, fmt: str) -> Outcome:
    shape = gqa(q_heads=4, kv_heads=2, head_dim=32)
    cell = Cell(
        "decode", "attention", "tiny", shape.shape_id, fmt,
        think_tokens=DEPTH, backend=name, layers_timed=1,
    )  # fmt: skip
    criterion = Criterion(1.0, min_samples=1, max_samples=1, budget_s=0, max_warmup=1)
    context = Context(CpuDevice(), cast(DeviceProbe, NoProbe()), criterion, seed=0)
    return decode.Decode().measure(CellPlan(cell, shape), context)


CASES = pytest.mark.parametrize(("name", "fmt"), [("eager", "bf16"), ("dequant+sdpa", "int8")])


@CASES
def test_it_is_caught_at_a_depth_of_thousands(
    name: str, fmt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert measured(name, fmt).status == "ok"
    monkeypatch.setitem(BACKENDS, name, cast(Any, Forgetful(BACKENDS[name])))
    found = measured(name, fmt)
    assert (found.status, found.reason_code) == ("invalid", "wrong_output")


@CASES
def test_a_random_query_alone_would_let_it_pass(
    name: str, fmt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "_query_for_last_token", lambda q, _view: q)
    monkeypatch.setitem(BACKENDS, name, cast(Any, Forgetful(BACKENDS[name])))
    assert measured(name, fmt).status == "ok"
