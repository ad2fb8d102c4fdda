"""flashinfer-xqa: TensorRT-LLM's XQA decode kernel, as the flashinfer package has it.

`flashinfer.decode.xqa_batch_decode_with_kv_cache`, called as version 0.7.2.post1 takes it. Never run on a
GPU by this project yet. The package compiles its kernels at first use (nvcc, a C++ compiler, ninja).
"""

from __future__ import annotations

import torch

from kvgauge_kernels.cuda_package import CudaPackage
from kvgauge_kernels.torch_ops import SDPA_OPS
from kvgauge_kernels.triton.lengths import on_device
from kvgauge_kernels.view import KVView

_PAGE_SIZES = (16, 32, 64, 128)
_MAX_HEAD_DIM = 256
_WORKSPACE_BYTES = 128 * 2**20  # of which the package takes 8 MiB for its semaphores


_PACKAGE = CudaPackage(
    "flashinfer-xqa", "flashinfer.decode", "xqa_batch_decode_with_kv_cache", (9, 10, 12),
    "is for 9, 10, 12", "`pip install flashinfer-python`",
)  # fmt: skip


class FlashInferXqa:
    """XQA over paged caches: one program for the query heads of a K/V head, split over the GPU.

    It calls its extension directly, so kernel_ops is empty, as for flashinfer. An fp8 cache it would
    multiply in fp8, query included, which no oracle here is for: so none is given to it.
    """

    name = "flashinfer-xqa"
    kernel_ops: tuple[str, ...] = ()
    forbidden_ops = (*SDPA_OPS, "aten::bmm")
    formats = frozenset({"fp16", "bf16"})
    layouts = frozenset({"paged"})

    def __init__(self) -> None:
        self._workspaces: dict[torch.device, torch.Tensor] = {}

    def version(self) -> str:
        """flashinfer's; raises ImportError where it is absent."""
        import flashinfer

        return str(flashinfer.__version__)

    def available(self, device: torch.device) -> str | None:
        """A CUDA device of compute capability 9, 10 or 12, and the package."""
        return _PACKAGE.why_not(device)

    def supports(self, view: KVView, q_dtype: torch.dtype) -> str | None:
        """fp16 and bf16, pages of 16 to 128 tokens, one head_dim up to 256 in multiples of 16."""
        if view.layout != "paged":
            return f"layout {view.layout!r}: {self.name} reads paged caches only"
        refusal = view.refusal(q_dtype, self.formats, self.layouts)
        if refusal is not None:
            return refusal
        if view.page_size not in _PAGE_SIZES:
            sizes = ", ".join(map(str, _PAGE_SIZES))
            return f"page_size {view.page_size}: {self.name} takes {sizes}"
        if view.k_dim != view.v_dim or view.k_dim % 16 or view.k_dim > _MAX_HEAD_DIM:
            return (
                f"k_dim {view.k_dim} and v_dim {view.v_dim}: {self.name} needs one head_dim, "
                f"a multiple of 16 up to {_MAX_HEAD_DIM}"
            )
        if view.k.stride() != view.v.stride():
            return f"{self.name} needs K and V with the same strides"
        return None

    def decode(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """See AttentionBackend; a CUDA graph is captured after a call with the same lengths."""
        from flashinfer.decode import xqa_batch_decode_with_kv_cache

        view.group(q)
        lengths = view.lengths or (view.tokens,) * view.batch
        if q.device not in self._workspaces:  # zeros before its first use, as the package asks
            self._workspaces[q.device] = torch.zeros(
                _WORKSPACE_BYTES, dtype=torch.uint8, device=q.device
            )
        out: torch.Tensor = xqa_batch_decode_with_kv_cache(
            query=q.contiguous(),
            kv_cache=(view.k, view.v),
            workspace_buffer=self._workspaces[q.device],
            block_tables=view.block_table,
            seq_lens=on_device(lengths, q.device).view(torch.uint32),
            max_seq_len=view.tokens,
            bmm1_scale=view.k_dim**-0.5,
            bmm2_scale=1.0,
            kv_layout="HND",
        )
        return out

    def prefill(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """This kernel is for decode; raises ValueError."""
        raise ValueError(
            f"backend {self.name}: it decodes only, q {list(q.shape)} over {view.batch}"
        )
