"""Where wall time goes: the harness says what it is doing, and the seconds are counted to it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import Literal

from kvgauge.schema import Spent

Phase = Literal["samples", "probe", "warm_up", "fill", "generate", "check", "isolation"]


class Phases:
    """Seconds of each phase since the last `take`; an inner phase stops the outer one's clock."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._open: list[str] = []
        self._since = self._started = time.monotonic()

    @contextmanager
    def __call__(self, phase: Phase) -> Iterator[None]:
        """Count what runs inside to `phase`."""
        self._count()
        self._open.append(phase)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def merge(self, spent: Spent) -> None:
        """Count a worker's parts as such, and that much less to the open phase that waited for it."""
        self._count()
        for part, seconds in asdict(spent).items():
            self._add(self._open[-1], -seconds)
            if part != "rest_s":
                self._add(part.removesuffix("_s"), seconds)

    def take(self) -> Spent:
        """The seconds of each phase since the last call, the rest included; counting starts anew."""
        self._count()
        parts = {f"{phase}_s": seconds for phase, seconds in self._spent.items()}
        total_s = self._since - self._started
        self._spent, self._started = {}, self._since
        return Spent(**parts, rest_s=max(0.0, total_s - sum(parts.values())))

    def _count(self) -> None:
        now = time.monotonic()
        if self._open:
            self._add(self._open[-1], now - self._since)
        self._since = now

    def _add(self, phase: str, seconds: float) -> None:
        self._spent[phase] = self._spent.get(phase, 0.0) + seconds


def total(parts: list[Spent]) -> Spent:
    """The sum, part by part."""
    return Spent(**{f.name: sum(asdict(p)[f.name] for p in parts) for f in fields(Spent)})
