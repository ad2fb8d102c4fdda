"""sdpa-math and sdpa-flash: torch's scaled_dot_product_attention, each held to one of its kernels.

`sdpa_kernel` allows that kernel alone, so that torch raises RuntimeError ("No available kernel")
where it would have taken another. Sequences that differ in length are computed one by one on
narrowed views: nothing is copied, and no kernel needs a mask for them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from kvgauge_kernels.protocol import no_cuda
from kvgauge_kernels.stored import PLAIN_FORMATS
from kvgauge_kernels.torch_ops import FLASH_OPS, MATH_OPS, OTHER_FUSED_OPS
from kvgauge_kernels.view import KVView

_CUDA_HEAD_DIM = 256


class SdpaMath:
    """torch's reference path, not what "without FlashAttention" costs: for that see `eager`.

    It repeats K and V to the number of query heads and, for fp16 and bf16, first converts both to
    fp32: `2 * group` times the cache's bytes are written and read again, group being q_heads over
    kv_heads.
    """

    name = "sdpa-math"
    kernel_ops = MATH_OPS
    forbidden_ops = FLASH_OPS + OTHER_FUSED_OPS
    formats = PLAIN_FORMATS
    layouts = frozenset({"contiguous"})

    def version(self) -> str:
        """torch's."""
        return str(torch.__version__)

    def available(self, device: torch.device) -> str | None:
        """Wherever torch is."""
        return no_cuda(device)

    def supports(self, view: KVView, q_dtype: torch.dtype) -> str | None:
        """Contiguous caches of q's dtype, of whatever head dims."""
        return view.refusal(q_dtype, self.formats)

    def decode(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """See AttentionBackend."""
        return self.prefill(q.unsqueeze(2), view).squeeze(2)

    def prefill(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """See AttentionBackend."""
        view.check(q)
        with sdpa_kernel(SDPBackend.MATH):
            return _joined([_causal(q[rows], part) for rows, part in view.dense()])


class SdpaFlash:
    """torch's own flash kernels, on the CPU and on CUDA; K and V are read where they lie.

    The CPU kernel takes fp32, fp16 and bf16, any head_dim, masks, and grouped heads; it does not
    take k_dim other than v_dim. The CUDA kernel takes fp16 and bf16 on compute capability 8.0 or
    newer, head_dim up to 256, no masks; a head_dim that is no multiple of 8 is refused here,
    because torch would pad a copy of the cache.
    """

    name = "sdpa-flash"
    kernel_ops = FLASH_OPS
    forbidden_ops = (*MATH_OPS, *OTHER_FUSED_OPS, "aten::bmm")
    formats = PLAIN_FORMATS
    layouts = frozenset({"contiguous"})

    def version(self) -> str:
        """torch's."""
        return str(torch.__version__)

    def available(self, device: torch.device) -> str | None:
        """The CPU, and CUDA from compute capability 8.0 on."""
        if device.type == "cpu":
            return None
        if device.type != "cuda":
            return f"torch has no flash kernel for {device.type}"
        reason = no_cuda(device)
        if reason is not None:
            return reason
        if not torch.backends.cuda.is_flash_attention_available():
            return "this torch was built without its flash kernel"
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            return f"compute capability {major}.{minor}: torch's flash kernel needs 8.0 or newer"
        return None

    def supports(self, view: KVView, q_dtype: torch.dtype) -> str | None:
        """Contiguous caches of q's dtype, within the limits of the device's kernel."""
        return view.refusal(q_dtype, self.formats) or flash_limit(
            view.k.device, q_dtype, view.k_dim, view.v_dim
        )

    def decode(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """See AttentionBackend.

        The query heads of one K/V head go in as that many query tokens: all see the whole cache, so
        it is the same sum, and the CPU kernel reads K and V once for all of them. With enable_gqa it
        reads them once for each: measured 2.5 to 15 times slower.
        """
        group = view.group(q)
        rows = q.reshape(view.batch, view.kv_heads, group, view.k_dim)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            out = _joined(
                [F.scaled_dot_product_attention(rows[i], p.k, p.v) for i, p in view.dense()]
            )
        return out.reshape(*q.shape[:2], view.v_dim)

    def prefill(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """See AttentionBackend.

        Where 1 < q_tokens < tokens the CPU kernel reads a mask of `q_tokens * tokens` elements.
        """
        view.check(q)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return _joined([_flash_causal(q[rows], part) for rows, part in view.dense()])


def flash_limit(device: torch.device, dtype: torch.dtype, k_dim: int, v_dim: int) -> str | None:
    """What keeps torch's flash kernel of that device from these tensors; None where nothing does."""
    if k_dim != v_dim:
        return f"k_dim {k_dim} and v_dim {v_dim}: torch's flash kernels need one head_dim"
    if device.type != "cuda":
        return None
    if dtype not in (torch.float16, torch.bfloat16):
        return f"{dtype}: torch's flash kernel on CUDA takes float16 and bfloat16"
    if k_dim > _CUDA_HEAD_DIM:
        return f"head_dim {k_dim}: torch's flash kernel on CUDA takes up to {_CUDA_HEAD_DIM}"
    if k_dim % 8:
        return f"head_dim {k_dim}: no multiple of 8, so torch would pad a copy of the cache"
    return None


def _causal(q: torch.Tensor, view: KVView) -> torch.Tensor:
    """Causal attention over a view of equally long sequences, by the kernel that is allowed."""
    q_tokens = q.shape[2]
    square = q_tokens == view.tokens
    # is_causal counts from the first token of both, which is the cache's order only where all of
    # its tokens are queries; a single query sees everything.
    mask = None if square or q_tokens == 1 else view.visible(q_tokens)
    return F.scaled_dot_product_attention(
        q, view.k, view.v, attn_mask=mask, is_causal=square and q_tokens > 1, enable_gqa=True
    )


def _flash_causal(q: torch.Tensor, view: KVView) -> torch.Tensor:
    if q.device.type != "cuda" or q.shape[2] in (1, view.tokens):
        return _causal(q, view)
    # The CUDA kernel takes no mask, and means by causal what we mean: the last query sees all
    # tokens. scaled_dot_product_attention refuses that call, so it goes to the operator itself, as
    # in torch.nn.attention.bias (whose causal_lower_right fails under a TorchDispatchMode).
    out: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention(
        q, view.k, view.v, 0.0, True, scale=view.k_dim**-0.5
    )[0]
    return out


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
