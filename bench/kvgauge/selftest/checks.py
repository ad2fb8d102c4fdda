"""Whether every backend computes rightly here, on small caches of every format and layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from kvgauge.measure.validity import kernel_fault, observe_ops, output_fault, relative_error
from kvgauge.suites.decode import BY_NAME_ON_CPU
from kvgauge_kernels import BACKENDS, AttentionBackend, KVView, oracle_decode
from kvgauge_kernels.quantize import quantize, quantize_k, view_of
from kvgauge_kernels.stored import PLAIN_DTYPE, STORED_FORMATS, stored_as

State = Literal["right", "wrong", "unsupported", "failed"]
_DIMS = ((64, 64), (128, 128), (192, 128))
_KV_HEADS, _GROUP = 2, 4
# Several blocks of every kernel, the last one not full; one sequence is short.
_LENGTHS = (331, 40)
# By name: tokens a page, and whether a step sees a window and sinks alone.
_LAYOUTS = (
    ("contiguous", None, False),
    ("pages of 16", 16, False),
    ("pages of 256", 256, False),
    ("pages of 16, a window", 16, True),
)
_WINDOW, _SINKS = 130, 4


@dataclass(frozen=True, slots=True)
class Check:
    """One backend on one cache."""

    backend: str
    format: str
    layout: str
    k_dim: int
    v_dim: int
    state: State
    error: float | None
    """Largest error against the float64 oracle, relative to the largest output; None where not run."""
    reason: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def left_out(device: torch.device) -> dict[str, str]:
    """The backends that this machine has not, and why."""
    reasons = {name: backend.available(device) for name, backend in BACKENDS.items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def run_checks(
    device: torch.device, seed: int, progress: Callable[[str], None] = lambda _text: None
) -> list[Check]:
    """Every backend that this machine has, on every cache; what it does not support says why."""
    left_out = {"reference", *(BY_NAME_ON_CPU if device.type == "cpu" else ())}
    able = [b for b in BACKENDS.values() if b.available(device) is None and b.name not in left_out]
    checks = []
    for fmt in STORED_FORMATS:
        for layout, page_size, windowed in _LAYOUTS:
            for dims in _DIMS:
                together = stored_as(fmt).k_tokens
                if page_size is not None and page_size % together:
                    said = f"K per channel: a page holds whole groups of {together} tokens"
                    checks += [
                        Check(b.name, fmt, layout, *dims, "unsupported", None, said) for b in able
                    ]
                    continue
                try:
                    view, q = _cache(fmt, dims, page_size, device, seed)
                    if windowed:
                        view = replace(view, window=_WINDOW, sink_tokens=_SINKS)
                    expected = oracle_decode(q, view)
                except Exception as raised:  # a GPU answers nothing more after some faults
                    said = f"the oracle: {_said(raised)}"
                    checks += [
                        Check(b.name, fmt, layout, *dims, "failed", None, said) for b in able
                    ]
                    continue
                for backend in able:
                    progress(f"{backend.name} {fmt} {layout} {dims[0]}x{dims[1]}")
                    state, error, reason = _judged(backend, q, view, expected)
                    checks.append(Check(backend.name, fmt, layout, *dims, state, error, reason))
    return checks


def _judged(
    backend: AttentionBackend, q: torch.Tensor, view: KVView, expected: torch.Tensor
) -> tuple[State, float | None, str | None]:
    outputs: list[torch.Tensor] = []
    try:
        reason = backend.supports(view, q.dtype)
        if reason is not None:
            return "unsupported", None, reason
        seen = observe_ops(lambda: outputs.append(backend.decode(q, view)))
        # A GPU's fault shows where its result is asked for.
        if outputs[0].shape != expected.shape:
            return "wrong", None, f"{list(outputs[0].shape)} instead of {list(expected.shape)}"
        error = relative_error(outputs[0], expected)
    except Exception as raised:  # a kernel that does not run is what this is for
        return "failed", None, _said(raised)
    fault = kernel_fault(seen, backend.kernel_ops, backend.forbidden_ops) or output_fault(
        error, q.dtype
    )
    return ("right", error, None) if fault is None else ("wrong", error, fault.reason)


def _said(raised: Exception) -> str:
    return f"{type(raised).__name__}: {' '.join(str(raised).split())[:300]}"


def _cache(
    fmt: str, dims: tuple[int, int], page_size: int | None, device: torch.device, seed: int
) -> tuple[KVView, torch.Tensor]:
    """A ragged cache of random numbers, zeros past its lengths, and a query."""
    generator = torch.Generator().manual_seed(seed)
    room, batch = max(_LENGTHS), len(_LENGTHS)
    size = page_size or room
    pages = -(-room // size)
    shape = (batch * pages, _KV_HEADS, size)
    table = torch.randperm(batch * pages, generator=generator).view(batch, pages).to(torch.int32)

    def drawn(dim: int) -> torch.Tensor:
        return torch.randn(*shape, dim, generator=generator).to(device)

    k, v = quantize_k(drawn(dims[0]), fmt), quantize(drawn(dims[1]), fmt)
    where: dict[str, Any] = {}
    if page_size is not None:
        where = {"layout": "paged", "page_size": size, "block_table": table.to(device)}
    view = view_of(k, v, fmt, lengths=_LENGTHS, **where)
    q = torch.randn(batch, _KV_HEADS * _GROUP, dims[0], generator=generator)
    dtype = PLAIN_DTYPE.get(fmt, torch.bfloat16)
    return view, q.to(dtype).to(device)
