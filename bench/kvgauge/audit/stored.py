"""Figures that state the size of what is stored: llama.cpp, SGLang and TensorRT-LLM print them.

Conventions read in the sources: llama.cpp allocates `cells` a stream for each of `streams`, all layers of
one cache alike; its recurrent state and SGLang's convolution state keep kernel - 1 columns; SGLang pads
its pools by one page (a token where pages are of one token), and its state pool by one slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

from kvgauge.audit.context import MAX_COUNT, Context, format_named, printed_range, usable_count
from kvgauge.audit.expect import Expectation, Judgeable, Missing
from kvgauge.audit.sizes import (
    LAYER_SETS,
    Case,
    LayerSet,
    Part,
    layer_total,
    state_part_bytes,
    stateful,
    token_bytes,
    windowed,
)
from kvgauge.audit.types import LogFact, Range, What, exactly

PARTS: dict[What, Part] = {"kv_bytes": "kv", "k_bytes": "k", "v_bytes": "v"}
_CONV_COLUMNS = (3, 4)  # kept, of a convolution of 4, which all models that are known have
_KINDS: dict[str, LayerSet] = {"non-SWA": "full", "SWA": "windowed"}

Line = dict[What, LogFact]


def size_figures(line: Line, context: Context, kind: str | None) -> list[Judgeable]:
    """What a line says of K, of V and of both; `kind` is what llama.cpp announced just before."""
    facts = [(what, line[what]) for what in PARTS if what in line]
    if not facts:
        return []
    lengths = _lengths(line, context)
    if isinstance(lengths, str):
        return [Missing(fact, lengths) for _, fact in facts]
    case = _case(line, context, kind)
    if isinstance(case, str):
        return [Missing(fact, case) for _, fact in facts]
    made: list[Judgeable] = []
    for what, fact in facts:
        logged = printed_range(fact)
        if logged is None:
            made.append(Missing(fact, "the number has more digits than any log prints"))
            continue
        part: Part = "index" if kind == "indexer" else PARTS[what]
        if part == "index" and what == "v_bytes":
            continue
        made.append(_size(fact, logged, case, part, lengths, line))
    return made


def _size(
    fact: LogFact, logged: Range, case: Case, part: Part, lengths: Sequence[int], line: Line
) -> Expectation:
    window = _count(line, "window_tokens")

    def predict(assumed: Case) -> Sequence[Range]:
        if window is not None:
            return _two_pools(assumed, lengths, window)
        return [exactly(n * token_bytes(assumed, part)) for n in lengths]

    def k_alone(assumed: Case) -> Sequence[Range]:
        return [exactly(n * token_bytes(assumed, "k")) for n in lengths]

    def both(assumed: Case) -> Sequence[Range]:
        return [exactly(n * token_bytes(assumed, "kv")) for n in lengths]

    variants = (("it counts K alone, not K and V", k_alone),) if part == "kv" else (
        ("it counts K and V together", both),
    )  # fmt: skip
    foreign = _foreign(line, case)
    return Expectation(
        fact, logged, case, predict,
        rule="the computed bytes print as the logged figure does, to its last decimal",
        reason=foreign, variants=variants, foreign=foreign, sequences=_count(line, "states"),
    )  # fmt: skip


def _foreign(line: Line, case: Case) -> str:
    layers, total = _count(line, "layers"), len(case.shape.layers)
    if layers is not None and layers != layer_total(case):
        return f"the line speaks of {layers} layers, the model has {layer_total(case)} such"
    model_layers = _count(line, "model_layers")
    if layers is None and model_layers is not None and model_layers != total:
        return f"the lines before speak of {model_layers} layers, the model has {total}"
    return ""


def _two_pools(case: Case, lengths: Sequence[int], window: int) -> list[Range]:
    # SGLang's pool of windowed layers beside that of full ones; each is padded by a page.
    full = token_bytes(replace(case, layer_set="full"))
    within = token_bytes(replace(case, layer_set="windowed"))
    first = lengths[0]
    return [exactly(n * full + (window + n - first) * within) for n in lengths]


def state_figures(line: Line, context: Context) -> list[Judgeable]:
    """What a line says of constant states."""
    facts = [
        (what, line[what])
        for what in ("state_bytes", "conv_bytes", "recurrent_bytes")
        if what in line
    ]
    made: list[Judgeable] = []
    for what, fact in facts:
        logged, states = printed_range(fact), _count(line, "states")
        if logged is None or states is None:
            made.append(Missing(fact, "the number of states is not on the line, or not a number"))
        elif not stateful(context.shape):
            made.append(Missing(fact, f"{context.shape.name} has no layer with a state"))
        else:
            copies = 1 + (_count(line, "state_copies") or 0)
            made.append(_state(fact, what, logged, states * copies, context.case))
    return made


def _state(fact: LogFact, what: What, logged: Range, states: int, case: Case) -> Expectation:
    kept, kernel = _CONV_COLUMNS
    counts = (states,) if case.engine == "llama.cpp" else (states, states + 1)

    def predict(assumed: Case) -> Sequence[Range]:
        conv = state_part_bytes(assumed, "conv") * kept // kernel
        recurrent = state_part_bytes(assumed, "recurrent")
        one = {"conv_bytes": conv, "recurrent_bytes": recurrent}.get(what, conv + recurrent)
        return [exactly(n * one) for n in counts]

    def all_columns(assumed: Case) -> Sequence[Range]:
        conv = state_part_bytes(assumed, "conv")
        one = conv if what == "conv_bytes" else conv + state_part_bytes(assumed, "recurrent")
        return [exactly(n * one) for n in counts]

    return Expectation(
        fact, logged, case, predict,
        rule="the computed bytes print as the logged figure does, to its last decimal",
        reason="the convolution keeps 3 of its 4 columns, as the engine does",
        variants=(("the convolution keeps all of its columns", all_columns),)
        if what != "recurrent_bytes" else (),
    )  # fmt: skip


def buffer_figure(
    buffers: Sequence[LogFact], line: Line | None, context: Context, kind: str | None
) -> Judgeable:
    """The buffers of all devices, which together are one cache: that of `line` where there is one."""
    ranges = [printed_range(fact) for fact in buffers]
    low = sum((r.low for r in ranges if r), start=Fraction(0))
    high = sum((r.high for r in ranges if r), start=Fraction(0))
    last = replace(buffers[-1], value=_summed(buffers))
    if None in ranges:
        return Missing(last, "the number has more digits than any log prints")
    around: Line = {**(line or {}), "kv_bytes": last}
    found = next(iter(size_figures(around, context, kind)))
    if isinstance(found, Missing):
        return found
    many = len(buffers)
    return replace(
        found, logged=Range(low, high),
        rule=f"the sum of {many} device buffers, each to its last decimal" if many > 1 else found.rule,
    )  # fmt: skip


def _summed(facts: Sequence[LogFact]) -> str:
    """The sum as the engine would print it."""
    return str(sum((fact.number or Decimal(0) for fact in facts), start=Decimal("0.00")))


def _lengths(line: Line, context: Context) -> list[int] | str:
    """Token counts that the figure may be of, the plain one first; or what is missing."""
    if "cells" in line or "tokens" in line:
        first = _count(line, "cells") if "cells" in line else _count(line, "tokens")
        if first is None:
            return f"its token count is not a number up to {MAX_COUNT:.0e}"
        if context.case.engine == "sglang":
            return [first, first + (context.block_tokens or 1)]
        return [first * max(1, _count(line, "streams") or 1)]
    stated = (
        _count(line, "context_tokens")
        or context.last("context_tokens")
        or context.last("max_tokens")
    )
    if stated and not context.options.tokens:
        return [stated]
    if context.options.tokens:
        return list(context.options.tokens)
    return "the log does not say for how many tokens (kv_size, n_ctx or cells; or say --tokens N)"


def _case(line: Line, context: Context, kind: str | None) -> Case | str:
    case = context.case
    for what in ("k_format", "v_format"):
        fact = line.get(what) or _last_fact(context, what)
        if fact is None:
            continue
        fmt = format_named(fact.value)
        if fmt is None:
            return f"KV format {fact.value[:20]} is not known"
        case = replace(case, k_format=fmt) if what == "k_format" else replace(case, v_format=fmt)
    if "k_format" not in line and context.unknown_format is not None:
        return f"KV format {context.unknown_format[:20]} is not known (--kv-format)"
    v_bytes = line.get("v_bytes")
    if v_bytes is not None and v_bytes.number:
        case = replace(case, latent_twice=_is_mla(case))
    return replace(case, layer_set=_layer_set(line, case, kind))


def _is_mla(case: Case) -> bool:
    return any(layer.kind == "mla" for layer in case.shape.layers)


def _layer_set(line: Line, case: Case, kind: str | None) -> LayerSet:
    if kind in _KINDS:
        return _KINDS[kind]
    layers = _count(line, "layers")
    if not windowed(case.shape) or layers is None:
        return "all"
    return next((s for s in LAYER_SETS if layer_total(replace(case, layer_set=s)) == layers), "all")


def _last_fact(context: Context, what: What) -> LogFact | None:
    if context.options.kv_format is not None:
        return None
    found = [fact for fact in context.start_up.facts if fact.what == what]
    return found[-1] if found else None


def _count(line: Line, what: What) -> int | None:
    fact = line.get(what)
    return None if fact is None else usable_count(fact)
