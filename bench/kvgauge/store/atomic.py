"""Whole files or none, and on disk: a temporary file beside the target, a rename, each synced."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

from kvgauge.errors import UserError
from kvgauge.store.shield import uninterrupted


def write_atomic(path: str | Path, data: bytes) -> Path:
    """Put `data` at `path`, on disk before this returns, replacing the file that is there.

    Raises UserError where that is not possible, and for a target that is no regular file: a rename
    would put a file in the place of a device or a pipe.
    """
    target = Path(path)
    try:
        if target.exists() and not target.is_file():
            raise UserError(f"{target}: is not a file; name a file to write to")
        part = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.part")
        with uninterrupted():
            _write_and_move(part, target, data)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{target}: cannot write: {why}") from None
    return target


def _write_and_move(part: Path, target: Path, data: bytes) -> None:
    try:
        # O_EXCL never follows a link that someone put there; the mode is the user's umask's.
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            write_all(handle, data)
            os.fsync(handle)
        finally:
            os.close(handle)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    # Without this the new name may be lost with the power, though the bytes are there.
    sync_folder(target.parent)


def write_all(handle: int, data: bytes) -> None:
    """Write all of `data`: one call may take a part of it (a disk that is nearly full, a signal)."""
    left = memoryview(data)
    while left:
        left = left[os.write(handle, left) :]


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on disk; raises OSError where the disk refuses."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems sync no folder, and say so
            raise
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, on disk before this returns; raises OSError."""
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in new:
        sync_folder(folder.parent)
