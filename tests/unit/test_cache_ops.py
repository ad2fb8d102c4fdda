"""Appending, keeping and copying tokens: against the same done to plain numbers, on both layouts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels_for_tests import as_numbers, as_stored, error, make_query, make_view
from kvgauge_kernels import BACKENDS, KVView, oracle_decode
from kvgauge_kernels.cache_ops import append, copy_pages, keep
from kvgauge_kernels.mla import latent_view
from kvgauge_kernels.quantize import quantize
from kvgauge_kernels.triton.backend import TritonBackend

FORMATS = ["fp32", "bf16", "fp8_e4m3", "int8", "int4", "int2-g32"]
SIZE = 8  # of a page
ROW = torch.zeros(2, 2, 64)


def paged(view: KVView, order: list[int]) -> KVView:
    """The same cache in pages, laid out in that order in the pool."""
    per_row = view.tokens // SIZE
    pools: dict[str, Any] = {}
    for name, x in view.tensors().items():
        parts = [
            x[b, :, p * SIZE : (p + 1) * SIZE] for b in range(view.batch) for p in range(per_row)
        ]
        pool = torch.zeros(len(order), *parts[0].shape).to(x.dtype)
        for part, page in zip(parts, order, strict=True):
            pool[page] = part
        pools[name] = pool
    table = torch.tensor(order, dtype=torch.int32).view(view.batch, per_row)
    return KVView(
        format=view.format, lengths=view.lengths, layout="paged", page_size=SIZE, block_table=table, **pools
    )  # fmt: skip


def both_layouts(fmt: str, lengths: tuple[int, int]) -> list[KVView]:
    view = make_view(fmt, tokens=40, lengths=lengths)
    return [
        view,
        paged(view, torch.randperm(10, generator=torch.Generator().manual_seed(1)).tolist()),
    ]


def in_pages() -> KVView:
    return both_layouts("fp32", (1, 1))[1]


@pytest.mark.parametrize("fmt", FORMATS)
def test_an_appended_token_is_quantized_like_all_others(fmt: str) -> None:
    new = torch.randn(2, 2, 64, generator=torch.Generator().manual_seed(9))
    for view in both_layouts(fmt, (5, 39)):
        longer = append(view, new, -new)
        assert longer.lengths == (6, 40)
        for b, n in enumerate((5, 39)):
            one = longer.gathered(b)
            row = new[b, None, :, None]
            alone = KVView(format=fmt, **as_stored("k", row, fmt), **as_stored("v", -row, fmt))
            for which in "kv":
                found = as_numbers(one, which)[0, :, n]
                step = 0.0 if fmt in FORMATS[:3] else 2e-2 * 15
                assert abs(found - as_numbers(alone, which)[0, :, 0]).max() <= step
        q = make_query(longer, 2, torch.float32 if fmt != "bf16" else torch.bfloat16)
        assert error(BACKENDS["reference"].decode(q, longer), oracle_decode(q, longer)) < 1e-2


@given(st.sampled_from(FORMATS), st.sets(st.integers(0, 29), min_size=1), st.integers(0, 10))
@settings(max_examples=40, deadline=None)
def test_what_is_kept_is_what_a_cut_cache_holds(fmt: str, kept: set[int], shift: int) -> None:
    rows = [sorted(kept), [n + shift for n in sorted(kept)]]
    for view in both_layouts(fmt, (30, 40)):
        before = [view.gathered(b) for b in range(2)]
        before = [replace(x, **{n: y.clone() for n, y in x.tensors().items()}) for x in before]  # type: ignore[arg-type]
        shorter = keep(view, torch.tensor(rows))
        assert shorter.lengths == (len(kept),) * 2
        for b in range(2):
            for name, x in shorter.gathered(b).tensors().items():
                expected = before[b].tensors()[name][:, :, rows[b]]
                assert torch.equal(x.float(), expected.float())


def test_pages_are_copied_with_their_scales() -> None:
    for fmt in FORMATS:
        view = both_layouts(fmt, (40, 40))[1]
        assert view.block_table is not None
        first, last = view.block_table[0].long(), view.block_table[1].long()
        copy_pages(view, first[:2], last[3:])
        for x in view.tensors().values():
            assert torch.equal(x[first[:2]].float(), x[last[3:]].float())


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (lambda v: append(v, ROW, ROW), "no room"),
        (lambda v: append(replace(v, lengths=(1, 1)), ROW[..., :8], ROW), "k must be"),
        (lambda v: keep(v, torch.tensor([[1, 1], [1, 2]])), "must rise"),
        (lambda v: keep(v, torch.tensor([[-1, 1], [1, 2]])), "must rise"),
        (lambda v: keep(v, torch.tensor([[1, 2], [1, 40]])), "past the end"),
        (lambda v: keep(v, torch.tensor([1, 2])), "kept must be"),
        (lambda v: copy_pages(v, torch.tensor([0]), torch.tensor([1])), "only a paged"),
        (lambda v: copy_pages(in_pages(), torch.tensor([0, 1]), torch.tensor([2, 2])), "once"),
    ],
)  # fmt: skip
def test_what_cannot_be_done(step: Any, says: str) -> None:
    view = make_view("fp32", tokens=40, lengths=(40, 40))
    with pytest.raises(ValueError, match=says):
        step(view)


def test_no_token_comes_or_goes_alone_where_tokens_share_scales() -> None:
    view = make_view("kivi4", tokens=40, lengths=(35, 36))
    with pytest.raises(ValueError, match="append: kivi4 has K per channel, 32 tokens to a scale"):
        append(view, ROW, ROW)
    with pytest.raises(ValueError, match="keep: kivi4 has K per channel, 32 tokens to a scale"):
        keep(view, torch.tensor([[1], [2]]))


def test_pages_of_keys_per_channel_are_copied_with_their_scales() -> None:
    pool = make_view("kivi2-g16", batch=5, tokens=32, k_dim=16)
    table = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32)
    view = replace(pool, layout="paged", page_size=32, block_table=table)
    before = {name: x.clone() for name, x in view.tensors().items()}
    assert len(before) == 6
    copy_pages(view, torch.tensor([1]), torch.tensor([4]))
    for name, x in view.tensors().items():
        assert torch.equal(x[4], before[name][1])
        assert torch.equal(x[:4], before[name][:4])


def test_who_does_it_is_chosen_by_name() -> None:
    """A CPU without the interpreter: what is asked for is refused, and nothing done in its place."""
    view = make_view("fp16", tokens=40, lengths=(5, 5))
    before = view.k.clone()
    for step in (
        lambda by: append(view, ROW, ROW, by=by),
        lambda by: keep(view, torch.tensor([[1], [2]]), by=by),
        lambda by: copy_pages(in_pages(), torch.tensor([0]), torch.tensor([1]), by=by),
    ):
        with pytest.raises(ValueError, match="by 'cuda': torch or triton"):
            step("cuda")
        with pytest.raises(ValueError, match=r"by triton: (these kernels|package triton)"):
            step("triton")
    assert torch.equal(view.k, before)


def test_on_amd_nothing_is_kept_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    view = make_view("fp16", tokens=40, lengths=(5, 5))
    monkeypatch.setattr(TritonBackend, "available", lambda _self, _device: None)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with pytest.raises(ValueError, match="keep by triton: on AMD's GPUs a barrier"):
        keep(view, torch.tensor([[1], [2]]), by="triton")


@pytest.mark.parametrize("fmt", ["bf16", "int8"])
def test_latents_are_written_once(fmt: str) -> None:
    """V lies in K's rows: whatever is done to it a second time undoes the first."""
    numbers = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(3))
    numbers[..., 32:] *= 20  # the rope part holds the largest element, so the scale is K's
    stored = quantize(numbers, fmt)
    view = latent_view(stored.codes, 32, fmt, stored.scale, (8, 8))
    assert view.shares_rows
    new = torch.randn(2, 1, 48, generator=torch.Generator().manual_seed(4))
    new[..., 32:] *= 20
    with pytest.raises(ValueError, match="first 32 elements of k"):
        append(view, new, new[..., 16:])
    longer = append(view, new, new[..., :32])
    numbers[:, 8] = new[:, 0]
    kept = torch.tensor([[0, 2, 4, 8], [1, 3, 5, 8]])
    left = keep(longer, kept)
    wanted = quantize(numbers, fmt)
    for b in range(2):
        assert torch.equal(left.rows("k", b, slice(None))[0], wanted.codes[b, kept[b]])
        if wanted.scale is not None and left.k_scale is not None:
            assert torch.equal(left.k_scale[b, 0, :4], wanted.scale[b, kept[b]])


