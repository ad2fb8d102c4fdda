"""The whole examination, in an order that disturbs nothing it looks at."""

from __future__ import annotations

from pathlib import Path

from kvgauge.doctor.busy import busy_section
from kvgauge.doctor.compilers import compiler_section
from kvgauge.doctor.cpu import cpu_section
from kvgauge.doctor.disk import disk_section
from kvgauge.doctor.gpu import gpu_section
from kvgauge.doctor.gpu_state import card_section
from kvgauge.doctor.nvml import Driver, read_driver
from kvgauge.doctor.packages import package_section
from kvgauge.doctor.runnable import verdict, what_runs
from kvgauge.doctor.system import System
from kvgauge.doctor.torch_facts import Torch, read_torch
from kvgauge.doctor.types import Check, Diagnosis, Runnable, Section, Unavailable

RUN_DIR = Path("results") / "runs"


def examine(run_dir: Path, system: System | None = None) -> Diagnosis:
    """Everything about this machine; takes a few seconds, most of them torch's import."""
    system = system or System()
    # Before torch computes on the GPU and before its import warms the CPU.
    driver = read_driver()
    busy = busy_section(system)
    torch = read_torch()
    cards = driver.cards if isinstance(driver, Driver) else ()
    gpu = gpu_section(system, driver, torch)
    packages = package_section(torch)
    runnable, broken = _runnable(torch, gpu)
    if broken is not None:
        packages = Section(packages.title, (*packages.checks, broken))
    sections = (
        packages,
        gpu,
        *(card_section(system, card, torch) for card in cards),
        cpu_section(system),
        busy,
        disk_section(system, run_dir),
        compiler_section(torch.cuda if isinstance(torch, Torch) else None),
    )
    return Diagnosis(verdict(runnable, torch), runnable, sections)


def _runnable(
    torch: Torch | Unavailable, gpu: Section
) -> tuple[tuple[Runnable, ...], Check | None]:
    """What runs, and a failed check where the suites do not even load."""
    try:
        return what_runs(torch, _no_cuda(gpu)), None
    except Exception as error:
        why = f"do not load: {type(error).__name__}: {error}"
        return (), Check("suites", "fail", why, "no suite can run", "pip install 'kvgauge[torch]'")


def _no_cuda(gpu: Section) -> str:
    checks = {check.name: check for check in gpu.checks}
    driver, torch = checks["driver"], checks["torch"]
    return torch.found if torch.state == "fail" or driver.state == "ok" else driver.found
