"""Watch: what the machine does while a cell is sampled, without a thread beside it.

Counters are read at the start and at the end; what has no counter is looked at between samples.
"""

from __future__ import annotations

import time

from kvgauge.devices.host import HostWatch
from kvgauge.devices.nvml import Nvml, total_bytes
from kvgauge.devices.rapl import RaplMeter
from kvgauge.devices.readings import Readings
from kvgauge.schema import Conditions, GpuConditions

# Bits of nvml.h. Idle (1) holds no clock down: there is nothing to do.
_THROTTLE_REASONS = {
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
}
_IDLE = 0x001
# Limits of nvmlPerfPolicyType_t that hold clocks down although there is work.
_LIMITS = {"power": 0, "thermal": 1, "sync_boost": 2, "board_limit": 3, "reliability": 5}


class CpuWatch:
    """The host, and its packages' energy where RAPL is open to us."""

    def __init__(self) -> None:
        self._readings = Readings("")
        self._started_s = time.monotonic()
        self._meter = self._readings.ask("energy_j", RaplMeter)
        self._host = HostWatch()

    def look(self) -> None:
        """See what has no counter; cheap, and at most ten times a second."""
        self._host.look()
        if self._meter is not None and self._readings.due():
            self._readings.ask("energy_j", self._meter.joules)  # before the counter wraps

    def stop(self) -> Conditions:
        """What was seen since it was made."""
        energy_j = self._readings.ask("energy_j", self._meter.joules) if self._meter else None
        elapsed_s = time.monotonic() - self._started_s
        host, hidden = self._host.stop()
        return Conditions(
            elapsed_s=elapsed_s,
            cpu=host,
            energy_j=energy_j,
            energy_source=None if energy_j is None else RaplMeter.source,
            unavailable={**hidden, **self._readings.unavailable},
        )


class GpuWatch:
    """The GPU through NVML, and the host that feeds it."""

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml
        self._readings = Readings("gpu.")
        self._meter = Readings("")
        self._started_s = time.monotonic()
        self._host = HostWatch()
        self._throttle_bits: int | None = None
        self._neighbours = self._others()
        self._violations_s = self._readings.ask("throttled_s", self._limits_s)
        self._energy_before_j = self._meter.ask("energy_j", nvml.energy_j)

    def look(self) -> None:
        """See what has no counter; at most ten times a second."""
        self._host.look()
        if self._readings.due():
            self._see()

    def stop(self) -> Conditions:
        """What was seen since it was made."""
        energy_after_j = self._meter.ask("energy_j", self._nvml.energy_j)
        elapsed_s = time.monotonic() - self._started_s
        if self._readings.span("sm_clock_mhz") is None:
            self._see()
        gpu = self._gpu()
        host, hidden = self._host.stop()
        hidden = {**hidden, **self._readings.unavailable, **self._meter.unavailable}
        lost = self._nvml.lost
        if lost is not None:
            hidden["device_lost"] = f"the GPU was lost: {lost}"
        known = energy_after_j is not None and self._energy_before_j is not None
        return Conditions(
            elapsed_s=elapsed_s,
            cpu=host,
            gpu=gpu,
            energy_j=(energy_after_j or 0.0) - (self._energy_before_j or 0.0) if known else None,
            energy_source="nvmlDeviceGetTotalEnergyConsumption, the card" if known else None,
            lost=lost is not None,
            unavailable=hidden,
        )

    def _see(self) -> None:
        nvml = self._nvml
        self._readings.widen("sm_clock_mhz", nvml.sm_clock_mhz)
        self._readings.widen("memory_clock_mhz", nvml.memory_clock_mhz)
        self._readings.widen("power_w", nvml.power_w)
        self._readings.widen("temperature_c", nvml.temperature_c)
        self._readings.widen("utilization_percent", nvml.utilization_percent)
        bits = self._readings.ask("throttle_reasons", nvml.throttle_bits)
        if bits is not None:
            self._throttle_bits = (self._throttle_bits or 0) | bits

    def _gpu(self) -> GpuConditions:
        readings = self._readings
        processes, held_bytes = zip(self._neighbours, self._others(), strict=True)
        return GpuConditions(
            sm_clock_mhz=readings.span("sm_clock_mhz"),
            memory_clock_mhz=readings.span("memory_clock_mhz"),
            power_w=readings.span("power_w"),
            temperature_c=readings.span("temperature_c"),
            utilization_percent=readings.span("utilization_percent"),
            throttle_reasons=(
                None if self._throttle_bits is None else throttle_names(self._throttle_bits)
            ),
            throttled_s=self._throttled_s(),
            other_processes=_most(processes),
            other_bytes=_most(held_bytes),
        )

    def _others(self) -> tuple[int | None, int | None]:
        others = self._readings.ask("other_processes", lambda: self._nvml.processes()[1])
        held_bytes = self._readings.ask(
            "other_bytes", lambda: total_bytes(self._nvml.processes()[1])
        )
        return None if others is None else len(others), held_bytes

    def _limits_s(self) -> dict[str, float]:
        return {name: self._nvml.violation_s(policy) for name, policy in _LIMITS.items()}

    def _throttled_s(self) -> dict[str, float] | None:
        after_s = self._readings.ask("throttled_s", self._limits_s)
        if after_s is None or self._violations_s is None:
            return None
        return {name: after_s[name] - before_s for name, before_s in self._violations_s.items()}


def throttle_names(bits: int) -> tuple[str, ...]:
    """The reasons that hold clocks down, by NVML's bits; idleness is none."""
    set_bits = (1 << place for place in range(bits.bit_length()))
    held = [bit for bit in set_bits if bit & bits and bit != _IDLE]
    return tuple(_THROTTLE_REASONS.get(bit, f"bit {bit:#x}") for bit in held)


def _most(values: tuple[int | None, ...]) -> int | None:
    """The larger of the known: a neighbour that left in between was there."""
    return max((value for value in values if value is not None), default=None)
