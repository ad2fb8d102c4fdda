"""The flashinfer adapter's own code, over a stand-in with the package's signature."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch

from kernels_for_tests import TOLERANCE, error, make_view
from kvgauge_kernels import KVView, oracle_decode
from kvgauge_kernels.flashinfer import FlashInfer
from triton_for_tests import TritonCase, one_case

CUDA = torch.device("cuda")


class Wrapper:
    """BatchDecodeWithPagedKVCacheWrapper of flashinfer 0.7.2, in plain torch."""

    plans = 0

    def __init__(
        self, float_workspace_buffer: Any, kv_layout: str = "NHD", use_cuda_graph: bool = False,
        use_tensor_cores: bool = False, paged_kv_indptr_buffer: Any = None,
        paged_kv_indices_buffer: Any = None, paged_kv_last_page_len_buffer: Any = None,
        backend: str = "auto", jit_args: Any = None,
    ) -> None:  # fmt: skip
        assert float_workspace_buffer.dtype == torch.uint8
        assert kv_layout == "HND"

    def plan(
        self, indptr: Any, indices: Any, last_page_len: Any, num_qo_heads: int, num_kv_heads: int,
        head_dim: int, page_size: int, *, q_data_type: Any = "float16", kv_data_type: Any = None,
    ) -> None:  # fmt: skip
        Wrapper.plans += 1
        assert indptr.dtype == indices.dtype == last_page_len.dtype == torch.int32
        assert int(indptr[-1]) == len(indices)
        assert bool(((last_page_len >= 1) & (last_page_len <= page_size)).all())
        self.planned = (indptr.tolist(), indices.clone(), last_page_len.tolist(), num_qo_heads)
        self.cache = (num_kv_heads, page_size, head_dim)
        self.dtypes = (q_data_type, kv_data_type)

    def run(self, q: Any, paged_kv_cache: Any, *args: Any) -> torch.Tensor:
        k, v = paged_kv_cache
        assert k.shape[1:] == v.shape[1:] == self.cache
        assert self.dtypes == (q.dtype, k.dtype)
        indptr, indices, last, q_heads = self.planned
        out = torch.empty_like(q)
        for b, (start, end) in enumerate(pairwise(indptr)):
            pages = indices[start:end].long()
            n = (end - start - 1) * self.cache[1] + last[b]
            rows = [x[pages].transpose(0, 1).flatten(1, 2)[:, :n].double() for x in (k, v)]
            keys, values = (x.repeat_interleave(q_heads // x.shape[0], 0) for x in rows)
            scores = torch.einsum("hd,hnd->hn", q[b].double(), keys) / q.shape[2] ** 0.5
            out[b] = torch.einsum("hn,hnd->hd", scores.softmax(-1), values).to(q.dtype)
        return out


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    module = ModuleType("flashinfer")
    module.BatchDecodeWithPagedKVCacheWrapper = Wrapper  # type: ignore[attr-defined]
    module.__version__ = "0.7.2.post1"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flashinfer", module)
    Wrapper.plans = 0
    return module


def case(page_size: int | None, lengths: tuple[int, ...] | None) -> TritonCase:
    return replace(
        one_case(), page_size=page_size, lengths=lengths, q_dtype=torch.bfloat16, fmt="bf16"
    )


@pytest.mark.parametrize("lengths", [None, (200, 200), (7, 33, 200)])
@pytest.mark.parametrize("page_size", [None, 16, 24])
def test_decode(
    package: ModuleType, page_size: int | None, lengths: tuple[int, ...] | None
) -> None:
    one = case(page_size, lengths)
    view, q = one.view(), one.query()
    backend = FlashInfer()
    out = backend.decode(q, view)
    assert error(out, oracle_decode(q, view)) < TOLERANCE[torch.bfloat16]
    assert torch.equal(backend.decode(q, view), out)
    assert Wrapper.plans == 1  # the second call runs alone


def test_another_table_or_length_is_planned_anew(package: ModuleType) -> None:
    one = case(16, (40, 90))
    view, q = one.view(), one.query()
    backend = FlashInfer()
    backend.decode(q, view)
    assert view.block_table is not None
    view.block_table[0, 0] = view.block_table[0, 1].item()
    out = backend.decode(q, view)
    assert Wrapper.plans == 2
    assert error(out, oracle_decode(q, view)) < TOLERANCE[torch.bfloat16]
    backend.decode(q, replace(view, lengths=(41, 90)))
    assert Wrapper.plans == 3


@pytest.mark.parametrize(
    ("view", "dtype", "reason"),
    [
        (make_view("bf16"), torch.bfloat16, None),
        (make_view("int8"), torch.bfloat16, "format int8: it reads bf16, fp16"),
        (make_view("bf16", k_dim=80), torch.bfloat16, "one of 64, 128, 256"),
        (make_view("fp16", k_dim=128, v_dim=64), torch.float16, "one of 64, 128, 256"),
    ],
)
def test_supports(view: KVView, dtype: torch.dtype, reason: str | None) -> None:
    said = FlashInfer().supports(view, dtype)
    assert said is None if reason is None else reason in str(said)
    other = replace(make_view("bf16"), k=make_view("bf16", tokens_first=True).k)
    assert "same strides" in str(FlashInfer().supports(other, torch.bfloat16))


def test_available(package: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FlashInfer()
    assert "needs a CUDA device" in str(backend.available(torch.device("cpu")))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in str(backend.available(CUDA))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    assert "compute capability 7.5" in str(backend.available(CUDA))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    assert backend.available(CUDA) is None
    assert backend.version() == "0.7.2.post1"
    monkeypatch.setitem(sys.modules, "flashinfer", ModuleType("flashinfer"))
    assert "does not load: cannot import name" in str(backend.available(CUDA))
    monkeypatch.delitem(sys.modules, "flashinfer")
    if importlib.util.find_spec("flashinfer") is None:
        assert "pip install flashinfer-python" in str(backend.available(CUDA))


def test_it_decodes_only() -> None:
    with pytest.raises(ValueError, match="decodes only"):
        FlashInfer().prefill(torch.zeros(2, 4, 3, 64), make_view("bf16"))


def test_a_plan_holds_its_table(package: ModuleType) -> None:
    """Or another table at its address would be read by its plan."""
    view = case(16, (40, 90)).view()
    backend = FlashInfer()
    backend.decode(case(16, (40, 90)).query(), view)
    assert [table is view.block_table for _, table in backend._plans.values()] == [True]
