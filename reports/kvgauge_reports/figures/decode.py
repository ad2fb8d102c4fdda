"""Time of one decode step's attention against depth: each backend, int8, and the floor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kvgauge_reports.figures import style
from kvgauge_reports.figures.style import Figure, Series, numbers
from kvgauge_reports.headline import QUANTIZED, SIXTEEN_BIT
from kvgauge_reports.text import plural

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

MAX_FIGURES = 4
_MS = 1e3
# The same look wherever a backend appears; others take what is left of the cycle.
_COLOR = {
    "eager": style.RED,
    "sdpa-math": style.ORANGE,
    "sdpa-flash": style.BLUE,
    "cpu": style.INK,
}
_MARKER = {"eager": "s", "sdpa-math": "^", "sdpa-flash": "o", "cpu": "v", "cpu-q8": "P"}
_QUANTIZED_LOOK = (style.GREEN, "D")


@dataclass(frozen=True, slots=True)
class Panel:
    """One setting: the times of each backend, and the floor of each format."""

    title: str
    times: tuple[Series, ...]
    floors: tuple[Series, ...]


def panels(frame: pd.DataFrame, at_most: int | None = None) -> list[Panel]:
    """One panel a setting of scope `attention`, in the run's order; the first `at_most` of them.

    It shows one plain format (fp16, else bf16, else the first measured) and int8 beside it: time_s
    medians and intervals in seconds against depth_tokens, records that do not count included and
    marked as such. The floor of a format is the median of its counted records' floor_s at a depth.
    """
    timed = _timed(frame)
    titles = _titles(timed)[:at_most]
    found = []
    for title, rows in timed[timed["panel"].isin(titles)].groupby("panel", sort=False):
        shown = rows[rows["format"].isin(_formats(list(rows["format"].unique())))]
        times = tuple(_times(part) for _, part in _by(shown, "format", "backend"))
        floors = tuple(_floor(part) for _, part in _by(shown, "format"))
        found.append(Panel(str(title), times, tuple(f for f in floors if f.x)))
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
    more = f" {plural(hidden, 'setting')} more in the table." if hidden and n == of else ""
    part = f" ({n} of {of})" if of > 1 else ""
    return Figure(
        key="decode" if n == 1 else f"decode-{n}",
        title=f"Speed: attention of one decode step against depth{part}",
        caption=(
            "Milliseconds for the attention of one decode step over the timed layers, against "
            "tokens in the cache; both axes logarithmic, lower is faster. Bars are the 95% "
            "interval of the median, mostly smaller than the marker. Dashed: the floor, the "
            "formula's bytes over the bandwidth that the probe read beside the samples. Hollow: "
            f"flagged, not compared. Formats not drawn are in the table.{more}"
        ),
        alt=" ".join(_sentence(panel) for panel in page),
        wide=wide,
        narrow=narrow,
    )


def _draw(ax: Axes, panel: Panel) -> None:
    for series in panel.times:
        color, marker = look(series)
        y, low, high = (
            tuple(v * _MS for v in part) for part in (series.y, series.low, series.high)
        )
        ms = replace(series, y=y, low=low, high=high)
        style.plot(ax, ms, color, marker)
    for series in panel.floors:
        quantized = series.variant == QUANTIZED
        ax.plot(
            series.x,
            [y * _MS for y in series.y],
            color=_QUANTIZED_LOOK[0] if quantized else style.GREY,
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
    plain = [f for f in SIXTEEN_BIT if f in measured]
    plain += [f for f in measured if f not in SIXTEEN_BIT and f != QUANTIZED]
    return [*plain[:1], QUANTIZED]


def look(series: Series) -> tuple[str, str]:
    """Color and marker of a backend and format, in every figure."""
    if series.variant == QUANTIZED:
        return _QUANTIZED_LOOK[0], _MARKER.get(series.group, _QUANTIZED_LOOK[1])
    if series.group in _COLOR:
        return _COLOR[series.group], _MARKER[series.group]
    # By name, so that a backend looks alike in every panel and every run.
    place = sum(series.group.encode()) % 3
    return (style.PINK, style.SKY, style.INK)[place], style.MARKERS[4 + place]


def _rank(series: Series) -> tuple[bool, bool, int]:
    """Plain backends, then the fused, then int8, then floors."""
    known = list(_COLOR)
    place = known.index(series.group) if series.group in known else len(known)
    return (series.group == "floor", series.variant == QUANTIZED, place)


def _sentence(panel: Panel) -> str:
    ends = []
    for series in panel.times:
        kept = [i for i, good in enumerate(series.counted) if good]
        if kept:
            i = kept[-1]
            ends.append(f"{series.label} {series.y[i] * _MS:.3g} ms at {series.x[i]:,.0f} tokens")
    return f"{panel.title}: {'; '.join(ends)}."
