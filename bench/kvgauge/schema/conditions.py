"""What the machine did while a cell was sampled. What it hides is None, with the reason beside it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Span:
    """The lowest and the highest value that was seen."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class CpuConditions:
    """The host. Shares are of the elapsed time; `taken` and `steal` are of all cores' time."""

    load_1min: float | None = None
    """Load average of the last minute, at the end: this process is in it."""
    taken: float | None = None
    """Share of core time in which other processes ran or other guests held the core."""
    steal: float | None = None
    """Share of core time that the hypervisor gave to other guests."""
    cpu_pressure: float | None = None
    """Share of time in which some task waited for a core (`some` of /proc/pressure)."""
    memory_pressure: float | None = None
    io_pressure: float | None = None
    clock_mhz: Span | None = None
    """The clock of the fastest core, looked at between samples."""
    minor_faults: int | None = None
    """Page faults of this process."""
    major_faults: int | None = None
    """Those of them that read from a disk."""
    involuntary_switches: int | None = None
    """How often this process lost its core."""


@dataclass(frozen=True, slots=True)
class GpuConditions:
    """The GPU. Spans are of looks between samples, never within one."""

    sm_clock_mhz: Span | None = None
    memory_clock_mhz: Span | None = None
    power_w: Span | None = None
    temperature_c: Span | None = None
    utilization_percent: Span | None = None
    """Share of time with a kernel running, over NVML's own period of up to a second."""
    throttle_reasons: tuple[str, ...] | None = None
    """Why clocks were held down, in any of the looks; empty: for no reason."""
    throttled_s: dict[str, float] | None = None
    """Seconds under each limit, by NVML's violation counters; limits may overlap."""
    other_processes: int | None = None
    """Most processes but this one on the GPU, at the start or at the end."""
    other_bytes: int | None = None
    """Most memory that they held then."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the machine did from the warm-up of a cell to its last sample.

    `unavailable` names each field that the machine hides (`cpu.steal`, `gpu.power_w`, `energy_j`)
    and says why.
    """

    elapsed_s: float
    cpu: CpuConditions
    gpu: GpuConditions | None = None
    energy_j: float | None = None
    """Joules of all this time: warm-up, samples, the probe's reads between them, and waiting."""
    energy_source: str | None = None
    lost: bool = False
    """Whether the GPU stopped answering its driver: then no number of the cell counts."""
    unavailable: dict[str, str] = field(default_factory=dict)
