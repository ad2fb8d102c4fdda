"""Judge a log: each figure agrees with the formula, disagrees and by how much, or cannot be told.

A figure agrees where the formula's value would have been printed as the log prints it: the printed value
plus or minus half of its last decimal. A count that follows from rounded memory agrees within the counts
that the unrounded memory allows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

from kvgauge.audit.context import Context, Options, make_context
from kvgauge.audit.expect import Expectation, Judgeable, Missing
from kvgauge.audit.explain import hypotheses
from kvgauge.audit.ledger import ledger_of
from kvgauge.audit.pooled import pool_figures
from kvgauge.audit.read import StartUp, lines_of, read_log, start_ups
from kvgauge.audit.stored import Line, buffer_figure, size_figures, state_figures
from kvgauge.audit.types import UNITS, Audit, Finding, LogFact, LogLedger, Range
from kvgauge.errors import UserError, short
from kvgauge.shapes.types import ModelShape

_SHOWN_LINE = 200


def audit_log(path: str | os.PathLike[str], shape: ModelShape, options: Options) -> Audit:
    """The audit of a file; UserError where it cannot be read or states no KV figure."""
    return _audit(read_log(path), short(os.fspath(path)), shape, options)


def audit_text(data: bytes, where: str, shape: ModelShape, options: Options) -> Audit:
    """The same of a log in memory."""
    return _audit(start_ups(data, where), where, shape, options)


def _audit(found: tuple[StartUp, ...], where: str, shape: ModelShape, options: Options) -> Audit:
    contexts = [make_context(start_up, shape, options) for start_up in found]
    findings: list[Finding] = []
    ledgers: list[LogLedger] = []
    for context in contexts:
        judged = [(item, _judge(item, context)) for item in _figures(context)]
        findings += _merged([finding for _, finding in judged])
        ledgers += [
            made
            for item, finding in judged
            if isinstance(item, Expectation)
            and (made := ledger_of(item, finding, context)) is not None
        ]
    return Audit(
        where, shape.name, len(found), tuple(findings), _distinct(ledgers),
        tuple(dict.fromkeys(said for context in contexts for said in context.assumptions)),
        _notes(found, shape),
    )  # fmt: skip


def _figures(context: Context) -> Iterator[Judgeable]:
    """The judgeable figures of a start-up, in the file's order."""
    engine, kind = context.start_up.engine, None
    buffers: list[LogFact] = []
    said: Line = {}
    for facts in lines_of(context.start_up.facts):
        line: Line = {fact.what: fact for fact in facts}
        said |= {what: line[what] for what in ("context_tokens", "model_layers") if what in line}
        if "kv_bytes" in line and "cells" not in line:
            line = {**said, **line}
        if "cache_kind" in line:
            kind = line["cache_kind"].value
        if "buffer_bytes" in line:
            buffers.append(line["buffer_bytes"])
        if engine == "llama.cpp":
            sizes = size_figures(line, context, kind)
            if sizes and buffers:
                yield buffer_figure(buffers, line, context, kind)
                buffers = []
            yield from sizes
            yield from state_figures(line, context)
            if sizes:
                kind = None
        elif context.pp > 1:
            yield from _split_by_stages(line, context)
        else:
            yield from size_figures(line, context, kind)
            yield from state_figures(line, context)
            yield from pool_figures(line, context)
    if buffers:
        yield buffer_figure(buffers, said, context, kind)


def _split_by_stages(line: Line, context: Context) -> Iterator[Missing]:
    for what, fact in line.items():
        if what.endswith("_bytes") or what in ("blocks", "tokens", "concurrency"):
            yield Missing(
                fact,
                f"pipeline parallel size {context.pp}: the log does not say which layers a stage holds",
            )


def _judge(item: Judgeable, context: Context) -> Finding:
    fact = item.fact
    base = Finding(
        fact.engine, context.start_up.number, fact.line, fact.what, short(fact.value, 40), fact.unit,
        "cannot tell", text=short(fact.text.strip(), _SHOWN_LINE),
    )  # fmt: skip
    if isinstance(item, Missing):
        return replace(base, reason=item.reason)
    try:
        computed = list(item.predict(item.case))
    except UserError as error:
        return replace(base, reason=str(error))
    if not computed:
        return replace(base, reason=f"{context.shape.name} stores nothing for each token here")
    best = min(computed, key=lambda found: _distance(item.logged, found))
    scale = UNITS.get(fact.unit, 1)
    known = replace(base, computed=float(best.middle / scale), rule=item.rule, reason=item.reason)
    if item.logged.meets(best):
        return replace(known, verdict="agree")
    if item.foreign:
        return replace(base, reason=f"{item.foreign}: another model, or a draft model's cache")
    return _disagreement(known, item, computed[0])


def _disagreement(known: Finding, item: Expectation, plain: Range) -> Finding:
    """Against the plain convention, so that the difference is of one thing."""
    difference = item.logged.middle - plain.middle
    weight = item.unit_bytes
    percent = float(100 * difference / plain.middle) if plain.middle else None
    return replace(
        known,
        verdict="disagree",
        computed=float(plain.middle / UNITS.get(known.unit, 1)),
        difference_bytes=None if weight is None else round(difference * weight),
        difference_percent=percent,
        hypotheses=hypotheses(item),
    )


def _distance(logged: Range, computed: Range) -> Fraction:
    return max(computed.low - logged.high, logged.low - computed.high, Fraction(0))


def _merged(findings: list[Finding]) -> list[Finding]:
    """Ranks print the same figure each: one finding, with the other lines named."""
    first: dict[tuple[object, ...], Finding] = {}
    lines: dict[tuple[object, ...], list[int]] = {}
    for finding in findings:
        key: tuple[object, ...] = (
            finding.what,
            finding.logged,
            finding.unit,
            finding.verdict,
            finding.computed,
        )
        first.setdefault(key, finding)
        lines.setdefault(key, []).append(finding.line)
    merged = []
    for same, finding in first.items():
        more = sorted(set(lines[same]) - {finding.line})
        said = f"also on line {', '.join(map(str, more[:8]))}" + (" ..." if len(more) > 8 else "")
        reason = "; ".join(filter(None, (finding.reason, said if more else "")))
        merged.append(replace(finding, reason=reason))
    return merged


def _distinct(ledgers: list[LogLedger]) -> tuple[LogLedger, ...]:
    seen: dict[object, LogLedger] = {}
    for made in ledgers:
        seen.setdefault((made.logged_bytes, made.rows), made)
    return tuple(seen.values())


def _notes(found: tuple[StartUp, ...], shape: ModelShape) -> tuple[str, ...]:
    said = []
    if len(found) > 1:
        engines = ", ".join(start_up.engine for start_up in found)
        said.append(
            f"{len(found)} start-ups in the file ({engines}): each is audited against {shape.name}"
        )
    names = {fact.value.strip() for s in found for fact in s.facts if fact.what == "model"}
    if len(names) > 1:
        listed = ", ".join(sorted(short(name, 60) for name in names))
        said.append(f"the log names several models ({listed}); figures of another one disagree")
    elif names:
        said.append(f"the log names the model {short(names.pop(), 60)}")
    return tuple(said)
