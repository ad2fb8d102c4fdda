"""The adapters of torch's other fused kernels, of XQA and of flash-attn-4, over stand-ins.

A stand-in takes what the real function takes (torch 2.13, flashinfer 0.7.2.post1, flash-attn-4 4.0.0b36)
and no more: a misspelt argument fails here.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

from kernels_for_tests import TOLERANCE, error, make_query, make_view
from kvgauge_kernels import BACKENDS, AttentionBackend, KVView, oracle_decode, sdpa_fused
from triton_for_tests import TritonCase, one_case

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
NAMES = ("sdpa-efficient", "sdpa-cudnn", "flashinfer-xqa", "flash-attn-4")


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """q `[heads, d]`, k and v `[kv_heads, n, d]`."""
    keys, values = (x.double().repeat_interleave(q.shape[0] // x.shape[0], 0) for x in (k, v))
    scores = torch.einsum("hd,hnd->hn", q.double(), keys) * scale
    return torch.einsum("hn,hnd->hd", scores.softmax(-1), values).to(q.dtype)


def paged_rows(pool: torch.Tensor, pages: torch.Tensor, n: int) -> torch.Tensor:
    """`[pages, kv_heads, size, d]` to the first n rows of those pages."""
    return pool[pages.long()].transpose(0, 1).flatten(1, 2)[:, :n]


def xqa_batch_decode_with_kv_cache(
    query: Any, kv_cache: Any, workspace_buffer: Any, block_tables: Any, seq_lens: Any,
    max_seq_len: int, bmm1_scale: float = 1.0, bmm2_scale: float = 1.0, window_left: int = -1,
    out: Any = None, sinks: Any = None, kv_layout: str = "NHD", enable_pdl: Any = None,
    q_len_per_req: int = 1, o_scale: float = 1.0, mask: Any = None, kv_cache_sf: Any = None,
    q_cu_seq_lens: Any = None,
) -> torch.Tensor:  # fmt: skip
    """flashinfer.decode's, in plain torch."""
    assert kv_layout == "HND"
    assert seq_lens.dtype == torch.uint32
    assert block_tables.dtype == torch.int32
    assert workspace_buffer.dtype == torch.uint8
    assert not workspace_buffer.any()
    lengths = seq_lens.tolist()
    assert max(lengths) <= max_seq_len
    k, v = kv_cache
    rows = [
        attend(query[b], paged_rows(k, block_tables[b, : -(-n // k.shape[2])], n),
               paged_rows(v, block_tables[b, : -(-n // k.shape[2])], n), bmm1_scale)
        for b, n in enumerate(lengths)
    ]  # fmt: skip
    return torch.stack(rows) * bmm2_scale


def flash_attn_varlen_func(
    q: Any, k: Any, v: Any, qv: Any = None, cu_seqlens_q: Any = None, cu_seqlens_k: Any = None,
    max_seqlen_q: Any = None, max_seqlen_k: Any = None, min_seqlen_k: Any = None,
    seqused_q: Any = None, seqused_k: Any = None, gather_kv_indices: Any = None,
    page_table: Any = None, softmax_scale: Any = None, causal: bool = False,
    window_size: Any = (None, None), learnable_sink: Any = None, softcap: float = 0.0,
    num_splits: int = 1, pack_gqa: Any = None, deterministic: bool = False,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """flash_attn.cute's, in plain torch: tokens before heads."""
    assert q.shape[1] == num_splits == 1
    assert not causal
    out = []
    for b in range(q.shape[0]):
        n = k.shape[1] if seqused_k is None else int(seqused_k[b])
        if page_table is None:
            keys, values = (x[b, :n].transpose(0, 1) for x in (k, v))
        else:
            pages = page_table[b, : -(-n // k.shape[1])]
            keys, values = (paged_rows(x.transpose(1, 2), pages, n) for x in (k, v))
        out.append(attend(q[b, 0], keys, values, softmax_scale)[None])
    return torch.stack(out), None


def scaled_dot_product_attention(q: Any, k: Any, v: Any) -> torch.Tensor:
    """torch's, with all that it is given here: as many heads of q as of k."""
    assert q.shape[:2] == k.shape[:2]
    rows = [attend_alike(q[b], k[b], v[b]) for b in range(len(q))]
    return torch.stack(rows)


def attend_alike(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = (q.double() @ k.double().transpose(1, 2)) * q.shape[-1] ** -0.5
    out: torch.Tensor = (scores.softmax(-1) @ v.double()).to(q.dtype)
    return out


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("flashinfer", "flashinfer.decode", "flash_attn", "flash_attn.cute")
    modules = {name: ModuleType(name) for name in names}
    modules["flashinfer"].__version__ = "0.7.2.post1"  # type: ignore[attr-defined]
    modules["flashinfer.decode"].xqa_batch_decode_with_kv_cache = (  # type: ignore[attr-defined]
        xqa_batch_decode_with_kv_cache
    )
    modules["flash_attn.cute"].flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", scaled_dot_product_attention
    )


def case(page_size: int | None, lengths: tuple[int, ...] | None) -> TritonCase:
    return replace(
        one_case(), page_size=page_size, lengths=lengths, q_dtype=torch.bfloat16, fmt="bf16"
    )


@pytest.mark.parametrize("lengths", [None, (200, 200), (7, 33, 200)])
@pytest.mark.parametrize(
    ("name", "page_size"),
    [
        ("sdpa-efficient", None), ("sdpa-cudnn", None), ("flashinfer-xqa", 16),
        ("flashinfer-xqa", 64), ("flash-attn-4", None), ("flash-attn-4", 24),
    ],
)  # fmt: skip
def test_decode(
    packages: None, name: str, page_size: int | None, lengths: tuple[int, ...] | None
) -> None:
    one = case(page_size, lengths)
    view, q = one.view(), one.query()
    out = BACKENDS[name].decode(q, view)
    assert out.shape == (view.batch, q.shape[1], view.v_dim)
    assert error(out, oracle_decode(q, view)) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize(
    ("name", "view", "reason"),
    [
        ("flashinfer-xqa", case(16, None).view(), None),
        ("flashinfer-xqa", case(24, None).view(), "page_size 24: flashinfer-xqa takes 16, 32"),
        ("flashinfer-xqa", case(None, None).view(), "reads paged caches only"),
        ("flashinfer-xqa", replace(case(16, None), k_dim=80, v_dim=64).view(), "needs one head_dim"),
        ("flashinfer-xqa", replace(case(16, None), k_dim=512, v_dim=512).view(), "up to 256"),
        ("flash-attn-4", case(24, None).view(), None),
        ("flash-attn-4", replace(case(None, None), k_dim=192, v_dim=128).view(), None),
        ("flash-attn-4", replace(case(None, None), k_dim=512).view(), "takes up to 256"),
        ("flash-attn-4", make_view("int8"), "format int8: it reads bf16, fp16"),
        ("sdpa-cudnn", make_view("fp32"), "format fp32: it reads bf16, fp16"),
        ("sdpa-efficient", case(16, None).view(), "reads contiguous caches only"),
    ],
)  # fmt: skip
def test_supports(name: str, view: KVView, reason: str | None) -> None:
    said = BACKENDS[name].supports(view, torch.bfloat16)
    assert said is None if reason is None else reason in str(said)


def fused(can_use: Callable[[Any, bool], bool]) -> AttentionBackend:
    return sdpa_fused.SdpaFused(
        "sdpa-efficient", torch.nn.attention.SDPBackend.EFFICIENT_ATTENTION, "aten::x",
        frozenset({"fp16"}), can_use,
    )  # fmt: skip


def test_torch_is_asked_what_its_kernel_takes_and_its_reason_is_said() -> None:
    asked: list[Any] = []

    def refuses(params: Any, debug: bool) -> bool:
        asked.append(params)
        warnings.warn(f"head dim {params.query.shape[3]} is too large", stacklevel=1)
        return not debug

    view = make_view("fp16", lengths=(9, 40))
    assert fused(refuses).supports(view, torch.float16) == "torch: head dim 64 is too large"
    assert [p.key.shape[2] for p in asked] == [9]
    assert fused(lambda *_: True).supports(view, torch.float16) is None
    assert "does not take" in str(fused(lambda *_: False).supports(view, torch.float16))


def test_on_a_cpu_torch_takes_no_other_kernel_instead() -> None:
    view = make_view("fp16")
    with pytest.raises(RuntimeError, match=r"No (available kernel|viable backend)"):
        BACKENDS["sdpa-efficient"].decode(make_query(view, 2, torch.float16), view)


@pytest.mark.parametrize("name", NAMES)
def test_available(packages: None, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = BACKENDS[name]
    assert "CUDA" in str(backend.available(CPU))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in str(backend.available(CUDA))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    assert "compute capability 7.5" in str(backend.available(CUDA))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    assert backend.available(CUDA) is None


@pytest.mark.parametrize(
    ("name", "module", "word"),
    [
        ("flashinfer-xqa", "flashinfer.decode", "does not load"),
        ("flash-attn-4", "flash_attn.cute", "does not load"),
    ],
)
def test_a_package_without_the_function(
    packages: None, name: str, module: str, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setitem(sys.modules, module, ModuleType(module))
    assert word in str(BACKENDS[name].available(CUDA))


@pytest.mark.parametrize("name", NAMES)
def test_they_decode_only(name: str) -> None:
    with pytest.raises(ValueError, match="decodes only"):
        BACKENDS[name].prefill(torch.zeros(2, 4, 3, 64), make_view("bf16"))
