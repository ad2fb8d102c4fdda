"""What the host did between two moments: /proc and the kernel's counters of this process."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

from kvgauge.devices.readings import Readings, Unavailable, read_text
from kvgauge.schema import CpuConditions

_PROC = Path("/proc")
_CPUS = Path("/sys/devices/system/cpu")


class HostWatch:
    """Counters are differences from its making to `stop`; the clock is looked at in between."""

    def __init__(self) -> None:
        self._readings = Readings("cpu.")
        self._started_s = time.monotonic()
        self._before = {name: self._readings.ask(name, read) for name, read in _COUNTERS.items()}

    def look(self) -> None:
        """See the clock."""
        if self._readings.due():
            self._readings.widen("clock_mhz", fastest_clock_mhz)

    def stop(self) -> tuple[CpuConditions, dict[str, str]]:
        """What the host did, and why some of it is not known."""
        elapsed_s = time.monotonic() - self._started_s
        core_s = elapsed_s * (os.cpu_count() or 1)
        if self._readings.span("clock_mhz") is None:
            self._readings.widen("clock_mhz", fastest_clock_mhz)
        host = CpuConditions(
            load_1min=self._readings.ask("load_1min", _load_1min),
            taken=_share(self._grown("taken"), core_s),
            steal=_share(self._grown("steal"), core_s),
            cpu_pressure=_share(self._grown("cpu_pressure"), elapsed_s),
            memory_pressure=_share(self._grown("memory_pressure"), elapsed_s),
            io_pressure=_share(self._grown("io_pressure"), elapsed_s),
            clock_mhz=self._readings.span("clock_mhz"),
            minor_faults=_count(self._grown("minor_faults")),
            major_faults=_count(self._grown("major_faults")),
            involuntary_switches=_count(self._grown("involuntary_switches")),
        )
        return host, self._readings.unavailable

    def _grown(self, name: str) -> float | None:
        before = self._before[name]
        after = self._readings.ask(name, _COUNTERS[name])
        # Two counters read a moment apart may differ by a tick the wrong way.
        return None if before is None or after is None else max(0.0, after - before)


def taken_s() -> float:
    """Core-seconds since boot that others had: busy and stolen time less this process's own.

    Raises Unavailable where /proc/stat does not tell.
    """
    user, nice, system, _idle, _iowait, irq, softirq, steal = _core_seconds()
    own = os.times()
    return user + nice + system + irq + softirq + steal - own.user - own.system


def steal_s() -> float:
    """Core-seconds since boot that the hypervisor gave to others; raises Unavailable."""
    return _core_seconds()[7]


def pressure_s(what: str) -> float:
    """Seconds since boot in which some task waited for `what`; raises Unavailable."""
    path = _PROC / "pressure" / what
    for line in read_text(path).splitlines():
        kind, *fields = line.split()
        if kind == "some":
            return int(fields[-1].removeprefix("total=")) / 1e6
    raise Unavailable(f"{path} has no line `some`")


def fastest_clock_mhz() -> float:
    """The clock of the fastest core now; raises Unavailable."""
    lines = read_text(_PROC / "cpuinfo").splitlines()
    clocks = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    files = [] if clocks else _CPUS.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
    clocks += [int(read_text(path)) / 1e3 for path in files]
    if not clocks:
        raise Unavailable("neither /proc/cpuinfo nor cpufreq tells the clock")
    return max(clocks)


def _core_seconds() -> list[float]:
    path = _PROC / "stat"
    ticks = [int(field) for field in read_text(path).partition("\n")[0].split()[1:9]]
    if len(ticks) < 8 or not any(ticks):
        raise Unavailable(f"{path} counts no time of the cores")
    return [count / os.sysconf("SC_CLK_TCK") for count in ticks]


def _load_1min() -> float:
    try:
        return os.getloadavg()[0]
    except OSError:
        raise Unavailable("the system tells no load average") from None


def _own(field: str) -> Callable[[], float]:
    return lambda: float(getattr(resource.getrusage(resource.RUSAGE_SELF), field))


_COUNTERS: dict[str, Callable[[], float]] = {
    "taken": taken_s,
    "steal": steal_s,
    "cpu_pressure": lambda: pressure_s("cpu"),
    "memory_pressure": lambda: pressure_s("memory"),
    "io_pressure": lambda: pressure_s("io"),
    "minor_faults": _own("ru_minflt"),
    "major_faults": _own("ru_majflt"),
    "involuntary_switches": _own("ru_nivcsw"),
}


def _share(part_s: float | None, whole_s: float) -> float | None:
    return None if part_s is None or whole_s <= 0 else part_s / whole_s


def _count(value: float | None) -> int | None:
    return None if value is None else int(value)
