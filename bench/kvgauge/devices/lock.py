"""One run at a time holds a GPU: a file lock named by its UUID, which ends with the process."""

from __future__ import annotations

import fcntl
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from kvgauge.errors import UserError, short

_MAX_HOLDER_BYTES = 200


@contextmanager
def gpu_lock(uuid: str) -> Iterator[None]:
    """Hold the GPU (or the MIG instance) of that UUID against this user's other runs.

    Raises UserError that names the holder where another run has it, and where the directory of the
    locks is not this user's own. What a dead run left is no obstacle: only an open file is locked.
    """
    path = _directory() / f"gpu-{re.sub('[^A-Za-z0-9-]', '_', uuid)[:100]}.lock"
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise UserError(f"lock of the GPU, {path}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, _MAX_HOLDER_BYTES, 0).decode(errors="replace").strip()
            raise UserError(
                f"GPU {short(uuid)} is held by another run of kvgauge "
                f"({short(holder) or 'which has just started'}): wait until it ends, or take another GPU"
            ) from None
        os.ftruncate(lock, 0)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        os.pwrite(lock, f"pid {os.getpid()}, since {since}\n".encode(), 0)
        yield
    finally:
        # The file stays: another run may have it open already, and would lock what is gone.
        os.close(lock)


def _directory() -> Path:
    """A directory that only this user can write; raises UserError where it is another's."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    path = (
        Path(runtime) / "kvgauge"
        if runtime
        else Path(tempfile.gettempdir()) / f"kvgauge-{os.geteuid()}"
    )
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        facts = path.lstat()
    except OSError as error:
        raise UserError(
            f"lock of the GPU, {path}: {error.strerror}; point XDG_RUNTIME_DIR at a directory of yours"
        ) from None
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
        raise UserError(
            f"lock of the GPU, {path}: must be a directory of your own with mode 0700; "
            "remove it, or point XDG_RUNTIME_DIR at a directory of yours"
        )
    return path
