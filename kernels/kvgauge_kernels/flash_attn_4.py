"""flash-attn-4: FlashAttention 4, written in CuTe DSL, through `flash_attn.cute.flash_attn_varlen_func`.

https://github.com/Dao-AILab/flash-attention, the package flash-attn-4; called as version 4.0.0b36 takes
it. Never run on a GPU by this project yet. Kernels are compiled at first use.
"""

from __future__ import annotations

import torch

from kvgauge_kernels.cuda_package import CudaPackage
from kvgauge_kernels.torch_ops import SDPA_OPS
from kvgauge_kernels.triton.lengths import on_device
from kvgauge_kernels.view import KVView

_SM90_DIM = 256
# Elsewhere: one head_dim up to 128, or DeepSeek's.
_DIM, _DEEPSEEK = 128, (192, 128)


_PACKAGE = CudaPackage(
    "flash-attn-4", "flash_attn.cute", "flash_attn_varlen_func", (9, 10, 11),
    "is called here on 9, 10, 11", "`pip install --pre flash-attn-4`",
)  # fmt: skip


class FlashAttn4:
    """The package's forward kernel with one query token a sequence; it packs the query heads of a group.

    It does not split a sequence over the GPU (on sm_90 it cannot): few long sequences leave most of a
    large GPU idle, and that is what is measured. It passes through no torch operator: kernel_ops is
    empty.
    """

    name = "flash-attn-4"
    kernel_ops: tuple[str, ...] = ()
    forbidden_ops = (*SDPA_OPS, "aten::bmm")
    formats = frozenset({"fp16", "bf16"})
    layouts = frozenset({"contiguous", "paged"})

    def version(self) -> str:
        """flash-attn-4's; raises PackageNotFoundError where it is absent."""
        from importlib import metadata

        return metadata.version("flash-attn-4")

    def available(self, device: torch.device) -> str | None:
        """A CUDA device of compute capability 9, 10 or 11, and the package."""
        return _PACKAGE.why_not(device)

    def supports(self, view: KVView, q_dtype: torch.dtype) -> str | None:
        """fp16 and bf16, both layouts, head dims in multiples of 8 within the device's limits."""
        refusal = view.refusal(q_dtype, self.formats, self.layouts)
        if refusal is not None:
            return refusal
        dims = (view.k_dim, view.v_dim)
        if any(dim % 8 for dim in dims):
            return f"k_dim {dims[0]} and v_dim {dims[1]}: {self.name} takes multiples of 8"
        if _capability(view.k.device) == 9:
            if max(dims) > _SM90_DIM:
                return f"k_dim {dims[0]} and v_dim {dims[1]}: {self.name} takes up to {_SM90_DIM}"
        elif max(dims) > _DIM and dims != _DEEPSEEK:
            return f"k_dim {dims[0]} and v_dim {dims[1]}: {self.name} takes up to {_DIM} here"
        return None

    def decode(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """See AttentionBackend; a CUDA graph is captured after a call with the same lengths."""
        from flash_attn.cute import flash_attn_varlen_func

        view.group(q)
        ragged = view.ragged or view.layout == "paged"
        lengths = view.lengths or (view.tokens,) * view.batch
        # The package puts tokens before heads, in whatever strides: transposing copies nothing.
        found = flash_attn_varlen_func(
            q.unsqueeze(1),
            view.k.transpose(1, 2),
            view.v.transpose(1, 2),
            seqused_k=on_device(lengths, q.device) if ragged else None,
            page_table=view.block_table,
            softmax_scale=view.k_dim**-0.5,
            causal=False,
            num_splits=1,
        )
        # Some versions return the logarithms of the sums beside the result.
        out: torch.Tensor = found[0] if isinstance(found, tuple) else found
        return out.squeeze(1)

    def prefill(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """This adapter decodes only; raises ValueError."""
        raise ValueError(
            f"backend {self.name}: it decodes only, q {list(q.shape)} over {view.batch}"
        )


def _capability(device: torch.device) -> int:
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 9
