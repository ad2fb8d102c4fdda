"""Each cell in a fresh worker process: whatever it does, it becomes a record and the run goes on."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import asdict, dataclass

import msgspec

from kvgauge.child import MAX_ANSWER_BYTES, Ending, ask
from kvgauge.devices.cpu import CpuDevice
from kvgauge.devices.oom import oom_kills
from kvgauge.errors import UserError, short
from kvgauge.jobs import Job
from kvgauge.schema import Prediction, ShapeRef
from kvgauge.store.reader import check_measured, check_numbers, decode
from kvgauge.suites.types import Context, Outcome
from kvgauge.worker import Answer, Assignment

# -P: the worker imports from where this process does, and not from the working directory.
WORKER = (sys.executable, "-P", "-m", "kvgauge.worker")

# A model that is loaded and run by two threads on busy cores takes 20 times as long as alone.
_LEAST_LIMIT_S = 180.0
_LIMIT_PER_ESTIMATE = 20
# A worker that held so much of what was available when it was killed is taken to have run out.
_NEARLY_ALL = 0.8
_MAX_CHARS = 300


@dataclass(frozen=True, slots=True)
class Limit:
    """The seconds that a cell may take, start of its worker included, and where they are from."""

    seconds: float
    source: str


@dataclass(frozen=True, slots=True)
class Memory:
    """What speaks for a lack of memory: who counted OOM kills meanwhile, bytes available before."""

    counted_by: tuple[str, ...]
    available_bytes: int


@dataclass(frozen=True, slots=True)
class Workers:
    """Measures each cell in a process of its own: `command DESCRIPTOR`, in the end `worker.main`.

    `timeout_s` is the limit of every cell; None: twenty times its estimate, at least three minutes.
    """

    command: tuple[str, ...] = WORKER
    timeout_s: float | None = None

    def measure(self, job: Job, context: Context) -> Outcome:
        """As `attempt.measure`; the worker's time is counted to the context's phases."""
        limit, predicted = self._limit(job), job.suite.predict(job.plan)
        available_bytes, kills = CpuDevice().available_bytes(), oom_kills()
        with context.phases("isolation"):
            started = time.monotonic()
            try:
                ending = ask(self.command, _request(job, context), limit.seconds)
                if ending.answer is not None:
                    answer = _checked(ending.answer, predicted, time.monotonic() - started)
                    context.phases.merge(answer.spent)
                    return answer.outcome
            except OSError as error:
                return Outcome("failed", predicted, "no_worker", f"cannot start: {error.strerror}")
            except UserError as error:
                return Outcome("failed", predicted, "bad_answer", short(str(error), _MAX_CHARS))
        counted_by = tuple(who for who, n in oom_kills().items() if n > kills.get(who, n))
        return outcome_of(ending, predicted, limit, Memory(counted_by, available_bytes))

    def _limit(self, job: Job) -> Limit:
        if self.timeout_s is not None:
            return Limit(self.timeout_s, "--timeout-s")
        return Limit(
            max(_LEAST_LIMIT_S, _LIMIT_PER_ESTIMATE * job.estimate_s),
            f"{_LIMIT_PER_ESTIMATE} times the estimate of {job.estimate_s:.3g} s, "
            f"at least {_LEAST_LIMIT_S:g} s",
        )


def outcome_of(ending: Ending, predicted: Prediction, limit: Limit, memory: Memory) -> Outcome:
    """What the ending of a worker that gave no answer says of its cell."""
    words = f"; its last words: {short(ending.last_words, _MAX_CHARS)}" if ending.last_words else ""
    if ending.oversized:
        reason = f"the worker answered with over {MAX_ANSWER_BYTES} bytes"
        return Outcome("failed", predicted, "bad_answer", reason)
    if ending.timed_out:
        undead = "" if ending.exit_code is not None else "; it could not be killed"
        reason = f"killed after {limit.seconds:g} s ({limit.source}){undead}{words}"
        return Outcome("timeout", predicted, "timeout", reason)
    if ending.exit_code == -signal.SIGKILL:
        reason = f"SIGKILL, not from kvgauge; {_told(ending.peak_bytes, memory)}"
        ran_out = memory.counted_by or _held_nearly_all(ending.peak_bytes, memory)
        return Outcome("oom" if ran_out else "crashed", predicted, "killed", reason)
    if ending.exit_code is not None and ending.exit_code < 0:
        return Outcome("crashed", predicted, "signal", f"{_signal(-ending.exit_code)}{words}")
    reason = f"the worker exited with {ending.exit_code} and no answer{words}"
    return Outcome("crashed", predicted, "exit", reason)


def _held_nearly_all(peak_bytes: int | None, memory: Memory) -> bool:
    return peak_bytes is not None and peak_bytes >= _NEARLY_ALL * memory.available_bytes


def _told(peak_bytes: int | None, memory: Memory) -> str:
    counted = (
        f"the kernel's count of OOM kills rose in {' and '.join(memory.counted_by)}"
        if memory.counted_by
        else "no count of OOM kills rose"
    )
    held = "unknown" if peak_bytes is None else f"{peak_bytes} bytes"
    return f"{counted}; the worker held {held} of the {memory.available_bytes} that were available"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _request(job: Job, context: Context) -> bytes:
    device = context.device.ref
    assignment = Assignment(
        cell=job.plan.cell,
        shape=ShapeRef.of(job.plan.shape),
        device_kind=device.kind,
        device_index=device.index or 0,
        criterion=context.criterion,
        seed=context.seed,
        try_oversize=context.try_oversize,
        parent_pid=os.getpid(),
    )
    return msgspec.json.encode(assignment)


def _checked(line: bytes, predicted: Prediction, elapsed_s: float) -> Answer:
    """Raises UserError for an answer that is not as the schema says: a record must be readable."""
    where = "the worker's answer"
    answer = decode(line, Answer, where)
    check_numbers(asdict(answer), where)
    check_measured(answer.outcome.measured, answer.outcome.probe, where)
    told_bytes = answer.outcome.predicted.kv_bytes
    if told_bytes != predicted.kv_bytes:
        raise UserError(f"{where}: predicts {told_bytes} bytes, this cell has {predicted.kv_bytes}")
    spent_s = asdict(answer.spent).values()
    if min(spent_s) < 0 or sum(spent_s) > elapsed_s:
        raise UserError(f"{where}: spent {sum(spent_s):.3g} s, but it was there {elapsed_s:.3g} s")
    return answer
