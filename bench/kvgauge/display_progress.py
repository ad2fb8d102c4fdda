"""How far a command is: cells of a run with the time left, and what another long command works at."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.markup import escape

from kvgauge.display import err, note, record_line

if TYPE_CHECKING:
    from kvgauge.jobs import Job, Jobs
    from kvgauge.schema import Record

_SECONDS_TO_A_LINE = 30.0
_BELIEVED_S = 60.0
# Cells that end so took none of the seconds that they were estimated at.
_AT_ONCE = frozenset({"unsupported", "oom", "skipped"})


def scaled_s(left_s: float, measured_s: float, elapsed_s: float) -> float:
    """Seconds that the cells left will take: their estimates, scaled by how those of the measured ones held.

    The first cells of a run are small ones of one suite, and say little of the others: the estimates are
    believed like a minute of measuring that held them.
    """
    return max(left_s, 0.0) * (elapsed_s + _BELIEVED_S) / (measured_s + _BELIEVED_S)


class Progress:
    """A live line with the time left; a plain line a tenth of the way where there is no terminal."""

    def __init__(self, jobs: Jobs) -> None:
        self._left_s = sum(job.estimate_s for job in jobs.jobs)
        self._measured_s = 0.0
        self._done = 0
        self._waiting = {job.plan.cell.cell_id for job in jobs.jobs}
        self._count = len(jobs.jobs)
        self._started = time.monotonic()
        self._console = err()
        self._status = self._console.status("starting") if self._console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def show(self, job: Job, record: Record) -> None:
        """One more cell is done, or done again because it was disturbed."""
        first = job.plan.cell.cell_id in self._waiting
        self._waiting.discard(job.plan.cell.cell_id)
        self._done += first
        self._left_s -= job.estimate_s if first else 0.0
        if first and record.status not in _AT_ONCE:
            self._measured_s += job.estimate_s
        place = f"{self._done}/{self._count}" if first else "again"
        text = f"[{place}] {record_line(job.plan.cell.label(), record)}"
        elapsed_s = time.monotonic() - self._started
        left_s = scaled_s(self._left_s, self._measured_s, elapsed_s)
        timed = f"{text} · {left_s:.0f} s left" if first else text
        if self._status is not None:
            self._status.update(escape(timed))
        if not first or record.status not in ("ok", "unsupported", "oom"):
            note(text)
        elif self._status is None and self._is_worth_a_line():
            note(timed)

    def _is_worth_a_line(self) -> bool:
        return self._done == self._count or self._done % max(1, self._count // 10) == 0


class ProgressLine:
    """What is at work, on a line of its own of a terminal; elsewhere a line every half a minute."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, text: str) -> None:
        """Empty: all is done."""
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text[:100]}", end="", file=sys.stderr, flush=True)
        elif text and time.monotonic() - self._said > _SECONDS_TO_A_LINE:
            self._said = time.monotonic()
            print(text, file=sys.stderr, flush=True)


progress_line = ProgressLine()
