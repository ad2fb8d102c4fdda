"""Words for records and ratios, the same in cards, sentences and tables."""

from __future__ import annotations

from collections.abc import Iterable

from kvgauge.schema import Record, Run
from kvgauge.units import seconds
from kvgauge_reports.frame import model_names, panel
from kvgauge_reports.headline_types import Headline, Speedup
from kvgauge_reports.select import backend_name, timing
from kvgauge_reports.text import NONE, clean, count, number, times

NOT_MEASURED = "not measured in this run"
NOT_TRUSTED = "measured but flagged, so not compared"
_PROBE_DIFFERS = 1.1  # the raw and the equal-bandwidth speed-up are this far apart


class Names:
    """Names of the settings of one run: `llama-3.1-8b fp16`."""

    def __init__(self, run: Run) -> None:
        self._models = model_names(run)

    def setting(self, record: Record) -> str:
        """The model, what differs from the defaults, and how many layers were timed."""
        return panel(record, self._models)

    def cache(self, record: Record) -> str:
        """The setting without the number of layers timed, and the format."""
        return f"{self.place(record)} {fmt(record)}"

    def place(self, record: Record) -> str:
        """The setting without the number of layers timed, and without the format."""
        parts = self.setting(record).split(" · ")
        return " · ".join(part for part in parts if not part.endswith("layers timed"))


def fmt(record: Record) -> str:
    """The KV format."""
    return clean(record.cache.format, 20)


def backend(record: Record) -> str:
    """The backend asked for."""
    return clean(backend_name(record), 30) or NONE


def at_depth(record: Record) -> str:
    """`at 4,096 tokens`."""
    return f"at {count(record.trace.depth_tokens)} tokens"


def median_time(record: Record) -> str:
    """The median with its unit."""
    time = timing(record)
    return seconds(time.median) if time else NONE


def layers(record: Record) -> str:
    """`2 of 80 layers`, or `all 80 layers`."""
    total, timed = record.model.layers, record.model.layers_timed
    return f"all {total} layers" if timed in (None, total) else f"{timed} of {total} layers"


def verdict(speedup: Speedup) -> str:
    """`2.31× faster`, `1.8× slower`, or that the intervals do not show a difference."""
    if speedup.verdict == "undecided":
        return "no difference shown"
    ratio = speedup.ratio if speedup.verdict == "faster" else 1 / speedup.ratio
    return f"{times(ratio)} {speedup.verdict}"


def pace(speedup: Speedup) -> str:
    """`1.7 times as fast`, `1.4 times as long`, or that the intervals do not show a difference."""
    if speedup.verdict == "faster":
        return f"{number(speedup.ratio, 2)} times as fast"
    if speedup.verdict == "slower":
        return f"takes {number(1 / speedup.ratio, 2)} times as long"
    return "no difference in time shown"


def interval(speedup: Speedup) -> str:
    """`2.2 to 2.42`, and the figure at equal bandwidth where the probe differed."""
    text = f"{number(speedup.low)} to {number(speedup.high)}"
    equal = speedup.normalized
    if equal and max(equal / speedup.ratio, speedup.ratio / equal) > _PROBE_DIFFERS:
        text += f"; at equal bandwidth {times(equal)}"
    return text


def span(values: Iterable[float]) -> str:
    """`2.36× to 2.9×`, or the one value."""
    ordered = sorted(values)
    low, high = times(ordered[0]), times(ordered[-1])
    return low if low == high else f"{low} to {high}"


def absent(head: Headline, *figures: str) -> str:
    """Why there is none of these figures: what they need was not measured, or it is flagged."""
    return NOT_TRUSTED if head.withheld & set(figures) else NOT_MEASURED


def deepest(record: Record) -> tuple[int, int, int]:
    """What to put first: the largest depth, then the most bytes, then the deepest model."""
    moved = record.predicted.moved_bytes or record.predicted.kv_bytes
    return record.trace.depth_tokens, moved, record.model.layers
