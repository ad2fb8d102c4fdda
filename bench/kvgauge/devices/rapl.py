"""Energy of the CPU packages by RAPL, which Linux shows to root on bare metal (powercap)."""

from __future__ import annotations

from pathlib import Path

from kvgauge.devices.readings import Unavailable, read_text

_POWERCAP = Path("/sys/class/powercap")


class RaplMeter:
    """Joules of all packages since it was made. Raises Unavailable where there is no counter."""

    source = "RAPL, CPU packages"

    def __init__(self) -> None:
        zones = sorted(_POWERCAP.glob("intel-rapl:*"))  # AMD's zones have that name too
        packages = [zone for zone in zones if read_text(zone / "name").startswith("package")]
        if not packages:
            raise Unavailable(f"{_POWERCAP} has no RAPL package: a virtual machine, or no driver")
        self._ranges_uj = {p: int(read_text(p / "max_energy_range_uj")) for p in packages}
        self._last_uj = {package: _energy_uj(package) for package in packages}
        self._total_uj = 0

    def joules(self) -> float:
        """So far. A counter wraps within minutes to hours: read it more often than that."""
        for package, last_uj in self._last_uj.items():
            now_uj = _energy_uj(package)
            wrapped_uj = self._ranges_uj[package] if now_uj < last_uj else 0
            self._total_uj += now_uj - last_uj + wrapped_uj
            self._last_uj[package] = now_uj
        return self._total_uj / 1e6


def _energy_uj(package: Path) -> int:
    return int(read_text(package / "energy_uj"))
