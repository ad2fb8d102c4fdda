"""Check: one thing asked of the machine, and what the answer means for measurements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "warn", "unavailable", "fail"]

SCHEMA = "kvgauge.doctor/1"


@dataclass(frozen=True, slots=True)
class Check:
    """`unavailable` is what the machine lacks or hides; `warn` disturbs numbers; `fail` prevents them."""

    name: str
    state: State
    found: str
    means: str = ""
    right: str = ""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """What a machine does not tell, and why not."""

    reason: str

    def __str__(self) -> str:
        return f"unavailable: {self.reason}"


@dataclass(frozen=True, slots=True)
class Section:
    """Checks of one subject."""

    title: str
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class Runnable:
    """A suite or a backend on one kind of device; no reason means that it can run."""

    kind: Literal["suite", "backend"]
    name: str
    device: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All that `kvgauge doctor` found."""

    verdict: str
    runnable: tuple[Runnable, ...]
    sections: tuple[Section, ...]

    def having(self, state: State) -> tuple[Check, ...]:
        """The checks in that state, in order."""
        return tuple(c for section in self.sections for c in section.checks if c.state == state)

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the exit code."""
        return {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "can_run": [
                {**asdict(entry), "available": entry.reason is None} for entry in self.runnable
            ],
            "sections": [asdict(section) for section in self.sections],
        }


Question = Callable[[], Check]


def section(title: str, *questions: tuple[str, Question]) -> Section:
    """Ask each; one that a strange machine breaks is unavailable and takes no other with it."""
    return Section(title, tuple(_ask(name, question) for name, question in questions))


def _ask(name: str, question: Question) -> Check:
    try:
        return question()
    except Exception as error:
        return Check(name, "unavailable", f"cannot be read: {type(error).__name__}: {error}")


def listed(names: Sequence[str], nothing: str = "none") -> str:
    """Names with commas between."""
    return ", ".join(names) or nothing
