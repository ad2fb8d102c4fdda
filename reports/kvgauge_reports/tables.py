"""The tables of a report: what was measured, what was left out, what does not count and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvgauge.schema import Record, Run
from kvgauge.units import GB
from kvgauge_reports import say, select
from kvgauge_reports.anchors import Anchors
from kvgauge_reports.document import Cell, Column, Group, Row, Table
from kvgauge_reports.say import Names
from kvgauge_reports.text import (
    NONE,
    clean,
    count,
    milliseconds,
    number,
    percent,
    ratio_of_bytes,
)

_MAX_UNREACHED = 40
_TIMING_COLUMNS = (
    Column("depth", "number"),
    Column("format"),
    Column("backend, kernel", "code"),
    Column("time, ms", "number"),
    Column("GB/s", "number"),
    Column("of probe", "number"),
    Column("× floor", "number"),
    Column("error", "number"),
    Column("trust"),
)


def attention_table(run: Run, anchors: Anchors) -> Table:
    """Every ok record of scope `attention`."""
    return Table(
        key="times",
        title="Every time: attention of one decode step",
        caption=(
            "Median with the 95% interval, samples and noise. GB/s is the formula's bytes over the "
            "time (10⁹ bytes a second); of probe and × floor as in “How to read”. Italic: flagged, "
            "an indication alone and not compared."
        ),
        columns=_TIMING_COLUMNS,
        groups=_grouped(run, ("attention",), lambda r: _timing_row(run, r, anchors)),
        empty="No attention time was measured in this run.",
    )


def step_table(run: Run, anchors: Anchors) -> Table:
    """Every ok record of scope `step` and `engine`."""

    def row(record: Record) -> Row:
        base = _timing_row(run, record, anchors)
        measured = record.measured
        held = measured.kv_bytes if measured else None
        ratio = NONE if held is None else ratio_of_bytes(held, record.predicted.kv_bytes)
        speed = number(measured.tokens_per_s) if measured else NONE
        extra = (Cell(count(held), f"{ratio} of formula"), Cell(speed))
        return Row((*base.cells[:3], *extra, *base.cells[3:]), base.anchor, muted=base.muted)

    extra = (Column("cache, bytes", "number"), Column("tokens/s", "number"))
    return Table(
        key="steps",
        title="A real model: every whole step",
        caption=(
            "One step of the whole model, weights included. tokens/s is that of the whole batch. "
            "The error is against the same forward pass without a cache."
        ),
        columns=(*_TIMING_COLUMNS[:3], *extra, *_TIMING_COLUMNS[3:]),
        groups=_grouped(run, select.STEP_SCOPES, row),
        empty="No real model was measured in this run.",
    )


def footprint_table(run: Run, anchors: Anchors) -> Table:
    """Every ok record of scope `memory`."""
    return Table(
        key="footprints",
        title="Every footprint",
        caption=(
            "Bytes of the whole cache, all layers. Ratios are measured over formula. The tensors "
            "are torch's own storages; the allocator or operating system is what the device says "
            f"that the process grew by, in whole blocks{_sources(run)}."
        ),
        columns=(
            Column("tokens", "number"),
            Column("format"),
            Column("formula, bytes", "number"),
            Column("tensors, bytes", "number"),
            Column("ratio", "number"),
            Column("allocator or OS, bytes", "number"),
            Column("ratio", "number"),
            Column("peak, bytes", "number"),
            Column("trust"),
        ),
        groups=_grouped(run, ("memory",), lambda r: _footprint_row(run, r, anchors)),
        empty="No footprint was measured in this run.",
    )


def trouble_table(run: Run, anchors: Anchors) -> Table:
    """Every cell that is in no comparison: not ok, flagged, of another device, or never reached."""
    names = Names(run)
    rows = [_trouble_row(record, why, names, anchors) for record, why in select.excluded(run)]
    never = list(dict.fromkeys(select.unreached(run)))
    rows += [_never_row(clean(cell, 24)) for cell in never[:_MAX_UNREACHED]]
    if len(never) > _MAX_UNREACHED:
        rows.append(_never_row(f"{count(len(never) - _MAX_UNREACHED)} more"))
    return Table(
        key="excluded",
        title="Records that do not count",
        caption="Left out of every headline, ratio and line of a figure, with the reason.",
        columns=(Column("cell"), Column("status"), Column("code", "code"), Column("reason")),
        groups=(Group("", tuple(rows)),) if rows else (),
        empty="Every cell of this run was measured and is trusted.",
    )


def left_out_table(run: Run) -> Table:
    """What the manifest says that no cell was made for."""
    rows = tuple(
        Row((Cell(clean(name, 60)), Cell(clean(reason, 300))))
        for name, reason in list(run.manifest.left_out.items())[:200]
    )
    return Table(
        key="left-out",
        title="Left out and why",
        caption="What this machine or this choice has no cells for: backends, layouts, suites.",
        columns=(Column("what", "code"), Column("reason")),
        groups=(Group("", rows),) if rows else (),
        empty="Nothing was left out: every backend and suite of this choice has cells.",
    )


def _grouped(run: Run, scopes: Sequence[str], row: Callable[[Record], Row]) -> tuple[Group, ...]:
    """ok records by setting, in the run's order; within it by depth, format as they came."""
    names = Names(run)
    groups: dict[str, list[Record]] = {}
    for record in select.of_scope(run.latest(), *scopes):
        if record.status == "ok":
            label = f"{names.setting(record)} · {clean(record.model.attention, 12)}"
            groups.setdefault(label, []).append(record)
    return tuple(
        Group(label, tuple(row(r) for r in sorted(records, key=lambda r: r.trace.depth_tokens)))
        for label, records in groups.items()
    )


