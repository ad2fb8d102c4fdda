"""The answer in sentences: a paragraph of the report, and the six lines at the end of a run."""

from __future__ import annotations

from dataclasses import dataclass

from kvgauge.schema import Run
from kvgauge_reports import say
from kvgauge_reports.headline import headline
from kvgauge_reports.headline_types import Headline
from kvgauge_reports.ratios import PLAIN
from kvgauge_reports.ratios_said import pages_text, quantized_text
from kvgauge_reports.say import Names
from kvgauge_reports.select import backend_name
from kvgauge_reports.text import (
    both_units,
    clean,
    count,
    number,
    plural,
    times,
    token_bytes,
)

# Where more of the cells are flagged, the run says that the machine was busy.
BUSY_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Sentence:
    """One topic. `text` has no full stop; where nothing was measured it says so."""

    topic: str
    text: str
    measured: bool = True


def sentences(run: Run, head: Headline) -> tuple[Sentence, ...]:
    """where, cells, footprint, fused, quantized, model, floor: always all, in this order; then pages,
    whose text is empty where none were measured."""
    names = Names(run)
    return (
        Sentence("where", _where(run)),
        Sentence("cells", _cells(head)),
        _footprint(head, names),
        _fused(head, names),
        _quantized(head, names),
        _model(head, names),
        _floor(head, names),
        _pages(head, names),
    )


def paragraph(run: Run, head: Headline) -> tuple[str, ...]:
    """Whole sentences for the report: what was measured, then what was not."""
    where, _, *rest = sentences(run, head)
    c = head.cells
    cells = f"{count(c.counted)} of {plural(c.total, 'cell')} count"
    if c.counted < c.total:
        cells += "; the others are listed with their reasons"
    told = [s.text for s in rest if s.measured]
    missing = [s.text for s in rest if not s.measured and s.text]
    if not told and not head.cells.counted:
        told = ["No figure can be given: no cell of this run was measured and trusted"]
    elif missing:
        told.append("; ".join(missing))
    return tuple(f"{text}." for text in (where.text, *told, cells))


def six_lines(run: Run) -> list[str]:
    """Six plain lines: what ran where, cells, footprint, fused against eager, quantized, real
    model."""
    told = sentences(run, headline(run))[:6]
    labels = ("run", "cells", "footprint", "fused", "quantized", "model")
    return [f"{label:<10} {s.text}" for label, s in zip(labels, told, strict=True)]


def device_name(run: Run) -> str:
    """`CPU (name)` or `GPU (name)`."""
    device = run.manifest.device
    kind = {"cpu": "CPU", "cuda": "GPU"}.get(device.kind, clean(device.kind, 20))
    return f"{kind} ({clean(device.name, 80)})"


def _where(run: Run) -> str:
    text = f"Profile {clean(run.manifest.profile, 30)} on a {device_name(run)}"
    if run.manifest.device.kind == "cpu":
        text += "; no GPU was used and no figure here is a GPU's"
    return text


def _cells(head: Headline) -> str:
    c = head.cells
    parts = [f"{count(n)} {status}" for status, n in c.by_status.items() if status != "ok"]
    if c.ok > c.counted:
        parts.append(f"{count(c.ok - c.counted)} ok but flagged")
    if c.unreached:
        parts.append(f"{count(c.unreached)} never reached")
    tail = f"; {', '.join(parts)}" if parts else ""
    if c.ok - c.counted > c.total * BUSY_SHARE:
        tail += ": the machine was busy, take its times as indications"
    return f"{count(c.counted)} of {plural(c.total, 'cell')} measured and trusted{tail}"


def _absent(topic: str, why: str) -> Sentence:
    return Sentence(topic, f"{topic}: {why}", measured=False)


def _footprint(head: Headline, names: Names) -> Sentence:
    topic = "footprint against the formula"
    found = head.footprint
    if found is None:
        return _absent(topic, say.absent(head, "footprint"))
    record = found.record
    per_token = found.measured_bytes / (record.trace.depth_tokens * record.trace.batch)
    text = (
        f"The largest cache measured, {names.cache(record)} {say.at_depth(record)}, holds "
        f"{both_units(found.measured_bytes)}, {token_bytes(per_token)} bytes a token; "
        f"{count(found.exact)} of {plural(found.counted, 'cache')} equal the formula to the byte"
    )
    return Sentence(topic, text)


def _fused(head: Headline, names: Names) -> Sentence:
    topic = f"fused attention against {PLAIN}"
    if not head.fused:
        return _absent(topic, say.absent(head, "fused"))
    top = max(head.fused, key=lambda s: say.deepest(s.fast))
    text = (
        f"The attention of one decode step of {names.cache(top.fast)} {say.at_depth(top.fast)} "
        f"({say.layers(top.fast)}) takes {say.median_time(top.slow)} with {PLAIN} and "
        f"{say.median_time(top.fast)} with {backend_name(top.fast)}: {say.verdict(top)} "
        f"({say.interval(top)})"
    )
    # One format must not speak for the others: a kernel may win in fp16 and lose in bf16.
    same = [s for s in head.fused if s is not top and s.fast.model == top.fast.model]
    others = "".join(
        f"; in {say.fmt(s.fast)} with {backend_name(s.fast)} {say.verdict(s)}" for s in same
    )
    return Sentence(topic, text + others)


def _quantized(head: Headline, names: Names) -> Sentence:
    topic = "quantized against 16-bit"
    if not head.quantized_bytes and not head.quantized_time:
        return _absent(topic, say.absent(head, "quantized_bytes", "quantized_time"))
    return Sentence(topic, f"Beside 16 bits: {quantized_text(head, names)}")


def _pages(head: Headline, names: Names) -> Sentence:
    text = pages_text(head, names)
    return Sentence("pages over contiguous", text, measured=bool(text))


def _model(head: Headline, names: Names) -> Sentence:
    topic = "a real model"
    known = [s for s in head.steps if s.deepest_tokens_per_s]
    if not known:
        return _absent(topic, say.absent(head, "steps"))
    top = max(known, key=lambda s: s.deepest_tokens_per_s or 0)
    speed = f"{number(top.deepest_tokens_per_s)} tokens/s {say.at_depth(top.deepest)}"
    if top.first is not top.deepest and top.first_tokens_per_s:
        speed = f"{number(top.first_tokens_per_s)} tokens/s {say.at_depth(top.first)} and {speed}"
    text = (
        f"A real model, {names.cache(top.deepest)} with {say.backend(top.deepest)}, makes {speed}"
    )
    if top.bytes_per_token:
        text += f"; its own cache holds {token_bytes(top.bytes_per_token)} bytes a token"
        text += f" (formula {token_bytes(top.formula_bytes_per_token)})"
    return Sentence(topic, text)


def _floor(head: Headline, names: Names) -> Sentence:
    topic = "distance from the floor"
    known = [best for best in head.best if best.floor_ratio is not None]
    if not known:
        return _absent(topic, say.absent(head, "best"))
    top = max(known, key=lambda best: say.deepest(best.record))
    text = (
        f"The fastest backend for {names.cache(top.record)} {say.at_depth(top.record)}, "
        f"{say.backend(top.record)}, takes {times(top.floor_ratio)} the floor, the least time that "
        "probed bandwidth and arithmetic allow"
    )
    return Sentence(topic, text)
