"""decode: time the attention of one decode step over `layers_timed` layers, by every backend.

Scope `attention`: the cache stands as it is at that depth, each layer with tensors of its own, read
once a step. Compared with the floor (the bytes over the probe's read bandwidth) and checked first:
output against the float64 oracle, the kernel that ran, bytes, physics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from kvgauge.caches.contiguous import STORAGE_DTYPE, ContiguousCache, allocate
from kvgauge.formats import kv_format
from kvgauge.formula.moved import Operation, decode_operations, total_bytes, total_flops
from kvgauge.measure.validity import (
    bytes_fault,
    kernel_fault,
    observe_ops,
    output_fault,
    relative_error,
)
from kvgauge.schema import BackendRef, Criterion, Measurement, Prediction
from kvgauge.suites.timing import timed_outcome
from kvgauge.suites.types import (
    CellPlan,
    Context,
    Outcome,
    Request,
    cell_kv_bytes,
    does_not_fit,
    trace_cell,
)
from kvgauge_kernels import BACKENDS, AttentionBackend, KVView, oracle_decode

# What a quantized cache is computed in: the dtype that present models are trained in.
COMPUTE_DTYPE_OF_QUANTIZED = torch.bfloat16
# The oracle is for checking, not for timing.
_NOT_TIMED = frozenset({"reference"})
_ASSUMED_BYTES_PER_S = {"cpu": 3e9, "cuda": 1e12}


class Decode:
    """Seconds of one decode step's attention."""

    name = "decode"

    def missing(self, device_kind: str) -> dict[str, str]:
        """Backends that this machine cannot run."""
        device = torch.device(device_kind)
        reasons = {name: b.available(device) for name, b in BACKENDS.items() if _timed(name)}
        return {name: reason for name, reason in reasons.items() if reason is not None}

    def plans(self, request: Request) -> Sequence[CellPlan]:
        """Every model, format, batch and depth, by each backend that reads the format.

        A backend that the machine lacks is left out, unless it was asked for by name: then its
        cells are recorded as `unsupported` with the reason.
        """
        missing = self.missing(request.device_kind)
        names = request.backends or tuple(n for n in BACKENDS if _timed(n) and n not in missing)
        return [
            CellPlan(
                replace(
                    trace_cell(self.name, "attention", shape, fmt, trace, batch),
                    backend=name,
                    layers_timed=min(request.layers_timed, len(shape.layers)),
                ),
                shape,
            )
            for shape in request.models
            for batch in request.batches
            for trace in request.traces
            for fmt in request.kv_formats
            for name in names
            if name in BACKENDS and fmt in BACKENDS[name].formats
        ]

    def predict(self, plan: CellPlan) -> Prediction:
        """Bytes and FLOPs of the timed layers."""
        operations = _operations(plan)
        return Prediction(
            kv_bytes=cell_kv_bytes(plan),
            moved_bytes=total_bytes(operations),
            flops=total_flops(operations),
        )

    def estimate_s(self, plan: CellPlan, criterion: Criterion, device_kind: str) -> float:
        """Filling, the oracle, then samples until the budget or the least number of them."""
        step_s = cell_kv_bytes(plan) / _ASSUMED_BYTES_PER_S[device_kind]
        return 0.05 + 10 * step_s + max(criterion.budget_s, criterion.min_samples * step_s)

    def measure(self, plan: CellPlan, context: Context) -> Outcome:
        """Prove the cell, then time it."""
        cell, predicted = plan.cell, self.predict(plan)
        backend = BACKENDS[cell.backend or ""]
        device = context.device
        reason = backend.available(device.torch_device)
        if reason is not None:
            return Outcome("unsupported", predicted, "backend_unavailable", reason)
        full = does_not_fit(predicted.kv_bytes + _scratch_bytes(plan), context, predicted)
        if full is not None:
            return full
        with context.phases("fill"):
            cache = _filled_cache(plan, context)
        # Layers may differ in heads and dims: a query for each.
        queries = [_random_query(plan, layer, context) for layer in range(len(cache.layers))]
        pairs = [(q, cache.view(layer)) for layer, q in enumerate(queries)]
        reasons = (backend.supports(view, q.dtype) for q, view in pairs)
        reason = next((r for r in reasons if r is not None), None)
        if reason is not None:
            return Outcome("unsupported", predicted, "not_supported", reason)
        return _prove_and_time(plan, context, predicted, backend, cache, pairs)


