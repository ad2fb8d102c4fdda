"""decode: time the attention of one decode step over `layers_timed` layers, by every backend.

Scope `attention`: the cache stands as it is at that depth, each layer with tensors of its own, read
once a step. Compared with the floor (the bytes over the probe's read bandwidth) and checked first:
output against the float64 oracle, the kernel that ran, bytes, physics.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import torch

from kvgauge.caches.layouts import allocate_for
from kvgauge.devices.types import Device
from kvgauge.formats import kv_format
from kvgauge.formula.moved import Operation, decode_operations, total_bytes, total_flops
from kvgauge.measure.validity import bytes_fault
from kvgauge.schema import BackendRef, CacheState, Criterion, Launch, Measurement, Prediction
from kvgauge.suites.proof import Expected, Work, expect, prove, prove_again
from kvgauge.suites.timing import Timed, timed_outcome
from kvgauge.suites.types import (
    CellPlan,
    Context,
    Outcome,
    Request,
    cell_kv_bytes,
    does_not_fit,
    trace_cell,
)
from kvgauge_kernels import BACKENDS, AttentionBackend, KVView
from kvgauge_kernels.stored import PLAIN_DTYPE, stored_as

# What a quantized cache is computed in: the dtype that present models are trained in.
COMPUTE_DTYPE_OF_QUANTIZED = torch.bfloat16
# Measured on a CPU where --backend names it, and not checked by the self-test there.
BY_NAME_ON_CPU = {"flex-attention": "compiles each shape for seconds on a CPU: name it to have it"}
_COMPILE_S = 10.0
# The oracle is for checking, not for timing.
_NOT_TIMED = frozenset({"reference"})
_MAX_SETS = 64
# Names of templates run to thousands of characters.
_MAX_KERNEL_NAME, _MAX_KERNELS = 120, 4
_SET_UP_S = 0.3  # filling as many sets as a last-level cache holds, and the probe
_ASSUMED_BYTES_PER_S = {"cpu": 3e9, "cuda": 1e12}


class Decode:
    """Seconds of one decode step's attention."""

    name = "decode"

    def __init__(self) -> None:
        self._expected: tuple[tuple[str, int], Expected] | None = None

    def backends(self) -> tuple[str, ...]:
        """All but the oracle."""
        return tuple(name for name in BACKENDS if _timed(name))

    def missing(self, device_kind: str, named: Collection[str] = ()) -> dict[str, str]:
        """Backends that this machine cannot run, of the named ones where some are named; and where none
        are, those measured by name alone.
        """
        device = torch.device(device_kind)
        by_name = BY_NAME_ON_CPU if device_kind == "cpu" else {}
        reasons = {
            name: b.available(device) or (None if name in named else by_name.get(name))
            for name, b in BACKENDS.items()
            if _timed(name) and (not named or name in named)
        }
        return {name: reason for name, reason in reasons.items() if reason is not None}

    def takes(self) -> str:
        """What its backends read."""
        return "every model, by backends that read the format and the layout"

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
                    cache_state=cache_state,
                    launch=launch,
                    **layout,
                ),
                shape,
            )
            for shape in request.models
            for batch in request.batches
            for trace in request.traces
            for fmt in request.kv_formats
            for layout in request.layouts()
            for name in names
            if name in BACKENDS
            and stored_as(fmt).base in BACKENDS[name].formats
            and layout.get("layout", "contiguous") in BACKENDS[name].layouts
            for cache_state in request.cache_states
            for launch in request.launches
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
        set_up_s = _SET_UP_S + (_COMPILE_S if plan.cell.backend == "flex-attention" else 0.0)
        return (
            set_up_s + 0.05 + 10 * step_s + max(criterion.budget_s, criterion.min_samples * step_s)
        )

    def measure(self, plan: CellPlan, context: Context) -> Outcome:
        """Prove the cell, then time it."""
        cell, predicted = plan.cell, self.predict(plan)
        backend = BACKENDS[cell.backend or ""]
        device = context.device
        reason = backend.available(device.torch_device)
        if reason is not None:
            return Outcome("unsupported", predicted, "backend_unavailable", reason)
        if cell.launch == "graph" and device.ref.kind != "cuda":
            return Outcome("unsupported", predicted, "no_graph", "CUDA graphs need a CUDA device")
        sets = input_sets(predicted.kv_bytes, device.last_level_cache_bytes, cell.cache_state)
        needed_bytes = sets * predicted.kv_bytes + _scratch_bytes(plan)
        full = does_not_fit(needed_bytes, context, predicted)
        if full is not None:
            return full
        with context.phases("fill"):
            work, cache_bytes = input_work(plan, context, backend, sets)
        reasons = (backend.supports(view, q.dtype) for q, view in work[0].layers)
        reason = next((r for r in reasons if r is not None), None)
        if reason is not None:
            return Outcome("unsupported", predicted, "not_supported", reason)
        steps = [_launched(each, cell.launch, device) for each in work]
        with context.phases("check"):
            expected = self._expect(plan, context, work[0])
            proof = prove(work[0], expected)
            kernel_s = device.kernel_seconds(work[0].step)
        proven = Measurement(kv_bytes=cache_bytes, max_error=proof.error, kernel_s=kernel_s)
        ref = BackendRef(backend.name, backend.version(), _kernel_names(kernel_s) or proof.kernel)
        fault = bytes_fault(cache_bytes, predicted.kv_bytes) or proof.fault
        if fault:
            return Outcome(
                "invalid", predicted, fault.code, fault.reason, measured=proven, backend=ref
            )

        def after() -> Expected:
            # The first set was proved before; of several the last one is asked afterwards.
            return expected if len(work) == 1 else expect(work[-1])

        timed = Timed(
            steps=steps,
            operations=_operations(plan),
            cache_state=cell.cache_state,
            integers=cell.kv_format.startswith(("int", "kivi")),
            prove_again=lambda step_s: prove_again(work[-1], steps[-1], after(), step_s),
        )
        return timed_outcome(timed, context, predicted, proven, ref)

    def _expect(self, plan: CellPlan, context: Context, work: Work) -> Expected:
        """What the oracle says: of cells that differ in backend alone the same, so it is asked once."""
        cell = replace(plan.cell, backend=None, cache_state="cold", launch="stream")
        key = (cell.cell_id, context.seed)
        if self._expected is None or self._expected[0] != key:
            self._expected = (key, expect(work))
        return self._expected[1]


