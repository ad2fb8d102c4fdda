"""Whole files or none: a temporary file beside the target, then a rename."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from kvgauge.errors import UserError


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
        try:
            # O_EXCL never follows a link that someone put there; the mode is the user's umask's.
            handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{target}: cannot write: {why}") from None
    return target
