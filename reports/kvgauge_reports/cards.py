"""The first screen's cards: one figure each, for the deepest setting, with the range over all."""

from __future__ import annotations

from collections.abc import Iterable

from kvgauge.schema import Run
from kvgauge.units import binary_bytes
from kvgauge_reports import say
from kvgauge_reports.document import Card
from kvgauge_reports.headline_types import Headline
from kvgauge_reports.ratios import PLAIN
from kvgauge_reports.ratios_said import quantized, quantized_text
from kvgauge_reports.say import Names
from kvgauge_reports.select import backend_name
from kvgauge_reports.text import (
    both_units,
    count,
    number,
    percent,
    plural,
    ratio_of_bytes,
    times,
    token_bytes,
)


def cards(run: Run, head: Headline) -> tuple[Card, ...]:
    """In the order of the question: bytes, then time, then a real model."""
    names = Names(run)
    return (
        _bytes(head, names),
        _footprint(head, names),
        _fused(head, names),
        _quantized(head, names),
        _floor(head, names),
        _model(head, names),
    )


def _absent(title: str, why: str) -> Card:
    return Card(title, "–", why, measured=False)


def _bytes(head: Headline, names: Names) -> Card:
    title = "KV cache a token"
    if not head.bytes_per_token:
        return _absent(title, say.absent(head, "bytes_per_token"))
    top = max(head.bytes_per_token, key=lambda each: each.measured)
    exact = "the formula says the same"
    if top.measured != top.formula:
        exact = f"the formula says {token_bytes(top.formula)}"
    what = f"{names.cache(top.record)}: {token_bytes(top.measured)} bytes measured, {exact}"
    return Card(title, binary_bytes(top.measured), what)


def _footprint(head: Headline, names: Names) -> Card:
    title = "Caches as large as the formula says"
    found = head.footprint
    if found is None:
        return _absent(title, say.absent(head, "footprint"))
    what = (
        f"to the byte. Largest: {both_units(found.measured_bytes)}, {names.cache(found.record)} "
        f"{say.at_depth(found.record)}"
    )
    if found.measured_bytes != found.formula_bytes:
        what += f", {ratio_of_bytes(found.measured_bytes, found.formula_bytes)} of the formula's"
    return Card(title, f"{count(found.exact)} of {count(found.counted)}", what)


def _fused(head: Headline, names: Names) -> Card:
    title = f"Fused kernel over {PLAIN}"
    if not head.fused:
        return _absent(title, say.absent(head, "fused"))
    top = max(head.fused, key=lambda s: say.deepest(s.fast))
    what = (
        f"{say.interval(top)}; {backend_name(top.fast)}; attention of {names.cache(top.fast)} "
        f"{say.at_depth(top.fast)}{_range(s.ratio for s in head.fused)}"
    )
    return Card(title, say.verdict(top), what)


def _quantized(head: Headline, names: Names) -> Card:
    title = "Quantized against 16-bit caches"
    found = quantized(head)
    if not found:
        return _absent(title, say.absent(head, "quantized_bytes", "quantized_time"))
    what = quantized_text(head, names)
    measured = [each.time for each in found if each.time]
    if any(time.verdict != "undecided" for time in measured):
        return Card(title, f"{say.span(1 / time.ratio for time in measured)} the time", what)
    if measured:
        return Card(title, "no difference in time shown", what)
    shares = sorted(each.saved.ratio for each in found if each.saved)
    ends = dict.fromkeys(percent(share) for share in (shares[0], shares[-1]))
    return Card(title, f"{' to '.join(ends)} of the bytes", what)


def _floor(head: Headline, names: Names) -> Card:
    title = "Fastest backend against the floor"
    known = [best for best in head.best if best.floor_ratio is not None]
    if not known:
        return _absent(title, say.absent(head, "best"))
    top = max(known, key=lambda best: say.deepest(best.record))
    what = (
        f"the least time that the probed rates allow; {say.backend(top.record)}, "
        f"{names.cache(top.record)} {say.at_depth(top.record)}, {percent(top.bandwidth_ratio)} of "
        f"the probe{_range(best.floor_ratio for best in known if best.floor_ratio is not None)}"
    )
    return Card(title, f"{times(top.floor_ratio)} the floor", what)


def _model(head: Headline, names: Names) -> Card:
    title = "A real model, deep in its trace"
    known = [s for s in head.steps if s.deepest_tokens_per_s]
    if not known:
        return _absent(title, say.absent(head, "steps"))
    top = max(known, key=lambda s: s.deepest_tokens_per_s or 0)
    what = f"{names.cache(top.deepest)} with {say.backend(top.deepest)} {say.at_depth(top.deepest)}"
    if top.first is not top.deepest and top.first_tokens_per_s:
        what += f"; {number(top.first_tokens_per_s)} {say.at_depth(top.first)}"
    if top.bytes_per_token:
        what += f"; {token_bytes(top.bytes_per_token)} bytes of cache a token"
    return Card(title, f"{number(top.deepest_tokens_per_s)} tokens/s", what)


def _range(values: Iterable[float]) -> str:
    ordered = list(values)
    if len(ordered) < 2:
        return ""
    return f". {say.span(ordered)} over {plural(len(ordered), 'setting')}"
