"""The audit: every case on every target, from what is kept of an earlier one or compiled anew."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from kvgauge_kernels.audit import compiling
from kvgauge_kernels.audit.cases import Case, default_cases
from kvgauge_kernels.audit.findings import Findings, faults_of
from kvgauge_kernels.audit.limits import Limit, Limits
from kvgauge_kernels.audit.targets import TARGETS, Target
from kvgauge_kernels.triton import configs


@dataclass(frozen=True, slots=True)
class Result:
    """One case on one target."""

    target: str
    key: str
    case: Case
    findings: Findings | None
    """None where it did not compile."""
    faults: tuple[str, ...]
    """Empty: as it must be."""
    has_limit: bool


def triton_version() -> str:
    """The installed triton's; raises ImportError where there is none."""
    import triton

    return str(triton.__version__)


def audit(
    limits: Limits,
    cases: Sequence[Case] | None = None,
    targets: Iterable[Target] | None = None,
    module: ModuleType | None = None,
    progress: Callable[[str], None] = lambda _text: None,
) -> list[Result]:
    """Compile what is not kept, and judge by the rules and by the limits."""
    chosen = default_cases() if cases is None else cases
    version = triton_version()
    modules = {
        case.kernel: compiling.kernels(case.kernel) if module is None else module for case in chosen
    }
    stems = {kernel: _sources_hash(holder) for kernel, holder in modules.items()}
    results = []
    for target in TARGETS.values() if targets is None else targets:
        of_target = limits.get(version, {}).get(target.name, {})
        for case in chosen:
            key = case.key(target)
            progress(f"{target.name} {key}")
            identity = f"{stems[case.kernel]} {version} {target.name} {key}"
            findings, error = _findings(case, target, modules[case.kernel], identity)
            results.append(_judged(case, target, key, findings, error, of_target.get(key)))
    return results


def updated(limits: Limits, version: str, results: Iterable[Result]) -> Limits:
    """The limits with those of `results` in place of their old ones; cases not asked for stay."""
    new = {v: {t: dict(entries) for t, entries in by.items()} for v, by in limits.items()}
    for result in results:
        if result.findings is not None:
            entries = new.setdefault(version, {}).setdefault(result.target, {})
            entries[result.key] = Limit.of(result.findings)
    return new


def _judged(
    case: Case, target: Target, key: str, findings: Findings | None, error: str, limit: Limit | None
) -> Result:
    if findings is None:
        return Result(target.name, key, case, None, (error,), limit is not None)
    config = case.config(target)
    faults = faults_of(
        findings,
        rows=case.reads_rows,
        programs=config.programs_per_sm if config else 1,
        moved=case.moves_rows,
    )
    if limit is not None:
        faults += limit.worse(findings)
    return Result(target.name, key, case, findings, tuple(faults), limit is not None)


def _findings(
    case: Case, target: Target, kernels: ModuleType, identity: str
) -> tuple[Findings | None, str]:
    kept = _kept_at(identity)
    try:
        return Findings.from_json(json.loads(kept.read_text())), ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # nothing kept, or by a version that wrote otherwise
    try:
        findings = compiling.compile_case(case, target, kernels)
    except (ImportError, OSError, subprocess.SubprocessError):
        raise  # the tools' fault, or this machine's
    except Exception as error:  # whatever a compiler says of a kernel is the kernel's fault here
        said = " ".join(str(error).split())
        return None, f"does not compile: {type(error).__name__}: {said[:200]}"
    _keep(kept, json.dumps(findings.to_json()))
    return findings, ""


def _kept_at(identity: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = hashlib.sha256(identity.encode()).hexdigest()
    return Path(base) / "kvgauge" / "audit" / f"{name}.json"


def _keep(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(f".{os.getpid()}")
        half.write_text(text)
        half.replace(path)
    except OSError:
        pass  # a cache that cannot be written costs time alone


def _sources_hash(kernels: ModuleType) -> str:
    """Of the kernel's file, what it calls and the audit itself: a change of any voids what was kept."""
    audits = sorted(Path(__file__).parent.glob("*.py"))
    shared = (Path(str(configs.__file__)).with_name(f"{n}.py") for n in compiling.SHARED_FILES)
    files = [Path(str(kernels.__file__)), *shared, *audits]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()
