"""Reading a machine that may not answer: each question's answers, or why there was none."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from kvgauge.schema import Span

T = TypeVar("T")

_LOOKS_PER_S = 10


class Unavailable(Exception):
    """The machine does not tell; the message is the reason."""


class Readings:
    """Answers under one prefix; a question without one leaves its reason in `unavailable`."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._spans: dict[str, Span] = {}
        self._look_after_s = 0.0
        self.unavailable: dict[str, str] = {}

    def due(self) -> bool:
        """Whether it is time for another look: ten a second at most."""
        now_s = time.monotonic()
        if now_s < self._look_after_s:
            return False
        self._look_after_s = now_s + 1 / _LOOKS_PER_S
        return True

    def ask(self, field: str, question: Callable[[], T]) -> T | None:
        """The answer, or None and the reason noted."""
        try:
            return question()
        except Unavailable as error:
            self.unavailable[self._prefix + field] = str(error)
            return None

    def widen(self, field: str, question: Callable[[], float]) -> None:
        """Take the answer into the field's span."""
        value = self.ask(field, question)
        if value is not None:
            span = self._spans.get(field, Span(value, value))
            self._spans[field] = Span(min(span.low, value), max(span.high, value))

    def span(self, field: str) -> Span | None:
        """The lowest and the highest answer so far."""
        return self._spans.get(field)


def read_text(path: Path) -> str:
    """A small file of the system; raises Unavailable, naming it."""
    try:
        return path.read_text()
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from None
