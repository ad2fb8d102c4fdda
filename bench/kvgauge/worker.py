"""A worker: measures the one cell that its stdin tells, and answers on the descriptor in argv.

`kvgauge run --isolate` starts `python -m kvgauge.worker DESCRIPTOR` for each cell.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from kvgauge.attempt import measure
from kvgauge.devices.probe import make_probe
from kvgauge.devices.select import select_device
from kvgauge.jobs import Job
from kvgauge.measure.phases import Phases
from kvgauge.schema import Cell, Criterion, DeviceKind, ShapeRef, Spent
from kvgauge.store.reader import decode
from kvgauge.suites.table import suites
from kvgauge.suites.types import CellPlan, Context, Outcome

_PR_SET_PDEATHSIG = 1  # prctl(2)
_MOST_KILLABLE = "1000"  # proc_pid_oom_score_adj(5)


@dataclass(frozen=True, slots=True)
class Assignment:
    """All that a worker must know, as JSON on its stdin."""

    cell: Cell
    shape: ShapeRef
    device_kind: DeviceKind
    device_index: int
    criterion: Criterion
    seed: int
    try_oversize: bool
    parent_pid: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of it and where the time went since the worker had its device: one line of JSON."""

    outcome: Outcome
    spent: Spent


def main() -> None:
    """Read the assignment, measure, answer. Exits in one line where it is not started by a run."""
    if len(sys.argv) != 2 or not sys.argv[1].isdigit():
        sys.exit("kvgauge.worker: started by `kvgauge run --isolate`, not by hand")
    answer_fd = int(sys.argv[1])
    # A compiler that a kernel starts must not hold the pipe open.
    os.set_inheritable(answer_fd, False)
    assignment = decode(sys.stdin.buffer.read(), Assignment, "the worker's stdin")
    _die_with(assignment.parent_pid)
    _die_before_the_parent()
    line = msgspec.json.encode(_measured(assignment)) + b"\n"
    with os.fdopen(answer_fd, "wb") as answer:
        answer.write(line)


def _measured(assignment: Assignment) -> Answer:
    device = select_device(assignment.device_kind, assignment.device_index)
    phases = Phases()
    torch.manual_seed(assignment.seed)
    with phases("probe"):
        probe = make_probe(device)
    context = Context(
        device,
        probe,
        assignment.criterion,
        assignment.seed,
        phases,
        try_oversize=assignment.try_oversize,
    )
    cell = assignment.cell
    plan = CellPlan(cell, assignment.shape.shape(cell.model))
    outcome = measure(Job(suites()[cell.suite], plan, estimate_s=0.0), context)
    return Answer(outcome, phases.take())


def _die_with(parent_pid: int) -> None:
    """Be killed when the run is, even in the middle of a kernel; end now if it is gone already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit("kvgauge.worker: the run has ended")


def _die_before_the_parent() -> None:
    """Where memory runs out the kernel is to kill the worker, not the run."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_MOST_KILLABLE)


if __name__ == "__main__":
    main()
