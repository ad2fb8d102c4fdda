"""The run folder, written: `manifest.json` and `records.jsonl`, each record on disk once appended."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kvgauge.errors import UserError
from kvgauge.schema import Manifest, Record
from kvgauge.store.atomic import write_atomic

MANIFEST = "manifest.json"
RECORDS = "records.jsonl"


class RunFolder:
    """A new run folder; `create` refuses one that already holds a run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Make the folder, or take an empty one; raises UserError if it is in use or not writable."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            # Exclusive: of two runs that start at once in one folder, one is refused.
            with (path / RECORDS).open("x"):
                pass
        except FileExistsError:
            raise UserError(f"run folder {path}: already in use; give another --run-dir") from None
        except OSError as error:
            raise UserError(
                f"run folder {path}: {error.strerror}; give another --run-dir"
            ) from None
        return cls(path)

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest at once: a reader sees the old one or the new one, whole."""
        write_json(self.path / MANIFEST, asdict(manifest))

    def append(self, record: Record) -> None:
        """Add one line and wait until it is on disk; raises UserError where the disk refuses."""
        line = json.dumps(record.to_json(), allow_nan=False, separators=(",", ":"))
        path = self.path / RECORDS
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"{path}: cannot write: {error.strerror}; earlier cells are kept"
            ) from None


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON, whole or not at all; raises UserError where that is not possible."""
    write_atomic(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())
