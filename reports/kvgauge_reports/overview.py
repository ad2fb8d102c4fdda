"""The headline by setting: one row a model and format, each figure as `headline` defines it."""

from __future__ import annotations

from dataclasses import replace

from kvgauge.schema import Record, Run
from kvgauge_reports import say, select
from kvgauge_reports.document import Cell, Column, Group, Row, Table
from kvgauge_reports.headline_types import BytesPerToken, BytesSaved, Headline, Speedup
from kvgauge_reports.say import Names
from kvgauge_reports.select import Setting
from kvgauge_reports.text import NONE, both_units, count, number, percent, times, token_bytes

_NONE = Cell(NONE)
_COLUMNS = (
    Column("format"),
    Column("cache, bytes a token", "number"),
    Column("largest cache", "number"),
    Column("fastest backend, ms", "number"),
    Column("× floor", "number"),
    Column("fused over eager", "number"),
    Column("quantized over 16-bit, time and bytes", "number"),
)
_PAGES = Column("pages over contiguous, time", "number")


def overview_table(run: Run, head: Headline) -> Table:
    """Bytes from scope `memory`, times from scope `attention`, each at its own deepest depth."""
    names = Names(run)
    memory = {_key(each.record): each for each in head.bytes_per_token}
    best = {_key(each.record): each for each in head.best}
    fused = {_key(each.fast): each for each in head.fused}
    saved = {_key(each.quantized): each for each in head.quantized_bytes}
    quantized = {_key(each.fast): each for each in head.quantized_time}
    pages = {_key(each.fast): each for each in head.pages}
    timed = {_key(r): r for r in (*(s.fast for s in (*head.pages, *head.quantized_time, *head.fused)),
                                  *(each.record for each in head.best))}  # fmt: skip
    # A format without a time goes under its model's other formats, which say how many layers.
    labels = {key.in_format(""): names.setting(record) for key, record in timed.items()}
    groups: dict[str, list[Row]] = {}
    for key in dict.fromkeys((*best, *memory, *timed)):
        record = timed[key] if key in timed else memory[key].record
        held, top = memory.get(key), best.get(key)
        cells = (
            Cell(say.fmt(record)),
            _bytes(held) if held else _timed_bytes(record),
            _largest(held.record) if held else _NONE,
            _fastest(top.record) if top else _NONE,
            Cell(number(top.floor_ratio), f"{percent(top.bandwidth_ratio)} of probe")
            if top
            else _NONE,
            _speedup(fused[key]) if key in fused else _NONE,
            _quantized(quantized.get(key), saved.get(key)),
            _pages(pages[key]) if key in pages else _NONE,
        )
        label = labels.get(key.in_format(""), names.setting(record))
        groups.setdefault(label, []).append(Row(cells if pages else cells[:-1]))
    return Table(
        key="overview",
        title="The headline, model by model",
        caption=(
            "Each figure at the largest depth at which it can be given: a fastest backend only where "
            "no flagged time of that depth may be the fastest. Times are the attention of one decode step "
            "over the layers named; intervals as in “How to read”. Bytes are those of all layers, or of "
            "as many as are named beside them where no footprint was measured."
        ),
        columns=(*_COLUMNS, _PAGES) if pages else _COLUMNS,
        groups=tuple(Group(label, tuple(rows)) for label, rows in groups.items()),
        empty="No cell of this run was measured and trusted.",
    )


def _key(record: Record) -> Setting:
    # Footprints hold all layers and have no cache state; a model's row has both kinds of figures.
    return replace(select.setting(record), layers_timed=0, cache_state=None)


def _bytes(held: BytesPerToken) -> Cell:
    return Cell(token_bytes(held.measured), f"formula {token_bytes(held.formula)}")


def _timed_bytes(record: Record) -> Cell:
    """Of the layers that were timed: no footprint of all of them was measured."""
    held, tokens = select.held_bytes(record), select.tokens_held(record)
    if held is None or tokens < 1:
        return _NONE
    formula = token_bytes(record.predicted.kv_bytes / tokens)
    return Cell(token_bytes(held / tokens), f"{say.layers(record)}, formula {formula}")


def _pages(speedup: Speedup) -> Cell:
    span = f"{number(1 / speedup.high)} to {number(1 / speedup.low)}"
    where = f"{say.backend(speedup.fast)}, {count(speedup.fast.trace.depth_tokens)} tokens"
    return Cell(times(1 / speedup.ratio), f"{span}; {where}")


def _largest(record: Record) -> Cell:
    return Cell(both_units(select.held_bytes(record) or 0), say.at_depth(record))


def _fastest(record: Record) -> Cell:
    time = select.timing(record)
    median = number(time.median * 1e3, 4) if time else NONE
    return Cell(median, f"{say.backend(record)}, {count(record.trace.depth_tokens)} tokens")


def _speedup(speedup: Speedup) -> Cell:
    where = f"{say.backend(speedup.fast)}, {count(speedup.fast.trace.depth_tokens)} tokens"
    return Cell(times(speedup.ratio), f"{say.interval(speedup)}; {where}")


def _quantized(time: Speedup | None, saved: BytesSaved | None) -> Cell:
    share = f"{percent(saved.ratio)} of {say.fmt(saved.plain)} bytes" if saved else ""
    if time is None:
        return Cell(NONE, share)
    span = f"{number(1 / time.high)} to {number(1 / time.low)}"
    return Cell(times(1 / time.ratio), f"{span}; {share}" if share else span)
