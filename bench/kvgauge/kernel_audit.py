"""The audit of the GPU kernels as a command: the kernels' own judgement beside the formula's bytes."""

from __future__ import annotations

import importlib
import itertools
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvgauge.errors import ExitCode, UserError, short
from kvgauge.formats import kv_format
from kvgauge_kernels.audit import limits as limit_file
from kvgauge_kernels.audit.cases import LATENTS, Case, default_cases
from kvgauge_kernels.audit.run import Result, audit, triton_version, updated
from kvgauge_kernels.audit.targets import TARGETS, Target


@dataclass(frozen=True, slots=True)
class Report:
    """What an audit came to."""

    version: str
    """triton's."""
    results: tuple[Result, ...]
    limits: Path

    @property
    def faulty(self) -> tuple[Result, ...]:
        """Kernels that are not as they must be."""
        return tuple(result for result in self.results if result.faults)

    @property
    def without_limit(self) -> tuple[Result, ...]:
        """Kernels that the file of limits does not know."""
        return tuple(result for result in self.results if not result.has_limit)

    @property
    def code(self) -> ExitCode:
        """A fault is a regression; nothing to compare with is no baseline."""
        if self.faulty:
            return ExitCode.REGRESSION
        return ExitCode.NOT_COMPARABLE if self.without_limit else ExitCode.DONE

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "exit_code": int(self.code),
            "triton": self.version,
            "limits": str(self.limits),
            "kernels": [
                {
                    "target": result.target,
                    "kernel": result.key,
                    "faults": list(result.faults),
                    "has_limit": result.has_limit,
                    "formula_bytes_per_token": formula_bytes_per_token(result.case),
                    "findings": result.findings.to_json() if result.findings else None,
                }
                for result in self.results
            ],
        }


def audit_kernels(
    targets: tuple[str, ...] = (),
    kernels: tuple[str, ...] = (),
    limits: Path | None = None,
    *,
    update: bool = False,
    progress: Callable[[str], None] = lambda _text: None,
) -> Report:
    """Audit the kernels whose names have one of the texts, on those targets; empty means all.

    With `update` the findings become the limits, except those of a kernel that no limit could excuse.
    """
    version = _usable_triton()
    chosen_targets, cases = _targets(targets), _cases(kernels)
    path = limit_file.PATH if limits is None else limits
    if limits is not None and not limits.exists() and not update:
        raise UserError(f"--limits {limits}: no such file; --update makes one")
    try:
        known = limit_file.load(path)
    except (OSError, ValueError) as error:
        raise UserError(f"audit-kernels: {error}") from error
    # An update asks the rules alone: what is worse than the old limits is what it is for.
    try:
        said = _counted(progress, len(cases) * len(chosen_targets))
        found = audit({} if update else known, cases, chosen_targets, progress=said)
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"audit-kernels: the compiler's tools do not run here: {error}") from error
    results = [with_formula(result) for result in found]
    if update:
        sound = [result for result in results if not result.faults]
        try:
            limit_file.save(updated(known, version, sound), path)
        except OSError as error:
            raise UserError(f"audit-kernels: cannot write {path}: {error.strerror}") from error
        results = [replace(result, has_limit=True) for result in results]
    return Report(version, tuple(results), path)


def formula_bytes_per_token(case: Case) -> int | None:
    """Bytes of one token of one K/V head, by the same arithmetic as every prediction."""
    if not case.reads_rows:
        return None
    fmt = kv_format(case.format)
    if case.kernel == LATENTS:  # V is a part of K's row
        return fmt.row_bytes(case.k_dim)
    return fmt.row_bytes(case.k_dim) + fmt.row_bytes(case.v_dim)


def with_formula(result: Result) -> Result:
    """The result, with a fault where the kernel's loop moves other bytes than the formula says."""
    expected = formula_bytes_per_token(result.case)
    if result.findings is None or expected is None:
        return result
    moved = result.findings.bytes_per_token
    if moved == expected:
        return result
    said = "no bytes that could be read" if moved is None else f"{moved:g} bytes"
    fault = f"its loop moves {said} a token and head, the formula says {expected}"
    return replace(result, faults=(*result.faults, fault))


def _counted(progress: Callable[[str], None], total: int) -> Callable[[str], None]:
    """Each text with its place, as `run` shows it: compiling takes minutes."""
    places = itertools.count(1)
    return lambda text: progress(f"[{next(places)}/{total}] {text}")


def _usable_triton() -> str:
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise UserError("audit-kernels: unset TRITON_INTERPRET: the interpreter compiles nothing")
    try:
        importlib.import_module("triton.language")
        return triton_version()
    except (ImportError, AttributeError, OSError) as error:
        raise UserError(
            f"audit-kernels: triton cannot be imported ({error}): pip install triton, "
            "the version that your torch asks for (3.7.1 for torch 2.13)"
        ) from error


def _targets(names: tuple[str, ...]) -> list[Target]:
    for name in names:
        if name not in TARGETS:
            raise UserError(f"unknown target '{short(name)}': one of {', '.join(TARGETS)}")
    return [TARGETS[name] for name in names or TARGETS]


def _cases(texts: tuple[str, ...]) -> list[Case]:
    cases = [
        case for case in default_cases() if not texts or any(text in case.name for text in texts)
    ]
    if not cases:
        raise UserError(
            f"no kernel has {' or '.join(repr(short(text)) for text in texts)} in its name: names are "
            f"like {default_cases()[0].name}"
        )
    return cases
