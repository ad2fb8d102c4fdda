"""The gate: bytes exactly, times only where a change shows by every clock and beyond the noise."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from kvgauge.errors import ExitCode
from kvgauge.gate.baseline import Baseline, CellBytes, Series, label
from kvgauge.gate.clocks import CLOCKS, Interval, clock_values
from kvgauge.schema import Record, Run, Verdict, VerdictKind

# The least change that is called one. On a shared virtual machine, of 73 cells that two quiet runs of
# one revision could compare, 12 differed by over a quarter by all three clocks, 5 by over a half (all
# of them sdpa-math, whose scratch the system maps anew at each step). A GPU is steadier.
MIN_CHANGE = {"cpu": 0.5, "cuda": 0.05}
NOISE_FACTOR = 2.0
# Under this share of the baseline's bandwidth or arithmetic rate the machine is busy with other work.
BUSY_BELOW = 0.4


def compare(run: Run, baseline: Baseline) -> tuple[Verdict, ...]:
    """One verdict for each cell of the baseline that the run planned, and for each new cell."""
    known = {cell.cell_id: cell for cell in baseline.cells}
    series = {s.series_id: s for s in baseline.series}
    timed: dict[str, set[str]] = {}
    for each in baseline.series:
        timed.setdefault(each.cell_id, set()).add(each.device)
    done = {record.cell_id: record for record in run.latest()}
    devices = {s.device for s in baseline.series}
    verdicts = [
        _judge(r, known.get(r.cell_id), series, timed.get(r.cell_id, set()), devices)
        for r in done.values()
    ]
    verdicts += _unmeasured(run, baseline, done.keys())
    if run.manifest.status in ("running", "interrupted"):
        why = f"the manifest says {run.manifest.status}: the run did not end"
        verdicts.append(Verdict("", "the run", "missing", why, {}))
    return tuple(verdicts)


def exit_code(verdicts: Sequence[Verdict]) -> ExitCode:
    """4 for a regression, 5 for cells that are missing, 3 where times could not be compared."""
    kinds = [verdict.kind for verdict in verdicts]
    if "bytes_differ" in kinds or "slower" in kinds:
        return ExitCode.REGRESSION
    if "missing" in kinds:
        return ExitCode.INCOMPLETE
    if not kinds or "not_comparable" in kinds:
        return ExitCode.NOT_COMPARABLE
    return ExitCode.DONE


def _unmeasured(run: Run, baseline: Baseline, done: AbstractSet[str]) -> list[Verdict]:
    """Cells of the baseline that this run should have measured: a lost backend must not pass."""
    manifest, planned = run.manifest, set(run.manifest.cells)
    found = []
    for cell in {c.cell_id: c for c in baseline.cells}.values():
        if cell.cell_id in done:
            continue
        same_plan = (cell.profile, cell.device_kind) == (manifest.profile, manifest.device.kind)
        if cell.cell_id in planned:
            why = "planned, in the baseline, but not measured"
        elif same_plan and not manifest.narrowed:
            why = "in the baseline of this profile, but not planned here"
        else:
            continue
        found.append(Verdict(cell.cell_id, cell.label, "missing", why, {}))
    return found


def _judge(
    record: Record,
    cell: CellBytes | None,
    series: dict[str, Series],
    timed_on: set[str],
    devices: set[str],
) -> Verdict:
    """`timed_on`: the devices that the baseline has times of this cell of; `devices`: of any cell."""

    def verdict(kind: VerdictKind, reason: str, **evidence: float | int | None) -> Verdict:
        return Verdict(record.cell_id, label(record), kind, reason, evidence)

    if cell is None:
        return verdict("not_comparable", "not in the baseline")
    if record.status == "unsupported" and timed_on and record.device.name not in timed_on:
        why = f"unsupported: {record.reason}; the baseline has other hardware for this cell"
        return verdict("not_comparable", why)
    if record.status != "ok" or record.measured is None:
        return verdict("missing", f"{record.status}: {record.reason}")
    if record.measured.kv_bytes != cell.kv_bytes:
        return verdict(
            "bytes_differ",
            f"{record.measured.kv_bytes} bytes, baseline {cell.kv_bytes}",
            kv_bytes=record.measured.kv_bytes,
            baseline_kv_bytes=cell.kv_bytes,
        )
    values = clock_values(record)
    level = series.get(record.series_id)
    if values is None:
        if level is not None:
            return verdict("missing", "bytes equal; the baseline has a time, this run has none")
        return verdict("same", "bytes equal", kv_bytes=cell.kv_bytes)
    if not record.trust.ok:
        return verdict(
            "undecided", f"bytes equal; time disturbed ({', '.join(record.trust.flags)})"
        )
    if level is None and record.device.name in devices:
        return verdict("undecided", "bytes equal; disturbed in every run of the baseline")
    if level is None:
        where = "other hardware" if timed_on else "no time"
        return verdict("not_comparable", f"bytes equal; the baseline has {where} for this cell")
    return _judge_times(record, values, level)


def _judge_times(record: Record, values: dict[str, Interval], level: Series) -> Verdict:
    """Slower (or faster) only if the whole interval lies beyond the band by every clock."""
    evidence: dict[str, float | int | None] = {}
    busy = _busy(values, level)
    if busy is not None:
        return Verdict(record.cell_id, label(record), "undecided", busy, evidence)
    slower, faster, told, outside = [], [], [], False
    for clock in CLOCKS:
        center, low, high = (value / level.clocks[clock].center for value in values[clock])
        band = max(MIN_CHANGE[record.device.kind], NOISE_FACTOR * level.clocks[clock].half_range)
        evidence |= {f"{clock}_ratio": center, f"{clock}_band": band}
        slower.append(low > 1 + band)
        faster.append(high < 1 / (1 + band))
        outside |= not 1 / (1 + band) <= center <= 1 + band
        told.append(f"{clock} x{center:.3f} (band {1 / (1 + band):.3f} to {1 + band:.3f})")
    kind, why = _kind(slower, faster)
    if kind == "same" and outside:
        why = "no change shown: the interval of a median beyond the band reaches into it"
    reason = f"{why}: {', '.join(told)}"
    return Verdict(record.cell_id, label(record), kind, reason, evidence)


def _busy(values: dict[str, Interval], level: Series) -> str | None:
    """Whether memory or arithmetic gave far less than when the baseline was made."""
    seconds = values["seconds"][0] / level.clocks["seconds"].center
    for clock in CLOCKS[1:]:
        given = values[clock][0] / level.clocks[clock].center / seconds
        if given < BUSY_BELOW:
            return f"bytes equal; the machine gave {given:.2f} of the baseline's {clock} a second"
    return None


def _kind(slower: list[bool], faster: list[bool]) -> tuple[VerdictKind, str]:
    if all(slower):
        return "slower", "beyond the band by every clock"
    if all(faster):
        return "faster", "beyond the band by every clock"
    if any(slower) or any(faster):
        way = " and ".join(n for n, found in (("slower", slower), ("faster", faster)) if any(found))
        return "undecided", f"{way} beyond the band by some clocks only: the machine changed"
    return "same", "within the band"
