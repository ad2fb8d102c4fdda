"""One look for all figures: palette, sizes, axes, and the way from a drawing to SVG text."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from kvgauge.units import GB
from kvgauge_reports.extras import report_extra
from kvgauge_reports.text import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

# Okabe & Ito: told apart with any kind of colour vision; markers and dashes say it again.
BLUE, RED, GREEN, ORANGE, PINK, SKY, INK = (
    "#0072B2", "#D55E00", "#007A5A", "#B87A00", "#B0528C", "#3A8FC2", "#222222",
)  # fmt: skip
VIOLET, BROWN = "#5B4BB7", "#7A4A1E"
GREY = "#6B7075"
CYCLE = (BLUE, RED, GREEN, ORANGE, PINK, SKY, INK)
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
MB = 10**6
MAX_PANELS = 6
MAX_SERIES = 14
MAX_TICKS = 6

_RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": "#8A8F94",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E3E5E8",
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "errorbar.capsize": 2.5,
    "svg.fonttype": "path",  # the same on every machine, with no font
    "svg.hashsalt": "kvgauge",  # the same bytes for the same run
    "text.parse_math": False,  # a `$` in a model's name is a `$`
}


@dataclass(frozen=True, slots=True)
class Figure:
    """A finished figure: `wide` for a page or a desktop, `narrow` for a phone."""

    key: str
    title: str
    caption: str
    alt: str
    wide: str
    narrow: str


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a figure; `group` gives its colour, `variant` its marker and dashes.

    `counted` False draws a hollow marker that no line joins; empty means all counted.
    """

    group: str
    variant: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    counted: tuple[bool, ...] = ()

    @property
    def label(self) -> str:
        """What the legend says."""
        return f"{clean(self.group, 36)} {clean(self.variant, 36)}".strip()


def numbers(values: Iterable[Any]) -> tuple[float, ...]:
    """A column as plain floats."""
    return tuple(float(value) for value in values)


