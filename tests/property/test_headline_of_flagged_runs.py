"""Whatever is flagged or missing: the first screen's times against a second reading of their definitions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from kvgauge.schema import Record, Run, Timing, Trust
from kvgauge_reports.headline import headline
from kvgauge_reports.select import Setting, setting
from runs_for_tests import make_run

FUSED = ("sdpa-flash", "cpu")
BASE = make_run()


def time_of(record: Record) -> Timing:
    assert record.measured is not None
    assert record.measured.time_s is not None
    return record.measured.time_s


def name_of(record: Record) -> str:
    return record.backend.name if record.backend else ""


def as_cpu(record: Record, by: float) -> Record:
    """The same cell with the backend `cpu`, so many times as slow."""
    time, backend, measured = time_of(record), record.backend, record.measured
    assert backend is not None
    assert measured is not None
    scaled = replace(
        time, median=time.median * by, low=time.low * by, high=time.high * by,
        samples=tuple(sample * by for sample in time.samples),
    )  # fmt: skip
    return replace(
        record, cell_id=record.cell_id[::-1], backend=replace(backend, name="cpu"),
        measured=replace(measured, time_s=scaled),
    )  # fmt: skip


FLASH = [r for r in BASE.records if r.scope == "attention" and name_of(r) == "sdpa-flash"]
OTHERS = [r for r in BASE.records if r.scope == "attention" and name_of(r) != "sdpa-flash"]


@st.composite
def troubled(draw: st.DrawFn) -> Run:
    """Some records are flagged, some are not there."""
    faster = draw(st.sampled_from([0.5, 0.97, 1.03, 2.0]))
    records = [*OTHERS, *FLASH, *(as_cpu(r, faster) for r in FLASH)]
    fates = draw(
        st.lists(st.sampled_from("kkkkfm"), min_size=len(records), max_size=len(records))
    )  # fmt: skip
    flagged = Trust(ok=False, flags=("drifting",))
    return Run(
        BASE.manifest,
        tuple(
            replace(record, trust=flagged) if fate == "f" else record
            for record, fate in zip(records, fates, strict=True)
            if fate != "m"
        ),
    )


def settings_of(run: Run) -> dict[Setting, dict[int, list[Record]]]:
    found: dict[Setting, dict[int, list[Record]]] = {}
    for record in run.records:
        depths = found.setdefault(setting(record), {})
        depths.setdefault(record.trace.depth_tokens, []).append(record)
    return found


def surely_fastest(rows: Sequence[Record], names: Collection[str]) -> Record | None:
    """The fastest that counts, where no flagged sample is as fast."""
    rows = [r for r in rows if name_of(r) in names]
    best = min((r for r in rows if r.trust.ok), key=lambda r: time_of(r).median, default=None)
    flagged = [min(time_of(r).median, *time_of(r).samples) for r in rows if not r.trust.ok]
    if best is None or min(flagged, default=float("inf")) <= time_of(best).median:
        return None
    return best


@given(run=troubled())
def test_the_fastest_and_the_fused(run: Run) -> None:
    best: dict[Setting, Record] = {}
    fused: dict[Setting, tuple[Record, Record]] = {}
    possible: set[Setting] = set()
    for key, depths in settings_of(run).items():
        for _, rows in sorted(depths.items()):
            names = {name_of(r) for r in rows}
            quickest, of_fused = surely_fastest(rows, names), surely_fastest(rows, FUSED)
            eager = [r for r in rows if name_of(r) == "eager" and r.trust.ok]
            if quickest:
                best[key] = quickest
            if of_fused and eager:
                fused[key] = (eager[0], of_fused)
            if "eager" in names and names & set(FUSED):
                possible.add(key)
    head = headline(run)
    assert {setting(b.record): b.record for b in head.best} == best
    assert {setting(s.fast): (s.slow, s.fast) for s in head.fused} == fused
    assert ("fused" in head.withheld) == (bool(possible) and not fused)
