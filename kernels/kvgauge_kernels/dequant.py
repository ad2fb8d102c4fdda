"""dequant+sdpa: attention over a quantized cache in two passes.

First K and V of the whole layer are dequantized into scratch tensors of q's dtype, then sdpa-flash
reads those. With 2-byte queries an int8 cache is read once, written at twice its size (and once more
in place by the scale) and read again: more traffic than a 2-byte cache needs, so this buys memory
and no speed. A fused kernel would read the quantized cache alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from kvgauge_kernels.sdpa import SdpaFlash, flash_limit
from kvgauge_kernels.stored import (
    CHANNEL_BITS,
    FLOAT8_DTYPE,
    GROUPED_BITS,
    PLAIN_DTYPE,
    numbers,
    numbers_of_k,
)
from kvgauge_kernels.torch_ops import FLASH_OPS
from kvgauge_kernels.view import KVView

_FORMAT_OF = {dtype: name for name, dtype in PLAIN_DTYPE.items()}


class DequantSdpa:
    """Two passes: dequantize, then sdpa-flash.

    The scratch is allocated in each call. On the CPU the page faults of a large one are most of the
    first pass (64 MB: 19 ms, against 4 ms into memory that is there already); no memory stays held.
    """

    name = "dequant+sdpa"
    kernel_ops = FLASH_OPS
    forbidden_ops = SdpaFlash.forbidden_ops
    formats = frozenset({"int8", *GROUPED_BITS, *CHANNEL_BITS, *FLOAT8_DTYPE})
    layouts = frozenset({"contiguous"})

    def __init__(self) -> None:
        self._second_pass = SdpaFlash()

    def version(self) -> str:
        """torch's."""
        return self._second_pass.version()

    def available(self, device: torch.device) -> str | None:
        """Where sdpa-flash is."""
        return self._second_pass.available(device)

    def supports(self, view: KVView, q_dtype: torch.dtype) -> str | None:
        """Contiguous quantized caches, within the limits of sdpa-flash in q's dtype."""
        if q_dtype not in _FORMAT_OF:
            return f"queries of {q_dtype}: it dequantizes to {', '.join(PLAIN_DTYPE)}"
        return view.refusal(q_dtype, self.formats) or flash_limit(
            view.k.device, q_dtype, view.k_dim, view.v_dim
        )

    def decode(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """See AttentionBackend; the scratch is the valid tokens of one layer's K and V."""
        return self._two_passes(self._second_pass.decode, q, view)

    def prefill(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """See AttentionBackend; the scratch is the valid tokens of one layer's K and V."""
        return self._two_passes(self._second_pass.prefill, q, view)

    def _two_passes(
        self,
        attention: Callable[[torch.Tensor, KVView], torch.Tensor],
        q: torch.Tensor,
        view: KVView,
    ) -> torch.Tensor:
        view.check(q)
        return torch.cat(
            [attention(q[rows], dequantized(part, q.dtype)) for rows, part in view.dense()]
        )


def dequantized(view: KVView, dtype: torch.dtype) -> KVView:
    """The same cache in fp32, fp16 or bf16; scales, zero points, products and sums round to it."""
    return KVView(
        numbers_of_k(view.k, view.k_scale, view.k_zero, view.format, dtype),
        numbers(view.v, view.v_scale, view.v_zero, view.format, dtype),
        _FORMAT_OF[dtype],
        lengths=view.lengths,
    )
