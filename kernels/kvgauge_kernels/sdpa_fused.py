"""sdpa-efficient and sdpa-cudnn: torch's other fused kernels on CUDA, each held to that kernel.

As `sdpa-flash`: `sdpa_kernel` allows one kernel alone, and sequences that differ in length are computed
one by one on narrowed views. Never run on a GPU by this project yet.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from kvgauge_kernels.protocol import no_cuda
from kvgauge_kernels.stored import PLAIN_FORMATS
from kvgauge_kernels.torch_ops import SDPA_OPS
from kvgauge_kernels.view import KVView

_LEAST_CAPABILITY = 8


class SdpaFused:
    """One of torch's fused kernels on CUDA; K and V are read where they lie.

    What it takes torch itself is asked, by the check that its own dispatcher makes: so a reason is
    torch's, of the version that is installed.
    """

    layouts = frozenset({"contiguous"})

    def __init__(
        self,
        name: str,
        kernel: SDPBackend,
        op: str,
        formats: frozenset[str],
        can_use: Callable[[Any, bool], bool],
    ) -> None:
        self.name = name
        self.kernel_ops: tuple[str, ...] = (op,)
        self.forbidden_ops = (*(other for other in SDPA_OPS if other != op), "aten::bmm")
        self.formats = formats
        self._kernel = kernel
        self._can_use = can_use

    def version(self) -> str:
        """torch's."""
        return str(torch.__version__)

    def available(self, device: torch.device) -> str | None:
        """CUDA from compute capability 8.0 on."""
        if device.type != "cuda":
            return f"torch has this kernel for CUDA alone, not for {device.type}"
        reason = no_cuda(device)
        if reason is not None:
            return reason
        major, minor = torch.cuda.get_device_capability(device)
        if major < _LEAST_CAPABILITY:
            return f"compute capability {major}.{minor}: {self.name} is asked from 8.0 on"
        return None

    def supports(self, view: KVView, q_dtype: torch.dtype) -> str | None:
        """Contiguous caches of q's dtype that torch says this kernel takes, of one query token.

        The query heads of a group become that many tokens in `decode`; how many a view does not say.
        """
        refusal = view.refusal(q_dtype, self.formats)
        if refusal is not None:
            return refusal
        for _rows, part in view.dense():
            shape = (part.batch, part.kv_heads, 1, part.k_dim)
            q = torch.empty(shape, dtype=q_dtype, device=part.k.device)
            asked = torch.backends.cuda.SDPAParams(q, part.k, part.v, None, 0.0, False, False)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                able = self._can_use(asked, True)
            if not able:
                reasons = "; ".join(" ".join(str(w.message).split()) for w in said)
                return f"torch: {reasons[:300] or 'this kernel does not take these tensors'}"
        return None

    def decode(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """See AttentionBackend.

        The query heads of one K/V head go in as that many query tokens, as in sdpa-flash: all see the
        whole cache.
        """
        group = view.group(q)
        rows = q.reshape(view.batch, view.kv_heads, group, view.k_dim)
        with sdpa_kernel(self._kernel):
            parts = [F.scaled_dot_product_attention(rows[i], p.k, p.v) for i, p in view.dense()]
        return torch.cat(parts).reshape(*q.shape[:2], view.v_dim)

    def prefill(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """This backend decodes only; raises ValueError."""
        raise ValueError(
            f"backend {self.name}: it decodes only, q {list(q.shape)} over {view.batch}"
        )


SDPA_EFFICIENT = SdpaFused(
    "sdpa-efficient",
    SDPBackend.EFFICIENT_ATTENTION,
    "aten::_scaled_dot_product_efficient_attention",
    PLAIN_FORMATS,
    torch.backends.cuda.can_use_efficient_attention,
)
SDPA_CUDNN = SdpaFused(
    "sdpa-cudnn",
    SDPBackend.CUDNN_ATTENTION,
    "aten::_scaled_dot_product_cudnn_attention",
    PLAIN_FORMATS - {"fp32"},
    torch.backends.cuda.can_use_cudnn_attention,
)
