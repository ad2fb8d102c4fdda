"""Baseline: what earlier runs measured, and how far they differed among themselves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from kvgauge.errors import NotComparable, UserError
from kvgauge.gate.clocks import CLOCKS, clock_values
from kvgauge.measure.stats import median
from kvgauge.schema import DeviceKind, Record, Run
from kvgauge.store.reader import check_numbers, decode, read_bounded

BASELINE_SCHEMA = "kvgauge.baseline/1"
_MAX_BASELINE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Level:
    """One clock over several runs: the median of their medians, and half their range over it."""

    center: float
    half_range: float


@dataclass(frozen=True, slots=True)
class Series:
    """A cell's time on one kind of hardware."""

    series_id: str
    cell_id: str
    device: str
    runs: int
    clocks: dict[str, Level]


@dataclass(frozen=True, slots=True)
class CellBytes:
    """A cell's bytes, the same on every machine, and the profile and device kind that had it."""

    cell_id: str
    label: str
    kv_bytes: int
    profile: str
    device_kind: DeviceKind


@dataclass(frozen=True, slots=True)
class Baseline:
    """The file in `results/baselines`."""

    schema: str
    made_from: tuple[str, ...]
    git_revision: str | None
    cells: tuple[CellBytes, ...]
    series: tuple[Series, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def make_baseline(runs: Sequence[Run]) -> Baseline:
    """From the `ok` records of one or more runs; raises NotComparable if they disagree on bytes."""
    by_cell: dict[str, CellBytes] = {}
    by_series: dict[str, list[Record]] = defaultdict(list)
    for run in runs:
        for record in run.latest():
            if record.status != "ok" or record.measured is None or record.measured.kv_bytes is None:
                continue
            cell = CellBytes(
                record.cell_id,
                label(record),
                record.measured.kv_bytes,
                run.manifest.profile,
                record.device.kind,
            )
            known = by_cell.setdefault(record.cell_id, cell)
            if known.kv_bytes != cell.kv_bytes:
                raise NotComparable(
                    f"{cell.label}: {known.kv_bytes} bytes in one run, {cell.kv_bytes} in another"
                )
            if record.trust.ok:  # a disturbed time says nothing of the next one
                by_series[record.series_id].append(record)
    if not by_cell:
        raise NotComparable("no ok record in these runs: nothing to make a baseline of")
    series = [_series(records) for records in by_series.values()]
    return Baseline(
        schema=BASELINE_SCHEMA,
        made_from=tuple(run.manifest.run_id for run in runs),
        git_revision=runs[0].manifest.git_revision,
        cells=tuple(by_cell.values()),
        series=tuple(s for s in series if s is not None),
    )


def load_baseline(path: str | Path) -> Baseline:
    """One file, or every .json in a folder taken together.

    Raises NotComparable where there is none, UserError where a file is not a baseline.
    """
    place = Path(path)
    try:
        if (place / "manifest.json").is_file() and (place / "records.jsonl").is_file():
            raise UserError(
                f"{place} is a run folder, not a baseline: "
                f"`kvgauge baseline make {quote(str(place))} --out baseline.json` makes one of it"
            )
        files = sorted(place.glob("*.json")) if place.is_dir() else [place]
        if not files or not files[0].exists():
            raise NotComparable(f"no baseline at {place}: make one with `kvgauge baseline make`")
    except OSError as error:
        raise UserError(f"{place}: {error.strerror}") from None
    parts = [_load_file(file) for file in files]
    _check_agreement(parts, files)
    return Baseline(
        BASELINE_SCHEMA,
        tuple(name for part in parts for name in part.made_from),
        parts[0].git_revision,
        tuple(cell for part in parts for cell in part.cells),
        tuple(series for part in parts for series in part.series),
    )


def label(record: Record) -> str:
    """One line for people: the cell's own, where the record has all of it."""
    if record.cell is not None:
        return record.cell.label()
    parts = [
        record.suite, record.model.name, f"{record.trace.depth_tokens} tokens", record.cache.format
    ]  # fmt: skip
    if record.trace.batch > 1:
        parts.append(f"batch {record.trace.batch}")
    if record.backend is not None:
        parts.append(record.backend.name)
    return " · ".join(parts)


def _load_file(path: Path) -> Baseline:
    text = read_bounded(path, _MAX_BASELINE_BYTES)
    baseline = decode(text, Baseline, f"{path} is no baseline")
    if baseline.schema != BASELINE_SCHEMA:
        raise UserError(
            f"{path}: schema {baseline.schema!a}, this kvgauge reads {BASELINE_SCHEMA!r}"
        )
    check_numbers(baseline.to_json(), str(path))
    for series in baseline.series:
        if set(series.clocks) != set(CLOCKS):
            raise UserError(f"{path}: series {series.series_id!a} must have {', '.join(CLOCKS)}")
        if any(not c.center > 0 or c.half_range < 0 for c in series.clocks.values()):
            raise UserError(f"{path}: series {series.series_id!a} has a time that is not above 0")
    return baseline


def _check_agreement(parts: Sequence[Baseline], files: Sequence[Path]) -> None:
    known: dict[str, tuple[int, Path]] = {}
    timed: dict[str, Path] = {}
    for part, file in zip(parts, files, strict=True):
        for cell in part.cells:
            kv_bytes, where = known.setdefault(cell.cell_id, (cell.kv_bytes, file))
            if kv_bytes != cell.kv_bytes:
                raise NotComparable(f"{where} and {file} disagree on the bytes of {cell.label!a}")
        for series in part.series:
            if timed.setdefault(series.series_id, file) != file:
                raise NotComparable(
                    f"{timed[series.series_id]} and {file} both have times on {series.device!a}: "
                    "make one baseline of all runs"
                )


def _series(records: Sequence[Record]) -> Series | None:
    values = [v for v in (clock_values(r) for r in records) if v is not None]
    if not values:
        return None
    first = records[0]
    levels = {}
    for clock in CLOCKS:
        # A single run knows its own interval alone; several know their range as well.
        points = [point for v in values for point in v[clock]]
        center = median([v[clock][0] for v in values])
        levels[clock] = Level(center, (max(points) - min(points)) / 2 / center)
    return Series(first.series_id, first.cell_id, first.device.name, len(values), levels)
