"""The answer of `kvgauge plan`: what a trace of a model costs, from arithmetic alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from kvgauge.errors import UserError
from kvgauge.formats import kv_format
from kvgauge.formula.held import marginal_bytes, request_bytes, state_bytes
from kvgauge.formula.moved import decode_operations, total_bytes, total_flops
from kvgauge.shapes.types import ModelShape
from kvgauge.traces.types import Trace

WEIGHT_BITS: dict[str, int] = {"fp32": 32, "fp16": 16, "bf16": 16, "fp8": 8, "int8": 8, "int4": 4}
MAX_BATCH = 1_000_000


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """One decode step of the whole batch at the full depth, scope `step`.

    `floor_s`, `bound` and `tokens_per_s` need the rates of a card and are None without one.
    """

    bytes_per_step: int
    flops_per_step: int
    floor_s: float | None
    bound: str | None
    tokens_per_s: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """All byte counts are integers. What needs a GPU's datasheet is None without one."""

    model: str
    attention: str
    layers: int
    kv_format: str
    page_size: int | None
    batch: int
    tensor_parallel: int
    prompt_tokens: int
    think_tokens: int
    answer_tokens: int
    tokens: int
    kv_bytes_per_token: int
    kv_bytes_per_request: int
    kv_bytes_per_batch: int
    kv_bytes_per_gpu: int
    state_bytes_per_request: int
    weight_format: str
    weight_bytes: int | None
    weight_bytes_per_gpu: int | None
    max_concurrent_requests: int | None
    max_cached_tokens: int | None
    decode: DecodePlan | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def make_plan(
    shape: ModelShape,
    trace: Trace,
    *,
    kv_format_name: str = "fp16",
    weight_format: str = "bf16",
    batch: int = 1,
    page_size: int | None = None,
    tensor_parallel: int = 1,
) -> Plan:
    """Predict what `batch` requests of `trace` cost; raises UserError for impossible settings."""
    fmt = kv_format(kv_format_name)
    if weight_format not in WEIGHT_BITS:
        raise UserError(f"unknown weight format {weight_format!r}: one of {', '.join(WEIGHT_BITS)}")
    if not 1 <= batch <= MAX_BATCH:
        raise UserError(f"batch {batch}: must be between 1 and {MAX_BATCH}")
    tokens = trace.depth_tokens
    weight_bytes = _weight_bytes(shape.params_total, weight_format)
    request = request_bytes(shape, tokens, fmt, page_size)
    return Plan(
        model=shape.name,
        attention=shape.attention,
        layers=len(shape.layers),
        kv_format=fmt.name,
        page_size=page_size,
        batch=batch,
        tensor_parallel=tensor_parallel,
        prompt_tokens=trace.prompt_tokens,
        think_tokens=trace.think_tokens,
        answer_tokens=trace.answer_tokens,
        tokens=tokens,
        kv_bytes_per_token=marginal_bytes(shape, tokens, fmt),
        kv_bytes_per_request=request,
        kv_bytes_per_batch=batch * request,
        kv_bytes_per_gpu=request_bytes(shape, tokens, fmt, page_size, tensor_parallel),
        state_bytes_per_request=state_bytes(shape),
        weight_format=weight_format,
        weight_bytes=weight_bytes,
        weight_bytes_per_gpu=None if weight_bytes is None else -(-weight_bytes // tensor_parallel),
        max_concurrent_requests=None,
        max_cached_tokens=None,
        decode=_decode(shape, tokens, kv_format_name, weight_format, batch),
        notes=_notes(shape, page_size),
    )


def _weight_bytes(params: int | None, weight_format: str) -> int | None:
    return None if params is None else params * WEIGHT_BITS[weight_format] // 8


def _decode(
    shape: ModelShape, tokens: int, fmt_name: str, weight_format: str, batch: int
) -> DecodePlan | None:
    if shape.params_active is None:
        return None
    operations = decode_operations(
        shape,
        tokens,
        kv_format(fmt_name),
        batch=batch,
        scope="step",
        weight_bits=WEIGHT_BITS[weight_format],
    )
    return DecodePlan(total_bytes(operations), total_flops(operations), None, None, None)


def _notes(shape: ModelShape, page_size: int | None) -> tuple[str, ...]:
    notes = ["kv_bytes_per_token is what the next token adds at this length"]
    if any(layer.window for layer in shape.layers):
        notes.append("windowed layers hold at most their window and stop growing there")
    if page_size:
        notes.append(f"kv_bytes_per_request is rounded up to whole pages of {page_size} tokens")
    if shape.params_total is None:
        notes.append("the source does not give weight counts: no weight bytes, no decode step")
    notes.append(
        "not modelled: activations, CUDA context, allocator fragmentation, engine reservations"
    )
    return tuple(notes)
