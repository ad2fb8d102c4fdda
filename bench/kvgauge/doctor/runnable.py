"""Which suites and backends can run on the CPU and on CUDA, asked of the suites themselves."""

from __future__ import annotations

from kvgauge.doctor.torch_facts import Torch
from kvgauge.doctor.types import Runnable, Unavailable, listed

DEVICES = {"cpu": "the CPU", "cuda": "CUDA"}
_ORACLE = "reference"  # never timed


def what_runs(torch: Torch | Unavailable, no_cuda: str) -> tuple[Runnable, ...]:
    """Every suite and backend on every kind of device; nothing where torch does not load.

    `no_cuda` is the reason to give where torch can use no GPU.
    """
    if isinstance(torch, Unavailable):
        return ()
    import torch as library

    from kvgauge.suites.table import suites
    from kvgauge_kernels import BACKENDS

    found = []
    for device in DEVICES:
        closed = (
            no_cuda if device == "cuda" and not any(g.error is None for g in torch.gpus) else None
        )
        backends = {
            name: closed or backend.available(library.device(device))
            for name, backend in BACKENDS.items()
        }
        for suite in suites().values():
            missing = closed or _missing(suite.missing(device), backends)
            found.append(Runnable("suite", suite.name, device, missing))
        found += [Runnable("backend", name, device, why) for name, why in backends.items()]
    return tuple(found)


def _missing(reasons: dict[str, str], backends: dict[str, str | None]) -> str | None:
    # A suite goes on without some backends; without another thing that it names it cannot run.
    own = [why for name, why in reasons.items() if name not in backends]
    if own:
        return own[0]
    timed = [name for name in backends if name != _ORACLE]
    if all(name in reasons for name in timed):
        return "no backend can run here"
    return None


def verdict(runnable: tuple[Runnable, ...], torch: Torch | Unavailable) -> str:
    """Two sentences: what this machine can run, and what not."""
    if not runnable:
        why = (
            f"torch is {torch.reason}"
            if isinstance(torch, Unavailable)
            else "the suites do not load"
        )
        return f"This machine can run no suite: {why}; plan, models, claims and audit-log work."
    can, cannot = [], []
    for device, called in DEVICES.items():
        entries = [e for e in runnable if e.device == device and e.name != _ORACLE]
        suites = [e for e in entries if e.kind == "suite"]
        able = [e.name for e in suites if e.reason is None]
        if able:
            backends = [e.name for e in entries if e.kind == "backend" and e.reason is None]
            can.append(f"{listed(able)} on {called} (backends {listed(backends)})")
            cannot += [f"{e.name} on {called}: {e.reason}" for e in suites if e.reason is not None]
        else:
            cannot.append(f"{called}: {suites[0].reason}")
    text = f"This machine can run {' and '.join(can) or 'no suite'}."
    return f"{text} It cannot run {'; '.join(cannot)}." if cannot else text
