"""How a parser states what it knows: a table of regular expressions, each beside a line that it reads.

The expressions are simple: literal text, bounded classes, no nested repeats. So a line of L characters
takes a time that grows with L and not faster, and lines are cut at 16 KiB before they come here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from kvgauge.audit.types import UNITS, EngineName, LogFact, What

NUMBER = r"-?\d{1,64}(?:,\d{3}){0,20}(?:\.\d{1,60})?"


@dataclass(frozen=True, slots=True)
class Pattern:
    """One kind of line: `needle` must be in it, `found` takes it apart.

    A named group is a fact of that name. `units` names the unit of those whose unit is not printed as
    printed; a group `unit` is the printed one, for every figure in bytes on the line. `says` adds
    facts that the line states without printing them.
    """

    needle: str
    found: re.Pattern[str]
    units: Mapping[str, str]
    says: Mapping[str, str]


def pattern(
    needle: str,
    expression: str,
    units: Mapping[str, str] | None = None,
    says: Mapping[str, str] | None = None,
) -> Pattern:
    """`NUM` in the expression stands for a printed number."""
    return Pattern(
        needle, re.compile(expression.replace("NUM", NUMBER), re.ASCII), units or {}, says or {}
    )


def facts_in(
    engine: EngineName, table: tuple[Pattern, ...], line: int, text: str
) -> Iterator[LogFact]:
    """All facts that the table reads in one line."""
    for known in table:
        if known.needle not in text:
            continue
        match = known.found.search(text)
        if match is None:
            continue
        groups = {name: value for name, value in match.groupdict().items() if value is not None}
        printed = groups.pop("unit", "")
        for name, value in (*known.says.items(), *groups.items()):
            unit = known.units.get(name, printed if name.endswith("_bytes") else "")
            if name.endswith("_bytes") and unit not in UNITS:
                continue
            yield LogFact(engine, cast(What, name), value, unit, line, text)
