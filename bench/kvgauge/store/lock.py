"""One writer a file: a lock that the system holds for the process and drops when it ends, however."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

_LOCKS = Path("/proc/locks")


def lock(handle: int) -> bool:
    """Take the lock of an open file; False where another has it, OSError where there are no locks."""
    try:
        # Not lockf: that lock is lost as soon as this process closes the file elsewhere.
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def holder(handle: int) -> int | None:
    """The process that holds the lock of an open file; None where the system does not say."""
    inode = os.fstat(handle).st_ino
    try:
        lines = _LOCKS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:  # `1: FLOCK ADVISORY WRITE <pid> <major>:<minor>:<inode> 0 EOF`
        words = line.split()
        if words[1:2] == ["FLOCK"] and words[5].rpartition(":")[2] == str(inode):
            return int(words[4])
    return None
