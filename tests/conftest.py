"""One thread a process: tiny tensors gain nothing from a second, and lose much on busy cores."""

import os
import sys

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def no_repeats(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How busy this machine is must not decide how many records a test's run has."""
    runner = sys.modules.get("kvgauge.runner")
    if runner is not None and request.node.path.stem != "test_repeat":
        monkeypatch.setattr(runner, "_REPEAT_SHARE", -1.0)
