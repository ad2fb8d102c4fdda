"""One thread a process: tiny tensors gain nothing from a second, and lose much on busy cores."""

import gc
import os
import sys

import pytest
from hypothesis import Phase, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples each time: a change must not fail for what it did not touch. Others are drawn by
# KVGAUGE_HYPOTHESIS=random and by the campaigns; `unshrunk` is for those that ask only whether one fails.
settings.register_profile("same", derandomize=True)
settings.register_profile("random", derandomize=False)
settings.register_profile("unshrunk", derandomize=True, phases=(Phase.explicit, Phase.generate))
settings.load_profile(os.environ.get("KVGAUGE_HYPOTHESIS", "same"))


@pytest.fixture(autouse=True, scope="module")
def few_to_collect() -> None:
    """What is imported stays out of later collections: a measurement makes two, of 0.1 s and more each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_repeats(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How busy this machine is must not decide how many records a test's run has."""
    runner = sys.modules.get("kvgauge.runner")
    if runner is not None and request.node.path.stem != "test_repeat":
        monkeypatch.setattr(runner, "_REPEAT_SHARE", -1.0)
