"""The roofline: what each backend reached of what memory and arithmetic units allow (Williams 2009)."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from kvgauge_reports.figures import looks, style
from kvgauge_reports.figures.style import Figure, Series, numbers
from kvgauge_reports.text import number

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_GIGA = 1e9
_MARK = ", "
"""Between a format and the layout of its cache, where that is not contiguous."""
_WIDER = 4.0
"""How far the roof is drawn to either side of the points."""


@dataclass(frozen=True, slots=True)
class Roof:
    """The medians of what the probes read beside the points."""

    read_bytes_per_s: float
    flops_per_s: float
    integer_ops_per_s: float | None

    def at(self, flops_per_byte: float, ceiling_per_s: float) -> float:
        """Operations a second that a step of that intensity can reach under that ceiling."""
        return min(self.read_bytes_per_s * flops_per_byte, ceiling_per_s)


def points(frame: pd.DataFrame) -> list[Series]:
    """For each backend, format and layout FLOPs a second against FLOPs a byte moved, at each setting's
    largest depth.

    Counted records of scope `attention`; both numbers are the prediction's, over the time measured.
    """
    rows = _deepest(frame)
    found = []
    for (backend, fmt, layout), part in rows.groupby(["backend", "format", "layout"], sort=False):
        found.append(
            Series(
                str(backend),
                str(fmt) if layout == "contiguous" else f"{fmt}{_MARK}{layout}",
                numbers(part["flops"] / part["moved_bytes"]),
                numbers(part["flops"] / part["time_s"]),
            )
        )
    return found


def roof(frame: pd.DataFrame) -> Roof | None:
    """Of the same records; None where none has a probe."""
    rows = _deepest(frame)
    if rows.empty:
        return None
    dots = numbers(rows["integer_ops_per_s"].dropna())
    return Roof(
        median(numbers(rows["read_bytes_per_s"])),
        median(numbers(rows["flops_per_s"])),
        median(dots) if dots else None,
    )


def figures(frame: pd.DataFrame) -> list[Figure]:
    """One figure; none where no attention was timed."""
    drawn, above = points(frame), roof(frame)
    if above is None:
        return []

    def draw(canvas: Canvas, columns: int) -> None:
        (ax,) = style.axes_grid(canvas, 1, columns)
        _draw(ax, drawn, above)
        style.legend(canvas, [ax], columns)

    wide, narrow = style.both_sizes(draw, 1, [series.label for series in drawn])
    dots = above.integer_ops_per_s
    return [
        Figure(
            key="roofline",
            title="Roofline: what the steps reached of what the device allows",
            caption=(
                "Operations a second against operations a byte moved, of each setting at its largest "
                "depth; both axes logarithmic, higher is better. The slope is the read bandwidth that "
                f"the probe found beside the samples ({number(above.read_bytes_per_s / _GIGA)} GB/s), the "
                f"level the arithmetic rate ({number(above.flops_per_s / _GIGA)} GFLOP/s)"
                + (
                    f", dotted that of 8-bit integers ({number(dots / _GIGA)} Gop/s)"
                    if dots
                    else ""
                )
                + ". Colour is the backend, the marker the format; hollow: pages. Decode lies on the "
                "slope: few operations a byte. A point above the slope was "
                "measured while memory was faster than at the median."
            ),
            alt=_alt(drawn, above),
            wide=wide,
            narrow=narrow,
        )
    ]


def _deepest(frame: pd.DataFrame) -> pd.DataFrame:
    known = (
        frame[["time_s", "flops", "moved_bytes", "read_bytes_per_s", "flops_per_s"]]
        .notna()
        .all(axis=1)
    )
    rows = frame[(frame["scope"] == "attention") & frame["counted"].astype(bool) & known]
    rows = rows[(rows["flops"] > 0) & (rows["moved_bytes"] > 0)]
    keys = ["panel", "format", "backend"]
    return rows[rows["depth_tokens"] == rows.groupby(keys)["depth_tokens"].transform("max")]


def _draw(ax: Axes, drawn: list[Series], above: Roof) -> None:
    every = [x for series in drawn for x in series.x]
    left, right = min(every) / _WIDER, above.flops_per_s / above.read_bytes_per_s * _WIDER
    right = max(right, max(every) * _WIDER)
    steps = [left * (right / left) ** (i / 200) for i in range(201)]
    ceilings: list[tuple[float, Any, str]] = [(above.flops_per_s, style.DASHES[0], "roof")]
    if above.integer_ops_per_s is not None:
        ceilings.append((above.integer_ops_per_s, style.DASHES[2], "roof of 8-bit integers"))
    for ceiling_per_s, dash, label in ceilings:
        y = [above.at(x, ceiling_per_s) / _GIGA for x in steps]
        ax.plot(steps, y, color=style.GREY, linestyle=dash, label=label, zorder=1)
    for series in drawn:
        color, _ = looks.of_backend(series.group)
        fmt, *other_layout = series.variant.split(_MARK)
        ax.plot(
            series.x,
            [value / _GIGA for value in series.y],
            color=color,
            marker=looks.of_format(fmt)[1],
            markerfacecolor="white" if other_layout else color,
            linestyle="",
            label=series.label,
        )
    ax.set_xscale("log")
    style.plain_log_axis(ax, "x")
    style.plain_log_axis(ax)
    ax.set_xlabel("FLOPs a byte moved")
    ax.set_ylabel("GFLOP/s")


def _alt(drawn: list[Series], above: Roof) -> str:
    best: dict[str, float] = {}
    for series in drawn:
        ceiling = above.flops_per_s
        if series.variant.startswith("int"):
            ceiling = max(ceiling, above.integer_ops_per_s or 0.0)
        shares = [y / above.at(x, ceiling) for x, y in zip(series.x, series.y, strict=True)]
        best[series.label] = max(shares)
    said = ", ".join(f"{label} {share:.0%}" for label, share in best.items())
    return f"Share of the roof that the best point of each backend and format reached: {said}."
