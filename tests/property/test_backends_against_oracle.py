"""Every backend, on every view that it says it supports, against a naive oracle in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels_for_tests import (
    DTYPES,
    TOLERANCE,
    assert_right_kernel,
    error,
    flash_attn_stand_in,
    make_query,
    make_view,
    naive,
    naive_decode,
    observed,
    usable,
)
from kvgauge_kernels import BACKENDS, AttentionBackend, KVView

FEW = settings(max_examples=100, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Thousands of tiny products: with more threads than idle cores nearly all time is waiting."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Case:
    """How a view is made, and queries of `group` heads to one K/V head."""

    fmt: str
    shape: dict[str, Any]
    group: int
    dtype: torch.dtype

    def view(self) -> KVView:
        return make_view(self.fmt, **self.shape)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    batch, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 300))
    length = st.integers(1, tokens)
    fmt = draw(st.sampled_from([*DTYPES, "int8"]))
    k_dim = draw(st.sampled_from([32, 64, 80, 96, 128]))
    shape = {
        "batch": batch,
        "kv_heads": draw(st.integers(1, 4)),
        "tokens": tokens,
        "k_dim": k_dim,
        "v_dim": draw(st.sampled_from([k_dim, k_dim, 32])),
        "lengths": draw(
            st.none() | st.tuples(*[length] * batch) | length.map(lambda n: (n,) * batch)
        ),
        "tokens_first": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
    }
    dtype = DTYPES.get(fmt) or draw(st.sampled_from(list(DTYPES.values())))
    return Case(fmt, shape, draw(st.integers(1, 8)), dtype)


@given(cases())
@FEW
def test_decode(case: Case) -> None:
    view = case.view()
    q = make_query(view, case.group, case.dtype)
    expected = naive_decode(q, view)
    for backend in usable(view, case.dtype):
        check(backend, partial(backend.decode, q, view), expected, case.dtype)


@given(cases(), st.data())
@FEW
def test_prefill(case: Case, data: st.DataObject) -> None:
    view = case.view()
    shortest = min(view.lengths or (view.tokens,))
    q_tokens = data.draw(st.integers(1, min(shortest, 12)) | st.just(min(shortest, 40)))
    q = make_query(view, case.group, case.dtype, q_tokens)
    expected = naive(q, view)
    for backend in usable(view, case.dtype):
        check(backend, partial(backend.prefill, q, view), expected, case.dtype)


# One of each dtype; head dims that differ, a group of one, last blocks that are not full.
COMPILED = (
    ("fp32", {"batch": 2, "kv_heads": 2, "tokens": 200, "k_dim": 80, "v_dim": 32}, 3),
    ("fp16", {"batch": 2, "kv_heads": 2, "tokens": 300, "k_dim": 64}, 1),
    ("bf16", {"batch": 3, "kv_heads": 1, "tokens": 300, "k_dim": 192, "v_dim": 128}, 8),
)


@given(st.sampled_from(COMPILED), st.data())
@FEW
def test_decode_compiled(shape: tuple[str, dict[str, Any], int], data: st.DataObject) -> None:
    """flex-attention: lengths and windows are data, so that few shapes are compiled."""
    fmt, sizes, group = shape
    backend = BACKENDS["flex-attention"]
    reason = backend.supports(make_view(fmt), DTYPES[fmt])
    if reason is not None:
        pytest.skip(reason)
    batch, tokens = sizes["batch"], sizes["tokens"]
    length = st.integers(1, tokens)
    lengths = data.draw(
        st.none() | st.tuples(*[length] * batch).filter(lambda n: len(set(n)) > 1), "lengths"
    )
    window = data.draw(st.none() | st.integers(1, tokens + 1), "window")
    view = make_view(fmt, lengths=lengths, seed=data.draw(st.integers(0, 99)), **sizes)
    if window is not None:
        view = replace(view, window=window, sink_tokens=data.draw(st.integers(0, 140), "sinks"))
    q = make_query(view, group, DTYPES[fmt])
    check(backend, partial(backend.decode, q, view), naive_decode(q, view), DTYPES[fmt])


def check(
    backend: AttentionBackend,
    step: Callable[[], torch.Tensor],
    expected: torch.Tensor,
    dtype: torch.dtype,
) -> None:
    with flash_attn_stand_in():
        out, seen = observed(step)
    assert out.shape == expected.shape, backend.name
    assert out.dtype == dtype, backend.name
    own = {"cpu": 1e-3, "cpu-q8": 3e-2}.get(backend.name, 0.0)
    assert error(out, expected) <= TOLERANCE[dtype] + own, backend.name
    if backend.name.startswith(("cpu", "triton")) and out.dim() == 4:
        return  # its prefill is torch's
    if backend.name != "flash-attn":  # what stands in for it is made of torch's operators
        assert_right_kernel(backend, seen)


@pytest.mark.parametrize("fmt", [*DTYPES, "int8"])
def test_every_format_has_a_backend_beside_the_reference(fmt: str) -> None:
    view = make_view(fmt)
    names = {b.name for b in usable(view, DTYPES.get(fmt, torch.bfloat16))}
    plain = {"eager", "sdpa-math", "sdpa-flash"}
    of_torch = names - {"reference", "flash-attn", "cpu", "cpu-q8", "triton"}
    assert of_torch == ({"dequant+sdpa"} if fmt == "int8" else plain)
    assert names & {"cpu", "cpu-q8"} <= ({"cpu", "cpu-q8"} if fmt == "int8" else {"cpu"})
    assert ("flash-attn" in names) == (fmt in ("fp16", "bf16"))
