"""A child process that is asked once and answers once: it may hang, die, flood or print anything.

Linux: the child leads a process group of its own, and all of that is killed when this returns. What it
started in yet another group is not.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAX_ANSWER_BYTES = 2**20
_KEPT_STDERR_BYTES = 4096
# As much as a pipe holds: one read of an ended child's pipe takes all that it left there.
_CHUNK_BYTES = 2**16
_TICK_S = 0.05
_GRACE_S = 10.0
"""For an answered child to end by itself, and for a killed one to be gone."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a child ended, and what it left."""

    answer: bytes | None
    """The first line that it wrote to its answer descriptor; None without a whole one."""
    oversized: bool
    """Whether that line was over MAX_ANSWER_BYTES, for which it was killed."""
    timed_out: bool
    """Whether it was killed for being over its time without an answer."""
    exit_code: int | None
    """As subprocess says it, -9 for SIGKILL; None where it did not even end by being killed."""
    last_words: str
    """The last line of its stderr; empty without one."""
    peak_bytes: int | None
    """The most resident memory that it was seen to have."""


def ask(command: Sequence[str], request: bytes, limit_s: float) -> Ending:
    """Run `command DESCRIPTOR` with `request` on its stdin, for at most `limit_s` seconds.

    DESCRIPTOR is the number of the pipe that takes the answer: stdout belongs to libraries that
    print, and is thrown away. Raises OSError where the command cannot be started.
    """
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb", buffering=0) as answers, tempfile.TemporaryFile() as stdin:
        try:
            stdin.write(request)
            stdin.seek(0)
            child = subprocess.Popen(  # noqa: S603
                [*command, str(write_end)],
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(write_end,),
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": _import_path()},
            )
        finally:
            os.close(write_end)
        try:
            listener = _Listener(child, answers, limit_s)
            listener.listen()
        finally:
            _kill_group(child)
    return listener.ending()


class _Listener:
    """Reads both pipes of a child until it has ended, or must be ended."""

    def __init__(self, child: subprocess.Popen[bytes], answers: BinaryIO, limit_s: float) -> None:
        self._child = child
        self._answers = answers
        self._deadline = time.monotonic() + limit_s
        self._answer, self._stderr = bytearray(), bytearray()
        self._timed_out = False
        self._peak_bytes: int | None = None

    def listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ, self._answer)
            if self._child.stderr is not None:
                selector.register(self._child.stderr, selectors.EVENT_READ, self._stderr)
            while True:
                ended = _has_ended(self._child.pid)
                self._peak_bytes = _peak_bytes(self._child.pid) or self._peak_bytes
                for key, _events in selector.select(0 if ended else _TICK_S):
                    chunk = os.read(key.fd, _CHUNK_BYTES)
                    if not chunk:
                        selector.unregister(key.fileobj)
                    key.data.extend(chunk)
                del self._stderr[:-_KEPT_STDERR_BYTES]
                if ended or self._must_end():
                    return

    def ending(self) -> Ending:
        """Once the child was killed or had ended."""
        answer, newline, _more = bytes(self._answer).partition(b"\n")
        lines = self._stderr.decode(errors="replace").split("\n")
        return Ending(
            answer=answer if newline and len(answer) <= MAX_ANSWER_BYTES else None,
            oversized=len(answer) > MAX_ANSWER_BYTES,
            timed_out=self._timed_out,
            exit_code=self._child.returncode,
            last_words=next((line.strip() for line in reversed(lines) if line.strip()), ""),
            peak_bytes=self._peak_bytes,
        )

    def _must_end(self) -> bool:
        now = time.monotonic()
        answered = b"\n" in self._answer
        if answered:
            self._deadline = min(self._deadline, now + _GRACE_S)
        late = now >= self._deadline
        self._timed_out = late and not answered
        return late or len(self._answer) > MAX_ANSWER_BYTES + 1


def _has_ended(pid: int) -> bool:
    # WNOWAIT leaves it unreaped: until its group is killed, no other process can get its number.
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    # A process inside a driver call that never returns does not die: the run goes on without it.
    with suppress(subprocess.TimeoutExpired):
        child.wait(_GRACE_S)
    if child.stderr is not None:
        child.stderr.close()


def _import_path() -> str:
    """Where this process imports from, for a child that is to import the same."""
    return os.pathsep.join(path or str(Path.cwd()) for path in sys.path)


def _peak_bytes(pid: int) -> int | None:
    """VmHWM (proc(5)); None once the process has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
