"""Backends that lie, each in another way: every one ends as `invalid` with its own reason code."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch

from kvgauge.devices.cpu import CpuDevice
from kvgauge.devices.probe import DeviceProbe
from kvgauge.formula.moved import Operation
from kvgauge.schema import BackendRef, Cell, Criterion, Measurement, Prediction
from kvgauge.suites import decode, proof
from kvgauge.suites.timing import Timed, timed_outcome
from kvgauge.suites.types import CellPlan, Context, Outcome
from kvgauge_kernels import BACKENDS, KVView
from shapes_for_tests import gqa

DEPTH = 2000
# A step is observed, and a query looks for the last token.
CALLS_OF_THE_PROOF = 2
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
    best_read_bytes_per_s = read_bytes_per_s
    loops = "made-up"

    def nothing(self) -> None:
        return None

    integer_ops_per_s = ping_pong_ns = nothing


def plan(name: str, fmt: str, depth: int) -> CellPlan:
    shape = gqa(q_heads=4, kv_heads=2, head_dim=32)
    cell = Cell(
        "decode", "attention", "tiny", shape.shape_id, fmt,
        think_tokens=depth, backend=name, layers_timed=1,
    )  # fmt: skip
    return CellPlan(cell, shape)


class SmallCache(CpuDevice):
    """One input set is as large as the cache: the lies meet one set of data."""

    def __init__(self) -> None:
        super().__init__()
        self.last_level_cache_bytes = 4096


def measured(name: str, fmt: str, samples: int = 3, depth: int = DEPTH) -> Outcome:
    criterion = Criterion(1.0, samples, samples, budget_s=0, max_warm_up=1)
    context = Context(SmallCache(), cast(DeviceProbe, NoProbe()), criterion, seed=0)
    return decode.Decode().measure(plan(name, fmt, depth), context)


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


def only(tokens: list[int], view: KVView) -> KVView:
    k_scale, v_scale = (
        None if s is None else s[:, :, tokens] for s in (view.k_scale, view.v_scale)
    )
    k, v = view.k[:, :, tokens], view.v[:, :, tokens]
    return KVView(k, v, view.format, k_scale, v_scale)


def skip_token(token: int) -> Callable[[Decode], Decode]:
    def lie(real: Decode) -> Decode:
        def without(q: torch.Tensor, view: KVView) -> torch.Tensor:
            return real(q, only([t for t in range(view.tokens) if t != token], view))

        return without

    return lie


def read_one_copy_of_the_pool(real: Decode) -> Decode:
    """The first 4099 rows, of which all others are copies, and the tokens that will be asked for."""

    def decode(q: torch.Tensor, view: KVView) -> torch.Tensor:
        return real(q, only([*range(4099), view.tokens // 2, view.tokens - 1], view))

    return decode


def keep_the_first_answer(real: Decode) -> Decode:
    """Of the step that is timed, and honest to whatever else is asked."""
    kept: dict[tuple[int, ...], torch.Tensor] = {}
    calls = itertools.count()

    def decode(q: torch.Tensor, view: KVView) -> torch.Tensor:
        key = (q.data_ptr(), view.k.data_ptr())
        if next(calls) == 0 or key in kept:
            return kept.setdefault(key, real(q, view))
        return real(q, view)

    return decode


def fall_back_later(real: Decode) -> Decode:
    calls = itertools.count()
    return lambda q, view: (real if next(calls) < 3 else BACKENDS["sdpa-math"].decode)(q, view)


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
    # No operator runs any more; one that ran others would be caught by the values that changed.
    assert verdict(name, fmt, remember, monkeypatch) == ("invalid", "other_kernel")


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
@pytest.mark.parametrize("token", [0, DEPTH // 2])
def test_skipping_a_token(name: str, fmt: str, token: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert verdict(name, fmt, skip_token(token), monkeypatch) == ("invalid", "fewer_tokens")


@BOTH
def test_reading_one_copy_of_the_data(name: str, fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def deep() -> Outcome:
        return measured(name, fmt, depth=4 * 4099)

    assert deep().status == "ok"
    real = BACKENDS[name]
    liar = cast(Any, Liar(real, read_one_copy_of_the_pool(real.decode)))
    monkeypatch.setitem(BACKENDS, name, liar)
    assert (deep().status, deep().reason_code) == ("invalid", "wrong_output")


@BOTH
def test_keeping_the_first_answer(name: str, fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert verdict(name, fmt, keep_the_first_answer, monkeypatch) == ("invalid", "wrong_output")


def test_falling_back_once_it_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verdict("sdpa-flash", "fp32", fall_back_later, monkeypatch) == (
        "invalid",
        "other_kernel",
    )


def test_a_lie_about_the_works_own_query_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    work = one_work("eager", "fp32")
    own = work.layers[0][0]
    real = work.backend.decode

    def lie(q: torch.Tensor, view: KVView) -> torch.Tensor:
        return real(q, view) * (1.5 if q is own else 1.0)

    told = proof.Work(cast(Any, Liar(work.backend, lie)), work.layers)
    fault = proof.prove(told, proof.expect(work)).fault
    assert fault is not None
    assert fault.code == "wrong_output"


def test_a_lie_about_every_query_but_the_works_own() -> None:
    work = one_work("eager", "fp32")
    own = work.layers[0][0]
    real = work.backend.decode

    def lie(q: torch.Tensor, view: KVView) -> torch.Tensor:
        return real(q, view) * (1.0 if q is own else 1.5)

    told = proof.Work(cast(Any, Liar(work.backend, lie)), work.layers)
    expected = proof.expect(work)
    assert proof.prove(told, expected).fault is None
    fault = proof.prove_again(told, told.step, expected, 0.0)
    assert fault is not None
    assert fault.code == "wrong_output"


class SlowArithmetic(NoProbe):
    """Floats are slow here, and products of integers are not."""

    def flops_per_s(self) -> float:
        return 1e3

    def integer_ops_per_s(self) -> float:  # type: ignore[override]
        return 1e30


@pytest.mark.parametrize(
    ("name", "fmt", "bound"), [("eager", "fp32", "compute"), ("dequant+sdpa", "int8", "memory")]
)
def test_the_floor_of_an_integer_cache_is_of_integers(name: str, fmt: str, bound: str) -> None:
    criterion = Criterion(1.0, 3, 3, budget_s=0, max_warm_up=1)
    context = Context(SmallCache(), cast(DeviceProbe, SlowArithmetic()), criterion, seed=0)
    found = decode.Decode().measure(plan(name, fmt, 100), context)
    assert found.status == "ok"
    assert found.predicted.bound == bound


class TakenCore(NoProbe):
    """Others take a core from the fourth reading on."""

    def __init__(self) -> None:
        self.readings = 0

    def flops_per_s(self) -> float:
        self.readings += 1
        return 2e11 if self.readings < 4 else 1e11


def test_a_core_taken_after_the_samples_makes_no_floor_higher() -> None:
    criterion = Criterion(1.0, 3, 3, budget_s=0, max_warm_up=1)
    context = Context(SmallCache(), cast(DeviceProbe, TakenCore()), criterion, seed=0)
    found = decode.Decode().measure(plan("eager", "fp32", 100), context)
    assert found.probe is not None
    assert found.probe.flops_per_s == 2e11


def test_a_token_that_one_head_alone_does_not_read_is_unread() -> None:
    work = one_work("eager", "fp32")
    real = work.backend.decode

    def lie(q: torch.Tensor, view: KVView) -> torch.Tensor:
        out = real(q, view).clone()
        out[:, :2] = skip_last_page(1)(real)(q, view)[:, :2]  # the heads of the first K/V head
        return out

    told = proof.Work(cast(Any, Liar(work.backend, lie)), work.layers)
    expected = proof.expect(work)
    assert proof.look(told, expected)[0] == (99,)
    unread, error = proof.look(work, expected)
    assert unread == ()
    assert error < 1e-5


def test_each_token_is_looked_at_in_columns_of_its_own() -> None:
    work = one_work("eager", "fp32")
    real = work.backend.decode
    for token in (99, 0, 50):

        def lie(q: torch.Tensor, view: KVView, token: int = token) -> torch.Tensor:
            kept = [t for t in range(view.tokens) if t != token]
            return real(q, KVView(view.k[:, :, kept], view.v[:, :, kept], view.format))

        told = proof.Work(cast(Any, Liar(work.backend, lie)), work.layers)
        assert proof.look(told, proof.expect(work))[0] == (token,)


def test_a_query_towards_a_token_is_its_key_as_it_is_read() -> None:
    work = one_work("dequant+sdpa", "int8")
    q, view = work.layers[0]
    assert view.k_scale is not None
    towards = proof._query_towards(q, view, (7,))
    key = view.k[0, 1, 7].double() * view.k_scale[0, 1, 7].double()  # heads 2 and 3 read K/V head 1
    assert torch.allclose(towards[0, 3].double(), 4 * key, rtol=1e-2)


def test_honest_to_the_first_input_set_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = BACKENDS["eager"]
    first: list[int] = []

    def lie(q: torch.Tensor, view: KVView) -> torch.Tensor:
        first.append(view.k.data_ptr())
        honest = view.k.data_ptr() == first[0]
        return real.decode(q, view if honest else view.narrowed(slice(0, 1), view.tokens // 2))

    monkeypatch.setitem(BACKENDS, "eager", cast(Any, Liar(real, lie)))
    criterion = Criterion(1.0, 3, 3, budget_s=0, max_warm_up=1)
    device = SmallCache()
    device.last_level_cache_bytes = 10**6  # a few sets
    context = Context(device, cast(DeviceProbe, NoProbe()), criterion, seed=0)
    found = decode.Decode().measure(plan("eager", "fp32", 500), context)
    assert (found.status, found.reason_code) == ("invalid", "fewer_tokens")


def test_sets_fill_a_cold_cache_and_a_hot_cell_has_one() -> None:
    assert decode.input_sets(1000, 10_000, "cold") == 10
    assert decode.input_sets(1001, 10_000, "cold") == 10
    assert decode.input_sets(999, 10_000, "cold") == 11
    assert decode.input_sets(20_000, 10_000, "cold") == 1
    assert decode.input_sets(1, 10_000, "cold") == 64
    assert decode.input_sets(1000, 10_000, "hot") == 1


def one_work(name: str, fmt: str) -> proof.Work:
    context = Context(CpuDevice(), cast(DeviceProbe, NoProbe()), Criterion(1, 1, 1, 0), seed=0)
    return decode.input_work(plan(name, fmt, 100), context, BACKENDS[name], sets=1)[0][0]


@BOTH
def test_the_proof_leaves_the_cache_as_it_was(name: str, fmt: str) -> None:
    work = one_work(name, fmt)
    before = [(view.k.clone(), view.v.clone()) for _q, view in work.layers]
    expected = proof.expect(work)
    assert proof.prove(work, expected).fault is None
    assert proof.prove_again(work, work.step, expected, 0.0) is None
    for (k, v), (_q, view) in zip(before, work.layers, strict=True):
        assert torch.equal(k, view.k)
        assert torch.equal(v, view.v)


@BOTH
def test_another_scale(name: str, fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert verdict(name, fmt, wrong_scale, monkeypatch) == ("invalid", "wrong_output")


def test_a_buffer_that_stays_in_cache() -> None:
    """Clock and probe say what they say on a quiet machine: the test is of the code, not of this one."""
    small = torch.rand(2**18)

    class Told(CpuDevice):
        def timed(self, step: Callable[[], object]) -> float:
            step()
            return small.nbytes / 1e11

    class NoFlush(NoProbe):
        """What memory gives, told without reading it: nothing is evicted."""

        def read_bytes_per_s(self) -> float:
            return 3e10

        best_read_bytes_per_s = read_bytes_per_s

    context = Context(
        Told(), cast(DeviceProbe, NoFlush()), Criterion(1.0, 6, 6, budget_s=1), seed=0
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
