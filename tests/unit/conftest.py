"""What several tests of the native kernels need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvgauge_kernels.cpu.native_module import native

LEVELS = ("portable", "avx2", "avx512")


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    module = native()
    if module is None:
        pytest.skip("the native kernels are not built")
    before = module.level()
    if LEVELS.index(request.param) > LEVELS.index(module.best_level()):
        pytest.skip(f"this CPU has no {request.param}")
    module.force_level(request.param)
    yield request.param
    module.force_level(before)
