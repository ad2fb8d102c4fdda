"""reference: attention in float64, what every other backend is checked against.

One K/V head of one sequence at a time, and few queries at a time: beside the cache there is never
more than that head's K and V in float64 and 128 MiB of scores, also at 128k tokens.
"""

from __future__ import annotations

import torch

from kvgauge_kernels.protocol import no_cuda
from kvgauge_kernels.stored import STORED_FORMATS, numbers, numbers_of_k
from kvgauge_kernels.torch_ops import SDPA_OPS
from kvgauge_kernels.view import KVView

_SCORES = 2**24  # float64 scores held at once


class Reference:
    """The float64 oracle as a backend: exact, slow, and not for timing."""

    name = "reference"
    kernel_ops = ("aten::mm",)
    forbidden_ops = SDPA_OPS
    formats = frozenset(STORED_FORMATS)
    layouts = frozenset({"contiguous", "paged"})

    def version(self) -> str:
        """torch's."""
        return str(torch.__version__)

    def available(self, device: torch.device) -> str | None:
        """Wherever torch computes in float64."""
        return "the device has no float64" if device.type == "mps" else no_cuda(device)

    def supports(self, view: KVView, q_dtype: torch.dtype) -> str | None:
        """Either layout, whatever head dims; queries of the cache's dtype where it is plain."""
        return view.refusal(q_dtype, self.formats, ("contiguous", "paged"), windows=True)

    def decode(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """`oracle_decode`, rounded once to q's dtype."""
        return oracle_decode(q, view).to(q.dtype)

    def prefill(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """`oracle_prefill`, rounded once to q's dtype."""
        return oracle_prefill(q, view).to(q.dtype)


def oracle_decode(q: torch.Tensor, view: KVView) -> torch.Tensor:
    """`AttentionBackend.decode` in float64: q `[batch, q_heads, k_dim]` to `[batch, q_heads, v_dim]`.

    q in any dtype; quantized caches are dequantized in float64. Raises ValueError where q does not
    belong to the view.
    """
    return oracle_prefill(q.unsqueeze(2), view).squeeze(2)


def oracle_prefill(q: torch.Tensor, view: KVView) -> torch.Tensor:
    """`AttentionBackend.prefill` in float64, as `oracle_decode`."""
    group, q_tokens = view.group(q), q.shape[2]
    out = torch.empty((*q.shape[:3], view.v_dim), dtype=torch.float64, device=q.device)
    for b in range(view.batch):
        n = view.length(b)
        step = max(1, _SCORES // (group * n))
        for h in range(view.kv_heads):
            k = numbers_of_k(*_of_head(view, "k", b, h), view.format, torch.float64)
            v = numbers(*_of_head(view, "v", b, h), view.format, torch.float64)
            heads = slice(h * group, (h + 1) * group)
            for first in range(0, q_tokens, step):
                rows = slice(first, first + step)
                seen = n - q_tokens + first + 1
                out[b, heads, rows] = _attend(q[b, heads, rows].double(), k, v, seen, view)
    return out


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: int, view: KVView
) -> torch.Tensor:
    """q `[group, rows, k_dim]`; row i sees the first `seen + i` of k `[n, k_dim]`, v `[n, v_dim]`.

    Of those what the view's window leaves.
    """
    scores = torch.matmul(q * k.shape[1] ** -0.5, k.T)
    last = seen - 1 + torch.arange(q.shape[1], device=q.device)[:, None]
    positions = torch.arange(k.shape[0], device=q.device)
    hidden = positions > last
    if view.window is not None:
        hidden |= (positions <= last - view.window) & (positions >= view.sink_tokens)
    return torch.matmul(scores.masked_fill_(hidden, float("-inf")).softmax(dim=-1), v)


def _of_head(
    view: KVView, name: str, b: int, h: int
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Rows `[tokens, ...]` of K or V, their scales and their zeros."""
    held = view.tensors()

    def rows(side: str) -> torch.Tensor | None:
        return view.rows(side, b, slice(h, h + 1))[0] if side in held else None

    return view.rows(name, b, slice(h, h + 1))[0], rows(f"{name}_scale"), rows(f"{name}_zero")
