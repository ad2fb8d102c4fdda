"""A plan's arithmetic, line by line with its numbers, as a textbook would write it."""

from __future__ import annotations

from kvgauge.formula.capacity import usable_bytes
from kvgauge.formula.floor import datasheet_rates, operation_times
from kvgauge.formula.held import (
    layer_bytes,
    open_group_bytes,
    row_bytes,
    slots_held,
    tokens_held,
)
from kvgauge.formula.moved import Operation, step_operations
from kvgauge.formula.plan import Plan
from kvgauge.formula.setting import Setting
from kvgauge.formula.stack import distinct_layers
from kvgauge.shapes.types import LayerShape, ModelShape
from kvgauge.units import binary_bytes, decimal_bytes, seconds


def explain(shape: ModelShape, plan: Plan, chosen: Setting) -> tuple[str, ...]:
    """The lines; those of the layers are of one rank, the one that the capacity is counted on."""
    lines = [
        "Tokens",
        f"  {plan.prompt_tokens:,} prompt + {plan.think_tokens:,} thinking + {plan.answer_tokens:,} "
        f"answer = {plan.tokens:,}",
        f"Cache of one request in {plan.kv_format}"
        + (f", on one rank of {chosen.ranks}" if chosen.ranks > 1 else ""),
    ]
    sizes = []
    for layer, count in distinct_layers(shape):
        size = layer_bytes(layer, plan.tokens, chosen.storage)
        lines += _layer(layer, count, plan.tokens, chosen, size)
        sizes.append(count * size)
    summed = " + ".join(f"{size:,}" for size in sizes)
    lines.append(
        f"  sum: {summed} = {plan.kv_bytes_per_gpu:,} bytes {_sized(plan.kv_bytes_per_gpu)}"
    )
    lines.append(
        f"  the next token adds {plan.kv_bytes_per_token:,} bytes, all layers and heads counted"
    )
    lines += _weights(shape, plan, chosen)
    lines += _step(shape, plan, chosen)
    lines += _capacity(plan, chosen)
    return (*lines, *_ledger(plan))


def _sized(size: int) -> str:
    return f"({decimal_bytes(size)}, {binary_bytes(size)})"


def _layer(layer: LayerShape, count: int, tokens: int, chosen: Setting, size: int) -> list[str]:
    name = f"  {count} {layer.kind} layer{'s' * (count > 1)}"
    if layer.shared:
        return [f"{name}: read an earlier layer's cache, 0 bytes"]
    lines = []
    if layer.state:
        width = chosen.engine.state_bits
        parts = " + ".join(
            f"{p.elements:,} {p.name} elements of {width or p.bits} bits" for p in layer.state
        ) + (f", over {chosen.ranks} ranks" if chosen.ranks > 1 else "")
        lines.append(f"{name}: state of {parts}, whatever the length")
    if layer.is_attention:
        row, kept = row_bytes(layer, chosen.storage), tokens_held(layer, tokens)
        lines.append(f"{name}: a token is {_row(layer, chosen)} = {row.total:,} bytes")
        window = "" if layer.window is None else f"min({tokens:,}, window {layer.window:,}) = "
        slots = slots_held(layer, tokens, chosen.storage)
        room = "" if slots == kept else f", room for {slots:,}"
        last = open_group_bytes(layer, slots, chosen.storage)
        more = f" + {last:,} bytes of K's last group, which is not full" if last else ""
        lines.append(f"    x {window}{kept:,} tokens{room}{more} = {size:,} bytes a layer")
    if not lines:
        return [f"{name}: nothing held"]
    return [*lines, f"    x {count} = {count * size:,} bytes"]


def _row(layer: LayerShape, chosen: Setting) -> str:
    row, fmt = row_bytes(layer, chosen.storage), chosen.fmt
    if layer.kind == "mla":
        text = f"({layer.latent_dim} latent + {layer.rope_dim} rope) elements x {fmt.bits} bits / 8"
    else:
        heads = row.elements // (
            fmt.row_element_bytes(layer.k_dim) + fmt.row_element_bytes(layer.v_dim)
        )
        text = (
            f"{heads} KV heads x ({layer.k_dim} K + {layer.v_dim} V) elements x {fmt.bits} bits / 8"
        )
    if row.metadata:
        text += f" + {row.metadata:,} bytes of metadata"
    return text + (f" + {row.index:,} bytes of indexer key" if row.index else "")