def test_a_mask_is_no_positions() -> None:
    with pytest.raises(ValueError, match=r"int32 positions, not torch\.bool"):
        keep(make_view("fp32", tokens=4), torch.ones(2, 4, dtype=torch.bool))


def test_what_two_sequences_share_is_not_written() -> None:
    view = in_pages()
    assert view.block_table is not None
    shared = view.block_table.clone()
    shared[1, 0] = shared[0, 0]
    forks = replace(view, block_table=shared, lengths=(3, 3))
    with pytest.raises(ValueError, match="two sequences or heads would write the same place"):
        append(forks, ROW, ROW)
    with pytest.raises(ValueError, match="two sequences or heads would write the same place"):
        keep(forks, torch.tensor([[0, 1], [0, 2]]))
    whole = make_view("fp32", tokens=4)
    for wide in (
        replace(whole, k=whole.k[:1].expand(2, -1, -1, -1)),
        replace(whole, v=whole.v[:1].expand(2, -1, -1, -1)),
        replace(whole, v=whole.v[:, :1].expand(-1, 2, -1, -1)),
    ):
        with pytest.raises(ValueError, match="two sequences or heads would write the same place"):
            append(replace(wide, lengths=(1, 1)), ROW, ROW)


@pytest.mark.parametrize("page", [-1, 99])
def test_a_page_that_is_not_there_is_not_written(page: int) -> None:
    view = in_pages()
    assert view.block_table is not None
    table = view.block_table.clone()
    table[0, 1] = page  # beyond the first page's tokens: never read
    with pytest.raises(ValueError, match="is not there"):
        append(replace(view, block_table=table, lengths=(SIZE, 1)), ROW, ROW)
    for pages in (torch.tensor([page]), torch.tensor([0.0]), torch.tensor([[0]])):
        with pytest.raises(ValueError, match=r"source must be"):
            copy_pages(view, pages, torch.tensor([0]))


def test_pages_of_latents_are_copied_once() -> None:
    """A page that is copied onto and copied from is read before it is written."""
    pools = torch.arange(3 * 4 * 6, dtype=torch.float32).view(3, 1, 4, 6)
    table = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    view = KVView(
        pools.clone(), pools, "fp32", lengths=(12,), layout="paged", page_size=4, block_table=table
    )
    view = replace(view, v=view.k[..., :4])
    copy_pages(view, torch.tensor([0, 1]), torch.tensor([1, 2]))
    assert torch.equal(view.k, pools[[0, 0, 1]])
