"""A package of the `report` extra that is missing: the user's machine, so one line and exit 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kvgauge.errors import UserError

EXTRA = "kvgauge[report]"


@contextmanager
def report_extra() -> Iterator[None]:
    """Wraps the heavy imports of a function: a missing package names the extra that holds it."""
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"a report needs the package {error.name or error}: install it with "
            f"`pip install '{EXTRA}'`"
        ) from error
