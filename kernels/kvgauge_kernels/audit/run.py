"""The audit: every case on every target, from what is kept of an earlier one or compiled anew."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from kvgauge_kernels.audit import compiling
from kvgauge_kernels.audit.cases import Case, default_cases
from kvgauge_kernels.audit.findings import Findings, faults_of
from kvgauge_kernels.audit.limits import Limit, Limits
from kvgauge_kernels.audit.targets import TARGETS, Target
from kvgauge_kernels.triton import configs

# Starting a process that compiles takes seconds: not for fewer kernels than these.
_WORTH_PROCESSES = 16


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
    jobs = [
        _Job(target, case, f"{stems[case.kernel]} {version} {target.name} {case.key(target)}")
        for target in (TARGETS.values() if targets is None else targets)
        for case in chosen
    ]
    kept = {job: _kept(job.identity) for job in jobs}
    missing = [job for job, found in kept.items() if found is None]
    if module is None and len(missing) >= _WORTH_PROCESSES:
        compiled = _by_processes(missing)
    else:
        compiled = (_compiled(job, modules[job.case.kernel]) for job in missing)
    results = []
    for job, known in kept.items():
        key = job.case.key(job.target)
        progress(f"{job.target.name} {key}")
        findings, error = (known, "") if known is not None else next(compiled)
        limit = limits.get(version, {}).get(job.target.name, {}).get(key)
        results.append(_judged(job.case, job.target, key, findings, error, limit))
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


@dataclass(frozen=True, slots=True)
class _Job:
    target: Target
    case: Case
    identity: str
    """What its findings depend on."""


def _by_processes(jobs: Sequence[_Job]) -> Iterator[tuple[Findings | None, str]]:
    """`_compiled` of each, in order, by a process a core."""
    workers = min(len(os.sched_getaffinity(0)), 8) if hasattr(os, "sched_getaffinity") else 1
    pool = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),  # an interrupt is for this process to answer
    )
    try:
        yield from pool.map(_compiled, jobs)
    except BrokenProcessPool as error:
        raise OSError("a process that compiled was killed") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _compiled(job: _Job, module: ModuleType | None = None) -> tuple[Findings | None, str]:
    try:
        holder = compiling.kernels(job.case.kernel) if module is None else module
        findings = compiling.compile_case(job.case, job.target, holder)
    except (ImportError, OSError, subprocess.SubprocessError):
        raise  # the tools' fault, or this machine's
    except Exception as error:  # whatever a compiler says of a kernel is the kernel's fault here
        said = " ".join(str(error).split())
        return None, f"does not compile: {type(error).__name__}: {said[:200]}"
    _keep(_kept_at(job.identity), json.dumps(findings.to_json()))
    return findings, ""


def _kept(identity: str) -> Findings | None:
    try:
        return Findings.from_json(json.loads(_kept_at(identity).read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # nothing kept, or by a version that wrote otherwise


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
