"""flashinfer: its batch decode over paged caches, `flashinfer.BatchDecodeWithPagedKVCacheWrapper`.

https://github.com/flashinfer-ai/flashinfer; called as version 0.7.2.post1 takes it. Never run on a GPU by
this project yet. The package compiles its kernels at first use (nvcc, a C++ compiler, ninja).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch

from kvgauge_kernels.cuda_package import CudaPackage
from kvgauge_kernels.torch_ops import SDPA_OPS
from kvgauge_kernels.view import KVView

_HEAD_DIMS = (64, 128, 256)
_WORKSPACE_BYTES = 128 * 2**20  # what its documentation recommends
_MAX_PLANS = 64


_PACKAGE = CudaPackage(
    "flashinfer", "flashinfer", "BatchDecodeWithPagedKVCacheWrapper", range(8, 100),
    "needs 8.0 or newer", "`pip install flashinfer-python`",
)  # fmt: skip


class FlashInfer:
    """The package's FlashAttention-2 kernel for tensor cores, which splits sequences over the GPU.

    A page of the package may be of any size, and `HND` is this library's own order: a contiguous cache
    is a pool whose pages are whole sequences, and nothing is copied.

    The package plans on the host, from lengths and page table, before it runs. That is done in the first
    call for a cache and kept: the calls that are timed, or captured in a CUDA graph, run alone. It calls
    its extension directly, so kernel_ops is empty, as for flash-attn.
    """

    name = "flashinfer"
    kernel_ops: tuple[str, ...] = ()
    forbidden_ops = (*SDPA_OPS, "aten::bmm")
    formats = frozenset({"fp16", "bf16"})
    layouts = frozenset({"contiguous", "paged"})

    def __init__(self) -> None:
        self._plans: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self._workspaces: dict[torch.device, torch.Tensor] = {}

    def version(self) -> str:
        """flashinfer's; raises ImportError where it is absent."""
        import flashinfer

        return str(flashinfer.__version__)

    def available(self, device: torch.device) -> str | None:
        """A CUDA device of compute capability 8.0 or newer, and the package."""
        return _PACKAGE.why_not(device)

    def supports(self, view: KVView, q_dtype: torch.dtype) -> str | None:
        """fp16 and bf16, one head_dim of 64, 128 or 256, both layouts with K and V alike in strides."""
        refusal = view.refusal(q_dtype, self.formats, self.layouts)
        if refusal is not None:
            return refusal
        if view.k_dim != view.v_dim or view.k_dim not in _HEAD_DIMS:
            dims = ", ".join(map(str, _HEAD_DIMS))
            return f"k_dim {view.k_dim} and v_dim {view.v_dim}: flashinfer needs one of {dims}"
        if view.k.stride() != view.v.stride():
            return "flashinfer needs K and V with the same strides"
        return None

    def decode(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """See AttentionBackend; plans where this cache, in these lengths and pages, is new."""
        group = view.group(q)
        out: torch.Tensor = self._planned(view, q, group).run(q.contiguous(), (view.k, view.v))
        return out

    def prefill(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """This adapter's kernel is for decode; raises ValueError."""
        raise ValueError(
            f"backend {self.name}: it decodes only, q {list(q.shape)} over {view.batch}"
        )

    def _planned(self, view: KVView, q: torch.Tensor, group: int) -> Any:
        table = view.block_table
        lengths = view.lengths or (view.tokens,) * view.batch
        # _version counts writes in place: another page table needs another plan.
        pages = None if table is None else (table.data_ptr(), table._version, tuple(table.shape))
        key = (q.device, q.dtype, view.kv_heads, group, view.k_dim, view.k.shape[2], lengths, pages)
        # With the table itself: as long as it is held here, no other one has its address.
        wrapper, _ = self._plans.pop(key, (None, None))
        if wrapper is None:
            wrapper = self._plan(view, q, lengths)
            while len(self._plans) >= _MAX_PLANS:
                self._plans.popitem(last=False)
        self._plans[key] = (wrapper, table)
        return wrapper

    def _plan(self, view: KVView, q: torch.Tensor, lengths: tuple[int, ...]) -> Any:
        from flashinfer import BatchDecodeWithPagedKVCacheWrapper

        if q.device not in self._workspaces:
            self._workspaces[q.device] = torch.zeros(
                _WORKSPACE_BYTES, dtype=torch.uint8, device=q.device
            )
        page_size = view.k.shape[2]
        counts = [-(-n // page_size) for n in lengths]
        indptr = torch.tensor([0, *counts], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        last = torch.tensor([(n - 1) % page_size + 1 for n in lengths], dtype=torch.int32)
        if view.block_table is None:
            indices = torch.arange(view.batch, dtype=torch.int32, device=q.device)
        else:
            indices = torch.cat([view.block_table[i, :n] for i, n in enumerate(counts)])
        wrapper = BatchDecodeWithPagedKVCacheWrapper(
            self._workspaces[q.device], "HND", use_tensor_cores=True, backend="fa2"
        )
        wrapper.plan(
            indptr, indices, last, q.shape[1], view.kv_heads, view.k_dim, page_size,
            q_data_type=q.dtype, kv_data_type=view.k.dtype,
        )  # fmt: skip
        return wrapper