def _prove_and_time(
    plan: CellPlan,
    context: Context,
    predicted: Prediction,
    backend: AttentionBackend,
    cache: ContiguousCache,
    pairs: list[tuple[torch.Tensor, KVView]],
) -> Outcome:
    def step() -> None:
        for q, view in pairs:
            backend.decode(q, view)

    with context.phases("check"):
        seen = observe_ops(step)
        error = max(_error(backend, *pair) for pair in pairs)
    kernel = ", ".join(sorted(seen & set(backend.kernel_ops))) or None
    ref = BackendRef(backend.name, backend.version(), kernel)
    proven = Measurement(kv_bytes=cache.storage_bytes(), max_error=error)
    fault = (
        bytes_fault(proven.kv_bytes or 0, predicted.kv_bytes)
        or kernel_fault(seen, backend.kernel_ops, backend.forbidden_ops)
        or output_fault(proven.max_error or 0.0, pairs[0][0].dtype)
    )
    if fault:
        return Outcome("invalid", predicted, fault.code, fault.reason, measured=proven, backend=ref)
    return timed_outcome(step, context, _operations(plan), predicted, proven, ref)


def _operations(plan: CellPlan) -> tuple[Operation, ...]:
    cell = plan.cell
    return decode_operations(
        plan.shape,
        cell.depth_tokens,
        kv_format(cell.kv_format),
        batch=cell.batch,
        layers_timed=cell.layers_timed,
    )


def _filled_cache(plan: CellPlan, context: Context) -> ContiguousCache:
    cell = plan.cell
    cache = allocate(
        plan.shape.layers[: cell.layers_timed],
        batch=cell.batch,
        tokens=cell.depth_tokens,
        kv_format=cell.kv_format,
        device=context.device.torch_device,
    )
    cache.fill(torch.Generator().manual_seed(context.seed))
    return cache


def _random_query(plan: CellPlan, index: int, context: Context) -> torch.Tensor:
    layer, fmt = plan.shape.layers[index], plan.cell.kv_format
    dtype = COMPUTE_DTYPE_OF_QUANTIZED if kv_format(fmt).quantized else STORAGE_DTYPE[fmt]
    generator = torch.Generator().manual_seed(context.seed + 1)
    q = torch.randn(plan.cell.batch, layer.q_heads, layer.k_dim, generator=generator)
    return q.to(dtype).to(context.device.torch_device)


def _error(backend: AttentionBackend, q: torch.Tensor, view: KVView) -> float:
    """The larger error of two queries: a random one, and one that looks for the last token.

    Among many tokens the last few hardly show in a random query's output; a query along the last
    token's key makes an output that is wrong all over where that token was not read.
    """
    return max(
        relative_error(backend.decode(query, view), oracle_decode(query, view))
        for query in (q, _query_for_last_token(q, view))
    )


def _query_for_last_token(q: torch.Tensor, view: KVView) -> torch.Tensor:
    last = view.k[:, :, -1, :].float()
    if view.k_scale is not None:
        last = last * view.k_scale[:, :, -1].float().unsqueeze(-1)
    return last.repeat_interleave(q.shape[1] // view.kv_heads, dim=1).to(q.dtype)


def _scratch_bytes(plan: CellPlan) -> int:
    """What the hungriest step over one layer takes beside the cache, generously.

    sdpa-math repeats K and V to the query heads in fp32; the others make at most a copy of a layer
    in a wider dtype. The oracle's float64 copy of one head is less.
    """
    cell, layer = plan.cell, plan.shape.layers[0]
    layer_bytes = cell_kv_bytes(plan) // (cell.layers_timed or len(plan.shape.layers))
    group = layer.q_heads // max(1, layer.kv_heads) if cell.backend == "sdpa-math" else 1
    return layer_bytes * 4 * group


def _timed(name: str) -> bool:
    return name not in _NOT_TIMED
