"""What the campaigns take on the command line: refused before they measure for minutes, not after."""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path

MANY = 10_000


def count(text: str) -> int:
    """How often to measure."""
    if not (text.isdecimal() and text.isascii() and len(text) < 6 and 1 <= int(text) <= MANY):
        raise ArgumentTypeError(f"{text!r}: a whole number from 1 to {MANY:,} is wanted")
    return int(text)


def page(text: str) -> Path:
    """A file that can be written."""
    path = Path(text)
    new = not path.exists()
    try:
        path.open("a").close()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ArgumentTypeError(f"{text!r} cannot be written: {why}") from error
    if new:
        path.unlink()
    return path
