"""The answer of `kvgauge plan`: what a trace of a model costs, from arithmetic alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from kvgauge.formula.capacity import available_bytes, max_cached_tokens, max_requests
from kvgauge.formula.flips import Flips, flips
from kvgauge.formula.floor import Bound, Rates, RatesSource, bound, datasheet_rates, floor_s
from kvgauge.formula.held import growth_bytes, held_bytes, state_bytes
from kvgauge.formula.ledger import Ledger, ledger
from kvgauge.formula.moved import step_operations, total_bytes, total_flops
from kvgauge.formula.notes import notes
from kvgauge.formula.prefill import prefill_operations
from kvgauge.formula.setting import Setting, setting
from kvgauge.formula.stack import attention_of
from kvgauge.shapes.types import ModelShape
from kvgauge.traces.types import Trace


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """One decode step of the whole batch at the full depth, scope `step`, on one rank.

    What follows `flops_per_step` needs the rates of a card and is None without one.
    """

    bytes_per_step: int
    flops_per_step: int
    floor_s: float | None
    bound: Bound | None
    tokens_per_s: float | None


@dataclass(frozen=True, slots=True)
class PrefillPlan:
    """The prompts of the whole batch in one pass, on one rank; None without a card as in decode."""

    tokens: int
    bytes: int
    flops: int
    floor_s: float | None
    bound: Bound | None
    tokens_per_s: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """All byte counts are integers. What needs a GPU's datasheet is None without one.

    `kv_bytes_per_token`, `_per_request` and `_per_batch` are of the whole model, `kv_bytes_per_gpu` of
    one request on one rank. `available_bytes` is what one card has left for the cache.
    """

    model: str
    attention: str
    layers: int
    kv_format: str
    engine: str
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
    gpu: str | None
    gpu_bytes: int | None
    utilization: float
    reserve_bytes: int
    available_bytes: int | None
    max_concurrent_requests: int | None
    max_cached_tokens: int | None
    decode: DecodePlan | None
    prefill: PrefillPlan | None
    rates_source: RatesSource | None
    flips: Flips | None
    ledger: Ledger
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
    engine: str = "hf",
    gpu: str | None = None,
    utilization: float = 0.9,
    reserve_bytes: int = 0,
) -> Plan:
    """Predict what `batch` requests of `trace` cost; raises UserError for impossible settings."""
    chosen = setting(
        kv_format_name, weight_format, batch, page_size, tensor_parallel, engine, gpu, utilization,
        reserve_bytes,
    )  # fmt: skip
    return plan_of(shape, trace, chosen)


def plan_of(shape: ModelShape, trace: Trace, chosen: Setting) -> Plan:
    """The plan of a checked setting."""
    tokens, ranks, gpu = trace.depth_tokens, chosen.ranks, chosen.gpu
    request = held_bytes(shape, tokens, chosen.whole)
    on_rank = request if ranks == 1 else held_bytes(shape, tokens, chosen.storage)
    rates = None if gpu is None else datasheet_rates(gpu)
    weight_bytes = rank_weights = available = None
    if shape.params_total is not None:
        weight_bytes = chosen.weights.bytes_of(shape.params_total)
        rank_weights = -(-weight_bytes // ranks)
        if gpu is not None:
            available = available_bytes(
                gpu.memory_bytes, rank_weights, chosen.utilization, chosen.reserve_bytes
            )
    return Plan(
        model=shape.name,
        attention=attention_of(shape),
        layers=len(shape.layers),
        kv_format=chosen.fmt.name,
        engine=chosen.engine.name,
        page_size=chosen.storage.page_tokens,
        batch=chosen.batch,
        tensor_parallel=ranks,
        prompt_tokens=trace.prompt_tokens,
        think_tokens=trace.think_tokens,
        answer_tokens=trace.answer_tokens,
        tokens=tokens,
        kv_bytes_per_token=growth_bytes(shape, tokens, chosen.whole),
        kv_bytes_per_request=request,
        kv_bytes_per_batch=chosen.batch * request,
        kv_bytes_per_gpu=on_rank,
        state_bytes_per_request=state_bytes(shape, 1, chosen.engine),
        weight_format=chosen.weights.name,
        weight_bytes=weight_bytes,
        weight_bytes_per_gpu=rank_weights,
        gpu=None if gpu is None else gpu.name,
        gpu_bytes=None if gpu is None else gpu.memory_bytes,
        utilization=chosen.utilization,
        reserve_bytes=chosen.reserve_bytes,
        available_bytes=available,
        max_concurrent_requests=None if available is None else max_requests(available, on_rank),
        max_cached_tokens=None
        if available is None
        else max_cached_tokens(shape, tokens, chosen.storage, available),
        decode=_decode(shape, tokens, chosen, rates),
        prefill=_prefill(shape, trace.prompt_tokens, chosen, rates),
        rates_source=None if rates is None else rates.source,
        flips=None
        if rates is None or shape.params_active is None
        else flips(shape, tokens, chosen, rates),
        ledger=ledger(shape, tokens, chosen, rank_weights),
        notes=notes(shape, chosen),
    )


def _decode(
    shape: ModelShape, tokens: int, chosen: Setting, rates: Rates | None
) -> DecodePlan | None:
    if shape.params_active is None:
        return None
    operations = step_operations(shape, tokens, chosen.storage, chosen.batch, chosen.weights)
    moved, flops = total_bytes(operations), total_flops(operations)
    if rates is None:
        return DecodePlan(moved, flops, None, None, None)
    least_s = floor_s(operations, rates)
    tokens_per_s = chosen.batch / least_s if least_s else None
    return DecodePlan(moved, flops, least_s, bound(operations, rates), tokens_per_s)


def _prefill(
    shape: ModelShape, prompt_tokens: int, chosen: Setting, rates: Rates | None
) -> PrefillPlan | None:
    if shape.params_active is None or not prompt_tokens:
        return None
    operations = prefill_operations(
        shape, prompt_tokens, chosen.storage, chosen.batch, chosen.weights
    )
    moved, flops = total_bytes(operations), total_flops(operations)
    if rates is None:
        return PrefillPlan(prompt_tokens, moved, flops, None, None, None)
    least_s = floor_s(operations, rates)
    tokens_per_s = chosen.batch * prompt_tokens / least_s if least_s else None
    kind = bound(operations, rates)
    return PrefillPlan(prompt_tokens, moved, flops, least_s, kind, tokens_per_s)
