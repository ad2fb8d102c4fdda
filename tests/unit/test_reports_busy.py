"""A run whose times were mostly disturbed says so before it says anything else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvgauge.schema import Run, Trust
from kvgauge_reports import six_lines
from runs_for_tests import make_run


@pytest.mark.parametrize(("share", "busy"), [(0.1, False), (0.2, False), (0.3, True), (1.0, True)])
def test_over_a_quarter_flagged_is_a_busy_machine(share: float, busy: bool) -> None:
    run = make_run()
    flagged = int(len(run.records) * share)
    disturbed = Trust(False, ("cpu_shared",))
    records = tuple(
        replace(r, trust=disturbed) if i < flagged else r for i, r in enumerate(run.records)
    )
    cells = six_lines(Run(run.manifest, records))[1]
    assert ("the machine was busy" in cells) is busy, cells
