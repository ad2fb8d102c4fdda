"""triton: this project's decode kernels for GPUs as a backend."""

from __future__ import annotations

import importlib
import importlib.util
from importlib import metadata
from typing import Any

import torch

from kvgauge_kernels.compiling import constant_when_compiled
from kvgauge_kernels.protocol import no_cuda
from kvgauge_kernels.stored import FLOAT8_DTYPE, GROUPED_BITS
from kvgauge_kernels.torch_ops import SDPA_OPS
from kvgauge_kernels.torch_prefill import prefill_by_torch
from kvgauge_kernels.triton import launch
from kvgauge_kernels.triton.refusals import dims_refusal, quantized_refusal
from kvgauge_kernels.view import KVView

_Q_DTYPES = (torch.float16, torch.bfloat16)


class TritonBackend:
    """Split-KV decode attention in Triton: the cache is read once, as it is stored.

    The query heads of a group are the rows of one matrix product; above 16 of them the cache is read
    again for each 16. Of MLA's latents of 512 and 64 one load serves K and V; of other caches whose V
    lies in K's rows V is loaded by itself. A quantized cache is dequantized in registers: int8, fp8 (by
    shifts, on every GPU alike), int4 and int2 of the head dims and groups that are audited (configs.py).
    Of a sliding window the tokens between it and the sinks are not read. Memory past a sequence's length,
    and pages that no sequence uses, may hold anything. A cache whose rows are no multiple of 16 bytes
    apart is read by narrower instructions; packed ones are refused.

    Prefill is torch's: sdpa-flash, or sdpa-math where the K and V dims differ, over a copy where the
    cache is paged or quantized.
    """

    name = "triton"
    kernel_ops = (launch.OP,)
    forbidden_ops = SDPA_OPS
    formats = frozenset({"fp16", "bf16", "int8", *FLOAT8_DTYPE, *GROUPED_BITS})
    layouts = frozenset({"contiguous", "paged"})

    def version(self) -> str:
        """This package's and triton's; of the last launch its configuration and where that came from, and
        the hash of its machine code, as limits.json has it.

        Raises PackageNotFoundError where triton is absent.
        """
        try:
            package = metadata.version("kvgauge")
        except metadata.PackageNotFoundError:
            package = "(a checkout)"
        code = launch.last_code_hash()
        config = launch.last_config()
        ran = f", config {config}" if config else ""
        ran += f", code {code}" if code else ""
        return f"kvgauge {package}, triton {metadata.version('triton')}{ran}"

    def available(self, device: torch.device) -> str | None:
        """A GPU of compute capability 8.0 or newer (or AMD's), with triton; a CPU by the interpreter."""
        return _why_not(device)

    def supports(self, view: KVView, q_dtype: torch.dtype) -> str | None:
        """Every format but fp32, both layouts, windows, head dims in multiples of 16 up to 256.

        Of MLA's latents of 512 and 64 fp16 and bf16, without a window.
        """
        refusal = view.refusal(q_dtype, self.formats, self.layouts, windows=True) or dims_refusal(
            view
        )
        if refusal is not None:
            return refusal
        if q_dtype not in _Q_DTYPES:
            return f"queries of {q_dtype}: triton takes fp16 and bf16"
        return quantized_refusal(view) if view.k.element_size() == 1 else None

    def decode(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """See AttentionBackend.

        Lengths that differ from each other go to the GPU once, as a small int32 tensor. A CUDA graph is
        captured after a call with the same lengths; its replays read as many tokens as then.
        """
        out: torch.Tensor = torch.ops.kvgauge.triton_decode(*self._arguments(q, view))
        return out

    def decode_part(self, q: torch.Tensor, view: KVView) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention over a part of each sequence, to be merged with that over the rest (`parts.py`).

        The result in fp32 `[batch, q_heads, v_dim]`, and of each query head the natural logarithm of the
        sum of its exponentiated scores, fp32 `[batch, q_heads]`. q, graphs and errors as in `decode`.
        """
        out: tuple[torch.Tensor, torch.Tensor] = torch.ops.kvgauge.triton_decode_part(
            *self._arguments(q, view)
        )
        return out

    def _arguments(self, q: torch.Tensor, view: KVView) -> tuple[Any, ...]:
        view.group(q)
        reason = self.available(q.device) or self.supports(view, q.dtype)
        if reason is not None:
            raise ValueError(f"backend {self.name}: {reason}")
        if q.stride(2) != 1:
            q = q.contiguous()
        table = view.block_table
        if table is not None and table.stride(1) != 1:
            table = table.contiguous()
        return (
            q, view.k, view.v, view.k_scale, view.v_scale, view.k_zero, view.v_zero, table,
            view.lengths, view.format, view.window, view.sink_tokens,
        )  # fmt: skip

    def prefill(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """See AttentionBackend; torch's sdpa-flash or sdpa-math."""
        return prefill_by_torch(q, view)


@constant_when_compiled
def _why_not(device: torch.device) -> str | None:
    reason = no_cuda(device)
    if reason is not None:
        return reason
    if device.type not in ("cuda", "cpu"):
        return f"these kernels run on a GPU, not on {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "package triton is absent: `pip install triton`, the version that torch asks for"
    try:
        importlib.import_module("kvgauge_kernels.triton.kernels")
    except (ImportError, AttributeError, OSError) as error:
        return f"triton is installed but does not load: {error}"
    if device.type == "cpu":
        if launch.interpreted():
            return None
        return "these kernels run on a GPU, on a CPU under TRITON_INTERPRET=1 alone"
    major, minor = torch.cuda.get_device_capability(device)
    if not torch.version.hip and major < 8:
        return f"compute capability {major}.{minor}: these kernels need 8.0 or newer"
    return None
