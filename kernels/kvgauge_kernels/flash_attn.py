"""flash-attn: Tri Dao's FlashAttention 2, through `flash_attn.flash_attn_with_kvcache`.

https://github.com/Dao-AILab/flash-attention; its limits are those of mha_fwd_kvcache in
csrc/flash_attn/flash_api.cpp.
"""

from __future__ import annotations

import torch

from kvgauge_kernels.cuda_package import CudaPackage
from kvgauge_kernels.torch_ops import SDPA_OPS
from kvgauge_kernels.view import KVView

_HEAD_DIM = 256
_PAGE_MULTIPLE = 256


_PACKAGE = CudaPackage(
    "flash-attn", "flash_attn", "flash_attn_with_kvcache", range(8, 100), "needs 8.0 or newer",
    "`pip install flash-attn`, as a wheel",
)  # fmt: skip


class FlashAttn:
    """The package's decode kernel, which splits one sequence's tokens over the whole GPU.

    flash_attn_with_kvcache calls its extension directly and passes through no torch operator, so
    kernel_ops is empty: forbidden_ops shows that no attention of torch's ran instead, and what
    proves the kernel is its name in a profile of the GPU, `flash_fwd_splitkv_kernel`.
    """

    name = "flash-attn"
    kernel_ops: tuple[str, ...] = ()
    forbidden_ops = (*SDPA_OPS, "aten::bmm")
    formats = frozenset({"fp16", "bf16"})
    layouts = frozenset({"contiguous"})

    def version(self) -> str:
        """flash-attn's; raises ImportError where it is absent."""
        import flash_attn

        return str(flash_attn.__version__)

    def available(self, device: torch.device) -> str | None:
        """A CUDA device of compute capability 8.0 or newer, and the package."""
        return _PACKAGE.why_not(device)

    def supports(self, view: KVView, q_dtype: torch.dtype) -> str | None:
        """fp16 and bf16, one head_dim up to 256 in multiples of 8, contiguous caches."""
        if view.layout == "paged":
            return _paged_refusal(view.page_size)
        refusal = view.refusal(q_dtype, self.formats)
        if refusal is not None:
            return refusal
        if view.k_dim != view.v_dim:
            return f"k_dim {view.k_dim} and v_dim {view.v_dim}: flash-attn needs one head_dim"
        if view.k_dim > _HEAD_DIM:
            return f"head_dim {view.k_dim}: flash-attn takes up to {_HEAD_DIM}"
        if view.k_dim % 8:
            return f"head_dim {view.k_dim}: no multiple of 8, so flash-attn would pad a copy"
        return None

    def decode(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """See AttentionBackend."""
        return self.prefill(q.unsqueeze(2), view).squeeze(2)

    def prefill(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """See AttentionBackend.

        Lengths that differ go to the GPU in each call, as a small int32 tensor.
        """
        from flash_attn import flash_attn_with_kvcache

        view.check(q)
        # The package puts tokens before heads, in whatever strides: transposing copies nothing. Its
        # causal lets the last query see all tokens, and is no restriction for a single one.
        out: torch.Tensor = flash_attn_with_kvcache(
            q.transpose(1, 2),
            view.k.transpose(1, 2),
            view.v.transpose(1, 2),
            cache_seqlens=_cache_seqlens(view),
            softmax_scale=view.k_dim**-0.5,
            causal=q.shape[2] > 1,
        )
        return out.transpose(1, 2)


def _cache_seqlens(view: KVView) -> torch.Tensor | int | None:
    if not view.ragged:
        return None
    lengths = view.lengths or ()
    if len(set(lengths)) == 1:
        return lengths[0]
    return torch.tensor(lengths, dtype=torch.int32, device=view.k.device)


def _paged_refusal(page_size: int | None) -> str:
    if page_size is None or page_size % _PAGE_MULTIPLE:
        return f"page_size {page_size}: flash-attn needs a multiple of {_PAGE_MULTIPLE}"
    return "layout 'paged': this adapter passes no block table on"
