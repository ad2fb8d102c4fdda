"""Attention in parts, over a shared prefix, and over MLA's latents: against one attention over all of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels_for_tests import DTYPES, error, make_query, make_view
from kvgauge_kernels import BACKENDS, oracle_decode
from kvgauge_kernels.cpu.backend import CpuBackend
from kvgauge_kernels.cpu.native_module import native
from kvgauge_kernels.mla import latent_query, latent_view
from kvgauge_kernels.parts import merged, shared_prefix_decode
from parts_for_tests import cut, joined

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels are not built")
CPU = CpuBackend()


@given(
    st.sampled_from([*DTYPES, "int8", "int4"]), st.integers(1, 60), st.integers(1, 60),
    st.integers(1, 5),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_parts_merged_are_the_whole(fmt: str, first: int, second: int, group: int) -> None:
    view = make_view(fmt, tokens=first + second)
    q = make_query(view, group, DTYPES.get(fmt, torch.float32))
    both = [CPU.decode_part(q, cut(view, *span)) for span in ((0, first), (first, first + second))]
    out, lse = merged(both)
    limit = 1e-5 if fmt in DTYPES else 1e-3
    assert error(out, oracle_decode(q, view)) < limit
    whole, whole_lse = CPU.decode_part(q, view)
    assert torch.allclose(lse, whole_lse, atol=1e-3)
    assert error(out, whole.double()) < 2 * limit


def test_the_sum_is_of_exponentiated_scores() -> None:
    view = make_view("fp32", tokens=70)
    q = make_query(view, 3, torch.float32)
    scores = torch.einsum("bhgd,bhtd->bhgt", q.double().view(2, 2, 3, 64), view.k.double()) / 8
    expected = scores.logsumexp(-1).flatten(1)
    assert torch.allclose(CPU.decode_part(q, view)[1].double(), expected, atol=1e-5)


@pytest.mark.parametrize("fmt", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize(("forks", "group"), [(1, 4), (5, 4), (9, 7)])
def test_a_prefix_that_forks_share(fmt: str, forks: int, group: int) -> None:
    prefix = make_view(fmt, batch=1, tokens=300, seed=1)
    own = make_view(fmt, batch=forks, tokens=30, seed=2)
    q = make_query(own, group, DTYPES.get(fmt, torch.float32))
    out = shared_prefix_decode(q, prefix, own, CPU)
    assert out.dtype == q.dtype
    limit = {"fp32": 1e-5, "bf16": 5e-3}.get(fmt, 1e-3)
    assert error(out, oracle_decode(q, joined(prefix, own))) < limit


def test_forks_of_different_lengths() -> None:
    prefix = make_view("fp32", batch=1, tokens=50, seed=1)
    own = make_view("fp32", batch=2, tokens=30, lengths=(3, 30), seed=2)
    q = make_query(own, 2, torch.float32)
    out = shared_prefix_decode(q, prefix, own, CPU)
    whole = replace(joined(prefix, own), lengths=(53, 80))
    assert error(out, oracle_decode(q, whole)) < 1e-5


def test_what_is_no_shared_prefix() -> None:
    view = make_view("fp32", batch=2)
    q = make_query(view, 2, torch.float32)
    with pytest.raises(ValueError, match="one sequence, not 2"):
        shared_prefix_decode(q, view, view, CPU)
    with pytest.raises(ValueError, match="differ in heads"):
        shared_prefix_decode(q, make_view("fp32", batch=1, kv_heads=1), view, CPU)
    with pytest.raises(ValueError, match="a window"):
        shared_prefix_decode(q, make_view("fp32", batch=1), replace(view, window=3), CPU)


@pytest.mark.parametrize("fmt", ["fp32", "bf16", "int8"])
def test_latents(fmt: str) -> None:
    """As DeepSeek-V3 has them, up-projections and all, worked out without absorbing them."""
    generator = torch.Generator().manual_seed(4)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    heads, nope, rope, latent, v_dim, tokens = 20, 128, 64, 512, 128, 333
    up_k, up_v = rand(heads, nope, latent) / 16, rand(heads, v_dim, latent) / 16
    q_nope, q_rope = rand(2, heads, nope), rand(2, heads, rope)
    cache = make_view(fmt, batch=2, kv_heads=1, tokens=tokens, k_dim=latent + rope)
    view = latent_view(
        cache.k[:, 0], latent, fmt, None if cache.k_scale is None else cache.k_scale[:, 0]
    )
    assert view.v.data_ptr() == cache.k.data_ptr()
    q = latent_query(torch.einsum("bhn,hnl->bhl", q_nope, up_k), q_rope, nope + rope)
    dtype = DTYPES.get(fmt, torch.float32)
    out = BACKENDS["cpu"].decode(q.to(dtype), view).double()
    numbers = cache.k[:, 0].double()
    if cache.k_scale is not None:
        numbers = numbers * cache.k_scale[:, 0, :, None].double()
    keys = torch.cat(
        [
            torch.einsum("btl,hnl->bhtn", numbers[..., :latent], up_k),
            numbers[:, None, :, latent:].expand(-1, heads, -1, -1),
        ],
        dim=-1,
    )
    scores = torch.einsum("bhd,bhtd->bht", torch.cat([q_nope, q_rope], -1), keys) / 192**0.5
    values = torch.einsum("btl,hvl->bhtv", numbers[..., :latent], up_v)
    expected = torch.einsum("bht,bhtv->bhv", scores.softmax(-1), values)
    limit = {"fp32": 1e-4, "bf16": 3e-2, "int8": 2e-3}[fmt]
    assert error(torch.einsum("bhl,hvl->bhv", out, up_v), expected) < limit


def test_what_holds_no_latents() -> None:
    with pytest.raises(ValueError, match="no latents of 600"):
        latent_view(torch.zeros(1, 5, 576), 600, "fp32")
    with pytest.raises(ValueError, match="an int8 cache needs k_scale"):
        latent_view(torch.zeros(1, 5, 576, dtype=torch.int8), 512, "int8")


def test_a_part_without_weight_adds_nothing() -> None:
    """All of its scores are -inf: its result may be NaN."""
    some = (torch.ones(1, 2, 4), torch.zeros(1, 2))
    none = (torch.full((1, 2, 4), torch.nan), torch.full((1, 2), -torch.inf))
    out, total = merged([some, none])
    assert torch.equal(out, some[0])
    assert torch.equal(total, some[1])
    assert torch.equal(merged([none, none])[0], torch.zeros(1, 2, 4))
