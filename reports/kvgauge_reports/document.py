"""What a report consists of, as plain text: HTML, PDF and Markdown draw the same Document.

Every string in it is cleaned and bounded (`text.clean`), and escaped later by the one who draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvgauge_reports.figures.style import Figure


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    label: str
    kind: Literal["text", "number", "code"] = "text"


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table: the value, and a smaller second line."""

    main: str
    sub: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table. `anchor` is its id on the page, `link` the id that it points to."""

    cells: tuple[Cell, ...]
    anchor: str | None = None
    link: str | None = None
    muted: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Rows under one heading; an empty label has none."""

    label: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table, or the sentence `empty` where it has no rows."""

    key: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    groups: tuple[Group, ...]
    empty: str


@dataclass(frozen=True, slots=True)
class Card:
    """A headline figure: one number and what it is a number of."""

    title: str
    value: str
    what: str
    measured: bool = True


@dataclass(frozen=True, slots=True)
class Section:
    """One run."""

    key: str
    heading: str
    badge: str
    is_cpu: bool
    summary: tuple[tuple[str, str], ...]
    answer: tuple[str, ...]
    cards: tuple[Card, ...]
    overview: Table
    figures: tuple[Figure, ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    provenance: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A report of one run or of several."""

    title: str
    sections: tuple[Section, ...]
    reading: tuple[tuple[str, str], ...]
    silent: tuple[str, ...]
