"""The extension module, where it is built."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

NOT_BUILT = (
    "the native CPU kernels are not built: pip install ., or ./run_all.sh, with a C++ compiler"
)


@cache
def native() -> ModuleType | None:
    """`kvgauge_kernels.cpu._native`; None where it is not built."""
    try:
        return import_module("kvgauge_kernels.cpu._native")
    except ImportError:
        return None
