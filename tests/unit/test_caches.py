"""The real cache: its bytes are those of torch's storages, its contents random and complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.caches.contiguous import ContiguousCache, allocate
from kvgauge.caches.huge_pages import ask_for_huge_pages, huge_pages
from kvgauge.errors import UnsupportedLayout
from kvgauge.formats import kv_format
from kvgauge.formula.held import request_bytes
from kvgauge.shapes.types import LayerShape
from kvgauge_kernels.quantize import Rows, quantize, quantize_int8, quantize_k
from kvgauge_kernels.stored import STORED_FORMATS, numbers, numbers_of_k, stored_as
from shapes_for_tests import gqa

CPU = torch.device("cpu")
FORMATS = [*STORED_FORMATS, "int4-g32", "int2-g40", "kivi4-g64", "kivi2-g16"]


def make(fmt: str, tokens: int = 50, batch: int = 2, window: int | None = None) -> ContiguousCache:
    layers = gqa(window=window).layers
    return allocate(layers, batch=batch, tokens=tokens, kv_format=fmt, device=CPU)


@given(
    st.sampled_from(FORMATS), st.integers(1, 300), st.integers(1, 3),
    st.none() | st.integers(1, 400),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_storages_hold_what_the_formula_says(
    fmt: str, tokens: int, batch: int, window: int | None
) -> None:
    cache = make(fmt, tokens, batch, window)
    expected = batch * request_bytes(gqa(window=window), tokens, kv_format(fmt))
    assert cache.storage_bytes() == expected


@pytest.mark.parametrize("fmt", FORMATS)
def test_fill_writes_every_row_with_random_data(fmt: str) -> None:
    cache = make(fmt, tokens=5000, batch=1)
    for layer in cache.layers:
        for tensor in layer.tensors():
            tensor.zero_()
    cache.fill(torch.Generator().manual_seed(1))
    for layer in cache.layers:
        k, v = keys_in_float64(layer.k, fmt), in_float64(layer.v, fmt)
        for tensor in (k, v):
            assert (tensor != 0).any(dim=-1).all()
            assert 0.5 < tensor.std() < 2
        assert not torch.equal(k, v)
        assert not torch.equal(k[0, 0], k[0, 1])


def in_float64(rows: Rows, fmt: str) -> torch.Tensor:
    return numbers(rows.codes, rows.scale, rows.zero, fmt, torch.float64)


def keys_in_float64(rows: Rows, fmt: str) -> torch.Tensor:
    return numbers_of_k(rows.codes, rows.scale, rows.zero, fmt, torch.float64)


def test_one_seed_one_content() -> None:
    first, second = make("int8"), make("int8")
    for cache in (first, second):
        cache.fill(torch.Generator().manual_seed(7))
    for a, b in zip(first.layers[1].tensors(), second.layers[1].tensors(), strict=True):
        assert torch.equal(a, b)


@given(st.integers(1, 40), st.integers(1, 130), st.floats(1e-3, 1e3))
@settings(max_examples=40, deadline=None)
def test_int8_is_off_by_at_most_half_a_step(rows: int, dim: int, size: float) -> None:
    values = torch.randn(rows, dim) * size
    rows_of = quantize_int8(values)
    stored, scale = rows_of.codes, rows_of.scale
    assert scale is not None
    step = scale.double().unsqueeze(-1)
    # Half a step, and what the largest element loses where the fp16 scale was rounded down: 2**-11
    # of it, or half of fp16's smallest step where the scale is that small.
    slack = 127 * torch.maximum(step * 2.0**-11, torch.tensor(2.0**-25))
    assert ((stored.double() * step - values.double()).abs() <= step / 2 + slack).all()


def test_an_all_zero_row_stays_zero() -> None:
    rows = quantize_int8(torch.zeros(3, 8))
    assert not rows.codes.any()
    assert rows.scale is not None
    assert torch.isfinite(rows.scale).all()


@given(
    st.sampled_from(["int4", "int2", "int4-g16", "int2-g40"]), st.integers(1, 20),
    st.sampled_from([8, 64, 80, 128]), st.floats(1e-2, 1e2), st.floats(-5, 5),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_codes_in_groups_are_off_by_at_most_half_a_step(
    fmt: str, rows: int, dim: int, size: float, middle: float
) -> None:
    values = torch.randn(rows, dim) * size + middle
    stored = quantize(values, fmt)
    assert stored.scale is not None
    assert stored.zero is not None
    kind = stored_as(fmt)
    group = kind.group or 1
    step = stored.scale.double().repeat_interleave(group, -1)[:, :dim]
    top = values.abs().amax()
    # Half a step, and what the ends of a group lose where fp16 rounds its zero and its step.
    slack = top.double() * 2.0**-11 + (2**kind.bits - 1) * step * 2.0**-10 + 2.0**-24
    assert ((in_float64(stored, fmt) - values.double()).abs() <= step / 2 + slack).all()


@given(
    st.sampled_from(["kivi4", "kivi2", "kivi4-g16"]), st.integers(1, 100), st.floats(1e-2, 1e2),
    st.floats(-5, 5),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_keys_per_channel_are_off_by_at_most_half_a_step(
    fmt: str, tokens: int, size: float, middle: float
) -> None:
    values = torch.randn(2, tokens, 16) * size + middle
    stored, kind = quantize_k(values, fmt), stored_as(fmt)
    assert stored.scale is not None
    step = stored.scale.double().abs().repeat_interleave(kind.k_tokens, -2)[:, :tokens]
    top = values.abs().amax(dim=(0, 1)).double()
    slack = top * 2.0**-11 + (2**kind.bits - 1) * step * 2.0**-10 + 2.0**-24
    assert ((keys_in_float64(stored, fmt) - values.double()).abs() <= step / 2 + slack).all()


def test_a_channel_that_stands_out_costs_the_others_nothing() -> None:
    values = torch.randn(2, 70, 16)
    plain = quantize_k(values, "kivi2")
    values[..., 3] *= 100
    out = quantize_k(values, "kivi2")
    assert plain.scale is not None
    assert out.scale is not None
    assert out.scale.shape == (2, 3, 16)
    others = [d for d in range(16) if d != 3]
    assert torch.equal(out.scale[..., others], plain.scale[..., others])
    assert (out.scale[..., 3] > 90 * plain.scale[..., 3]).all()


@pytest.mark.parametrize("fmt", ["int4", "int2"])
def test_a_group_that_is_all_alike_keeps_its_number(fmt: str) -> None:
    assert (in_float64(quantize(torch.full((3, 64), 2.5), fmt), fmt) == 2.5).all()


def test_a_row_of_codes_that_does_not_fill_its_bytes_is_refused() -> None:
    layer = LayerShape("full", q_heads=1, kv_heads=1, k_dim=6, v_dim=6)
    with pytest.raises(UnsupportedLayout, match=r"layer\.head_dim=6 \(int2 packs 4 elements"):
        allocate([layer], batch=1, tokens=1, kv_format="int2", device=CPU)


def test_a_layer_without_heads_is_refused_by_name() -> None:
    layer = LayerShape("mla", q_heads=8, latent_dim=64, rope_dim=8, index_dim=16)
    with pytest.raises(UnsupportedLayout, match=r"layer\.kind=mla.*without an index"):
        allocate([layer], batch=1, tokens=1, kv_format="fp16", device=CPU)


def test_view_is_the_cache_not_a_copy() -> None:
    cache = make("int8")
    view = cache.view(1)
    assert view.k.data_ptr() == cache.layers[1].k.codes.data_ptr()
    assert view.k_scale is cache.layers[1].k.scale


def test_a_large_cache_lies_in_huge_pages_where_the_system_gives_them() -> None:
    """As the process's own map says, which knows nothing of torch."""
    if huge_pages() not in ("always", "madvise"):
        pytest.skip(f"transparent huge pages: {huge_pages()}")
    before = _huge_bytes()
    cache = make("fp16", tokens=200_000)
    cache.fill(torch.Generator().manual_seed(1))
    given = _huge_bytes() - before
    if not given:
        pytest.skip("memory is in small pieces: the system gave no huge page")
    assert given <= cache.storage_bytes()


def test_of_a_small_tensor_no_huge_page_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> Any:
        raise AssertionError

    monkeypatch.setattr("kvgauge.caches.huge_pages._libc", never)
    small = torch.empty(1000)
    assert ask_for_huge_pages(small) is small
    with pytest.raises(AssertionError):
        ask_for_huge_pages(torch.empty(2**21))


def _huge_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("AnonHugePages"))
