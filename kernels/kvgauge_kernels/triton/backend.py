"""triton: this project's decode kernels for GPUs as a backend."""

from __future__ import annotations

import importlib.util
from importlib import metadata

import torch

from kvgauge_kernels.torch_prefill import prefill_by_torch
from kvgauge_kernels.triton import launch
from kvgauge_kernels.view import SDPA_OPS, KVView, no_cuda

_DIM_STEP, _MAX_DIM = 16, 256
_Q_DTYPES = (torch.float16, torch.bfloat16)
# V of an int8 cache is read as words of four elements.
_WORD_ELEMENTS = 4


class TritonBackend:
    """Split-KV decode attention in Triton: the cache is read once, as it is stored.

    The query heads of a group are the rows of one matrix product; above 16 of them the cache is read
    again for each 16. An int8 cache is dequantized in registers. Memory past a sequence's length, and
    pages that no sequence uses, may hold anything. A cache whose rows are no multiple of 16 elements
    apart is read by narrower instructions.

    Prefill is torch's: sdpa-flash, or sdpa-math where the K and V dims differ, over a copy where the
    cache is paged or int8.
    """

    name = "triton"
    kernel_ops = (launch.OP,)
    forbidden_ops = SDPA_OPS
    formats = frozenset({"fp16", "bf16", "int8"})
    layouts = frozenset({"contiguous", "paged"})

    def version(self) -> str:
        """This package's and triton's, and the hash of the machine code that ran last, as limits.json has it.

        Raises PackageNotFoundError where triton is absent.
        """
        try:
            package = metadata.version("kvgauge")
        except metadata.PackageNotFoundError:
            package = "(a checkout)"
        code = launch.last_code_hash()
        ran = f", code {code}" if code else ""
        return f"kvgauge {package}, triton {metadata.version('triton')}{ran}"

    def available(self, device: torch.device) -> str | None:
        """A GPU of compute capability 8.0 or newer (or AMD's), with triton; a CPU by the interpreter."""
        reason = no_cuda(device)
        if reason is not None:
            return reason
        if device.type not in ("cuda", "cpu"):
            return f"these kernels run on a GPU, not on {device.type}"
        if importlib.util.find_spec("triton") is None:
            return "package triton is absent: `pip install triton`, the version that torch asks for"
        if device.type == "cpu":
            if launch.interpreted():
                return None
            return "these kernels run on a GPU, on a CPU under TRITON_INTERPRET=1 alone"
        major, minor = torch.cuda.get_device_capability(device)
        if not torch.version.hip and major < 8:
            return f"compute capability {major}.{minor}: these kernels need 8.0 or newer"
        return None

    def supports(self, view: KVView, q_dtype: torch.dtype) -> str | None:
        """fp16, bf16 and int8, both layouts, any page size, head dims in multiples of 16 up to 256."""
        refusal = view.refusal(q_dtype, self.formats, self.layouts)
        if refusal is not None:
            return refusal
        for dim in (view.k_dim, view.v_dim):
            if dim % _DIM_STEP or not 0 < dim <= _MAX_DIM:
                return f"head_dim {dim}: triton takes multiples of {_DIM_STEP} up to {_MAX_DIM}"
        if q_dtype not in _Q_DTYPES:
            return f"queries of {q_dtype}: triton takes fp16 and bf16"
        return _int8_refusal(view) if view.format == "int8" else None

    def decode(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """See AttentionBackend.

        Lengths that differ from each other go to the GPU once, as a small int32 tensor. A CUDA graph is
        captured after a call with the same lengths; its replays read as many tokens as then.
        """
        view.group(q)
        reason = self.available(q.device) or self.supports(view, q.dtype)
        if reason is not None:
            raise ValueError(f"backend {self.name}: {reason}")
        if q.stride(2) != 1:
            q = q.contiguous()
        table = view.block_table
        if table is not None and table.stride(1) != 1:
            table = table.contiguous()
        out: torch.Tensor = torch.ops.kvgauge.triton_decode(
            q, view.k, view.v, view.k_scale, view.v_scale, table, view.lengths
        )
        return out

    def prefill(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """See AttentionBackend; torch's sdpa-flash or sdpa-math."""
        return prefill_by_torch(q, view)


def _int8_refusal(view: KVView) -> str | None:
    scales = (view.k_scale, view.v_scale)
    if view.k.dtype != torch.int8 or any(s is None or s.dtype != torch.float16 for s in scales):
        return "int8 caches need elements of int8 and scales of float16"
    if view.v.data_ptr() % _WORD_ELEMENTS or any(s % _WORD_ELEMENTS for s in view.v.stride()[:3]):
        return f"int8 rows of V that start at no multiple of {_WORD_ELEMENTS} bytes"
    return None
