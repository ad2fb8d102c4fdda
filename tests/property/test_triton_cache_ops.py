"""The Triton kernels of cache_ops under Triton's interpreter: every byte as torch's copies leave it.

Runs in the process that test_triton_against_oracle starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels_for_tests import make_view
from kvgauge_kernels import KVView
from kvgauge_kernels.cache_ops import append, copy_pages, keep
from kvgauge_kernels.mla import latent_view
from kvgauge_kernels.quantize import quantize
from kvgauge_kernels.triton import configs
from triton_for_tests import inside, needs_triton, new_interpreter
from walls_for_tests import before_a_wall

pytestmark = [needs_triton, new_interpreter, inside]
FORMATS = [
    "fp32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2", "int8", "int4", "int4-g32", "int2", "int2-g8",
]  # fmt: skip
SIZE = 8  # of a page


def paged(view: KVView, seed: int = 1) -> KVView:
    """The same cache in pages at random, two of them unused."""
    per_row = view.tokens // SIZE
    count = view.batch * per_row
    order = torch.randperm(count + 2, generator=torch.Generator().manual_seed(seed))
    table = order[:count].view(view.batch, per_row).to(torch.int32)
    pools: dict[str, Any] = {}
    for name, x in view.tensors().items():
        pool = torch.zeros(count + 2, x.shape[1], SIZE, *x.shape[3:]).to(x.dtype)
        for b in range(view.batch):
            for i, page in enumerate(table[b].tolist()):
                pool[page] = x[b, :, i * SIZE : (i + 1) * SIZE]
        pools[name] = pool
    return KVView(
        format=view.format, lengths=view.lengths, layout="paged", page_size=SIZE, block_table=table, **pools
    )  # fmt: skip


def copied(view: KVView) -> KVView:
    """In memory of its own, strides and what lies between rows as before."""
    tensors: dict[str, Any] = {}
    for name, x in view.stored_tensors().items():
        own = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)
        tensors[name] = own.copy_(x)
    if view.shares_rows:
        tensors |= {"v": tensors["k"][..., : view.v.shape[3]], "v_scale": tensors.get("k_scale")}
    return replace(view, **tensors)


def assert_alike(view: KVView, step: Callable[[KVView, str], KVView | None]) -> KVView:
    """By torch and by triton: the same lengths, and the same bytes wherever a tensor has one."""
    torchs, tritons = copied(view), copied(view)
    expected, found = step(torchs, "torch"), step(tritons, "triton")
    assert (expected and expected.lengths) == (found and found.lengths)
    for name, x in tritons.tensors().items():
        assert torch.equal(x.view(torch.uint8), torchs.tensors()[name].view(torch.uint8)), name
    return tritons


def appending(k: torch.Tensor, v: torch.Tensor) -> Callable[[KVView, str], KVView]:
    return lambda view, by: append(view, k, v, by)


def keeping(kept: torch.Tensor) -> Callable[[KVView, str], KVView]:
    return lambda view, by: keep(view, kept, by)


def new_rows(
    view: KVView, dtype: torch.dtype = torch.float32, seed: int = 9
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def rows(dim: int) -> torch.Tensor:
        x = torch.randn(view.batch, view.kv_heads, dim, generator=generator)
        # The interpreter rounds to bf16 towards zero: numbers that need no rounding.
        return (x.bfloat16() if view.format == "bf16" else x).to(dtype)

    return rows(view.k_dim), rows(view.v_dim)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("in_pages", [False, True])
@pytest.mark.parametrize("fmt", FORMATS)
def test_an_appended_token_is_the_same_to_the_bit(
    fmt: str, in_pages: bool, dtype: torch.dtype
) -> None:
    for lengths in ((5, 39), (16, 16)):
        view = make_view(fmt, tokens=40, k_dim=96, v_dim=64, lengths=lengths)
        view = paged(view) if in_pages else view
        k, v = new_rows(view, dtype)
        assert_alike(view, appending(k, v))


@given(st.sampled_from(FORMATS), st.integers(-30, 12), st.integers(0, 10**6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_numbers_of_every_size(fmt: str, power: int, seed: int, offset: bool) -> None:
    """Also below fp16's smallest step, in rows that are all alike, and far from zero."""
    view = make_view(fmt, batch=1, tokens=8, k_dim=48, v_dim=32, lengths=(3,))
    k, v = (x * 2.0**power + 100 * offset for x in new_rows(view, seed=seed))
    k[0, 0] = k[0, 0, 0]
    if fmt == "bf16":
        k, v = k.bfloat16().float(), v.bfloat16().float()
    if fmt == "fp8_e4m3":  # what is past its largest torch's versions store differently
        k, v = k.clamp(-448, 448), v.clamp(-448, 448)
    assert_alike(view, appending(k, v))


