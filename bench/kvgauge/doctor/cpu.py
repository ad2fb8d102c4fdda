"""The processor: what it is, how much of it is ours, and whether its clocks hold still."""

from __future__ import annotations

import os
import platform

from kvgauge.doctor.system import System, allowed_cpus, cpu_list, read, read_line
from kvgauge.doctor.types import Check, Section, listed, section
from kvgauge.units import binary_bytes

# What each adds to the arithmetic of a CPU run, in the kernel's spelling of x86 and of Arm.
_ISA = (
    "avx2", "fma", "f16c", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2",
)  # fmt: skip
_VECTORS = frozenset({"avx2", "avx512f", "asimd"})
_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def cpu_section(system: System) -> Section:
    """Facts of the processor."""
    cpus = allowed_cpus()
    return section(
        "CPU",
        ("model", lambda: model(system)),
        ("cores", lambda: cores(system, os.cpu_count() or len(cpus), cpus)),
        ("instruction sets", lambda: instruction_sets(system)),
        ("last-level cache", lambda: last_level_cache(system)),
        ("clocks", lambda: clocks(system)),
        ("topology", lambda: topology(system, cpus)),
        ("virtual machine", lambda: virtual_machine(system)),
        ("counters", lambda: counters(system)),
        ("energy", lambda: energy(system)),
    )


def model(system: System) -> Check:
    """The name on the label."""
    info = system.cpuinfo()
    name = info.get("model name") or info.get("Model") or platform.processor()
    if not name:
        return Check("model", "unavailable", f"not told; architecture {platform.machine()}")
    return Check("model", "ok", f"{name}, {platform.machine()}, {platform.system()}")


def cores(system: System, seen: int, allowed: frozenset[int]) -> Check:
    """Cores that the machine has, that this process may use, and the share of time that it gets."""
    threads = os.environ.get("OMP_NUM_THREADS")
    found = f"{seen} seen, {len(allowed)} allowed"
    if threads is not None:
        found += f", OMP_NUM_THREADS={threads}"
    quota = _quota_cores(system)
    if quota is None:
        return Check("cores", "ok", found)
    found += f", quota {quota:g} cores"
    if quota >= len(allowed) and quota.is_integer():
        return Check("cores", "ok", found)
    return Check(
        "cores", "warn", found,
        "the control group stops the threads within each period when the quota is used up: times "
        "jump",
        f"give the container whole cores (docker --cpuset-cpus, a cpuset of its own) instead of "
        f"--cpus, or set OMP_NUM_THREADS={max(1, int(quota))}",
    )  # fmt: skip


def _quota_cores(system: System) -> float | None:
    quotas = [
        int(quota) / int(period)
        for text in system.cgroup_texts("cpu", "cpu.max")
        for quota, period in [text[0].split()]
        if quota != "max"
    ]
    quotas += [
        int(quota) / int(period)
        for quota, period in system.cgroup_texts("cpu", "cpu.cfs_quota_us", "cpu.cfs_period_us")
        if int(quota) > 0
    ]
    return min(quotas, default=None)


def instruction_sets(system: System) -> Check:
    """The vector and matrix units that the kernels of a CPU run can use."""
    flags = system.flags()
    if not flags:
        return Check("instruction sets", "unavailable", "the system lists none")
    names = [name for name in _ISA if name in flags]
    if not flags & _VECTORS:
        return Check(
            "instruction sets", "warn", listed(names),
            "no wide vectors: times say little of a present machine", "a CPU with AVX2 or NEON",
        )  # fmt: skip
    slow = "" if flags & _BF16 else "no bf16 arithmetic: bf16 caches are widened to fp32 first"
    return Check("instruction sets", "ok", listed(names), slow)


def last_level_cache(system: System) -> Check:
    """What a cold measurement must flush before each sample."""
    best: tuple[int, str, str] | None = None
    for folder in (system.sys / "devices/system/cpu/cpu0/cache").glob("index*"):
        level, size = read_line(folder / "level"), read_line(folder / "size")
        if level and size and size.endswith("K"):
            shared = read_line(folder / "shared_cpu_list") or "?"
            best = max(best or (0, "", ""), (int(level), size, shared))
    if best is None:
        return Check(
            "last-level cache", "unavailable", "not told",
            "32 MiB are assumed where a cold measurement flushes it",
        )  # fmt: skip
    level_number, size, shared = best
    size_text = binary_bytes(int(size[:-1]) * 1024)
    return Check("last-level cache", "ok", f"L{level_number} {size_text}, shared by CPUs {shared}")


