"""What `kvgauge plan` prints for people: two columns, a table with bars, or plans side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kvgauge.display import out
from kvgauge.formula.fit import Fit
from kvgauge.formula.flips import Flips
from kvgauge.formula.ledger import SHORT
from kvgauge.formula.plan import Plan
from kvgauge.traces.axis import Axis
from kvgauge.units import binary_bytes, decimal_bytes, seconds

_BAR_CHARS = 40


def print_plan(plan: Plan, fit: Fit | None, lines: Sequence[str] | None) -> None:
    """A plan as two columns, its arithmetic where asked for, and its notes."""
    table = Table(box=None, show_header=False, title_justify="left")
    table.add_column(style="dim")
    table.add_column()
    for name, value in [*_cache_rows(plan), *_speed_rows(plan), *_card_rows(plan), *_fit_rows(fit)]:
        table.add_row(name, escape(value))
    console = out()
    console.print(table, soft_wrap=True)
    for line in lines or ():
        console.print(escape(line), soft_wrap=True, highlight=False)
    _print_notes(console, _notes(plan))


def _notes(plan: Plan) -> tuple[str, ...]:
    if plan.think_tokens:
        return plan.notes
    return ("no thinking tokens were asked for: --think N", *plan.notes)


def _print_notes(console: Console, texts: Sequence[str]) -> None:
    for text in texts:
        console.print(f"  · {escape(text)}", style="dim", soft_wrap=True)


def _sized(count_bytes: int | None) -> str:
    if count_bytes is None:
        return "unknown"
    return f"{count_bytes:,} bytes · {decimal_bytes(count_bytes)} · {binary_bytes(count_bytes)}"


def _count(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _cache_rows(plan: Plan) -> list[tuple[str, str]]:
    rows = [
        ("model", f"{plan.model} ({plan.attention}, {plan.layers} layers)"),
        ("trace", f"{plan.prompt_tokens:,} prompt + {plan.think_tokens:,} thinking + "
                  f"{plan.answer_tokens:,} answer = {plan.tokens:,} tokens"),
        ("KV format", f"{plan.kv_format}, stored as by {plan.engine}"),
        ("KV a token", _sized(plan.kv_bytes_per_token)),
        ("KV a request", _sized(plan.kv_bytes_per_request)),
    ]  # fmt: skip
    if plan.state_bytes_per_request:
        rows.append(("of it constant state", _sized(plan.state_bytes_per_request)))
    if plan.batch > 1:
        rows.append((f"KV of {plan.batch:,} requests", _sized(plan.kv_bytes_per_batch)))
    rows.append((f"weights in {plan.weight_format}", _sized(plan.weight_bytes)))
    if plan.tensor_parallel > 1:
        ranks = plan.tensor_parallel
        rows.append((f"KV a request and GPU of {ranks}", _sized(plan.kv_bytes_per_gpu)))
        rows.append((f"weights a GPU of {ranks}", _sized(plan.weight_bytes_per_gpu)))
    return rows


def _speed_rows(plan: Plan) -> list[tuple[str, str]]:
    decode, prefill, rows = plan.decode, plan.prefill, []
    if decode is not None:
        rows.append(("read and written a step", _sized(decode.bytes_per_step)))
        rows.append(("FLOPs a step", f"{decode.flops_per_step:.4g}"))
    if decode is not None and decode.floor_s is not None and decode.tokens_per_s is not None:
        rows.append(
            ("decode, at best", f"{seconds(decode.floor_s)} a step, {decode.tokens_per_s:,.1f} "
             f"tokens/s ({decode.bound}-bound)")
        )  # fmt: skip
    if prefill is not None and prefill.floor_s is not None:
        rows.append(
            ("prefill, at best", f"{seconds(prefill.floor_s)} for {plan.batch:,} x "
             f"{prefill.tokens:,} tokens ({prefill.bound}-bound)")
        )  # fmt: skip
    if plan.flips is not None:
        rows.append(("the bound flips", _flips_text(plan.flips, plan)))
    return rows


def _flips_text(flips: Flips, plan: Plan) -> str:
    step, depth = flips.step_batch, flips.cache_tokens
    batch = f"compute-bound from batch {step:,}" if step else "memory-bound at any batch"
    cache = "never" if depth is None else f"from {depth:,} tokens on"
    return f"{batch} at {plan.tokens:,} tokens; cache over weights {cache} at batch {plan.batch:,}"


def _card_rows(plan: Plan) -> list[tuple[str, str]]:
    if plan.gpu is None:
        return []
    reserve = f", {decimal_bytes(plan.reserve_bytes)} reserved" if plan.reserve_bytes else ""
    count = f"{plan.tensor_parallel} x " if plan.tensor_parallel > 1 else ""
    each = " on each" if plan.tensor_parallel > 1 else ""
    short = sum(line.bytes for line in plan.ledger.lines if line.name == SHORT)
    refused = [("does not fit", f"short by {_sized(-short)}{each}")] if short else []
    return [
        ("card", f"{count}{plan.gpu}, {decimal_bytes(plan.gpu_bytes or 0)}, "
                 f"{plan.utilization:.0%} used{reserve}"),
        (f"left for the cache{each}", _sized(plan.available_bytes)),
        ("requests at once", _count(plan.max_concurrent_requests)),
        ("tokens in the cache", _count(plan.max_cached_tokens)),
        *refused,
    ]  # fmt: skip


def _fit_rows(fit: Fit | None) -> list[tuple[str, str]]:
    if fit is None:
        return []
    longest = "any length fits"
    if fit.longest_tokens is not None:
        longest = (
            f"{fit.longest_tokens:,} tokens, of them {_count(fit.longest_think_tokens)} thinking"
        )
    each = f" for {fit.batch:,} at once" if fit.batch > 1 else ""
    most = "any number" if fit.most_requests is None else f"{fit.most_requests:,}"
    return [(f"longest trace{each}", longest), ("most requests of this trace", most)]


def print_sweep(axis: Axis, plans: Sequence[Plan]) -> None:
    """A line a value, with bars of the bytes of a request (of the batch, where that is swept)."""
    carded = plans[0].gpu is not None
    heads = [axis.name, "tokens", "KV a token", "KV a request", "KV of the batch"]
    heads += ["requests", "step, at best", "tokens/s"] if carded else []
    table = Table(*heads, "KV of the batch, drawn", box=None)
    for column in table.columns[:-1]:
        column.justify = "right"
    sizes = [plan.kv_bytes_per_batch for plan in plans]
    top = max(max(sizes), 1)
    for value, plan, size in zip(axis.values, plans, sizes, strict=True):
        cells = [
            f"{value:,}", f"{plan.tokens:,}", binary_bytes(plan.kv_bytes_per_token),
            decimal_bytes(plan.kv_bytes_per_request), decimal_bytes(plan.kv_bytes_per_batch),
        ]  # fmt: skip
        if carded:
            cells += [_count(plan.max_concurrent_requests), *_speed(plan)]
        table.add_row(*cells, "#" * max(round(_BAR_CHARS * size / top), 1 if size else 0))
    console = out()
    console.print(table, soft_wrap=True)
    _print_notes(console, plans[0].notes if axis.name == "think" else _notes(plans[0]))


def _speed(plan: Plan) -> tuple[str, str]:
    decode = plan.decode
    if decode is None or decode.floor_s is None or decode.tokens_per_s is None:
        return "-", "-"
    return seconds(decode.floor_s), f"{decode.tokens_per_s:,.1f}"


def print_comparison(labels: Sequence[str], plans: Sequence[Plan]) -> None:
    """A column a plan; the last line is the bytes of a request against the first plan's."""
    table = Table("", *map(escape, labels), box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    first = plans[0].kv_bytes_per_request
    rows: list[tuple[str, list[str]]] = [
        ("model", [p.model for p in plans]),
        ("KV format", [p.kv_format for p in plans]),
        ("card", [f"{p.tensor_parallel} x {p.gpu}" if p.gpu else "-" for p in plans]),
        ("tokens", [f"{p.tokens:,}" for p in plans]),
        ("KV a token", [binary_bytes(p.kv_bytes_per_token) for p in plans]),
        ("KV a request", [decimal_bytes(p.kv_bytes_per_request) for p in plans]),
        ("weights a GPU", [_decimal(p.weight_bytes_per_gpu) for p in plans]),
        ("left for the cache", [_decimal(p.available_bytes) for p in plans]),
        ("requests at once", [_count(p.max_concurrent_requests) for p in plans]),
        ("tokens in the cache", [_count(p.max_cached_tokens) for p in plans]),
        ("step, at best", [_speed(p)[0] for p in plans]),
        ("tokens/s, at best", [_speed(p)[1] for p in plans]),
    ]
    if first:
        rows.append(
            ("KV against the first", [f"{p.kv_bytes_per_request / first:.3f}" for p in plans])
        )
    for name, cells in rows:
        table.add_row(name, *map(escape, cells))
    console = out()
    console.print(table, soft_wrap=True)
    _print_notes(console, tuple(dict.fromkeys(note for plan in plans for note in _notes(plan))))


def _decimal(size: int | None) -> str:
    return "-" if size is None else decimal_bytes(size)
