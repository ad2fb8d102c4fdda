"""The suites, in the order in which a run visits them: a new suite is one file and one line."""

from __future__ import annotations

from kvgauge.suites.decode import Decode
from kvgauge.suites.footprint import Footprint
from kvgauge.suites.model import Model
from kvgauge.suites.types import Suite


def suites() -> dict[str, Suite]:
    """Fresh suites: one may hold state (a loaded model) for the length of a run."""
    return {s.name: s for s in (Footprint(), Decode(), Model())}
