"""The run folder, written: `manifest.json` and `records.jsonl`, each record on disk once appended.

What a crash, a power loss or a full disk may cost is the record being written. One process writes a
folder at a time: `records.jsonl` stays locked from the moment it is open.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kvgauge.errors import UserError
from kvgauge.schema import Manifest, Record
from kvgauge.store.atomic import make_folder, sync_folder, write_all, write_atomic
from kvgauge.store.lock import holder, lock
from kvgauge.store.shield import uninterrupted

MANIFEST = "manifest.json"
RECORDS = "records.jsonl"


class RunFolder:
    """A run folder open for writing, locked until it is closed or its process ends."""

    def __init__(self, path: Path, records: int) -> None:
        self.path = path
        self._records = records

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Make the folder, or take one that holds no run; raises UserError where it is in use.

        A folder whose run was killed before its manifest was written holds no run.
        """
        try:
            make_folder(path)
            records = _open_locked(path, os.O_CREAT)
            with _closed_on_error(records):
                if (path / MANIFEST).exists() or os.fstat(records).st_size:
                    raise UserError(
                        f"run folder {path}: already in use; give another --run-dir, or --resume"
                    )
                _remove_parts(path)
                sync_folder(path)
        except OSError as error:
            raise UserError(
                f"run folder {path}: {error.strerror}; give another --run-dir"
            ) from None
        return cls(path, records)

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """Take a folder that holds a run, changing nothing in it.

        Raises UserError where it holds none, and where a process is still writing it.
        """
        for name in (MANIFEST, RECORDS):
            if not (path / name).is_file():
                raise UserError(f"run folder {path}: holds no run to resume: no {name} in it")
            if (path / name).is_symlink():
                raise UserError(
                    f"run folder {path}: {name} is a symbolic link, not the run's own file"
                )
        try:
            return cls(path, _open_locked(path, 0))
        except OSError as error:
            raise UserError(f"run folder {path}: {error.strerror}") from None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process have the folder."""
        os.close(self._records)

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest at once: a reader sees the old one or the new one, whole."""
        write_json(self.path / MANIFEST, asdict(manifest))

    def append(self, record: Record) -> None:
        """Add one line and wait until it is on disk; raises UserError where the disk refuses.

        Then the file ends as it did before: the next line is not glued to half of this one.
        """
        line = json.dumps(record.to_json(), allow_nan=False, separators=(",", ":"))
        with uninterrupted():
            size_bytes = os.fstat(self._records).st_size
            try:
                write_all(self._records, f"{line}\n".encode())
                os.fsync(self._records)
            except OSError as error:
                self._cut(size_bytes)
                raise UserError(
                    f"{self.path / RECORDS}: cannot write: {error.strerror}; earlier cells are kept"
                ) from None

    def repair(self) -> int:
        """Cut off what follows the last whole line and remove manifests half written.

        Returns the bytes cut off: a record whose writer died.
        """
        data = (self.path / RECORDS).read_bytes()
        torn_bytes = len(data) - (data.rfind(b"\n") + 1)
        if torn_bytes:
            self._cut(len(data) - torn_bytes)
        _remove_parts(self.path)
        return torn_bytes

    def _cut(self, size_bytes: int) -> None:
        # Where even this fails the line stays torn: readers drop it, a resumed run cuts it off.
        with contextlib.suppress(OSError):
            os.ftruncate(self._records, size_bytes)
            os.fsync(self._records)


def _open_locked(path: Path, create: int) -> int:
    records = os.open(path / RECORDS, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | create, 0o666)
    with _closed_on_error(records):
        if not lock(records):
            pid = holder(records)
            who = "another process" if pid is None else f"process {pid}"
            raise UserError(f"run folder {path}: already in use: {who} is writing it")
    return records


@contextlib.contextmanager
def _closed_on_error(handle: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        os.close(handle)
        raise


def _remove_parts(path: Path) -> None:
    """Manifests whose writer died before they took their place."""
    for part in path.glob(f".{MANIFEST}.*.part"):
        part.unlink(missing_ok=True)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON, whole or not at all; raises UserError where that is not possible."""
    write_atomic(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())