def _operations(plan: CellPlan) -> tuple[Operation, ...]:
    cell = plan.cell
    return decode_operations(
        plan.shape,
        cell.depth_tokens,
        kv_format(cell.kv_format),
        batch=cell.batch,
        layers_timed=cell.layers_timed,
    )


def _launched(work: Work, launch: Launch, device: Device) -> Callable[[], list[torch.Tensor]]:
    graph = device.captured(work.step) if launch == "graph" else None
    return graph or work.step


def _kernel_names(kernel_s: dict[str, float] | None) -> str | None:
    """The kernels that ran, the longest first."""
    names = sorted(kernel_s or (), key=lambda name: -(kernel_s or {})[name])
    return ", ".join(name[:_MAX_KERNEL_NAME] for name in names[:_MAX_KERNELS]) or None


def input_sets(set_bytes: int, cache_bytes: int, cache_state: CacheState) -> int:
    """How many sets of the same work: together the last-level cache cannot hold them.

    Reading a large buffer alone leaves half of a small set where it was: caches resist a single pass.
    """
    return 1 if cache_state == "hot" else min(_MAX_SETS, max(1, -(-cache_bytes // set_bytes)))


def input_work(
    plan: CellPlan, context: Context, backend: AttentionBackend, sets: int
) -> tuple[list[Work], int]:
    """Input sets with caches and queries of their own, and the bytes of one set's cache."""
    generator = torch.Generator().manual_seed(context.seed)
    work, cache_bytes = [], 0
    for _ in range(sets):
        layers = plan.shape.layers[: plan.cell.layers_timed]
        cache = allocate_for(plan.cell, layers, context.device.torch_device)
        cache.fill(generator)
        cache_bytes = cache.storage_bytes()
        # Layers may differ in heads and dims: a query for each.
        queries_and_views = tuple(
            (_random_query(plan, layer, cache.view(layer), generator), cache.view(layer))
            for layer in range(cache.layer_count)
        )
        work.append(Work(backend, queries_and_views))
    return work, cache_bytes


def _random_query(
    plan: CellPlan, index: int, view: KVView, generator: torch.Generator
) -> torch.Tensor:
    dtype = PLAIN_DTYPE.get(plan.cell.kv_format, COMPUTE_DTYPE_OF_QUANTIZED)
    heads = plan.shape.layers[index].q_heads
    q = torch.randn(plan.cell.batch, heads, view.k_dim, generator=generator)
    return q.to(dtype).to(view.k.device)


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
