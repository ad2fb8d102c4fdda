"""A real model: bytes of its own cache against the formula, and tokens a second against depth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvgauge_reports.figures import growth, style
from kvgauge_reports.figures.style import Figure, Series, numbers
from kvgauge_reports.text import number, plural

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

SCOPE = "engine"


def speed_series(frame: pd.DataFrame) -> list[Series]:
    """tokens_per_s against depth_tokens for each setting, format and backend.

    The interval is the time's: tokens_per_s * median / high, and * median / low. Records that do
    not count are included and marked.
    """
    found = []
    groups = _timed(frame).groupby(["panel", "format", "backend"], sort=False)
    for (panel, fmt, backend), rows in groups:
        rows = rows.sort_values("depth_tokens")
        found.append(
            Series(
                str(panel),
                f"{fmt} {backend}".strip(),
                numbers(rows["depth_tokens"]),
                numbers(rows["tokens_per_s"]),
                numbers(rows["tokens_per_s"] * rows["time_s"] / rows["high_s"]),
                numbers(rows["tokens_per_s"] * rows["time_s"] / rows["low_s"]),
                tuple(bool(counted) for counted in rows["counted"]),
            )
        )
    return found


def ceiling_series(frame: pd.DataFrame) -> list[Series]:
    """What the floor allows, for each setting and format: tokens_per_s * time / floor_s, the median
    over backends at a depth. Counted records alone.
    """
    rows = _timed(frame)
    rows = rows[rows["counted"].astype(bool) & (rows["floor_s"].astype(float) > 0)]
    rows = rows.assign(ceiling=rows["tokens_per_s"] * rows["time_s"] / rows["floor_s"])
    found = []
    for (panel, fmt), part in rows.groupby(["panel", "format"], sort=False):
        median = part.groupby("depth_tokens")["ceiling"].median().sort_index()
        found.append(Series(str(panel), f"{fmt} floor", numbers(median.index), numbers(median)))
    return found


def figures(frame: pd.DataFrame) -> list[Figure]:
    """One figure; none where no real model ran."""
    pairs = growth.held_and_formula(frame, SCOPE)[: style.MAX_SERIES]
    shown = _first_counted(frame, style.MAX_SERIES)
    speeds, ceilings = speed_series(shown), ceiling_series(shown)
    if not pairs and not speeds:
        return []
    panels = int(bool(pairs)) + int(bool(speeds))

    def draw(canvas: Canvas, columns: int) -> None:
        axes = style.axes_grid(canvas, panels, columns)
        if pairs:
            growth.draw_bytes(axes[0], pairs)
            axes[0].set_title("The model's own cache")
            axes[0].legend(loc="upper left")
        if speeds:
            _draw_speed(axes[-1], speeds, ceilings)

    wide, narrow = style.both_sizes(draw, panels)
    return [
        Figure(
            key="engine",
            title="A real model: its cache and its speed against depth",
            caption=(
                "A real model with real weights generates one trace and is stopped at each depth. "
                "Left: bytes of its own cache (markers) over the formula's line, "
                "both axes logarithmic. Right: tokens a second of the whole batch, higher is "
                "faster, with the 95% interval; dashed: what the floor allows (weights and cache "
                "read once a step at the probe's bandwidth). Hollow: flagged, not compared."
            ),
            alt=_alt(pairs, speeds),
            wide=wide,
            narrow=narrow,
        )
    ]


def _draw_speed(ax: Axes, speeds: list[Series], ceilings: list[Series]) -> None:
    for i, series in enumerate(speeds):
        color, marker = style.CYCLE[i % len(style.CYCLE)], style.MARKERS[i % len(style.MARKERS)]
        style.plot(ax, series, color, marker)
    for series in ceilings:
        ax.plot(series.x, series.y, color=style.GREY, linestyle=style.DASHES[1], label=series.label)
    style.token_axis(ax, [x for series in speeds for x in series.x])
    # Room above the lines for the legend; from zero, so that heights compare.
    highest = max(y for series in (*speeds, *ceilings) for y in (*series.y, *series.high))
    ax.set_ylim(0, highest * (1.1 + 0.09 * (len(speeds) + len(ceilings))))
    ax.legend(loc="upper left")
    ax.set_title("Decode speed")
    ax.set_xlabel("tokens in the cache")
    ax.set_ylabel("tokens/s")


def _timed(frame: pd.DataFrame) -> pd.DataFrame:
    speed = frame["tokens_per_s"].astype(float) > 0
    timed = frame["time_s"].notna() & (frame["depth_tokens"] > 0)
    return frame[(frame["scope"] == SCOPE) & speed & timed]


def _first_counted(frame: pd.DataFrame, at_most: int) -> pd.DataFrame:
    """The rows of the first settings, formats and backends of which a speed counts."""
    timed = _timed(frame)
    keys = list(zip(timed["panel"], timed["format"], timed["backend"], strict=True))
    counted = {key for key, counts in zip(keys, timed["counted"], strict=True) if counts}
    first = set([key for key in dict.fromkeys(keys) if key in counted][:at_most])
    return timed.iloc[[i for i, key in enumerate(keys) if key in first]]


def _alt(pairs: list[tuple[Series, Series]], speeds: list[Series]) -> str:
    parts = []
    if pairs:
        parts.append(f"Cache bytes of {plural(len(pairs), 'setting')} against the formula.")
    for series in speeds:
        kept = [i for i, good in enumerate(series.counted) if good]
        a, b = kept[0], kept[-1]
        parts.append(
            f"{series.label}: {number(series.y[a])} tokens/s at {series.x[a]:,.0f} tokens, "
            f"{number(series.y[b])} at {series.x[b]:,.0f}."
        )
    return " ".join(parts)
