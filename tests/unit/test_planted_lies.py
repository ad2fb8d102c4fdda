"""Backends that lie, each in another way: every one ends as `invalid` with its own reason code."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch

from kvgauge.devices.cpu import CpuDevice
from kvgauge.devices.probe import DeviceProbe, make_probe
from kvgauge.formula.moved import Operation
from kvgauge.schema import BackendRef, Cell, Criterion, Measurement, Prediction
from kvgauge.suites import decode
from kvgauge.suites.timing import Timed, timed_outcome
from kvgauge.suites.types import CellPlan, Context, Outcome
from kvgauge_kernels import BACKENDS, KVView
from shapes_for_tests import gqa

DEPTH = 2000
# One is observed, three tokens are asked for twice, two queries are held against the oracle.
CALLS_OF_THE_PROOF = 9
Decode = Callable[[torch.Tensor, KVView], torch.Tensor]


class Liar:
    """A real backend but for its decode."""

    def __init__(self, real: Any, decode: Decode) -> None:
        self._real = real
        self.decode = decode

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)


class NoProbe:
    def read_bytes_per_s(self) -> float:
        return 1e13

    copy_bytes_per_s = flops_per_s = cached_read_bytes_per_s = read_bytes_per_s
    loops = "made-up"

    def nothing(self) -> None:
        return None

    integer_ops_per_s = ping_pong_ns = nothing


def measured(name: str, fmt: str, samples: int = 3) -> Outcome:
    shape = gqa(q_heads=4, kv_heads=2, head_dim=32)
    cell = Cell(
        "decode", "attention", "tiny", shape.shape_id, fmt,
        think_tokens=DEPTH, backend=name, layers_timed=1,
    )  # fmt: skip
    criterion = Criterion(1.0, samples, samples, budget_s=0, max_warm_up=1)
    context = Context(CpuDevice(), cast(DeviceProbe, NoProbe()), criterion, seed=0)
    return decode.Decode().measure(CellPlan(cell, shape), context)


def verdict(
    name: str, fmt: str, lie: Callable[[Decode], Decode], monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str | None]:
    assert measured(name, fmt).status == "ok"
    real = BACKENDS[name]
    monkeypatch.setitem(BACKENDS, name, cast(Any, Liar(real, lie(real.decode))))
    found = measured(name, fmt)
    assert found.reason
    return found.status, found.reason_code


def skip_last_page(page: int) -> Callable[[Decode], Decode]:
    def lie(real: Decode) -> Decode:
        def short(q: torch.Tensor, view: KVView) -> torch.Tensor:
            return real(q, view.narrowed(slice(0, view.batch), view.tokens - page))

        return short

    return lie


def remember(real: Decode) -> Decode:
    """The right answer the first time, and the same one ever after."""
    known: dict[tuple[int, int], torch.Tensor] = {}

    def decode(q: torch.Tensor, view: KVView) -> torch.Tensor:
        key = (q.data_ptr(), view.k.data_ptr())
        if key not in known:
            known[key] = real(q, view)
        return known[key]

    return decode


kernels: list[Callable[[], object]] = []


def return_early(real: Decode) -> Decode:
    """It behaves while it is checked; then it starts the work and does not wait for it."""
    calls = itertools.count()
    kernels.clear()

    def decode(q: torch.Tensor, view: KVView) -> torch.Tensor:
        if next(calls) < CALLS_OF_THE_PROOF:
            return real(q, view)
        out = torch.zeros_like(q[..., : view.v_dim])

        kernels.append(lambda: out.copy_(real(q, view)))
        return out

    return decode


def fall_back(_real: Decode) -> Decode:
    return BACKENDS["sdpa-math"].decode


def wrong_scale(real: Decode) -> Decode:
    return lambda q, view: real(q * 1.5, view)


BOTH = pytest.mark.parametrize(("name", "fmt"), [("eager", "bf16"), ("dequant+sdpa", "int8")])


@BOTH
@pytest.mark.parametrize("page", [1, 16, 256])
def test_skipping_the_last_page(
    name: str, fmt: str, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert verdict(name, fmt, skip_last_page(page), monkeypatch) == ("invalid", "fewer_tokens")


@BOTH
def test_remembering_the_answer(name: str, fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert verdict(name, fmt, remember, monkeypatch) == ("invalid", "fewer_tokens")


def test_returning_early(monkeypatch: pytest.MonkeyPatch) -> None:
    def finish(_seconds: float) -> None:
        while kernels:
            kernels.pop()()

    monkeypatch.setattr(
        "kvgauge.suites.proof.time.sleep", finish
    )  # what goes on meanwhile comes to its end
    assert verdict("eager", "fp32", return_early, monkeypatch) == ("invalid", "returned_early")


def test_falling_back(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verdict("sdpa-flash", "fp32", fall_back, monkeypatch) == ("invalid", "other_kernel")


@BOTH
def test_another_scale(name: str, fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert verdict(name, fmt, wrong_scale, monkeypatch) == ("invalid", "wrong_output")


def test_a_buffer_that_stays_in_cache() -> None:
    device = CpuDevice()
    probe = make_probe(device)
    small = torch.rand(device.last_level_cache_bytes // 32 // 4)

    class NoFlush(NoProbe):
        """What memory gives, told without reading it: nothing is evicted."""

        def read_bytes_per_s(self) -> float:
            return memory_bytes_per_s

        def cached_read_bytes_per_s(self) -> float:
            return 1e13

    memory_bytes_per_s = (
        probe.read_bytes_per_s() / 4
    )  # the test is of the code, not of this machine
    context = Context(
        device, cast(DeviceProbe, NoFlush()), Criterion(1.0, 6, 6, budget_s=1), seed=0
    )
    operations = [Operation("sum", small.nbytes, small.numel())]
    found = timed_outcome(
        Timed([small.sum], operations),
        context,
        Prediction(small.nbytes, small.nbytes, small.numel()),
        Measurement(),
        BackendRef("sum", "1", None),
    )
    assert (found.status, found.reason_code) == ("invalid", "cache_state")
    assert "stayed in a cache" in str(found.reason)