def clocks(system: System) -> Check:
    """Whether the frequency is left to a governor or to boost."""
    folder = system.sys / "devices/system/cpu/cpu0/cpufreq"
    governor = read_line(folder / "scaling_governor")
    if governor is None:
        return Check(
            "clocks", "unavailable", "no cpufreq here, as in most virtual machines",
            "the host decides on the clocks",
        )  # fmt: skip
    khz = [read_line(folder / f"scaling_{which}_freq") for which in ("cur", "min", "max")]
    mhz = [f"{int(text) / 1000:.0f}" if text else "?" for text in khz]
    found = f"governor {governor}, {mhz[0]} MHz now, {mhz[1]} to {mhz[2]} allowed"
    if governor == "performance" or (khz[1] is not None and khz[1] == khz[2]):
        boost = " and boost on" if _boosts(system) else ""
        return Check("clocks", "ok", found + boost)
    return Check(
        "clocks", "warn", found, "clocks float: a time depends on what ran before",
        "sudo cpupower frequency-set -g performance",
    )  # fmt: skip


def _boosts(system: System) -> bool:
    cpu = system.sys / "devices/system/cpu"
    return read_line(cpu / "cpufreq/boost") == "1" or (
        read_line(cpu / "intel_pstate/no_turbo") == "0"
    )


def topology(system: System, allowed: frozenset[int]) -> Check:
    """Hardware threads that share a core, and memory that is near to some cores and far from others."""
    cpu0 = min(allowed, default=0)
    siblings = read_line(system.sys / f"devices/system/cpu/cpu{cpu0}/topology/thread_siblings_list")
    nodes = {
        folder.name.removeprefix("node"): cpu_list(read(folder / "cpulist") or "")
        for folder in sorted((system.sys / "devices/system/node").glob("node[0-9]*"))
    }
    if siblings is None and not nodes:
        return Check("topology", "unavailable", "the system tells neither siblings nor NUMA nodes")
    threads = len(cpu_list(siblings)) if siblings else None
    found = f"{threads or 'unknown'} threads a core, {max(1, len(nodes))} NUMA node(s)"
    ours = [name for name, cpus in nodes.items() if cpus & allowed]
    if len(ours) < 2:
        return Check("topology", "ok", found)
    return Check(
        "topology", "warn", f"{found}, ours on nodes {listed(ours)}",
        "memory on another node is slower: a CPU time depends on where the cache's pages fell",
        f"numactl --cpunodebind={ours[0]} --membind={ours[0]} kvgauge run ...",
    )  # fmt: skip


def virtual_machine(system: System) -> Check:
    """Whether a hypervisor stands between us and the hardware."""
    dmi = system.sys / "class/dmi/id"
    product = " ".join(filter(None, map(read_line, (dmi / "sys_vendor", dmi / "product_name"))))
    kind = read_line(system.sys / "hypervisor/type")
    if "hypervisor" in system.flags() or kind:
        return Check(
            "virtual machine", "ok", f"yes, {kind or product or 'of a kind that it does not tell'}",
            "the host's other guests and its clocks are not seen from here",
        )  # fmt: skip
    if not system.flags():
        return Check("virtual machine", "unavailable", "the system does not tell")
    return Check("virtual machine", "ok", f"no{f', {product}' if product else ''}")


def counters(system: System) -> Check:
    """Hardware counters of this process, for `perf stat` beside a run."""
    level = read_line(system.proc / "sys/kernel/perf_event_paranoid")
    units = system.sys / "bus/event_source/devices"
    if level is None:
        return Check("counters", "unavailable", "the system has no perf events")
    found = f"perf_event_paranoid {level}"
    if not any((units / name).exists() for name in ("cpu", "cpu_core", "armv8_pmuv3_0")):
        return Check("counters", "unavailable", f"{found}, no counters of the processor are shown")
    if int(level) > 2 and os.geteuid() != 0:
        return Check(
            "counters", "unavailable", f"{found}: closed to users", "perf cannot count this process",
            "sudo sysctl kernel.perf_event_paranoid=2",
        )  # fmt: skip
    return Check("counters", "ok", found)


def energy(system: System) -> Check:
    """The processor's energy counter (RAPL)."""
    counter = system.sys / "class/powercap/intel-rapl:0/energy_uj"
    if not counter.exists():
        return Check("energy", "unavailable", "no RAPL counter is shown")
    if read(counter) is None:
        return Check(
            "energy", "unavailable", "the RAPL counter is for root alone",
            "joules of a CPU run cannot be read", f"sudo chmod a+r {counter}",
        )  # fmt: skip
    return Check("energy", "ok", "the RAPL counter can be read")
