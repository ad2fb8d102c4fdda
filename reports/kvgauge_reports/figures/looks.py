"""Colours and markers: the same wherever a backend or a format appears."""

from __future__ import annotations

from kvgauge_reports.figures import style

PLAIN_ORDER = ("eager", "sdpa-math", "sdpa-flash", "cpu")
"""Backends in the order of the legend; others follow."""
_COLOR = {
    "eager": style.RED,
    "sdpa-math": style.ORANGE,
    "sdpa-flash": style.BLUE,
    "cpu": style.INK,
    "cpu-q8": style.VIOLET,
}
_MARKER = {"eager": "s", "sdpa-math": "^", "sdpa-flash": "o", "cpu": "v", "cpu-q8": "P"}
# Markers differ, and those of quantized formats from the backends', for a page printed in grey.
_FORMAT = {
    "fp16": (style.BLUE, "o"),
    "bf16": (style.INK, "s"),
    "fp32": (style.RED, "^"),
    "int8": (style.GREEN, "D"),
    "int4": (style.PINK, "<"),
    "int2": (style.SKY, ">"),
    "kivi4": (style.PINK, "X"),
    "kivi2": (style.SKY, "X"),
    "fp8_e4m3": (style.VIOLET, "*"),
    "fp8_e5m2": (style.BROWN, "d"),
}
_OTHER_MARKERS = ("p", "h", "8", "H")


def of_backend(name: str) -> tuple[str, str]:
    """Colour and marker of a backend, by its name: alike in every panel and every run."""
    if name in _COLOR:
        return _COLOR[name], _MARKER[name]
    place = sum(name.encode()) % 3
    return (style.PINK, style.SKY, style.INK)[place], _MARKER.get(name, style.MARKERS[4 + place])


def of_format(name: str) -> tuple[str, str]:
    """Colour and marker of a KV format; `int4-g32` has int4's colour and a marker of its own."""
    if name in _FORMAT:
        return _FORMAT[name]
    color, _ = _FORMAT.get(name.partition("-g")[0], (style.GREEN, ""))
    return color, _OTHER_MARKERS[sum(name.encode()) % len(_OTHER_MARKERS)]


def of_backend_in(format_name: str, backend: str) -> tuple[str, str]:
    """The colour of a format with the marker of a backend: several backends of one format."""
    color, marker = of_format(format_name)
    return color, _MARKER.get(backend, marker)
