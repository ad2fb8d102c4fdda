"""selftest.json: everything that a self-test found, in one file that can be sent back."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvgauge.errors import UserError, short
from kvgauge.selftest.checks import Check
from kvgauge.store.atomic import write_atomic
from kvgauge.store.folder import MANIFEST, RECORDS

SCHEMA = "kvgauge.selftest/1"
_MAX_BYTES = 256 * 2**20


def write_bundle(path: Path, checks: Sequence[Check], run_dir: Path, facts: dict[str, Any]) -> None:
    """The checks, the run's manifest and records as its folder has them; raises UserError."""
    lines = (run_dir / RECORDS).read_text().splitlines()
    bundle = {
        "schema": SCHEMA,
        "device": facts,
        "checks": [check.to_json() for check in checks],
        "manifest": json.loads((run_dir / MANIFEST).read_text()),
        "records": [json.loads(line) for line in lines if line.strip()],
    }
    write_atomic(path, json.dumps(bundle, indent=1).encode())


@contextmanager
def as_run_folder(path: Path) -> Iterator[tuple[Path, list[str]]]:
    """The bundle's run as a folder that lives as long as the context, and each check that was not right.

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
            yield Path(folder), _wrong(bundle.get("checks"))
        except UserError as error:
            # Of a folder that only we know; what it says is of the bundle.
            raise UserError(str(error).replace(f"{folder}/", f"{path}: ")) from error


def _wrong(checks: Any) -> list[str]:
    """`wrong eager (int8, contiguous)` of each check that says so; of a hostile file what can be read."""
    found = []
    for check in checks if isinstance(checks, list) else []:
        if isinstance(check, dict) and check.get("state") in ("wrong", "failed"):
            where = ", ".join(short(check.get(name)) for name in ("format", "layout"))
            found.append(f"{check['state']} {short(check.get('backend'))} ({where})")
    return found
