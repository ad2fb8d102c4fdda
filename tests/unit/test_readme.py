"""What the README shows of the kernels as a library runs as it stands there."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from kvgauge_kernels.cpu.native_module import native

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.skipif(native() is None, reason="the native kernels are not built")
def test_the_example_of_the_library_runs() -> None:
    after = README.read_text().split("The kernels are a library of their own:\n")[1]
    code = textwrap.dedent(after.split("\nBeside decode")[0])
    made: dict[str, Any] = {}
    exec(code, made)  # our own README
    assert made["out"].shape == (1, 32, 128)
    assert made["cache"].lengths == (4001,)
