"""The extension module, where it is built."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

from kvgauge_kernels.compiling import constant_when_compiled

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


@constant_when_compiled
def instructions() -> str | None:
    """What the native kernels use here: `avx512`, `avx2` or `portable`; None where they are not built."""
    module = native()
    return None if module is None else str(module.level())
