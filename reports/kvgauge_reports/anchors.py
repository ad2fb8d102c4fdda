"""Ids of record rows on the page: `cell-<cell_id>`, unique, and safe whatever a cell is called."""

from __future__ import annotations

import re

from kvgauge.schema import Record

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")


class Anchors:
    """The ids of one run's records; `prefix` keeps those of several runs apart."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._given: dict[str, str] = {}
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}

    def of(self, record: Record) -> str:
        """The id of the record's row: the same at every call."""
        cell = record.cell_id
        if cell not in self._given:
            base = f"{self._prefix}cell-{_UNSAFE.sub('_', cell[:64])}"
            name, n = base, self._next.get(base, 2)
            while name in self._taken:
                name, n = f"{base}-{n}", n + 1
            self._next[base] = n
            self._taken.add(name)
            self._given[cell] = name
        return self._given[cell]