def both_sizes(
    draw: Callable[[Canvas, int], None], panels: int, labels: Sequence[str] = ()
) -> tuple[str, str]:
    """SVG text of a drawing with its panels two abreast, and with one under the other.

    `labels` are those of the legend above the panels, for which room is made.
    """
    rows = -(-panels // 2)
    above = 0.0 if has_vacancy(panels, 2) else _legend_inches(labels, 2)
    wide = _svg(lambda c: draw(c, 2), 8.6, 2.75 * rows + 0.1 + above)
    narrow = _svg(lambda c: draw(c, 1), 4.0, 2.7 * panels + 0.1 + _legend_inches(labels, 1))
    return wide, narrow


def _legend_columns(labels: Sequence[str], columns: int) -> int:
    longest = max((len(label) for label in labels), default=0)
    return max(1, min(len(labels), 2 * columns, 64 * columns // (longest + 9)))


def _legend_inches(labels: Sequence[str], columns: int) -> float:
    return 0.17 * -(-len(labels) // _legend_columns(labels, columns)) if labels else 0.0


def wrapped(text: str, width: int = 44) -> str:
    """A title that does not run out of its panel."""
    return "\n".join(textwrap.wrap(text, width, max_lines=3, placeholder=" …"))


def axes_grid(canvas: Canvas, panels: int, columns: int) -> list[Axes]:
    """`panels` axes in reading order."""
    columns = min(columns, panels)
    rows = -(-panels // columns)
    return [canvas.add_subplot(rows, columns, i + 1) for i in range(panels)]


def token_axis(ax: Axes, depths: Sequence[float]) -> None:
    """A logarithmic axis of tokens whose ticks are depths that were measured."""
    ticks = sorted(set(depths))
    while len(ticks) > MAX_TICKS:
        ticks = ticks[::-2][::-1]
    ax.set_xscale("log", base=2)
    ax.set_xlim(min(depths) / 1.25, max(depths) * 1.25)
    ax.set_xticks(ticks, [f"{int(t):,}" for t in ticks])
    ax.minorticks_off()


def plain_log_axis(ax: Axes, which: Literal["x", "y"] = "y") -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5 of each decade, or at what fits."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    if which == "x":
        ax.set_xscale("log")
    else:
        ax.set_yscale("log")
    low, high = ax.get_xlim() if which == "x" else ax.get_ylim()
    ticks: list[float] = []
    for subs in ((1, 2, 5), (1, 3), (1,)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [t for d in decades for t in (s * 10.0**d for s in subs) if low <= t <= high]
        if len(ticks) <= MAX_TICKS:
            break
    axis.set_ticks(ticks[:: -(-len(ticks) // MAX_TICKS) or 1])
    axis.set_ticklabels([f"{t:,.10g}" for t in axis.get_majorticklocs()])
    ax.minorticks_off()


def plot(ax: Axes, series: Series, color: str, marker: str, dash: Any = "-") -> None:
    """Counted points joined, with their intervals; the others hollow."""
    counted = series.counted or (True,) * len(series.x)
    kept = [i for i, good in enumerate(counted) if good]
    rest = [i for i, good in enumerate(counted) if not good]
    look: dict[str, Any] = {"color": color, "marker": marker}
    if series.low:
        below = [series.y[i] - series.low[i] for i in kept]
        above = [series.high[i] - series.y[i] for i in kept]
        ax.errorbar(
            [series.x[i] for i in kept],
            [series.y[i] for i in kept],
            yerr=[below, above],
            label=series.label,
            linestyle=dash,
            elinewidth=1.0,
            **look,
        )
    else:
        x, y = [series.x[i] for i in kept], [series.y[i] for i in kept]
        ax.plot(x, y, label=series.label, linestyle=dash, **look)
    if rest:
        x, y = [series.x[i] for i in rest], [series.y[i] for i in rest]
        ax.plot(x, y, linestyle="none", markerfacecolor="white", **look)


def legend(canvas: Canvas, axes: Sequence[Axes], columns: int, order: Sequence[str] = ()) -> None:
    """One legend for all panels: in the place of a missing panel, else above them."""
    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    labels = [label for label in order if label in entries]
    labels += [label for label in entries if label not in labels]
    look: dict[str, Any] = {"handlelength": 2.6, "columnspacing": 1.4}
    handles = [entries[label] for label in labels]
    if has_vacancy(len(axes), columns):
        spare = canvas.add_subplot(-(-len(axes) // 2), 2, len(axes) + 1)
        spare.axis("off")
        spare.legend(handles, labels, loc="center left", labelspacing=0.9, **look)
    elif labels:
        look["ncols"] = _legend_columns(labels, columns)
        canvas.legend(handles, labels, loc="outside upper left", **look)


def has_vacancy(panels: int, columns: int) -> bool:
    """Whether the last row has room for a legend."""
    return columns == 2 and panels > 1 and panels % 2 == 1


def bytes_unit(largest: float) -> tuple[float, str]:
    """What to divide by and the unit's name, so that an axis reads in whole numbers."""
    return (GB, "GB (10⁹ bytes)") if largest >= GB else (MB, "MB (10⁶ bytes)")


@contextmanager
def _styled() -> Iterator[None]:
    with report_extra():
        import matplotlib as mpl
    with mpl.rc_context():
        mpl.rcdefaults()  # a user's own matplotlibrc must not change a report
        mpl.rcParams.update(_RC)
        yield


def _svg(draw: Callable[[Canvas], None], width: float, height: float) -> str:
    with _styled():
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure as Canvas

        canvas = Canvas(figsize=(width, height), layout="constrained", facecolor="white")
        FigureCanvasSVG(canvas)
        draw(canvas)
        out = io.StringIO()
        metadata = {"Date": None, "Creator": "kvgauge", "Format": None, "Type": None}
        canvas.savefig(out, format="svg", metadata=metadata)
    text = out.getvalue()
    return text[text.index("<svg") :]
