"""Values as text. Strings out of records are hostile: cleaned and bounded before anything else."""

from __future__ import annotations

import math

from kvgauge.units import binary_bytes, decimal_bytes

NONE = "–"
"""What a table shows for a value that does not apply."""

_MARKDOWN = frozenset("\\`*_{}[]<>#|~&$@")


def clean(value: object, limit: int = 80) -> str:
    """One printable line of at most `limit` characters.

    Line breaks become spaces; control characters, direction overrides and lone surrogates become
    U+FFFD; what is cut off shows as an ellipsis.
    """
    if value is None:
        return NONE
    # Only the head of a very long string is looked at: the rest is never shown.
    text = str(value)[: limit * 4 + 1]
    text = " ".join(text.split())
    text = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def markdown(text: str) -> str:
    """`text` with what Markdown or HTML would read escaped, inside a line or a table cell.

    Bare addresses and mentions, which some renderers make links of, are escaped as well.
    """
    escaped = "".join("\\" + c if c in _MARKDOWN else c for c in text)
    return escaped.replace("://", "\\://").replace("www.", "www\\.")


def number(value: float | None, digits: int = 3) -> str:
    """At least `digits` significant digits, whole thousands kept: `1234.5` -> `1,235`."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if not -6 <= exponent < 15:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def token_bytes(value: float) -> str:
    """Bytes a token: whole where they are whole, which they mostly are."""
    if not math.isfinite(value):
        return NONE
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def count(value: int | None) -> str:
    """`16384000000` -> `16,384,000,000`."""
    return NONE if value is None else f"{value:,}"


def milliseconds(time_s: float | None) -> str:
    """Milliseconds without the unit, four significant digits."""
    return NONE if time_s is None else number(time_s * 1e3, 4)


def times(ratio: float | None) -> str:
    """`2.314` -> `2.31×`."""
    return NONE if ratio is None or not math.isfinite(ratio) else f"{number(ratio)}×"


def percent(share: float | None) -> str:
    """`0.8312` -> `83.1%`, `0.00341` -> `0.34%`."""
    if share is None or not math.isfinite(share):
        return NONE
    return f"{share * 100:.1f}%" if abs(share) >= 0.1 else f"{number(share * 100, 2)}%"


def ratio_of_bytes(measured: int, formula: int) -> str:
    """`1` where equal to the byte, else enough digits to show the difference."""
    if measured == formula:
        return "1"
    if formula <= 0:
        return NONE
    ratio = measured / formula
    return f"{ratio:.3f}" if abs(ratio - 1) >= 0.1 else f"{ratio:.6f}"


def both_units(count_bytes: float) -> str:
    """`16384000000` -> `16.38 GB (15.26 GiB)`."""
    if not math.isfinite(count_bytes):
        return NONE
    return f"{decimal_bytes(count_bytes)} ({binary_bytes(count_bytes)})"


def plural(n: int, one: str, many: str | None = None) -> str:
    """`1 cell`, `2 cells`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
