"""KVView: what it refuses, and that its parts are views of the same memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from kernels_for_tests import make_view
from kvgauge_kernels import KVView
from kvgauge_kernels.quantize import quantize, quantize_k


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype)


@pytest.mark.parametrize(
    ("k", "v", "fmt", "more", "message"),
    [
        (zeros(2, 3, 4), zeros(2, 3, 4), "fp32", {}, "must be"),
        (zeros(1, 2, 5, 8), zeros(1, 2, 6, 8), "fp32", {}, "differ"),
        (zeros(1, 2, 5, 8), zeros(1, 2, 5, 8, dtype=torch.float16), "fp32", {}, "float16"),
        (zeros(1, 2, 5, 8), zeros(1, 2, 5, 8), "bf16", {}, "format bf16"),
        (zeros(1, 2, 8, 5).mT, zeros(1, 2, 5, 8), "fp32", {}, "contiguous"),
        (*[zeros(1, 2, 5, 8, dtype=torch.int8)] * 2, "int8", {}, "needs k_scale"),
        (*[zeros(1, 2, 5, 8)] * 2, "fp32", {"k_scale": zeros(1, 2, 5)}, "has no scales"),
        (
            *[zeros(1, 2, 5, 8, dtype=torch.int8)] * 2,
            "int8",
            {"k_scale": zeros(1, 2, 4), "v_scale": zeros(1, 2, 5)},
            "scales must be",
        ),
        (
            *[zeros(1, 2, 5, 64, dtype=torch.uint8)] * 2,
            "int4",
            {
                "k_scale": zeros(1, 2, 5, 2),
                "v_scale": zeros(1, 2, 5, 2),
                "k_zero": zeros(1, 2, 5, 2),
            },
            "needs v_zero",
        ),
        (*[zeros(1, 2, 5, 8)] * 2, "fp32", {"lengths": (1, 2)}, "2 lengths"),
        (*[zeros(1, 2, 5, 8)] * 2, "fp32", {"lengths": (6,)}, "between 1 and 5"),
        (*[zeros(1, 2, 5, 8)] * 2, "fp32", {"lengths": (0,)}, "between 1 and 5"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    k: torch.Tensor, v: torch.Tensor, fmt: str, more: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        KVView(k, v, fmt, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 4, 32), "must be"),
        ((3, 4, 64), "must be"),
        ((2, 4, 1, 1, 64), "must be"),
        ((2, 3, 64), "3 query heads over 2"),
        ((2, 4, 31, 64), "31 query tokens for a sequence of 30"),
    ],
)
def test_queries_of_another_cache_are_refused(shape: tuple[int, ...], message: str) -> None:
    view = make_view("fp32", tokens=40, lengths=(30, 40))
    with pytest.raises(ValueError, match=message):
        view.check(torch.zeros(shape))


def test_what_lies_on_another_device_is_refused() -> None:
    view = make_view("int8")
    assert view.k_scale is not None
    with pytest.raises(ValueError, match="k_scale is on meta, k on cpu"):
        replace(view, k_scale=view.k_scale.to("meta"))
    with pytest.raises(ValueError, match="q is on meta, k on cpu"):
        view.check(torch.ones(2, 2, 64, device="meta"))


@pytest.mark.parametrize(
    "change",
    [
        {"lengths": (2.5, 3)},
        {"lengths": ("a", 1)},
        {"lengths": (None, 1)},
        {"lengths": torch.tensor([3, 4])},
        {"window": 2.5},
        {"window": 2**70},
        {"window": 3, "sink_tokens": 1.5},
    ],
)
def test_counts_are_whole_numbers(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="whole numbers"):
        replace(make_view("fp32"), **change)


@pytest.mark.parametrize(("largest", "steps"), [(1.0, 0.5), (0.0079, 0.5), (1e-4, 2.1)])
def test_small_rows_of_int8_have_coarse_scales(largest: float, steps: float) -> None:
    """Below 0.0078 the scale is a denormal of fp16: the largest elements are off by more than half a step."""
    x = torch.linspace(-largest, largest, 128)[None]
    rows = quantize(x, "int8")
    assert rows.scale is not None
    step = rows.scale.float()
    off = ((rows.codes * step[:, None] - x).abs().max() / step).item()
    assert off <= steps * 1.01
    assert (off > 0.5) == (largest < 0.0078)


def test_rows_that_do_not_fill_bytes_are_refused() -> None:
    for kv_format, dim in (("int4", 63), ("int2", 62), ("int4", 0)):
        with pytest.raises(ValueError, match=f"rows of {dim} elements do not fill whole bytes"):
            quantize(torch.ones(1, 1, 4, dim), kv_format)
    with pytest.raises(ValueError, match="no tokens to quantize"):
        quantize_k(torch.ones(1, 1, 0, 64), "kivi4")


def test_group_is_query_heads_to_a_kv_head() -> None:
    view = make_view("fp32", kv_heads=2)
    assert view.group(torch.zeros(2, 6, 64)) == 3
    with pytest.raises(ValueError, match="query heads"):
        view.group(torch.zeros(2, 5, 64))


def test_dense_parts_copy_nothing_and_hold_every_valid_token() -> None:
    view = make_view("int8", batch=3, tokens=40, lengths=(7, 40, 40))
    parts = list(view.dense())
    assert [(rows.start, rows.stop, p.tokens) for rows, p in parts] == [
        (0, 1, 7), (1, 2, 40), (2, 3, 40)
    ]  # fmt: skip
    for rows, part in parts:
        assert not part.ragged
        assert part.k.data_ptr() == view.k[rows].data_ptr()
        for scale, whole in ((part.k_scale, view.k_scale), (part.v_scale, view.v_scale)):
            assert scale is not None
            assert whole is not None
            assert torch.equal(scale, whole[rows, :, : part.tokens])


@pytest.mark.parametrize(("lengths", "tokens"), [(None, 40), ((40, 40), 40), ((9, 9), 9)])
def test_equally_long_sequences_stay_one_part(lengths: tuple[int, ...] | None, tokens: int) -> None:
    (part,) = make_view("fp32", lengths=lengths).dense()
    assert part[0] == slice(0, 2)
    assert (part[1].batch, part[1].tokens) == (2, tokens)


def test_visible_counts_from_the_end_of_each_sequence() -> None:
    view = make_view("fp32", tokens=5, lengths=(3, 5))
    assert view.visible(2).int().tolist() == [
        [[[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]],
        [[[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]],
    ]
    assert make_view("fp32", tokens=5, lengths=(4, 4)).visible(1).shape == (1, 1, 1, 5)


def test_refusals_say_what_would_be_read() -> None:
    plain = frozenset({"fp16", "fp32"})
    view = make_view("fp16")
    table = torch.zeros(3, 2, dtype=torch.int32)
    paged = KVView(view.k, view.v, "fp16", layout="paged", page_size=40, block_table=table)
    assert (paged.batch, paged.tokens) == (3, 80)
    assert view.refusal(torch.float16, plain) is None
    assert view.refusal(torch.float32, plain) == "a cache of float16 with queries of float32"
    assert view.refusal(torch.float16, {"int8"}) == "format fp16: it reads int8"
    assert "contiguous caches only" in str(paged.refusal(torch.float16, plain))


def test_pages_hold_whole_groups_where_tokens_share_scales() -> None:
    view = make_view("kivi4-g16", batch=2, tokens=32, k_dim=32)
    table = torch.tensor([[1, 0]], dtype=torch.int32)
    pages: dict[str, Any] = {"layout": "paged", "page_size": 32, "block_table": table}
    paged = replace(view, **pages, lengths=(50,))
    gathered = paged.gathered(0)
    assert gathered.k.shape == (1, 2, 50, 16)
    assert gathered.k_scale is not None
    assert gathered.k_scale.shape == (1, 2, 4, 32)
    assert view.k_scale is not None
    assert torch.equal(gathered.k_scale[0, :, :2], view.k_scale[1])
    assert torch.equal(gathered.k_scale[0, :, 2:], view.k_scale[0])
    cut = view.narrowed(slice(0, 1), 17)
    assert cut.k_scale is not None
    assert cut.k_scale.shape == (1, 2, 2, 32)
    assert view.k_zero is not None
    with pytest.raises(ValueError, match=r"zero points must be \[2, 2, 2, 32\].*k_zero"):
        replace(view, k_zero=view.k_zero[:, :, :1])
    odd = make_view("kivi4-g16", batch=2, tokens=24, k_dim=32)
    with pytest.raises(ValueError, match="page_size 24: kivi4-g16 needs pages of whole groups"):
        replace(odd, **{**pages, "page_size": 24})
