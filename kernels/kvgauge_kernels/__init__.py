"""Attention over a KV cache, by kernels that can be named and checked.

`decode(q, KVView(k, v, "bf16"), backend="sdpa-flash")` is the whole of it; of formats with scales
`quantize` makes the rows (of K `quantize_k`, which differs where K is per channel), and `view_of` the view.
"""

from kvgauge_kernels.api import BACKENDS, backend, decode, prefill
from kvgauge_kernels.protocol import AttentionBackend
from kvgauge_kernels.quantize import quantize, quantize_k, view_of
from kvgauge_kernels.reference import oracle_decode, oracle_prefill
from kvgauge_kernels.view import KVView

__all__ = [
    "BACKENDS",
    "AttentionBackend",
    "KVView",
    "backend",
    "decode",
    "oracle_decode",
    "oracle_prefill",
    "prefill",
    "quantize",
    "quantize_k",
    "view_of",
]
