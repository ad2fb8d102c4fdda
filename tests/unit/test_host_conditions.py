"""What the host did: a system whose files say what the test says, and this machine for real."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kvgauge.devices import host, rapl
from kvgauge.devices.cpu import CpuDevice
from kvgauge.devices.host import HostWatch, taken_s
from kvgauge.devices.readings import Readings, Unavailable
from kvgauge.devices.watch import CpuWatch
from kvgauge.schema import Span

TICKS = os.sysconf("SC_CLK_TCK")


class Machine:
    """/proc, cpufreq and powercap of two cores, in a folder; and a clock."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.proc, self.powercap = root / "proc", root / "powercap"
        (self.proc / "pressure").mkdir(parents=True)
        self.powercap.mkdir()
        self.now_s = 100.0
        monkeypatch.setattr(host, "_PROC", self.proc)
        monkeypatch.setattr(host, "_CPUS", root / "cpus")
        monkeypatch.setattr(rapl, "_POWERCAP", self.powercap)
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(os, "cpu_count", lambda: 2)
        monkeypatch.setattr(os, "times", lambda: SimpleNamespace(user=1.0, system=0.5))
        monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 0.0, 0.0))

    def stat(self, user_s: float, steal_s: float, idle_s: float = 99.0) -> None:
        fields = [user_s, 0, 1, idle_s, 7, 0, 0, steal_s, 0, 0]
        ticks = " ".join(str(int(seconds * TICKS)) for seconds in fields)
        (self.proc / "stat").write_text(f"cpu  {ticks}\ncpu0 1 2 3\n")

    def pressure(self, what: str, microseconds: int) -> None:
        averages = "avg10=9.00 avg60=9.00 avg300=9.00"
        (self.proc / "pressure" / what).write_text(
            f"some {averages} total={microseconds}\nfull {averages} total=7\n"
        )

    def clocks(self, *megahertz: float) -> None:
        lines = (f"processor : {n}\ncpu MHz\t\t: {mhz}\n" for n, mhz in enumerate(megahertz))
        (self.proc / "cpuinfo").write_text("\n".join(lines))

    def package(self, name: str, energy_uj: int, range_uj: int = 1_000_000) -> None:
        zone = self.powercap / name
        zone.mkdir(exist_ok=True)
        (zone / "name").write_text("core\n" if name.count(":") > 1 else "package-0\n")
        (zone / "energy_uj").write_text(f"{energy_uj}\n")
        (zone / "max_energy_range_uj").write_text(f"{range_uj}\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path, monkeypatch)
    made.stat(user_s=2, steal_s=4)
    for what in ("cpu", "memory", "io"):
        made.pressure(what, 1_000_000)
    made.clocks(2000, 3000)
    return made


def test_stolen_time_counts_and_idle_and_own_time_do_not(machine: Machine) -> None:
    assert taken_s() == pytest.approx(2 + 1 + 4 - 1.5)


def test_counters_are_differences_and_shares_of_the_time(machine: Machine) -> None:
    watch = CpuWatch()
    machine.now_s += 10
    machine.stat(user_s=6, steal_s=5, idle_s=500)
    machine.pressure("cpu", 6_000_000)
    machine.pressure("memory", 1_000_000)
    machine.pressure("io", 1_500_000)
    seen = watch.stop()
    assert seen.elapsed_s == 10
    assert seen.gpu is None
    assert seen.cpu.taken == pytest.approx(5 / 20)  # 4 busy and 1 stolen, of two cores' 10 s
    assert seen.cpu.steal == pytest.approx(1 / 20)
    assert seen.cpu.cpu_pressure == pytest.approx(0.5)
    assert seen.cpu.memory_pressure == 0
    assert seen.cpu.io_pressure == pytest.approx(0.05)
    assert seen.cpu.load_1min == 1.5
    assert set(seen.unavailable) == {"energy_j"}


def test_the_clock_is_the_fastest_cores_over_the_looks(machine: Machine) -> None:
    watch = CpuWatch()
    for clocks in ((800, 3100), (2500, 800), (3300, 3300)):
        machine.clocks(*clocks)
        machine.now_s += 1
        watch.look()
    machine.clocks(800, 800)
    machine.now_s += 0.01
    watch.look()  # too soon after the last
    assert watch.stop().cpu.clock_mhz == Span(2500, 3300)


def test_without_a_look_the_clock_is_seen_at_the_end(machine: Machine) -> None:
    watch = CpuWatch()
    machine.clocks(1234)
    assert watch.stop().cpu.clock_mhz == Span(1234, 1234)


def test_where_cpuinfo_has_no_clock_cpufreq_tells(machine: Machine, tmp_path: Path) -> None:
    (machine.proc / "cpuinfo").write_text("processor : 0\nFeatures : asimd sve\n")
    for core, kilohertz in enumerate((2_400_000, 2_600_000)):
        folder = tmp_path / "cpus" / f"cpu{core}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text(f"{kilohertz}\n")
    assert CpuWatch().stop().cpu.clock_mhz == Span(2600, 2600)


def test_what_the_machine_hides_is_none_with_a_reason(machine: Machine) -> None:
    for path in (*(machine.proc / "pressure").iterdir(), machine.proc / "cpuinfo"):
        path.unlink()
    (machine.proc / "stat").write_text("cpu  0 0 0 0 0 0 0 0 0 0\n")  # as some sandboxes say
    seen = CpuWatch().stop()
    hidden = {
        name: getattr(seen.cpu, name)
        for name in (
            "taken",
            "steal",
            "cpu_pressure",
            "memory_pressure",
            "io_pressure",
            "clock_mhz",
        )
    }
    assert set(hidden.values()) == {None}
    assert set(seen.unavailable) == {*(f"cpu.{name}" for name in hidden), "energy_j"}
    assert "pressure/io: No such file" in seen.unavailable["cpu.io_pressure"]
    assert "counts no time" in seen.unavailable["cpu.taken"]
    assert seen.cpu.minor_faults is not None


def test_energy_is_the_packages_and_a_counter_that_wraps_goes_on(machine: Machine) -> None:
    machine.package("intel-rapl:0", 900_000)
    machine.package("intel-rapl:1", 100)
    machine.package("intel-rapl:0:0", 5)  # a part of package 0: not counted twice
    watch = CpuWatch()
    machine.package("intel-rapl:0", 100_000)  # wrapped: 200,000 more
    machine.package("intel-rapl:0:0", 777_777)
    machine.now_s += 1
    watch.look()
    machine.package("intel-rapl:0", 50_000)  # wrapped again: 950,000 more
    machine.package("intel-rapl:1", 350_100)
    seen = watch.stop()
    assert seen.energy_j == pytest.approx(0.2 + 0.95 + 0.35)
    assert seen.energy_source == "RAPL, CPU packages"
    assert "energy_j" not in seen.unavailable


def test_a_counter_for_root_alone_is_unavailable(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.package("intel-rapl:0", 900_000)
    read = Path.read_text

    def refused(path: Path) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_text", refused)
    seen = CpuWatch().stop()
    assert (seen.energy_j, seen.energy_source) == (None, None)
    assert "energy_uj: Permission denied" in seen.unavailable["energy_j"]


def test_faults_and_switches_are_this_processes(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    usages = iter(
        [SimpleNamespace(ru_minflt=5, ru_majflt=2, ru_nivcsw=10)] * 3
        + [SimpleNamespace(ru_minflt=25, ru_majflt=2, ru_nivcsw=13)] * 3
    )
    monkeypatch.setattr(resource, "getrusage", lambda _who: next(usages))
    seen = CpuWatch().stop().cpu
    assert (seen.minor_faults, seen.major_faults, seen.involuntary_switches) == (20, 0, 3)


def test_a_question_that_stops_being_answered_keeps_what_was_seen() -> None:
    readings = Readings("gpu.")
    readings.widen("power_w", lambda: 300.0)

    def refuse() -> float:
        raise Unavailable("lost")

    readings.widen("power_w", refuse)
    assert readings.span("power_w") == Span(300, 300)
    assert readings.unavailable == {"gpu.power_w": "lost"}


def test_this_machine_time_that_others_take_is_counted() -> None:
    try:
        before = taken_s()
    except Unavailable as error:
        pytest.skip(str(error))
    neighbour = "import time\nend = time.monotonic() + 1.0\nwhile time.monotonic() < end: pass"
    subprocess.run([sys.executable, "-c", neighbour], check=True)
    assert taken_s() - before >= 0.3  # a child is another process, however little it got


def test_this_machine_first_touch_of_memory_is_page_faults() -> None:
    CpuDevice().memory_bytes()  # gives freed memory back: else `held` may be made of it
    watch = HostWatch()
    held = torch.ones(64 * 2**20, dtype=torch.uint8)
    seen, _hidden = watch.stop()
    assert seen.minor_faults is not None
    # 4 KiB pages, or 2 MiB ones where the kernel gives them.
    assert held.nbytes // (2 * 2**20) <= seen.minor_faults < 10 * held.nbytes // 4096
