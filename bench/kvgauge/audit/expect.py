"""What is expected of a figure: its printed range, and a function from assumptions to the formula's.

An `Expectation` can be judged. A `Missing` says which fact would be needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from kvgauge.audit.sizes import Case
from kvgauge.audit.types import LogFact, Range

Predict = Callable[[Case], Sequence[Range]]


@dataclass(frozen=True, slots=True)
class Expectation:
    """A figure that the formula can speak to.

    `predict` gives one range or several conventions' ranges, the plain one first; the figure agrees
    with any. `unit_bytes` is what one unit of the figure weighs, where it weighs something.
    `memories` are what was available for it, a rank each. `variants` are other ways to count, by
    name, tried as hypotheses only. `foreign` says why the figure may be another model's: then it does
    not disagree.
    """

    fact: LogFact
    logged: Range
    case: Case
    predict: Predict
    rule: str
    unit_bytes: Fraction | None = Fraction(1)
    reason: str = ""
    variants: tuple[tuple[str, Predict], ...] = ()
    memories: tuple[Range, ...] = ()
    foreign: str = ""
    sequences: int | None = None


@dataclass(frozen=True, slots=True)
class Missing:
    """A figure that nothing can be said of, and why."""

    fact: LogFact
    reason: str


Judgeable = Expectation | Missing
