"""The records of a run as a pandas frame: one row a cell, its last attempt."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from kvgauge.schema import Record, Run
from kvgauge_reports import select
from kvgauge_reports.extras import report_extra
from kvgauge_reports.text import clean

if TYPE_CHECKING:
    import pandas as pd

_NUMBER = re.compile(" #")
COLUMNS = (
    "cell_id",
    "scope",
    "counted",  # may be compared: see select.why_not
    "panel",  # the setting in words, without the format
    "model",
    "format",  # as recorded: cleaned where it is shown
    "layout",
    "backend",
    "depth_tokens",
    "tokens",  # depth times batch
    "formula_bytes",
    "held_bytes",
    "allocated_bytes",
    "time_s",
    "low_s",
    "high_s",
    "floor_s",
    "tokens_per_s",
    "flops",
    "moved_bytes",
    "read_bytes_per_s",
    "flops_per_s",
    "integer_ops_per_s",
)


def records_frame(run: Run) -> pd.DataFrame:
    """One row for each cell that has status ok; empty, with the same columns, where none has."""
    with report_extra():
        import pandas as pd
    names = model_names(run)
    rows = [_row(run, record, names) for record in run.latest() if record.status == "ok"]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def model_names(run: Run) -> dict[tuple[str, str], str]:
    """(name, shape_id) -> display name, each different: where two shapes share a name, or two names
    their first characters, the shape and then a number is added.
    """
    models = dict.fromkeys((r.model.name, r.model.shape_id) for r in run.records)
    shared = Counter(clean(name, 60) for name, _ in models)
    names: dict[tuple[str, str], str] = {}
    # How many names so far are a text, or that text with ` #` and more behind it.
    same: Counter[str] = Counter()
    taken: set[str] = set()
    last: dict[str, int] = {}
    for name, shape in models:
        shown = clean(name, 60)
        if shared[shown] > 1:
            shown = f"{shown} [{clean(shape, 12)}]"
        given = shown
        if same[shown]:
            n = max(same[shown], last.get(shown, 0)) + 1
            while f"{shown} #{n}" in taken:
                n += 1
            given, last[shown] = f"{shown} #{n}", n
        taken.add(given)
        same.update((given, *(given[: mark.start()] for mark in _NUMBER.finditer(given))))
        names[name, shape] = given
    return names


def panel(record: Record, names: dict[tuple[str, str], str]) -> str:
    """What a group of rows and a figure's panel have in common, in words; defaults left out."""
    key = select.setting(record)
    parts = [names[key.model, key.shape_id]]
    if key.layers_timed != key.layers:
        parts.append(f"{key.layers_timed} of {key.layers} layers timed")
    if key.batch != 1:
        parts.append(f"batch {key.batch}")
    if key.layout != "contiguous":
        page = f", pages of {key.page_size}" if key.page_size else ""
        parts.append(clean(key.layout, 30) + page)
    if key.policy != "all":
        parts.append(f"policy {clean(key.policy, 30)}")
    if key.cache_state == "hot":
        parts.append("hot cache")
    return " · ".join(parts)


def _row(run: Run, record: Record, names: dict[tuple[str, str], str]) -> dict[str, Any]:
    measured, time, probe = record.measured, select.timing(record), record.probe
    return {
        "cell_id": record.cell_id,
        "scope": record.scope,
        "counted": select.why_not(run, record) is None,
        "panel": panel(record, names),
        "model": names[record.model.name, record.model.shape_id],
        "format": record.cache.format,
        "layout": record.cache.layout,
        "backend": select.backend_name(record),
        "depth_tokens": record.trace.depth_tokens,
        "tokens": select.tokens_held(record),
        "formula_bytes": record.predicted.kv_bytes,
        "held_bytes": measured.kv_bytes if measured else None,
        "allocated_bytes": measured.allocated_bytes if measured else None,
        "time_s": time.median if time else None,
        "low_s": time.low if time else None,
        "high_s": time.high if time else None,
        "floor_s": record.predicted.floor_s,
        "tokens_per_s": measured.tokens_per_s if measured else None,
        "flops": record.predicted.flops,
        "moved_bytes": record.predicted.moved_bytes,
        "read_bytes_per_s": probe.read_bytes_per_s if probe else None,
        "flops_per_s": probe.flops_per_s if probe else None,
        "integer_ops_per_s": probe.integer_ops_per_s if probe else None,
    }
