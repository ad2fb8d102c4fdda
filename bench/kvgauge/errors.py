"""Failures that the command line turns into one line and an exit code."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """The command contract: what a caller may rely on."""

    DONE = 0
    INTERNAL = 1
    USER = 2
    NOT_COMPARABLE = 3
    REGRESSION = 4
    INCOMPLETE = 5
    INTERRUPTED = 130


class UserError(Exception):
    """The user's input or machine is wrong; the message says what, where and what would be right."""


class UnsupportedLayout(UserError):
    """A model whose cache layout is not known: refused by the field that says so, never guessed."""

    def __init__(self, field: str, value: object, hint: str = "") -> None:
        found = f"{short(field, 120)}={short(value)}"
        self.detail = f"{found} ({hint})" if hint else found
        """The message without its first words, for where those are said already."""
        super().__init__(f"unsupported layout: {self.detail}")
        self.field = field
        self.value = value


class NotComparable(Exception):
    """Two results that must not be compared, or nothing to compare with; exit code 3."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean fp8_e4m3 or fp8_e5m2?` for a name that begins some, or is close to some; else empty."""
    import difflib  # only where a name is wrong

    names, text = list(known), name[:80].lower()
    close = [each for each in names if len(text) > 1 and each.startswith(text)]
    close = close or difflib.get_close_matches(text, names, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else ""


def short(value: object, limit: int = 80) -> str:
    """A value from a hostile file as message text: one line, printable, bounded."""
    try:
        text = ascii(value)[1:-1] if isinstance(value, str) else ascii(value)
    except (RecursionError, ValueError):  # nested too deeply, or an integer too long to print
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 3] + "..."
