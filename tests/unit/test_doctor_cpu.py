"""The doctor on the processor, load, memory and disk: made-up /proc and /sys trees."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from doctor_for_tests import put, tree
from kvgauge.doctor import busy, compilers, cpu, disk
from kvgauge.doctor.busy import Ticks
from kvgauge.doctor.system import System, cpu_list, read
from kvgauge.doctor.types import Check
from kvgauge.measure import validity

CPU = "sys/devices/system/cpu"


def test_the_kernels_lists() -> None:
    assert cpu_list("0-3,8\n") == {0, 1, 2, 3, 8}
    assert cpu_list("") == frozenset()


@pytest.mark.skipif(not Path("/proc/sys/kernel/ostype").exists(), reason="no Linux")
def test_the_real_proc_sys_can_be_read() -> None:
    assert read(Path("/proc/sys/kernel/ostype")) == "Linux\n"


def test_nothing_at_all_breaks_no_check(tmp_path: Path) -> None:
    system = System(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    checks = (*cpu.cpu_section(system).checks, *busy.busy_section(system).checks)
    assert {check.state for check in checks} <= {"ok", "unavailable", "warn"}
    absent = {check.name for check in checks if check.state == "unavailable"}
    assert {"instruction sets", "clocks", "topology", "virtual machine", "counters", "energy",
            "last-level cache", "stolen time", "pressure", "memory", "swap",
            "huge pages"} <= absent  # fmt: skip


def test_nonsense_breaks_no_check(tmp_path: Path) -> None:
    names = ("proc/cpuinfo", "proc/meminfo", "proc/stat", "proc/loadavg", "proc/self/cgroup",
             "proc/pressure/cpu", "proc/sys/kernel/perf_event_paranoid", "sys/fs/cgroup/cpu.max",
             "sys/devices/system/node/node0/cpulist", f"{CPU}/cpu0/cpufreq/scaling_governor",
             f"{CPU}/cpu0/cpufreq/scaling_cur_freq", f"{CPU}/cpu0/topology/thread_siblings_list",
             f"{CPU}/cpu0/cache/index0/level", f"{CPU}/cpu0/cache/index0/size")  # fmt: skip
    for nonsense in (
        "",
        "\n",
        "\x00\xff",
        "a-b,c",
        ":::",
        "some avg10=x\ncpu a b c",
        "9" * 5000 + "K",
    ):
        for name in names:
            put(tmp_path / name, nonsense)
        system = tree(tmp_path)
        for section in (cpu.cpu_section(system), busy.busy_section(system)):
            assert all(isinstance(check, Check) for check in section.checks)


@pytest.mark.parametrize(
    ("quota", "state"),
    [("max 100000", "ok"), ("400000 100000", "ok"), ("800000 100000", "ok"),
     ("250000 100000", "warn"), ("200000 100000", "warn")],
)  # fmt: skip
def test_a_quota_below_the_cores_warns(tmp_path: Path, quota: str, state: str) -> None:
    system = tree(tmp_path, proc__self__cgroup="0::/\n")
    put(tmp_path / "sys/fs/cgroup/cpu.max", quota + "\n")
    check = cpu.cores(system, 16, frozenset(range(4)))
    assert check.state == state
    assert "16 seen, 4 allowed" in check.found
    if state == "warn":
        assert "OMP_NUM_THREADS=2" in check.right


def test_the_quota_of_a_group_above_counts_and_so_does_version_1(tmp_path: Path) -> None:
    system = tree(tmp_path, proc__self__cgroup="0::/pod/box\n")
    put(tmp_path / "sys/fs/cgroup/pod/box/cpu.max", "max 100000\n")
    put(tmp_path / "sys/fs/cgroup/pod/cpu.max", "150000 100000\n")
    assert "quota 1.5 cores" in cpu.cores(system, 4, frozenset(range(4))).found
    put(tmp_path / "proc/self/cgroup", "3:cpu,cpuacct:/box\n")
    put(tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "300000\n")
    put(tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert "quota 3 cores" in cpu.cores(system, 4, frozenset(range(4))).found
    put(tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    assert "quota" not in cpu.cores(system, 4, frozenset(range(4))).found


def test_clocks_float_under_any_governor_but_performance(tmp_path: Path) -> None:
    system = tree(tmp_path)
    folder = tmp_path / CPU / "cpu0/cpufreq"
    for name, text in (("governor", "schedutil"), ("cur_freq", "1200000"),
                       ("min_freq", "800000"), ("max_freq", "3500000")):  # fmt: skip
        put(folder / f"scaling_{name}", text + "\n")
    check = cpu.clocks(system)
    assert check.state == "warn"
    assert "1200 MHz now, 800 to 3500 allowed" in check.found
    put(folder / "scaling_governor", "performance\n")
    assert cpu.clocks(system).state == "ok"
    put(tmp_path / CPU / "intel_pstate/no_turbo", "0\n")
    assert "boost on" in cpu.clocks(system).found


def test_two_nodes_warn_unless_we_are_bound_to_one(tmp_path: Path) -> None:
    system = tree(tmp_path)
    put(tmp_path / CPU / "cpu0/topology/thread_siblings_list", "0,8\n")
    put(tmp_path / "sys/devices/system/node/node0/cpulist", "0-3,8-11\n")
    put(tmp_path / "sys/devices/system/node/node1/cpulist", "4-7,12-15\n")
    check = cpu.topology(system, frozenset(range(16)))
    assert check.state == "warn"
    assert "numactl --cpunodebind=0" in check.right
    assert "2 threads a core" in check.found
    assert cpu.topology(system, frozenset(range(4))).state == "ok"


def test_instruction_sets_and_the_hypervisor_come_from_the_flags(tmp_path: Path) -> None:
    system = tree(
        tmp_path, proc__cpuinfo="flags\t: sse avx2 avx512f hypervisor\n\nflags: amx_bf16\n"
    )
    assert cpu.instruction_sets(system).found == "avx2, avx512f"
    assert "bf16" in cpu.instruction_sets(system).means
    assert cpu.virtual_machine(system).found.startswith("yes")
    put(tmp_path / "proc/cpuinfo", "flags\t: sse\n")
    assert cpu.instruction_sets(system).state == "warn"
    assert cpu.virtual_machine(system).found == "no"
    put(tmp_path / "proc/cpuinfo", "Features\t: asimd bf16\n")
    assert cpu.instruction_sets(system) == Check("instruction sets", "ok", "asimd, bf16")


def test_the_largest_cache_of_the_highest_level(tmp_path: Path) -> None:
    for index, level, size in ((0, 1, "48K"), (2, 2, "2048K"), (3, 3, "98304K")):
        put(tmp_path / CPU / f"cpu0/cache/index{index}/level", f"{level}\n")
        put(tmp_path / CPU / f"cpu0/cache/index{index}/size", f"{size}\n")
    assert cpu.last_level_cache(tree(tmp_path)).found == "L3 96 MiB, shared by CPUs ?"


def test_counters_need_a_unit_and_a_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = tree(tmp_path, proc__sys__kernel__perf_event_paranoid="4\n")
    assert "no counters" in cpu.counters(system).found
    put(tmp_path / "sys/bus/event_source/devices/cpu/type", "4\n")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "sysctl" in cpu.counters(system).right
    put(tmp_path / "proc/sys/kernel/perf_event_paranoid", "2\n")
    assert cpu.counters(system).state == "ok"


def test_energy(tmp_path: Path) -> None:
    counter = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
    put(counter, "123\n")
    assert cpu.energy(tree(tmp_path)).state == "ok"
    counter.unlink()
    counter.mkdir()  # there, and not to be read, even by root
    assert "root" in cpu.energy(tree(tmp_path)).found


QUIET = Ticks(busy=1000, steal=0, total=100_000)


def test_load_warns_by_the_minute_or_by_the_moment(tmp_path: Path) -> None:
    system = tree(tmp_path, proc__loadavg="2.40 1.00 0.50 1/93 7\n")
    calm, hot = Ticks(1001, 0, 100_060), Ticks(1050, 0, 100_060)
    assert busy.load(system, 8, QUIET, calm).state == "ok"  # 0.3 a core
    assert busy.load(system, 4, QUIET, calm).state == "warn"
    assert busy.load(system, 8, QUIET, hot).state == "warn"
    assert "now unknown" in busy.load(system, 8, None, None).found
    assert validity.MAX_CPU_TAKEN == busy.MAX_BUSY


def test_ticks_are_those_of_proc_stat(tmp_path: Path) -> None:
    system = tree(tmp_path, proc__stat="cpu  10 20 30 400 50 6 7 80 0 0\ncpu0 1\n")
    assert busy.cpu_ticks(system) == Ticks(busy=73, steal=80, total=603)


def test_stolen_time(tmp_path: Path) -> None:
    assert busy.stolen(QUIET, Ticks(1000, 1, 100_060)).state == "ok"
    assert busy.stolen(QUIET, Ticks(1000, 6, 100_060)).state == "warn"
    assert busy.stolen(QUIET, QUIET).state == "unavailable"


@pytest.mark.parametrize(
    ("cpu_avg", "memory_avg", "state"), [(2, 0, "ok"), (40, 0, "warn"), (0, 3, "warn")]
)
def test_pressure(tmp_path: Path, cpu_avg: int, memory_avg: int, state: str) -> None:
    rest = "avg60=99.0 avg300=99.0 total=5\nfull avg10=99.0 avg60=99.0 avg300=99.0 total=5\n"
    system = tree(
        tmp_path, proc__pressure__cpu=f"some avg10={cpu_avg}.00 {rest}",
        proc__pressure__memory=f"some avg10={memory_avg}.00 {rest}",
    )  # fmt: skip
    check = busy.pressure(system)
    assert check.state == state
    assert "io unknown" in check.found


def meminfo(**kib: int) -> str:
    return "".join(f"{name}:  {value} kB\n" for name, value in kib.items())


def test_memory_is_what_the_machine_and_the_group_leave(tmp_path: Path) -> None:
    system = tree(
        tmp_path, proc__self__cgroup="0::/\n",
        proc__meminfo=meminfo(MemTotal=64 * 2**20, MemAvailable=32 * 2**20),
    )  # fmt: skip
    assert busy.memory(system) == Check("memory", "ok", "32 GiB available of 64 GiB")
    put(tmp_path / "sys/fs/cgroup/memory.max", f"{4 * 2**30}\n")
    put(tmp_path / "sys/fs/cgroup/memory.current", f"{3 * 2**30}\n")
    check = busy.memory(system)
    assert check.state == "warn"
    assert "the control group leaves 1 GiB" in check.found


def test_swap_in_use_warns(tmp_path: Path) -> None:
    system = tree(tmp_path, proc__meminfo=meminfo(SwapTotal=2**21, SwapFree=2**21))
    assert busy.swap(system).state == "ok"
    put(tmp_path / "proc/meminfo", meminfo(SwapTotal=2**21, SwapFree=2**20))
    assert busy.swap(system).state == "warn"
    put(tmp_path / "proc/meminfo", meminfo(SwapTotal=0, SwapFree=0))
    assert busy.swap(system).found == "none"


def mounts(*pairs: tuple[str, str]) -> str:
    return "".join(
        f"{n} 1 0:{n} / {point} rw,relatime shared:1 - {kind} source rw\n"
        for n, (point, kind) in enumerate(pairs)
    )


@pytest.mark.parametrize(
    ("kind", "state"),
    [("ext4", "ok"), ("xfs", "ok"), ("tmpfs", "warn"), ("overlay", "warn"), ("nfs4", "warn"),
     ("fuse.sshfs", "warn")],
)  # fmt: skip
def test_the_file_system_is_that_of_the_innermost_mount(
    tmp_path: Path, kind: str, state: str
) -> None:
    spaced = tmp_path / "a b"
    spaced.mkdir()
    text = mounts((str(spaced).replace(" ", "\\040"), kind), ("/", "rootfs"), ("/elsewhere", "nfs"))
    system = tree(tmp_path, proc__self__mountinfo=text + "broken line\n - \n")
    check = disk.file_system(system, disk.target(spaced / "runs" / "new"))
    assert (check.state, check.found) == (state, kind)


def test_a_run_folder_that_is_to_be_made_leaves_no_trace(tmp_path: Path) -> None:
    section = disk.disk_section(tree(tmp_path), tmp_path / "results" / "runs")
    assert [check.state for check in section.checks] == ["ok", "ok", "unavailable", "ok"]
    assert "will be made" in section.checks[0].found
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_that_cannot_be_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "file", "")
    check = disk.writable(disk.target(tmp_path / "file" / "runs"))
    assert (check.state, "is not a folder" in check.found) == ("fail", True)

    def refuse(**_options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    where = disk.target(tmp_path)
    assert "Permission denied" in disk.writable(where).found
    assert disk.writable(where).state == "fail"
    assert disk.fsync(where).state == "unavailable"


@pytest.mark.parametrize(("free", "state"), [(10**6, "fail"), (10**8, "warn"), (10**11, "ok")])
def test_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: str) -> None:
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    assert disk.free_space(disk.target(tmp_path)).state == state


def test_a_slow_fsync_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(0.2 * n for n in range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    check = disk.fsync(disk.target(tmp_path))
    assert (check.state, check.found) == ("warn", "200 ms a record")


def test_a_strange_name_is_only_absent(tmp_path: Path) -> None:
    for name in ("x" * 5000, "nul\0", "\x1b[2J"):
        assert disk.target(tmp_path / name).existing == tmp_path


NVCC = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 12.8, V12.8.61\n"


def test_nvcc_of_another_cuda_than_torchs_warns() -> None:
    assert compilers.nvcc(NVCC, "12.6").state == "ok"
    assert compilers.nvcc(NVCC, None).state == "ok"
    assert compilers.nvcc(NVCC, "13.0").state == "warn"
    assert compilers.nvcc("nonsense", "13.0").state == "unavailable"
    assert compilers.nvcc(None, "13.0").state == "unavailable"


def test_a_compiler_is_found_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compilers.cpp().state == "unavailable"
    put(tmp_path / "g++", "#!/bin/sh\n[ \"$1\" = --version ] && echo 'g++ 99.1'\n")
    (tmp_path / "g++").chmod(0o755)
    assert compilers.cpp().found == "g++: g++ 99.1"
    put(tmp_path / "c++", "#!/bin/sh\nexit 1\n")  # the first of the names, broken
    (tmp_path / "c++").chmod(0o755)
    assert compilers.cpp().found == "g++: g++ 99.1"
