"""What torch.compile must not look into: facts of the machine, which stay what they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")


def constant_when_compiled(fact: Callable[_P, _R]) -> Callable[_P, _R]:
    """Mark a function of constants alone: Dynamo calls it while tracing, and keeps what it says.

    As `torch.compiler.assume_constant_result`, which imports torch._dynamo: two seconds for everyone.
    """
    marked: Any = fact
    marked._dynamo_marked_constant = True
    return fact