@pytest.mark.parametrize("value", [0.0, 2.0**-26, -(2.0**-20), 3.0])
@pytest.mark.parametrize("fmt", ["int8", "int4", "int2"])
def test_a_row_that_is_all_alike_has_no_scale_of_zero(fmt: str, value: float) -> None:
    view = make_view(fmt, batch=1, tokens=2, k_dim=64, lengths=(1,))
    new = torch.full((1, 2, 64), value)
    longer = assert_alike(view, appending(new, new))
    assert longer.k_scale is not None
    assert bool((longer.k_scale[:, :, 1] > 0).all())


@pytest.mark.parametrize("fmt", ["fp8_e4m3", "fp8_e5m2"])
def test_every_number_that_fp8_rounds(fmt: str) -> None:
    """Every fp16 number, so each code, what lies between two, and what is past the largest."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    new = every.float().view(128, 1, 512)
    if fmt == "fp8_e4m3":
        new = new.clamp(-448, 448)
    view = make_view(fmt, batch=128, kv_heads=1, tokens=2, k_dim=512, lengths=(1,) * 128)
    view = assert_alike(view, appending(new, new))
    assert view.k[:, 0, 1].float().isfinite().any()


def test_past_the_largest_of_fp8() -> None:
    new = torch.tensor([[[448.0, 464.0, 465.0, 480.0, 1e6, torch.inf, -1e6, torch.nan] * 2]])
    view = make_view("fp8_e4m3", batch=1, kv_heads=1, tokens=2, k_dim=16, lengths=(1,))
    found = append(view, new, new, by="triton").k[0, 0, 1, :8].float()
    assert found[:7].tolist() == [448.0] * 6 + [-448.0]
    assert bool(found[7].isnan())
    view = make_view("fp8_e5m2", batch=1, kv_heads=1, tokens=2, k_dim=16, lengths=(1,))
    found = append(view, new * 128, new * 128, by="triton").k[0, 0, 1, :8].float()
    assert found[:7].tolist() == [57344.0, 57344.0, 57344.0, *[torch.inf] * 3, -torch.inf]
    assert bool(found[7].isnan())


def test_halves_go_to_the_even_code() -> None:
    view = make_view("int8", batch=1, kv_heads=1, tokens=2, k_dim=16, lengths=(1,))
    new = torch.tensor([[[127.0, *(n + 0.5 for n in range(-8, 7))]]])
    view = assert_alike(view, appending(new, new))
    assert view.k[0, 0, 1].tolist() == [127, *(round(n + 0.5) for n in range(-8, 7))]


@pytest.mark.parametrize("fmt", ["bf16", "int8"])
def test_latents_are_written_once(fmt: str) -> None:
    stored = quantize(torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(3)), fmt)
    view = latent_view(stored.codes, 32, fmt, stored.scale, (8, 8))
    new = torch.randn(2, 1, 48, generator=torch.Generator().manual_seed(4))
    new[..., 32:] *= 20  # the rope part holds the largest element: V's own scale would be another
    new = new.bfloat16().float()
    assert_alike(view, appending(new, new[..., :32]))
    kept = torch.tensor([[0, 2, 4, 7], [1, 3, 5, 6]])
    assert_alike(view, keeping(kept))


@pytest.mark.parametrize("tokens_first", [False, True])
@pytest.mark.parametrize("fmt", FORMATS)
@given(st.sets(st.integers(0, 29), min_size=1), st.integers(0, 10), st.booleans())
@settings(max_examples=6, deadline=None)
def test_what_is_kept(
    fmt: str, tokens_first: bool, kept: set[int], shift: int, in_pages: bool
) -> None:
    rows = torch.tensor([sorted(kept), [n + shift for n in sorted(kept)]])
    view = make_view(
        fmt, tokens=40, k_dim=64, v_dim=96, lengths=(30, 40), tokens_first=tokens_first
    )
    view = paged(view) if in_pages else view
    assert_alike(view, keeping(rows))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_blocks_of_kept_tokens_do_not_write_what_later_ones_read(dtype: torch.dtype) -> None:
    tokens = 3 * configs.MOVE_WORDS // configs.KEEP_WORDS
    view = make_view("int4", tokens=tokens, lengths=(tokens, tokens))
    rows = torch.stack([torch.arange(1, tokens, 1)[:-7], torch.arange(tokens - 8)])
    rows[1, 100:] += 8
    assert_alike(view, keeping(rows.to(dtype)))


@pytest.mark.parametrize("fmt", FORMATS)
def test_pages_are_copied_with_their_scales(fmt: str) -> None:
    view = paged(make_view(fmt, tokens=40, k_dim=96, v_dim=64, lengths=(40, 40)))
    assert view.block_table is not None
    source, target = view.block_table[0, :3].long(), view.block_table[1, 2:].long()

    def step(x: KVView, by: str) -> None:
        copy_pages(x, source, target, by=by)

    assert_alike(view, step)


def test_pages_longer_than_a_program() -> None:
    size = 3 * configs.MOVE_WORDS // 32 - 5
    k, v = (torch.randn(4, 2, size, 24, generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    table = torch.tensor([[0, 1]], dtype=torch.int32)
    view = KVView(k, v, "fp32", lengths=(size,), layout="paged", page_size=size, block_table=table)
    pages = torch.tensor([3, 1], dtype=torch.int32)

    def step(x: KVView, by: str) -> None:
        copy_pages(x, pages, torch.tensor([0, 2]), by=by)
        copy_pages(x, pages[:0], pages[:0], by=by)

    assert_alike(view, step)


def test_nothing_beside_the_cache_is_read_or_written() -> None:
    for fmt in ("fp16", "int8", "int4-g32"):
        view = make_view(fmt, tokens=5, k_dim=96, v_dim=96, lengths=(4, 4))
        walled: dict[str, Any] = {n: before_a_wall(x) for n, x in view.tensors().items()}
        held = replace(view, **walled)
        k, v = (before_a_wall(x) for x in new_rows(view))
        for cache, by in ((view, "torch"), (held, "triton")):
            keep(append(cache, k, v, by), torch.tensor([[0, 2, 4], [1, 3, 4]]), by)
        for name, x in held.tensors().items():
            assert torch.equal(x, view.tensors()[name])


def test_what_the_kernels_do_not_do_they_refuse() -> None:
    view = make_view("int4-g48", k_dim=96, tokens=4, lengths=(3, 3))
    k, v = new_rows(view)
    with pytest.raises(ValueError, match="append by triton: groups of 48"):
        append(view, k, v, by="triton")
    pages = paged(make_view("fp16", tokens=16, lengths=(16, 16)))
    with pytest.raises(ValueError, match=r"\[1\] are source and target"):
        copy_pages(pages, torch.tensor([0, 1]), torch.tensor([1, 2]), by="triton")
    with pytest.raises(ValueError, match="must rise"):
        keep(pages, torch.tensor([[1, 1], [1, 2]]), by="triton")
    wide = make_view("int4-g32", tokens=4, lengths=(3, 3))
    assert wide.k_scale is not None
    loose = torch.zeros(*wide.k_scale.shape, 2, dtype=torch.float16)[..., 0]
    apart = replace(wide, k_scale=loose, k_zero=loose.clone())
    with pytest.raises(ValueError, match=r"do not touch|lie otherwise"):
        append(apart, *new_rows(wide), by="triton")
    with pytest.raises(ValueError, match="do not touch"):
        keep(apart, torch.tensor([[0], [1]]), by="triton")
