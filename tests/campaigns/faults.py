"""A small run killed at random moments, killed in the middle of a write, and given too little disk.

PYTHONPATH=bench:kernels:reports:tests python -m campaigns.faults [--kills N] [--seed S] [--out FILE]

After each fault what the run had finished must still be there, byte for byte; resumed until it is
complete it must have the cells of an undisturbed run, each once. The kills come at moments drawn
uniformly over the length of an undisturbed run by a seeded generator. A few minutes; not in the suite.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from campaigns.broken_cells import FAULTS, broken_then_mended
from kvgauge.errors import UserError
from kvgauge.schema import Run
from kvgauge.store.reader import load_run

CHOICE = (
    "--device", "cpu", "--suite", "footprint", "--suite", "decode", "--model", "smollm2-135m",
    "--think", "64", "--think", "128", "--kv-format", "fp16", "--kv-format", "int8",
)  # fmt: skip
KVGAUGE = (sys.executable, "-m", "kvgauge")
# One thread: with other work on the machine two wait for each other far longer than they compute.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
KILLS_A_FOLDER = 6
PAGE_BYTES = 4096
TIMEOUT_S = 120


@dataclass(slots=True)
class Row:
    """What came of one scenario."""

    scenario: str
    tries: int = 0
    came: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    """What must not be: none of it may come."""

    def expect(self, holds: bool, fault: str) -> None:
        """Count a fault where what must hold does not."""
        if not holds:
            self.faults[fault] += 1


@dataclass(frozen=True, slots=True)
class Campaign:
    """The undisturbed run that all others are compared with."""

    folder: Path
    rng: random.Random
    kills: int
    whole: Run
    took_s: float


Scenario = Callable[[Campaign], Row]


def command(run_dir: Path) -> list[str]:
    """What begins a run, or goes on with it where there is one to go on with."""
    if (run_dir / "manifest.json").exists():
        return [*KVGAUGE, "run", "--resume", "--run-dir", str(run_dir)]
    return [*KVGAUGE, "run", *CHOICE, "--run-dir", str(run_dir)]


def finish(run_dir: Path) -> subprocess.CompletedProcess[str]:
    """Go on until the process ends by itself."""
    return _run(command(run_dir))


def _run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=ENVIRONMENT
    )


def whole_lines(run_dir: Path) -> bytes:
    """The finished records: what must never be lost or changed from now on."""
    path = run_dir / "records.jsonl"
    data = path.read_bytes() if path.exists() else b""
    return data[: data.rfind(b"\n") + 1]


def check_kept(row: Row, run_dir: Path, kept: bytes) -> bytes:
    """Whether the finished records of before are still there; those of now."""
    now = whole_lines(run_dir)
    row.expect(now.startswith(kept), "a finished record was lost or changed")
    return now


def check_readable(row: Row, run_dir: Path) -> None:
    """Whether a folder that has a manifest is read without complaint."""
    if (run_dir / "manifest.json").exists():
        try:
            load_run(run_dir)
        except UserError as error:
            row.faults[f"unreadable: {error}"] += 1


def check_finished(row: Row, run_dir: Path, kept: bytes, whole: Run) -> None:
    """Resume to the end, and compare with the undisturbed run."""
    started = _started_at(run_dir)
    done = finish(run_dir)
    row.expect(done.returncode == 0, f"resumed: exit {done.returncode}: {done.stderr[-200:]!r}")
    check_kept(row, run_dir, kept)
    try:
        run = load_run(run_dir)
    except UserError as error:
        row.faults[f"unreadable: {error}"] += 1
        return
    ids = Counter((record.cell_id, record.attempt) for record in run.records)
    cells = {cell_id for cell_id, _attempt in ids}
    row.expect(cells == set(whole.manifest.cells), "other cells than an undisturbed run")
    row.expect(max(ids.values(), default=0) <= 1, "a record is there twice")
    # A disturbed cell is measured once more, and no other one is.
    again = [r for r in run.records if r.attempt > 1]
    disturbed = {r.cell_id for r in run.records if r.attempt == 1 and not r.trust.ok}
    row.expect({r.cell_id for r in again} <= disturbed, "a finished cell was measured again")
    row.expect({r.status for r in run.records} == {"ok"}, "a record is not ok")
    row.expect(run.manifest.status == "complete", f"the manifest says {run.manifest.status}")
    row.expect(run.torn_lines == 0, "a torn line stayed")
    row.expect(started in (None, run.manifest.started_at), "the first started_at was lost")
    row.expect(
        sorted(p.name for p in run_dir.iterdir()) == ["manifest.json", "records.jsonl"],
        "something was left behind in the folder",
    )


def _started_at(run_dir: Path) -> str | None:
    path = run_dir / "manifest.json"
    return str(json.loads(path.read_text())["started_at"]) if path.exists() else None


def killed_at_random(campaign: Campaign) -> Row:
    """SIGKILL at a random moment, several times a folder; then to the end."""
    row = Row(f"SIGKILL at a random moment, up to {KILLS_A_FOLDER} a folder")
    folders = 0
    while row.tries < campaign.kills:
        run_dir, kept = campaign.folder / f"killed-{folders}", b""
        folders += 1
        for _ in range(min(KILLS_A_FOLDER, campaign.kills - row.tries)):
            process = subprocess.Popen(command(run_dir), stderr=subprocess.DEVNULL, env=ENVIRONMENT)
            try:
                process.wait(campaign.rng.uniform(0, campaign.took_s))
                break  # it ended before its moment came
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            row.tries += 1
            moment = _moment(run_dir, len(kept))
            row.came[moment] += 1
            kept = check_kept(row, run_dir, kept)
            check_readable(row, run_dir)
            if moment == "after the end":
                break
        check_finished(row, run_dir, kept, campaign.whole)
        shutil.rmtree(run_dir)
    row.came["folders resumed to the end"] = folders
    return row


def _moment(run_dir: Path, kept_bytes: int) -> str:
    if not run_dir.exists():
        return "before the folder was made"
    if not (run_dir / "manifest.json").exists():
        return "before the manifest was written"
    path = run_dir / "records.jsonl"
    if path.read_bytes()[-1:] not in (b"", b"\n"):
        return "in a record"
    manifest = json.loads((run_dir / "manifest.json").read_text())
    if manifest["status"] != "running":
        return "after the end"
    return "after new records" if path.stat().st_size > kept_bytes else "before a new record"


# Takes the first half of write number N, then kills itself; imports write a few bytes of their own.
_HALF_A_WRITE = """
import os, signal, sys
at, real, count = int(sys.argv.pop(1)), os.write, 0
def write(handle, data):
    global count
    count += len(data) > 100
    if count > at:
        real(handle, bytes(data[: len(data) // 2]))
        os.kill(os.getpid(), signal.SIGKILL)
    return real(handle, data)
os.write = write
from kvgauge.cli import main
main()
"""


def killed_in_a_write(campaign: Campaign) -> Row:
    """SIGKILL with half of the bytes written: each manifest, the first, a middle and the last record."""
    row = Row("SIGKILL half way through a write")
    cells = len(campaign.whole.manifest.cells)
    names = {
        0: "the first manifest", 1: "the first record", cells // 2: "a middle record",
        cells: "the last record", cells + 1: "the last manifest",
    }  # fmt: skip
    for at, name in names.items():
        run_dir = campaign.folder / f"half-{at}"
        arguments = command(run_dir)[len(KVGAUGE) :]
        done = _run([sys.executable, "-c", _HALF_A_WRITE, str(at), *arguments])
        row.tries += 1
        row.came[name] += 1
        row.expect(
            done.returncode == -signal.SIGKILL, f"{name}: not killed: {done.stderr[-200:]!r}"
        )
        kept = whole_lines(run_dir)
        row.expect(kept.count(b"\n") == min(max(0, at - 1), cells), f"{name}: a record is missing")
        check_readable(row, run_dir)
        check_finished(row, run_dir, kept, campaign.whole)
    return row


def disk_full(campaign: Campaign) -> Row:
    """A file system with a few pages free: the first manifest, a record, the last manifest do not fit."""
    row = Row("disk full, then freed")
    if os.geteuid() != 0:
        row.came["unsupported: needs root to mount a tmpfs"] = 1
        return row
    manifest, records = (
        -(-(campaign.folder / "whole" / name).stat().st_size // PAGE_BYTES)
        for name in ("manifest.json", "records.jsonl")
    )
    end = manifest + records
    # Records differ in length from run to run: one size alone would not surely meet the last manifest.
    sizes = {0, manifest, manifest + 1, manifest + records // 3, manifest + records // 2,
             *range(end - 2, end + 3), end + manifest + 4}  # fmt: skip
    for pages in sorted(sizes):
        with _tmpfs(campaign.folder / "small", pages) as small:
            if small is None:
                row.came["unsupported: no tmpfs can be mounted here"] = 1
                return row
            _fill_and_free(row, small, campaign.whole)
    return row


def _fill_and_free(row: Row, small: Path, whole: Run) -> None:
    run_dir = small / "run"
    done = finish(run_dir)
    row.tries += 1
    kept = whole_lines(run_dir)
    check_readable(row, run_dir)
    if done.returncode == 0:
        row.came["all fits"] += 1
    else:
        said = done.stderr.strip().splitlines()[-1:]
        row.expect(done.returncode == 2, f"exit {done.returncode}")
        row.expect("Traceback" not in done.stderr, "a traceback")
        row.expect("No space left on device" in "".join(said), f"said {said!r}")
        row.came[f"{_place(run_dir, ''.join(said), len(whole.manifest.cells))} did not fit"] += 1
    _mount("-o", "remount,size=16m", str(small))
    check_finished(row, run_dir, kept, whole)


def _place(run_dir: Path, said: str, cells: int) -> str:
    if "records.jsonl" in said:
        return "a record"
    if "manifest.json" not in said:
        return "the folder"
    return (
        "the last manifest" if whole_lines(run_dir).count(b"\n") == cells else "the first manifest"
    )


@contextlib.contextmanager
def _tmpfs(where: Path, pages: int) -> Iterator[Path | None]:
    where.mkdir(exist_ok=True)
    # A page more, and taken: a size of 0 means no limit.
    if _mount("-t", "tmpfs", "-o", f"size={(pages + 1) * PAGE_BYTES}", "tmpfs", str(where)):
        yield None
        return
    try:
        (where / "filler").write_bytes(bytes(PAGE_BYTES))
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def _mount(*arguments: str) -> int:
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode


def broken_cells(campaign: Campaign) -> Row:
    """Workers that run out of memory, hang or crash; then resumed with mended ones."""
    row = Row(
        "cells that run out of memory, hang or crash in a worker; resumed with mended backends"
    )
    row.came, row.faults = broken_then_mended(campaign.folder / "broken")
    row.tries = len(FAULTS)
    return row


# One function a scenario; it returns its row of the table.
SCENARIOS: Sequence[Scenario] = (killed_at_random, killed_in_a_write, disk_full, broken_cells)


def undisturbed(folder: Path) -> tuple[Run, float]:
    """The run that the others are compared with, and its seconds, start of Python included."""
    started = time.monotonic()
    done = finish(folder / "whole")
    took_s = time.monotonic() - started
    if done.returncode:
        sys.exit(f"the undisturbed run failed: {done.stderr}")
    return load_run(folder / "whole"), took_s


def report(rows: Sequence[Row], campaign: Campaign, seed: int, wall_s: float) -> str:
    """The result file."""
    manifest = campaign.whole.manifest
    revision = (manifest.git_revision or "unknown") + (
        " with changes" if manifest.git_dirty else ""
    )
    lines = [
        "# Runs that were killed, and disks that were full", "",
        f"Run on {time.strftime('%Y-%m-%d', time.gmtime())} at revision {revision}, seed {seed}, Python "
        f"{platform.python_version()}, {wall_s:.0f} s in all. The run: {len(manifest.cells)} cells, "
        f"{campaign.took_s:.1f} s undisturbed, start of Python included.", "",
        "After each fault: the folder is read, and the finished records are there byte for byte. Then the "
        "run is resumed until it is complete: the cells of an undisturbed run, no record there twice, "
        "nothing left behind, the first `started_at` kept.", "",
        "Again: `PYTHONPATH=bench:kernels:reports:tests python -m campaigns.faults --kills "
        f"{campaign.kills} --seed {seed} --out results/faults.md` (root, for the small disks).", "",
        "| scenario | tries | what came | faults |", "|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {row.scenario} | {row.tries} | {_counts(row.came)} | {_counts(row.faults) or 'none'} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _counts(counter: Counter[str]) -> str:
    return "; ".join(f"{name}: {count}" for name, count in counter.most_common()).replace("|", "/")


def main() -> None:
    """Run all scenarios, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    chosen: Any = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        whole, took_s = undisturbed(folder)
        campaign = Campaign(folder, random.Random(chosen.seed), chosen.kills, whole, took_s)
        rows = []
        for scenario in SCENARIOS:
            rows.append(scenario(campaign))
            print(rows[-1], file=sys.stderr, flush=True)
    result = report(rows, campaign, chosen.seed, time.monotonic() - started)
    if chosen.out:
        chosen.out.write_text(result)
    print(result)
    if any(row.faults for row in rows):
        sys.exit("a promise was broken")


if __name__ == "__main__":
    main()
