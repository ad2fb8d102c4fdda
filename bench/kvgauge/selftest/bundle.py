"""selftest.json: everything that a self-test found, in one file that can be sent back."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from kvgauge.errors import UserError, short
from kvgauge.selftest.checks import Check, State
from kvgauge.store.atomic import write_atomic
from kvgauge.store.folder import MANIFEST, RECORDS

SCHEMA = "kvgauge.selftest/1"
_MAX_BYTES = 256 * 2**20


def write_bundle(
    path: Path,
    checks: Sequence[Check],
    run_dir: Path,
    facts: dict[str, Any],
    left_out: dict[str, str],
) -> None:
    """The checks, the run's manifest and records as its folder has them; raises UserError.

    `facts`: of the device; `left_out`: backends that were not there, and why.
    """
    lines = (run_dir / RECORDS).read_text().splitlines()
    bundle = {
        "schema": SCHEMA,
        "device": facts,
        "left_out": left_out,
        "checks": [check.to_json() for check in checks],
        "manifest": json.loads((run_dir / MANIFEST).read_text()),
        "records": [json.loads(line) for line in lines if line.strip()],
    }
    write_atomic(path, json.dumps(bundle, indent=1).encode())


@dataclass(frozen=True, slots=True)
class Findings:
    """How many checks ended how, and `wrong eager (int8, contiguous)` of each that was not right."""

    counts: dict[str, int]
    wrong: tuple[str, ...]

    def said(self, most: int) -> str:
        """The first so many of those that were not right, in one line."""
        more = f" and {len(self.wrong) - most} more" if len(self.wrong) > most else ""
        return f"the self-test found {'; '.join(self.wrong[:most])}{more}"

    def remarks(self) -> tuple[str, ...]:
        """What a report says of them."""
        counts = ", ".join(f"{count} {state}" for state, count in self.counts.items())
        said = f"A self-test: its checks of backends, formats and layouts against the oracle were {counts}."
        return (said, f"{self.said(20)}.") if self.wrong else (said,)


@contextmanager
def as_run_folder(path: Path) -> Iterator[tuple[Path, Findings]]:
    """The bundle's run as a folder that lives as long as the context, and what its checks found.

    Raises UserError.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f"{path}: over {_MAX_BYTES // 2**20} MiB, no bundle of a self-test")
        bundle = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: no run folder, and no bundle of a self-test: {error}") from error
    if not isinstance(bundle, dict) or bundle.get("schema") != SCHEMA:
        raise UserError(f"{path}: no run folder, and no bundle of a self-test ({SCHEMA})")
    records = bundle.get("records")
    if not isinstance(records, list) or not isinstance(bundle.get("manifest"), dict):
        raise UserError(f"{path}: a bundle of a self-test without its manifest or records")
    with tempfile.TemporaryDirectory(prefix="kvgauge-") as folder:
        (Path(folder) / MANIFEST).write_text(json.dumps(bundle["manifest"]))
        (Path(folder) / RECORDS).write_text("".join(json.dumps(r) + "\n" for r in records))
        try:
            yield Path(folder), _findings(bundle.get("checks"))
        except UserError as error:
            # Of a folder that only we know; what it says is of the bundle.
            raise UserError(str(error).replace(f"{folder}/", f"{path}: ")) from error


def _findings(checks: Any) -> Findings:
    """Of a hostile file what can be read."""
    own = [c for c in checks if isinstance(c, dict)] if isinstance(checks, list) else []
    counts = {state: sum(c.get("state") == state for c in own) for state in get_args(State)}
    found = []
    for check in own:
        if check.get("state") in ("wrong", "failed"):
            where = ", ".join(short(check.get(name)) for name in ("format", "layout"))
            found.append(f"{check['state']} {short(check.get('backend'))} ({where})")
    return Findings(counts, tuple(found))
