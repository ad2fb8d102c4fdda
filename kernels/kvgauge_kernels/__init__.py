"""Attention over a KV cache, by kernels that can be named and checked.

`decode(q, KVView(k, v, "bf16"), backend="sdpa-flash")` is the whole of it.
"""

from kvgauge_kernels.api import BACKENDS, backend, decode, prefill
from kvgauge_kernels.reference import oracle_decode, oracle_prefill
from kvgauge_kernels.view import AttentionBackend, KVView

__all__ = [
    "BACKENDS",
    "AttentionBackend",
    "KVView",
    "backend",
    "decode",
    "oracle_decode",
    "oracle_prefill",
    "prefill",
]
