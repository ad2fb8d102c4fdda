"""Time of one decode step's attention against depth: each backend, quantized formats, the floor."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kvgauge_reports.figures import looks, style
from kvgauge_reports.figures.style import Figure, Series, numbers
from kvgauge_reports.ratios import SIXTEEN_BIT
from kvgauge_reports.select import is_quantized
from kvgauge_reports.text import plural

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

MAX_FIGURES = 4
_MS = 1e3
_STEP, _MOST_ABREAST = 1.03, 12
_MARKER_PT = 4.5
_PANEL_PT = 130.0
"""About how high the axes of a panel are."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One setting: the times of each backend, and the floor of each format."""

    title: str
    times: tuple[Series, ...]
    floors: tuple[Series, ...]
    by_format: bool = False
    """Whether a quantized format is one line, of its fastest backend, and its marker tells it."""


def panels(frame: pd.DataFrame, at_most: int | None = None) -> list[Panel]:
    """One panel a setting of scope `attention`, in the run's order; the first `at_most` of them.

    It shows one plain format (fp16, else bf16, else the first measured) and the quantized ones beside
    it: time_s medians and intervals in seconds against depth_tokens, records that do not count included
    and marked as such. Where the run has several quantized formats, of each the fastest backend alone.
    The floor of a format is the median of its counted records' floor_s at a depth.
    """
    timed = _timed(frame)
    titles = _titles(timed)[:at_most]
    found = []
    by_format = sum(map(is_quantized, timed["format"].unique())) > 1
    for title, rows in timed[timed["panel"].isin(titles)].groupby("panel", sort=False):
        shown = rows[rows["format"].isin(_formats(list(rows["format"].unique())))]
        drawn = _fastest_quantized(shown) if by_format else shown
        times = tuple(_times(part) for _, part in _by(drawn, "format", "backend"))
        floors = tuple(_floor(part) for _, part in _by(shown, "format"))
        found.append(Panel(str(title), times, tuple(f for f in floors if f.x), by_format))
    return found


def figures(frame: pd.DataFrame) -> list[Figure]:
    """As many figures of at most `style.MAX_PANELS` panels as are needed, up to `MAX_FIGURES`."""
    size = style.MAX_PANELS
    drawn = panels(frame, size * MAX_FIGURES)
    pages = [drawn[i : i + size] for i in range(0, len(drawn), size)]
    hidden = len(_titles(_timed(frame))) - len(drawn)
    return [_figure(page, n, len(pages), hidden) for n, page in enumerate(pages, 1)]


def _figure(page: list[Panel], n: int, of: int, hidden: int) -> Figure:
    def draw(canvas: Canvas, columns: int) -> None:
        axes = style.axes_grid(canvas, len(page), columns)
        for ax, panel in zip(axes, page, strict=True):
            _draw(ax, panel)
        style.legend(canvas, axes, columns, labels)

    every = [*(s for panel in page for s in panel.times), *(s for p in page for s in p.floors)]
    labels = list(dict.fromkeys(s.label for s in sorted(every, key=_rank)))
    wide, narrow = style.both_sizes(draw, len(page), labels)
    small = ", mostly smaller than the marker" if _mostly_small(page) else ""
    best = (
        " Of each quantized format the fastest backend whose time counts is drawn."
        if page[0].by_format
        else ""
    )
    one = any(len({x for s in panel.times for x in s.x}) == 1 for panel in page)
    abreast = " A single depth is drawn with its points side by side." if one else ""
    more = f" {plural(hidden, 'setting')} more in the table." if hidden and n == of else ""
    part = f" ({n} of {of})" if of > 1 else ""
    return Figure(
        key="decode" if n == 1 else f"decode-{n}",
        title=f"Speed: attention of one decode step against depth{part}",
        caption=(
            "Milliseconds for the attention of one decode step over the timed layers, against "
            "tokens in the cache; both axes logarithmic, lower is faster. Bars are the 95% "
            f"interval of the median{small}. Dashed: the floor, the least time that the bandwidth "
            "and the arithmetic that the probe found beside the samples allow. Hollow: "
            f"flagged, not compared.{abreast}{best} What is not drawn is in the table.{more}"
        ),
        alt=" ".join(_sentence(panel) for panel in page),
        wide=wide,
        narrow=narrow,
    )


def _draw(ax: Axes, panel: Panel) -> None:
    places = _side_by_side(panel)
    at_format = {s.variant: place for s, place in zip(panel.times, places, strict=True)}
    for series, place in zip(panel.times, places, strict=True):
        color, marker = look(series, by_format=panel.by_format)
        x = tuple(depth * place for depth in series.x)
        y, low, high = (
            tuple(v * _MS for v in part) for part in (series.y, series.low, series.high)
        )
        style.plot(ax, replace(series, x=x, y=y, low=low, high=high), color, marker)
    for series in panel.floors:
        quantized = is_quantized(series.variant)
        ax.plot(
            [depth * at_format.get(series.variant, 1.0) for depth in series.x],
            [y * _MS for y in series.y],
            color=looks.of_format(series.variant)[0] if quantized else style.GREY,
            linestyle=style.DASHES[2] if quantized else style.DASHES[1],
            marker="_" if len(series.x) == 1 else "",
            label=series.label,
            zorder=1,
        )
    style.token_axis(ax, [x for series in panel.times for x in series.x])
    style.plain_log_axis(ax)
    ax.set_title(style.wrapped(panel.title))
    ax.set_xlabel("tokens in the cache")
    ax.set_ylabel("ms a step")