def _timing_row(run: Run, record: Record, anchors: Anchors) -> Row:
    measured, ratio, time = record.measured, record.ratio, select.timing(record)
    kernel = record.backend.kernel if record.backend else None
    spread = ""
    if time:
        spread = (
            f"[{milliseconds(time.low)}, {milliseconds(time.high)}] "
            f"n {time.n}, noise {percent(time.noise)}"
        )
    rate = measured.bytes_per_s if measured else None
    error = measured.max_error if measured else None
    cells = (
        Cell(count(record.trace.depth_tokens)),
        Cell(say.fmt(record)),
        Cell(say.backend(record), clean(kernel, 90) if kernel else ""),
        Cell(milliseconds(time.median if time else None), spread),
        Cell(number(rate / GB if rate is not None else None)),
        Cell(percent(ratio.bandwidth if ratio else None)),
        Cell(number(ratio.floor if ratio else None)),
        Cell(NONE if error is None else f"{error:.1e}"),
        _trust(run, record),
    )
    return Row(cells, anchors.of(record), muted=select.why_not(run, record) is not None)


def _footprint_row(run: Run, record: Record, anchors: Anchors) -> Row:
    formula, measured = record.predicted.kv_bytes, record.measured
    held = measured.kv_bytes if measured else None
    allocated = measured.allocated_bytes if measured else None
    driver = measured.driver_bytes if measured else None
    cells = (
        Cell(count(record.trace.depth_tokens)),
        Cell(say.fmt(record)),
        Cell(count(formula)),
        Cell(count(held)),
        Cell(NONE if held is None else ratio_of_bytes(held, formula)),
        Cell(count(allocated), "" if driver is None else f"driver {count(driver)}"),
        Cell(NONE if allocated is None else ratio_of_bytes(allocated, formula)),
        Cell(count(measured.peak_bytes if measured else None)),
        _trust(run, record),
    )
    return Row(cells, anchors.of(record), muted=select.why_not(run, record) is not None)


def _sources(run: Run) -> str:
    """`: resident set, ...`: what the device's memory was read from."""
    memory = select.of_scope(run.latest(), "memory")
    found = {r.measured.allocated_source for r in memory if r.measured}
    known = sorted(clean(source, 80) for source in found if source)
    return f": {'; '.join(known[:4])}" if known else ""


def _trouble_row(record: Record, why: str, names: Names, anchors: Anchors) -> Row:
    flagged = record.status == "ok"
    depth = f"{count(record.trace.depth_tokens)} tokens"
    parts = [clean(record.suite, 20), names.setting(record), depth, say.fmt(record)]
    if select.backend_name(record):
        parts.append(say.backend(record))
    code = ", ".join(record.trust.flags) if flagged else record.reason_code
    status = "ok, not trusted" if flagged else record.status
    cells = (
        Cell(" · ".join(parts)),
        Cell(status),
        Cell(clean(code or None, 60)),
        Cell(clean(why, 300)),
    )
    # A flagged record has its own row among the times: this one points there.
    anchor = anchors.of(record)
    return Row(cells, link=anchor) if flagged else Row(cells, anchor=anchor)


def _never_row(what: str) -> Row:
    return Row((Cell(what), Cell("never reached"), Cell(NONE), Cell("no record of it")))


def _trust(run: Run, record: Record) -> Cell:
    if select.why_not(run, record) is None:
        return Cell("yes")
    return Cell("no", clean(", ".join(record.trust.flags) or "see below", 60))