def _weights(shape: ModelShape, plan: Plan, chosen: Setting) -> list[str]:
    if shape.params_total is None or plan.weight_bytes is None:
        return ["Weights", "  not known"]
    fmt = chosen.weights
    groups = f" + {fmt.group_bits} bits a group of {fmt.group}" if fmt.group else ""
    lines = [
        "Weights",
        f"  {shape.params_total:,} parameters x {fmt.bits} bits / 8{groups} = "
        f"{plan.weight_bytes:,} bytes {_sized(plan.weight_bytes)}",
    ]
    if chosen.ranks > 1:
        lines.append(f"  / {chosen.ranks} ranks = {plan.weight_bytes_per_gpu:,} bytes a rank")
    return lines


def _step(shape: ModelShape, plan: Plan, chosen: Setting) -> list[str]:
    if plan.decode is None:
        return []
    operations = step_operations(shape, plan.tokens, chosen.storage, chosen.batch, chosen.weights)
    lines = [f"Decode, one step of {chosen.batch:,} at {plan.tokens:,} tokens"]
    lines += [_operation(op, chosen) for op in operations]
    if plan.decode.floor_s is None or plan.decode.tokens_per_s is None:
        return [*lines, f"  sum: {plan.decode.bytes_per_step:,} bytes moved"]
    lines.append(
        f"  sum: at least {seconds(plan.decode.floor_s)}, bound by {plan.decode.bound}; "
        f"{chosen.batch:,} / that = {plan.decode.tokens_per_s:,.1f} tokens/s at most"
    )
    return lines


def _operation(op: Operation, chosen: Setting) -> str:
    work = f"  {op.name}: {op.moved_bytes:,} bytes, {op.flops:.4g} FLOPs"
    if chosen.gpu is None:
        return work
    rates = datasheet_rates(chosen.gpu)
    memory_s, compute_s = operation_times(op, rates)
    return (
        f"{work}: max({seconds(memory_s)} at {decimal_bytes(rates.read_bytes_per_s)}/s, "
        f"{seconds(compute_s)} of arithmetic) = {seconds(max(memory_s, compute_s))}"
    )


def _capacity(plan: Plan, chosen: Setting) -> list[str]:
    if chosen.gpu is None or plan.available_bytes is None or plan.weight_bytes_per_gpu is None:
        return []
    usable = usable_bytes(chosen.gpu.memory_bytes, chosen.utilization)
    lines = [
        f"Capacity of {chosen.gpu.name}",
        f"  {chosen.gpu.memory_bytes:,} x {chosen.utilization:g} = {usable:,} bytes usable",
        f"  - {plan.weight_bytes_per_gpu:,} weights - {plan.reserve_bytes:,} reserve = "
        f"{usable - plan.weight_bytes_per_gpu - plan.reserve_bytes:,} bytes for the cache",
    ]
    if plan.kv_bytes_per_gpu:
        exact = plan.available_bytes / plan.kv_bytes_per_gpu
        lines.append(
            f"  / {plan.kv_bytes_per_gpu:,} bytes a request = {exact:.2f}: "
            f"{plan.max_concurrent_requests:,} whole requests"
        )
    return lines


def _ledger(plan: Plan) -> list[str]:
    width = max((len(line.name) for line in plan.ledger.lines), default=0)
    title = "Ledger of one card" if plan.gpu else "Ledger"
    return [
        title + (f", {plan.batch:,} requests" if plan.batch > 1 else ", one request"),
        *(
            f"  {line.name:<{width}}  {line.bytes:>19,}  {decimal_bytes(line.bytes)}"
            for line in plan.ledger.lines
        ),
        f"  {'total':<{width}}  {plan.ledger.total_bytes:>19,}  {decimal_bytes(plan.ledger.total_bytes)}",
    ]
