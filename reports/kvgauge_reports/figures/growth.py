"""KV bytes against tokens: what was measured, over what the formula says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvgauge_reports.figures import style
from kvgauge_reports.figures.style import Figure, Series, numbers
from kvgauge_reports.text import both_units, plural

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

# Where not all series fit, these formats go first.
_FORMATS = ("fp16", "bf16", "int8")
FORMULA = "formula"
TENSORS, ALLOCATED = "tensors", "allocator or operating system"


def held_and_formula(frame: pd.DataFrame, scope: str = "memory") -> list[tuple[Series, Series]]:
    """For each setting and format: measured kv_bytes against depth_tokens, and the formula's.

    Counted records alone. Formats that hold the same bytes at the same depths share a pair.
    """
    merged: dict[
        tuple[str, tuple[float, ...], tuple[float, ...], tuple[float, ...]], list[str]
    ] = {}
    for (title, fmt), points in _points(_counted(frame, scope)).items():
        x = tuple(sorted(points))
        held, formula = (tuple(points[depth][i] for depth in x) for i in (0, 1))
        merged.setdefault((title, x, held, formula), []).append(fmt)
    return [
        (
            Series(panel, " = ".join(formats), x, held),
            Series(panel, " = ".join(formats), x, formula),
        )
        for (panel, x, held, formula), formats in merged.items()
    ]


def _points(rows: pd.DataFrame) -> dict[tuple[str, str], dict[float, tuple[float, float]]]:
    """(panel, format) -> depth -> held and formula bytes, the first row of a depth."""
    found: dict[tuple[str, str], dict[float, tuple[float, float]]] = {}
    # One pass: a frame of its own for each of thousands of settings would take minutes.
    columns = ("panel", "format", "depth_tokens", "held_bytes", "formula_bytes")
    for title, fmt, depth, held, formula in zip(*(rows[c] for c in columns), strict=True):
        points = found.setdefault((str(title), str(fmt)), {})
        points.setdefault(float(depth), (float(held), float(formula)))
    return found


def ratios(frame: pd.DataFrame) -> list[Series]:
    """Measured bytes / the formula's, against the formula's: the tensors', then the allocator's."""
    found = []
    for name, column in ((TENSORS, "held_bytes"), (ALLOCATED, "allocated_bytes")):
        rows = _counted(frame, "memory")
        rows = rows[rows[column].notna()].sort_values("formula_bytes")
        if len(rows):
            formula, measured = numbers(rows["formula_bytes"]), numbers(rows[column])
            ratio = tuple(m / f for m, f in zip(measured, formula, strict=True))
            found.append(Series(name, "", formula, ratio))
    return found


def figures(frame: pd.DataFrame) -> list[Figure]:
    """One figure; none where no footprint was counted."""
    pairs = sorted(held_and_formula(frame), key=_rank)
    if not pairs:
        return []
    shown, dots = pairs[: style.MAX_SERIES], ratios(frame)

    def draw(canvas: Canvas, columns: int) -> None:
        left, right = style.axes_grid(canvas, 2, columns)
        draw_bytes(left, shown)
        _draw_ratios(right, dots)
        style.legend(canvas, [left], columns)

    wide, narrow = style.both_sizes(draw, 2, [*(held.label for held, _ in shown), FORMULA])
    hidden = len(pairs) - len(shown)
    more = f" {plural(hidden, 'series', 'series')} more in the table." if hidden else ""
    largest = max((held for held, _ in shown), key=lambda series: max(series.y))
    return [
        Figure(
            key="growth",
            title="Memory: the cache against the tokens in it",
            caption=(
                "Left: bytes of the whole KV cache against tokens, both axes "
                "logarithmic. Markers are measured tensors; the line joins what the formula says "
                "at the same depths. Right: measured bytes over the formula's, where 1 is "
                "agreement; allocators and operating systems hand out whole blocks, so small "
                f"caches scatter.{more}"
            ),
            alt=(
                f"Measured KV-cache bytes of {plural(len(shown), 'setting')} rise with the number "
                f"of tokens along the formula's lines; the largest, {largest.label}, holds "
                f"{both_units(max(largest.y))} at {max(largest.x):,.0f} tokens."
            ),
            wide=wide,
            narrow=narrow,
        )
    ]


def draw_bytes(ax: Axes, pairs: list[tuple[Series, Series]]) -> None:
    """Measured points over the formula's line, both axes logarithmic."""
    groups = list(dict.fromkeys(held.group for held, _ in pairs))
    variants = list(dict.fromkeys(held.variant for held, _ in pairs))
    scale, unit = style.bytes_unit(max(y for held, _ in pairs for y in held.y))
    for held, formula in pairs:
        color = style.CYCLE[groups.index(held.group) % len(style.CYCLE)]
        place = variants.index(held.variant)
        ax.plot(formula.x, [y / scale for y in formula.y], color=color, linewidth=0.9, zorder=1)
        ax.plot(
            held.x,
            [y / scale for y in held.y],
            color=color,
            marker=style.MARKERS[place % len(style.MARKERS)],
            markerfacecolor=color if place == 0 else "white",
            linestyle="none",
            label=held.label,
        )
    ax.plot([], [], color=style.GREY, linewidth=0.9, label=FORMULA)
    style.token_axis(ax, [x for held, _ in pairs for x in held.x])
    style.plain_log_axis(ax)
    ax.set_title("KV cache")
    ax.set_xlabel("tokens in the cache")
    ax.set_ylabel(unit)


def _draw_ratios(ax: Axes, dots: list[Series]) -> None:
    looks = {TENSORS: (style.INK, "o", style.INK), ALLOCATED: (style.RED, "D", "white")}
    scale, unit = style.bytes_unit(max(x for series in dots for x in series.x))
    for series in reversed(dots):
        color, marker, face = looks[series.group]
        look: dict[str, Any] = {"color": color, "marker": marker, "markerfacecolor": face}
        x = [value / scale for value in series.x]
        ax.plot(x, series.y, linestyle="none", label=series.label, **look)
    ax.axhline(1, color=style.GREY, linewidth=0.9, zorder=1)
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, 0.97), max(high, 1.03))
    style.plain_log_axis(ax, "x")
    ax.legend(loc="best")
    ax.set_title("Measured over formula")
    ax.set_xlabel(f"formula, {unit}")
    ax.set_ylabel("ratio")


def _counted(frame: pd.DataFrame, scope: str) -> pd.DataFrame:
    positive = (frame["held_bytes"] > 0) & (frame["formula_bytes"] > 0)
    measured = positive & (frame["depth_tokens"] > 0) & frame["counted"].astype(bool)
    return frame[(frame["scope"] == scope) & measured]


def _rank(pair: tuple[Series, Series]) -> tuple[int, int]:
    """Plain settings (a model's name alone) first, then by format, else as in the run."""
    formats = pair[0].variant.split(" = ")
    place = min(_FORMATS.index(f) if f in _FORMATS else len(_FORMATS) for f in formats)
    return (int(" · " in pair[0].group), place)
