"""The flash-attn adapter's own code, over a stand-in with the package's signature."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest
import torch

from kernels_for_tests import (
    TOLERANCE,
    error,
    flash_attn_stand_in,
    make_query,
    make_view,
    naive,
    naive_decode,
)
from kvgauge_kernels import BACKENDS, KVView

CUDA = torch.device("cuda")
FLASH_ATTN = BACKENDS["flash-attn"]


@pytest.fixture
def ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with an A100."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))


@pytest.mark.parametrize("lengths", [None, (40, 40), (25, 25), (7, 40)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_decode_and_prefill(lengths: tuple[int, ...] | None, dtype: torch.dtype) -> None:
    view = make_view("fp16" if dtype == torch.float16 else "bf16", lengths=lengths)
    q, many = make_query(view, 4, dtype), make_query(view, 4, dtype, 5)
    with flash_attn_stand_in():
        out, outs = FLASH_ATTN.decode(q, view), FLASH_ATTN.prefill(many, view)
    assert out.dtype == dtype
    assert error(out, naive_decode(q, view)) < TOLERANCE[dtype]
    assert error(outs, naive(many, view)) < TOLERANCE[dtype]


def test_the_package_is_handed_the_cache_itself_and_the_lengths() -> None:
    views = [make_view("bf16", lengths=lengths) for lengths in (None, (25, 25), (7, 40))]
    with flash_attn_stand_in() as package:
        for view in views:
            FLASH_ATTN.decode(make_query(view, 2, torch.bfloat16), view)
    none, equal, ragged = (call["cache_seqlens"] for call in package.calls)
    assert none is None
    assert equal == 25
    assert ragged.tolist() == [7, 40]
    for view, call in zip(views, package.calls, strict=True):
        assert call["k_cache"].data_ptr() == view.k.data_ptr()
        assert call["k_cache"].shape == (2, 40, 2, 64)
        assert call["causal"] is False


def test_queries_of_another_cache_never_reach_the_package() -> None:
    view = make_view("bf16")
    with flash_attn_stand_in() as package, pytest.raises(ValueError, match="query heads"):
        FLASH_ATTN.decode(torch.zeros(2, 3, 64, dtype=torch.bfloat16), view)
    assert package.calls == []


def test_not_on_the_cpu() -> None:
    assert FLASH_ATTN.available(torch.device("cpu")) == "flash-attn needs a CUDA device, not cpu"


def test_not_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in str(FLASH_ATTN.available(CUDA))


def test_not_below_ampere(ampere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    with flash_attn_stand_in():
        reason = FLASH_ATTN.available(CUDA)
    assert reason == "compute capability 7.5: flash-attn needs 8.0 or newer"


def test_available_with_the_package(ampere: None) -> None:
    with flash_attn_stand_in():
        assert FLASH_ATTN.available(CUDA) is None
        assert FLASH_ATTN.version() == "2.8.3"


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is here")
def test_an_absent_package_is_named_with_the_way_to_get_it(ampere: None) -> None:
    reason = FLASH_ATTN.available(CUDA)
    assert reason == "package flash_attn is absent: `pip install flash-attn`, as a wheel"


def test_a_package_that_does_not_load_is_told_from_an_absent_one(
    ampere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    assert "does not load: cannot import name" in str(FLASH_ATTN.available(CUDA))


def test_a_package_without_its_own_requirement_names_that_one(
    ampere: None, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    broken = ModuleType("flash_attn")

    def missing(_name: str) -> object:
        raise ModuleNotFoundError("No module named 'einops'", name="einops")

    broken.__getattr__ = missing  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "flash_attn", broken)
    assert FLASH_ATTN.available(CUDA) == "flash_attn is installed but misses einops"


@pytest.mark.parametrize(
    ("view", "dtype", "reason"),
    [
        (make_view("fp32"), torch.float32, "format fp32: it reads bf16, fp16"),
        (make_view("int8"), torch.bfloat16, "format int8: it reads bf16, fp16"),
        (make_view("fp16"), torch.bfloat16, "a cache of float16 with queries of bfloat16"),
        (
            make_view("bf16", k_dim=192, v_dim=128),
            torch.bfloat16,
            "k_dim 192 and v_dim 128: flash-attn needs one head_dim",
        ),
        (make_view("bf16", k_dim=264), torch.bfloat16, "head_dim 264: flash-attn takes up to 256"),
        (
            make_view("bf16", k_dim=36),
            torch.bfloat16,
            "head_dim 36: no multiple of 8, so flash-attn would pad a copy",
        ),
        (make_view("bf16", k_dim=256), torch.bfloat16, None),
        (make_view("fp16", k_dim=80), torch.float16, None),
    ],
)
def test_supports(view: KVView, dtype: torch.dtype, reason: str | None) -> None:
    assert FLASH_ATTN.supports(view, dtype) == reason


@pytest.mark.parametrize(
    ("page_size", "reason"),
    [
        (16, "page_size 16: flash-attn needs a multiple of 256"),
        (256, "layout 'paged': this adapter passes no block table on"),
    ],
)
def test_paged_caches(page_size: int, reason: str) -> None:
    plain = make_view("bf16", tokens=page_size)
    table = torch.zeros(1, 2, dtype=torch.int32)
    view = KVView(plain.k, plain.v, "bf16", layout="paged", page_size=page_size, block_table=table)
    assert FLASH_ATTN.supports(view, torch.bfloat16) == reason
