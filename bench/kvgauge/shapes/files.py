"""Opening a file that somebody else wrote: a regular file, not larger than stated, or UserError."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from kvgauge.errors import UserError, short


@contextmanager
def open_regular(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, int]]:
    """The open file and its size in bytes; never waits for the writer of a pipe."""
    try:
        # Without O_NONBLOCK opening a named pipe would hang.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:
        raise UserError(f"{short(os.fspath(path))}: a path holds no NUL byte") from None
    except OSError as error:
        raise UserError(f"{short(os.fspath(path))}: cannot be opened: {error.strerror}") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise UserError(f"{short(os.fspath(path))}: not a regular file")
    with os.fdopen(descriptor, "rb", buffering=1 << 16) as file:
        yield file, status.st_size


def read_bounded(path: str | os.PathLike[str], limit_bytes: int) -> bytes:
    """The whole file; a larger one is refused unread."""
    with open_regular(path) as (file, size):
        where = short(os.fspath(path))
        if size > limit_bytes:
            raise UserError(f"{where}: {size} bytes, at most {limit_bytes} are read")
        try:
            data = file.read(limit_bytes + 1)
        except OSError as error:
            raise UserError(f"{where}: cannot be read: {error.strerror}") from None
    if len(data) > limit_bytes:
        raise UserError(f"{where}: more than {limit_bytes} bytes")
    if not data:
        raise UserError(f"{where}: empty file")
    return data
