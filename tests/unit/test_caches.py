"""The real cache: its bytes are those of torch's storages, its contents random and complete."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgauge.caches.codec import quantize_int8
from kvgauge.caches.contiguous import STORAGE_DTYPE, ContiguousCache, allocate
from kvgauge.errors import UnsupportedLayout
from kvgauge.formats import kv_format
from kvgauge.formula.held import request_bytes
from kvgauge.shapes.types import LayerShape
from shapes_for_tests import gqa

CPU = torch.device("cpu")


def make(fmt: str, tokens: int = 50, batch: int = 2, window: int | None = None) -> ContiguousCache:
    layers = gqa(window=window).layers
    return allocate(layers, batch=batch, tokens=tokens, kv_format=fmt, device=CPU)


@given(
    st.sampled_from(list(STORAGE_DTYPE)), st.integers(1, 300), st.integers(1, 3),
    st.none() | st.integers(1, 400),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_storages_hold_what_the_formula_says(
    fmt: str, tokens: int, batch: int, window: int | None
) -> None:
    cache = make(fmt, tokens, batch, window)
    expected = batch * request_bytes(gqa(window=window), tokens, kv_format(fmt))
    assert cache.storage_bytes() == expected


@pytest.mark.parametrize("fmt", list(STORAGE_DTYPE))
def test_fill_writes_every_row_with_random_data(fmt: str) -> None:
    cache = make(fmt, tokens=5000, batch=1)
    for layer in cache.layers:
        for tensor in layer.tensors():
            tensor.zero_()
    cache.fill(torch.Generator().manual_seed(1))
    for layer in cache.layers:
        for tensor in (layer.k, layer.v):
            assert (tensor != 0).any(dim=-1).all()
        assert not torch.equal(layer.k, layer.v)
    k = cache.layers[0].k
    assert not torch.equal(k[0, 0], k[0, 1])


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
    stored, scale = quantize_int8(values)
    step = scale.double().unsqueeze(-1)
    # Half a step, and what the largest element loses where the fp16 scale was rounded down: 2**-11
    # of it, or half of fp16's smallest step where the scale is that small.
    slack = 127 * torch.maximum(step * 2.0**-11, torch.tensor(2.0**-25))
    assert ((stored.double() * step - values.double()).abs() <= step / 2 + slack).all()


def test_an_all_zero_row_stays_zero() -> None:
    stored, scale = quantize_int8(torch.zeros(3, 8))
    assert not stored.any()
    assert torch.isfinite(scale).all()


def test_a_layer_without_heads_is_refused_by_name() -> None:
    layer = LayerShape("mla", q_heads=8, latent_dim=64, rope_dim=8)
    with pytest.raises(UnsupportedLayout, match=r"layer\.kind=mla"):
        allocate([layer], batch=1, tokens=1, kv_format="fp16", device=CPU)


def test_view_is_the_cache_not_a_copy() -> None:
    cache = make("int8")
    view = cache.view(1)
    assert view.k.data_ptr() == cache.layers[1].k.data_ptr()
    assert view.k_scale is cache.layers[1].k_scale
