"""Backends that do, in the middle of a cell, what no backend should; and a worker that has them.

As a script this is the worker command of a run with such backends; with `mended` they do nothing wrong.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from kvgauge_kernels import BACKENDS, KVView
from kvgauge_kernels.sdpa import SdpaFlash

PIDS = "KVGAUGE_TEST_PIDS"
"""Names a file to which a fault adds the number of a process that it leaves behind."""

ONE_GIB = 2**30


def _leave_a_process() -> None:
    left = subprocess.Popen(["sleep", "300"])
    with Path(os.environ[PIDS]).open("a") as file:
        file.write(f"{left.pid}\n")


def _hang() -> None:
    _leave_a_process()
    print("about to hang", file=sys.stderr, flush=True)
    time.sleep(300)


def _exit_silently() -> None:
    _leave_a_process()
    os._exit(3)


def _raise() -> None:
    raise ValueError("a fault of this test")


def _print_garbage() -> None:
    os.write(1, b"\x00\xff{[" * 300_000)
    os.write(2, b"\x00\xff{[\n" * 300_000)


def _exhaust_torch() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (64 * ONE_GIB, 64 * ONE_GIB))
    torch.zeros(128 * ONE_GIB, dtype=torch.uint8)


def _exhaust_python() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (64 * ONE_GIB, 64 * ONE_GIB))
    bytearray(128 * ONE_GIB)


def _answer(line: bytes) -> Callable[[], None]:
    def fault() -> None:
        with os.fdopen(int(sys.argv[1]), "wb", closefd=False) as pipe:
            pipe.write(line)
        os._exit(0)

    return fault


FAULTS: dict[str, Callable[[], object]] = {
    "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "hang": _hang,
    "exhaust-torch": _exhaust_torch,
    "exhaust-python": _exhaust_python,
    "sigkill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "raise": _raise,
    "garbage": _print_garbage,
    "exit-silently": _exit_silently,
    "huge-answer": _answer(b"x" * 3 * 2**20),
    "malformed-answer": _answer(b'{"outcome": 3}\n'),
    "other-cells-answer": _answer(
        b'{"outcome": {"status": "ok", "predicted": {"kv_bytes": 1}}, "spent": {"rest_s": 0}}\n'
    ),
    "impossible-answer": _answer(
        b'{"outcome": {"status": "ok", "predicted": {"kv_bytes": 16896}}, "spent": {"rest_s": 1e9}}\n'
    ),
}


class Faulty(SdpaFlash):
    """sdpa-flash, after the fault."""

    def __init__(self, name: str, fault: Callable[[], object]) -> None:
        self.name = name
        self._fault = fault

    def decode(self, q: torch.Tensor, view: KVView) -> torch.Tensor:
        self._fault()
        return super().decode(q, view)


def faulty_backends() -> dict[str, Faulty]:
    return {name: Faulty(name, fault) for name, fault in FAULTS.items()}


if __name__ == "__main__":
    from kvgauge import worker

    BACKENDS.update(faulty_backends())
    if "mended" in sys.argv:
        sys.argv.remove("mended")
        BACKENDS.update({name: Faulty(name, lambda: None) for name in FAULTS})
    worker.main()
