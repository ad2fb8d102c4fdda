"""What else the machine is doing, and how much memory is left."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from kvgauge.doctor.system import System, read, read_line
from kvgauge.doctor.types import Check, Section, section
from kvgauge.units import binary_bytes

# What others may take of the cores before a record is flagged: measure.validity.MAX_CPU_TAKEN.
MAX_BUSY = 0.15
_MAX_LOAD_PER_CORE = 0.3
_MAX_STEAL = 0.02
_MAX_CPU_PRESSURE = 10.0  # percent of ten seconds in which some task waited
_MAX_MEMORY_PRESSURE = 1.0
_LOOK_S = 0.3
_LEAST_MEMORY_BYTES = 2 * 2**30
_SWAP_IN_USE_BYTES = 256 * 2**20


def busy_section(system: System) -> Section:
    """Load, pressure, memory. Takes `_LOOK_S` seconds."""
    before = cpu_ticks(system)
    time.sleep(_LOOK_S)
    after = cpu_ticks(system)
    return section(
        "Load and memory",
        ("load", lambda: load(system, os.cpu_count() or 1, before, after)),
        ("stolen time", lambda: stolen(before, after)),
        ("pressure", lambda: pressure(system)),
        ("memory", lambda: memory(system)),
        ("swap", lambda: swap(system)),
        ("huge pages", lambda: huge_pages(system)),
    )


@dataclass(frozen=True, slots=True)
class Ticks:
    """Time of all cores since the start of the machine, in the kernel's ticks."""

    busy: int
    steal: int
    total: int

    def since(self, before: Ticks) -> Ticks:
        """What passed between."""
        return Ticks(self.busy - before.busy, self.steal - before.steal, self.total - before.total)


def cpu_ticks(system: System) -> Ticks | None:
    """The first line of /proc/stat (proc(5)); None where there is none that can be read."""
    fields = (read(system.proc / "stat") or "").partition("\n")[0].split()[1:9]
    if len(fields) < 8 or not all(field.isdigit() for field in fields):
        return None
    user, nice, kernel, idle, iowait, irq, softirq, steal = map(int, fields)
    busy = user + nice + kernel + irq + softirq
    return Ticks(busy, steal, busy + idle + iowait + steal)


def load(system: System, cores: int, before: Ticks | None, after: Ticks | None) -> Check:
    """The load of the last minute, and the core time used while this process slept."""
    text = read(system.proc / "loadavg")
    one_minute = float(text.split()[0]) if text else os.getloadavg()[0]
    busy = None
    if before is not None and after is not None and after.total > before.total:
        passed = after.since(before)
        busy = passed.busy / passed.total
    now = "unknown" if busy is None else f"{busy:.0%} of the core time"
    found = f"{one_minute / cores:.2f} a core over the last minute, now {now}"
    if one_minute <= _MAX_LOAD_PER_CORE * cores and (busy is None or busy <= MAX_BUSY):
        return Check("load", "ok", found)
    return Check(
        "load", "warn", found, f"a record is flagged cpu_shared where others take over {MAX_BUSY:.0%}",
        "wait, or stop what runs (top shows it)",
    )  # fmt: skip


def stolen(before: Ticks | None, after: Ticks | None) -> Check:
    """Time that the hypervisor gave to other guests."""
    if before is None or after is None or after.total <= before.total:
        return Check("stolen time", "unavailable", "the system does not tell core time")
    passed = after.since(before)
    share, overall = passed.steal / passed.total, after.steal / after.total
    found = f"{share:.1%} now, {overall:.2%} since the start of the machine"
    if max(share, overall) <= _MAX_STEAL:
        return Check("stolen time", "ok", found)
    return Check(
        "stolen time", "warn", found, "other guests take core time: times jump",
        "a machine with cores of its own (dedicated, not burstable)",
    )  # fmt: skip


def pressure(system: System) -> Check:
    """Pressure stall information: the share of ten seconds in which some task had to wait."""
    waits = {name: _some_avg10(system, name) for name in ("cpu", "memory", "io")}
    if all(value is None for value in waits.values()):
        return Check("pressure", "unavailable", "no /proc/pressure here")
    found = ", ".join(
        f"{name} {'unknown' if value is None else f'{value:g}%'}" for name, value in waits.items()
    )
    if (waits["memory"] or 0) > _MAX_MEMORY_PRESSURE:
        return Check(
            "pressure", "warn", found, "tasks wait for memory: the system is swapping or reclaiming",
            "free memory, or choose smaller depths",
        )  # fmt: skip
    if (waits["cpu"] or 0) > _MAX_CPU_PRESSURE:
        return Check(
            "pressure",
            "warn",
            found,
            "tasks wait for a core: times jump",
            "wait for a quiet machine",
        )
    return Check("pressure", "ok", found)


def _some_avg10(system: System, name: str) -> float | None:
    for line in (read(system.proc / "pressure" / name) or "").splitlines():
        kind, *fields = line.split()
        if kind == "some":
            return next((float(f[6:]) for f in fields if f.startswith("avg10=")), None)
    return None


def memory(system: System) -> Check:
    """What the machine has, what is left, and what the control group allows."""
    total, left = system.meminfo_bytes("MemTotal"), system.meminfo_bytes("MemAvailable")
    if total is None or left is None:
        return Check(
            "memory", "unavailable", "the system does not tell",
            "cells are said not to fit where nothing is known",
        )  # fmt: skip
    found = f"{binary_bytes(left)} available of {binary_bytes(total)}"
    rooms = [
        int(limit) - int(used)
        for names in (("memory.max", "memory.current"),
                      ("memory.limit_in_bytes", "memory.usage_in_bytes"))
        for limit, used in system.cgroup_texts("memory", *names)
        if limit.isdigit() and int(limit) < total
    ]  # fmt: skip
    if rooms:
        found += f"; the control group leaves {binary_bytes(max(0, min(rooms)))}"
    if min([left, *rooms]) < _LEAST_MEMORY_BYTES:
        return Check(
            "memory", "warn", found, "deep traces will not fit: their cells say oom",
            "free memory, or raise the container's limit",
        )  # fmt: skip
    return Check("memory", "ok", found)


def swap(system: System) -> Check:
    """Swap in use: a cache may be measured from disk."""
    total, free = system.meminfo_bytes("SwapTotal"), system.meminfo_bytes("SwapFree")
    if total is None or free is None:
        return Check("swap", "unavailable", "the system does not tell")
    if total == 0:
        return Check("swap", "ok", "none")
    found = f"{binary_bytes(total - free)} used of {binary_bytes(total)}"
    if total - free <= _SWAP_IN_USE_BYTES:
        return Check("swap", "ok", found)
    return Check(
        "swap", "warn", found, "pages of a cache may be on disk while it is timed",
        "free memory, then sudo swapoff -a && sudo swapon -a",
    )  # fmt: skip


def huge_pages(system: System) -> Check:
    """The setting that decides how many page-table walks a long read takes."""
    text = read_line(system.sys / "kernel/mm/transparent_hugepage/enabled")
    if text is None:
        return Check("huge pages", "unavailable", "the system has no transparent huge pages")
    chosen = text.partition("[")[2].partition("]")[0] or text
    return Check(
        "huge pages", "ok", f"transparent: {chosen}", "times compare only under the same setting"
    )