def _side_by_side(panel: Panel) -> list[float]:
    """Factors of x: where there is one depth alone, points would lie upon each other."""
    count = len(panel.times)
    if len({x for series in panel.times for x in series.x}) > 1:
        return [1.0] * count
    return [_STEP ** (i - (count - 1) / 2) if count <= _MOST_ABREAST else 1.0 for i in range(count)]


def _timed(frame: pd.DataFrame) -> pd.DataFrame:
    timed = frame["time_s"].notna() & (frame["depth_tokens"] > 0)
    return frame[(frame["scope"] == "attention") & timed]


def _titles(timed: pd.DataFrame) -> list[str]:
    """The settings with a time that counts in a format that is shown, in the run's order."""
    counted: dict[str, dict[str, bool]] = {}
    for title, fmt, counts in zip(timed["panel"], timed["format"], timed["counted"], strict=True):
        formats = counted.setdefault(title, {})
        formats[fmt] = formats.get(fmt, False) or bool(counts)
    return [
        title
        for title, formats in counted.items()
        if any(formats.get(fmt, False) for fmt in _formats(list(formats)))
    ]


def _times(rows: pd.DataFrame) -> Series:
    rows = rows.sort_values("depth_tokens")
    return Series(
        str(rows["backend"].iloc[0]),
        str(rows["format"].iloc[0]),
        numbers(rows["depth_tokens"]),
        numbers(rows["time_s"]),
        numbers(rows["low_s"]),
        numbers(rows["high_s"]),
        tuple(bool(counted) for counted in rows["counted"]),
    )


def _floor(rows: pd.DataFrame) -> Series:
    good = rows[rows["counted"].astype(bool) & (rows["floor_s"].astype(float) > 0)]
    medians = good.groupby("depth_tokens")["floor_s"].median().sort_index()
    return Series("floor", str(rows["format"].iloc[0]), numbers(medians.index), numbers(medians))


def _by(rows: pd.DataFrame, *columns: str) -> list[tuple[object, pd.DataFrame]]:
    return list(rows.groupby(list(columns), sort=False))


def _formats(measured: list[str]) -> list[str]:
    quantized = [f for f in measured if is_quantized(f)]
    plain = [f for f in SIXTEEN_BIT if f in measured]
    plain += [f for f in measured if f not in SIXTEEN_BIT and f not in quantized]
    return [*plain[:1], *quantized]


def _fastest_quantized(rows: pd.DataFrame) -> pd.DataFrame:
    """Plain formats whole; of each other the backend that is fastest at its largest counted depth."""
    kept = []
    for fmt, part in rows.groupby("format", sort=False):
        counted = part[part["counted"].astype(bool)]
        if is_quantized(str(fmt)) and len(counted):
            deepest = counted[counted["depth_tokens"] == counted["depth_tokens"].max()]
            best = deepest.loc[deepest["time_s"].astype(float).idxmin(), "backend"]
            kept += list(part.index[part["backend"] == best])
        else:
            kept += list(part.index)
    return rows.loc[sorted(kept)]


def _mostly_small(page: list[Panel]) -> bool:
    """Whether over half of the intervals are no higher than a marker, as near as the axes are known."""
    small = []
    for panel in page:
        ends = [
            *(y for s in panel.times for y in (*s.low, *s.high)),
            *(y for f in panel.floors for y in f.y),
        ]
        decades = math.log(max(ends) / min(ends))
        for series in panel.times:
            for low, high in zip(series.low, series.high, strict=True):
                small.append(math.log(high / low) * _PANEL_PT <= _MARKER_PT * decades)
    return sum(small) * 2 > len(small)


def look(series: Series, *, by_format: bool) -> tuple[str, str]:
    """Colour and marker: of the backend; of a quantized format too, or alone."""
    if not is_quantized(series.variant):
        return looks.of_backend(series.group)
    if by_format:
        return looks.of_format(series.variant)
    return looks.of_backend_in(series.variant, series.group)


def _rank(series: Series) -> tuple[bool, bool, int]:
    """Plain backends, then the fused, then quantized formats, then floors."""
    known = looks.PLAIN_ORDER
    place = known.index(series.group) if series.group in known else len(known)
    return (series.group == "floor", is_quantized(series.variant), place)


def _sentence(panel: Panel) -> str:
    ends = []
    for series in panel.times:
        kept = [i for i, good in enumerate(series.counted) if good]
        if kept:
            i = kept[-1]
            ends.append(f"{series.label} {series.y[i] * _MS:.3g} ms at {series.x[i]:,.0f} tokens")
    return f"{panel.title}: {'; '.join(ends)}."
