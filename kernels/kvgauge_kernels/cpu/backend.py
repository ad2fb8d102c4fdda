"""cpu and cpu-q8: the native kernels as backends, and as the torch operator that proves them."""

from __future__ import annotations

from functools import cache
from importlib import import_module, metadata
from types import ModuleType

import torch

from kvgauge_kernels.dequant import dequantized
from kvgauge_kernels.sdpa import SdpaFlash
from kvgauge_kernels.view import PLAIN_FORMATS, SDPA_OPS, KVView

_HEAD_DIMS = (64, 128)
_MAX_GROUP = 16
# As the native code numbers them (native/view.h).
_FORMAT = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3}
_NOT_BUILT = "the native kernels are not built: pip install ., or ./run_all.sh, with a C++ compiler"
_OP = "kvgauge::cpu_decode"


@cache
def native() -> ModuleType | None:
    """The extension module; None where it is not built."""
    try:
        return import_module("kvgauge_kernels.cpu._native")
    except ImportError:
        return None


class CpuBackend:
    """The project's own decode kernels, by the instructions that this CPU has.

    fp32, fp16 and bf16 caches are computed in fp32. Against an int8 cache the query and the
    attention weights are quantized too: to 16 bits in `cpu` (about 4e-5 of error), to 8 bits in
    `cpu-q8` (about 1e-2), which is faster. A level without integer kernels computes in fp32 there.
    Memory past a sequence's length, and pages that no sequence uses, may hold anything.

    Prefill is torch's: it runs through sdpa-flash, over a copy where the cache is paged or int8.
    """

    kernel_ops = (_OP,)
    forbidden_ops = SDPA_OPS

    def __init__(self, int_bits: int = 16) -> None:
        self.name = "cpu" if int_bits == 16 else "cpu-q8"
        self.formats = PLAIN_FORMATS | {"int8"} if int_bits == 16 else frozenset({"int8"})
        self._int_bits = int_bits
        self._prefill = SdpaFlash()

    def version(self) -> str:
        """This package's, and the instructions in use; raises ImportError where it is not built."""
        module = native()
        if module is None:
            raise ImportError(_NOT_BUILT)
        try:
            package = metadata.version("kvgauge")
        except metadata.PackageNotFoundError:
            package = "(a checkout)"
        return f"kvgauge {package}, {module.level()}"

    def available(self, device: torch.device) -> str | None:
        """The CPU, where the kernels are built."""
        if device.type != "cpu":
            return f"these kernels run on the CPU, not on {device.type}"
        return _NOT_BUILT if native() is None else None

    def supports(self, view: KVView, q_dtype: torch.dtype) -> str | None:
        """Head dims 64 and 128, of both layouts."""
        refusal = view.refusal(q_dtype, self.formats, ("contiguous", "paged"))
        if refusal is not None:
            return refusal
        if view.k_dim != view.v_dim:
            return f"k_dim {view.k_dim} and v_dim {view.v_dim}: {self.name} needs one head_dim"
        if view.k_dim not in _HEAD_DIMS:
            return f"head_dim {view.k_dim}: {self.name} has kernels for 64 and 128"
        if q_dtype not in _FORMAT or q_dtype == torch.int8:
            return f"queries of {q_dtype}: {self.name} takes fp32, fp16 and bf16"
        if view.format == "int8" and (view.k.dtype != torch.int8 or not _half_scales(view)):
            return "int8 caches need elements of int8 and scales of float16"
        return None

    def decode(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """See AttentionBackend; raises ValueError above 16 query heads to one K/V head."""
        group = view.group(q)
        if group > _MAX_GROUP:
            raise ValueError(f"{group} query heads to one K/V head: {self.name} takes up to 16")
        reason = self.available(q.device) or self.supports(view, q.dtype)
        if reason is not None:
            raise ValueError(f"backend {self.name}: {reason}")
        if q.stride(2) != 1:
            q = q.contiguous()
        out: torch.Tensor = torch.ops.kvgauge.cpu_decode(
            q,
            view.k,
            view.v,
            view.k_scale,
            view.v_scale,
            view.block_table,
            view.lengths,
            self._int_bits,
        )
        return out

    def prefill(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        """See AttentionBackend; torch's sdpa-flash."""
        view.check(q)
        if view.layout == "contiguous":
            return self._prefill.prefill(q, _plain(view, q.dtype))
        parts = (
            self._prefill.prefill(q[i : i + 1], _plain(view.gathered(i), q.dtype))
            for i in range(view.batch)
        )
        return torch.cat(list(parts))


def _half_scales(view: KVView) -> bool:
    scales = (view.k_scale, view.v_scale)
    return all(scale is not None and scale.dtype == torch.float16 for scale in scales)


def _plain(view: KVView, dtype: torch.dtype) -> KVView:
    return dequantized(view, dtype) if view.format == "int8" else view


def _cpu_decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    block_table: torch.Tensor | None,
    lengths: list[int] | None,
    int_bits: int,
) -> torch.Tensor:
    module = native()
    if module is None:
        raise ImportError(_NOT_BUILT)
    batch, q_heads, head_dim = q.shape
    kv_heads = k.shape[1]
    pages = (0, 0, 0, 0, 0)
    room = k.shape[2]
    if block_table is not None:
        if block_table.stride(1) != 1:
            block_table = block_table.contiguous()
        pages = (
            block_table.data_ptr(), block_table.shape[1], block_table.stride(0), k.shape[0], room
        )  # fmt: skip
        room *= block_table.shape[1]
    if lengths is None:
        lengths = [room] * batch
    elif max(lengths) > room:
        raise ValueError(f"lengths must be at most {room}: {lengths}")
    out = torch.empty(batch, q_heads, head_dim, dtype=q.dtype)
    module.decode(
        _FORMAT[k.dtype],
        _FORMAT[q.dtype],
        int_bits,
        (batch, kv_heads, q_heads // kv_heads, head_dim),
        (q.data_ptr(), q.stride(0), q.stride(1), out.data_ptr()),
        _address(k),
        _address(v),
        _address(k_scale),
        _address(v_scale),
        pages,
        lengths,
    )
    return out


def _address(tensor: torch.Tensor | None) -> tuple[int, int, int, int]:
    if tensor is None:
        return (0, 0, 0, 0)
    outer, head, token = tensor.stride()[:3]
    return (tensor.data_ptr(), outer, head, token)


def _like_query(q: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


# torch.library.custom_op would do this in one decorator and add tens of microseconds to a call.
_library = torch.library.Library("kvgauge", "FRAGMENT")
_library.define(
    "cpu_decode(Tensor q, Tensor k, Tensor v, Tensor? k_scale, Tensor? v_scale, "
    "Tensor? block_table, int[]? lengths, int int_bits) -> Tensor"
)
_library.impl("cpu_decode", _cpu_decode, "CPU")
torch.library.register_fake(_OP, _like_query, lib=_library)
