"""model: a real language model generates a real trace; its own cache against the formula.

Scope `engine`: a step is one forward pass of the whole model, weights, append and all. The cache is
transformers' DynamicCache, which copies itself at each append: the floor does not, and the ratio
shows it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from kvgauge.formats import kv_format
from kvgauge.formula.moved import Operation, decode_operations, total_bytes, total_flops
from kvgauge.measure.validity import (
    bytes_fault,
    kernel_fault,
    observe_ops,
    output_fault,
    relative_error,
)
from kvgauge.schema import BackendRef, Cell, Criterion, Measurement, Prediction
from kvgauge.suites.hf_engine import (
    PROMPT_TOKENS,
    WEIGHT_PACKAGES,
    Engine,
    Session,
    missing_packages,
)
from kvgauge.suites.timing import Timed, timed_outcome
from kvgauge.suites.types import CellPlan, Context, Outcome, Request, cell_kv_bytes
from kvgauge_kernels.stored import stored_as

_FUSED_OPS = (
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
)
# Backend to transformers' name of the attention, and the operators that prove it.
_ATTENTION: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "hf-sdpa": ("sdpa", _FUSED_OPS, ()),
    "hf-eager": ("eager", ("aten::_softmax",), _FUSED_OPS),
}
# The formats that a model computes in; a quantized cache is not transformers' default.
_FORMATS = {"cpu": ("fp32",), "cuda": ("fp16",)}
_NATIVE = ("fp32", "fp16", "bf16")
_STEP_S = {"cpu": 0.04, "cuda": 0.02}


class Model:
    """Bytes and tokens a second of a real model."""

    name = "model"

    def __init__(self) -> None:
        self._engines: dict[str, Engine] = {}
        self._session: tuple[tuple[str, ...], Session] | None = None

    def backends(self) -> tuple[str, ...]:
        """Either attention of transformers."""
        return tuple(_ATTENTION)

    def missing(self, device_kind: str, named: Collection[str] = ()) -> dict[str, str]:
        """The suite needs transformers and the weights."""
        del device_kind, named
        reasons = {f"model {name}": missing_packages(name) for name in WEIGHT_PACKAGES}
        return {name: reason for name, reason in reasons.items() if reason is not None}

    def takes(self) -> str:
        """Models with real weights at hand, as `plans` has them."""
        models, formats = ", ".join(WEIGHT_PACKAGES), ", ".join(_NATIVE)
        return f"{models} alone, at batch 1, in {formats}, from {PROMPT_TOKENS} tokens on"

    def plans(self, request: Request) -> Sequence[CellPlan]:
        """The depths in rising order for each model, format and attention: one trace, visited.

        One request at a time, and no depth within the prompt: other choices have no cell here.
        """
        if self.missing(request.device_kind) or 1 not in request.batches:
            return []
        asked = tuple(f for f in request.kv_formats if f in _NATIVE)
        formats = asked if request.explicit_formats else _FORMATS[request.device_kind]
        backends = [n for n in _ATTENTION if not request.backends or n in request.backends]
        depths = sorted({t.depth_tokens for t in request.traces if t.depth_tokens >= PROMPT_TOKENS})
        return [
            CellPlan(_cell(shape.name, shape.shape_id, fmt, backend, depth), shape)
            for shape in request.models
            if shape.name in WEIGHT_PACKAGES
            for fmt in formats
            for backend in backends
            for depth in depths
        ]

    def predict(self, plan: CellPlan) -> Prediction:
        """Cache, weights and the appended token."""
        operations = _operations(plan)
        return Prediction(
            kv_bytes=cell_kv_bytes(plan),
            moved_bytes=total_bytes(operations),
            flops=total_flops(operations),
        )

    def estimate_s(self, plan: CellPlan, criterion: Criterion, device_kind: str) -> float:
        """Generation up to the depth, counted as if from the one before it at half the depth."""
        steps = plan.cell.depth_tokens / 2 + criterion.min_samples
        return 1 + steps * _STEP_S[device_kind] + criterion.budget_s

    def measure(self, plan: CellPlan, context: Context) -> Outcome:
        """Go on with the trace to the depth, prove the step, time it."""
        cell, predicted = plan.cell, self.predict(plan)
        _name, expected, forbidden = _ATTENTION[cell.backend or ""]
        with context.phases("fill"):
            session = self._session_for(plan, context)
        with context.phases("generate"):
            session.advance_to(cell.depth_tokens)
        cache_bytes = session.cache_bytes()
        with context.phases("check"):
            seen = observe_ops(session.step)
            error = relative_error(session.step(), session.uncached_logits().double())
        proven = Measurement(kv_bytes=cache_bytes, max_error=error)
        kernel = ", ".join(sorted(seen & set(expected))) or None
        version = f"transformers {self._engines[cell.model].version()}"
        ref = BackendRef(cell.backend or "", version, kernel)
        fault = (
            bytes_fault(cache_bytes, predicted.kv_bytes)
            or kernel_fault(seen, expected, forbidden)
            or output_fault(error, stored_as(cell.kv_format).dtype)
        )
        if fault:
            return Outcome(
                "invalid", predicted, fault.code, fault.reason, measured=proven, backend=ref
            )
        timed = Timed([session.step], _operations(plan), tokens_per_step=1)
        return timed_outcome(timed, context, predicted, proven, ref)

    def _session_for(self, plan: CellPlan, context: Context) -> Session:
        """The trace so far if it leads to this cell, else a new one from the prompt."""
        cell = plan.cell
        key = (cell.model, cell.kv_format, cell.backend or "", str(context.seed))
        if self._session is not None:
            held, session = self._session
            if held == key and session.depth_tokens <= cell.depth_tokens:
                return session
        engine = self._engines.setdefault(cell.model, Engine(cell.model))
        attention = _ATTENTION[cell.backend or ""][0]
        dtype = stored_as(cell.kv_format).dtype
        session = engine.start(dtype, attention, context.device.torch_device, context.seed)
        self._session = (key, session)
        return session


def _cell(model: str, shape_id: str, fmt: str, backend: str, depth: int) -> Cell:
    return Cell(
        suite="model",
        scope="engine",
        model=model,
        shape_id=shape_id,
        kv_format=fmt,
        prompt_tokens=PROMPT_TOKENS,
        think_tokens=depth - PROMPT_TOKENS,
        backend=backend,
    )


def _operations(plan: CellPlan) -> tuple[Operation, ...]:
    fmt = kv_format(plan.cell.kv_format)
    return decode_operations(
        plan.shape, plan.cell.depth_tokens, fmt, scope="step", weight_bits=fmt.bits
    )
