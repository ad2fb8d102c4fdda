"""Where Linux tells about itself: /proc, /sys and /dev, as text that may be absent or strange."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_MAX_BYTES = 2**20  # the kernel refuses to read /proc/sys into a buffer of 4 MiB or more


@dataclass(frozen=True, slots=True)
class System:
    """The roots of the pseudo file systems."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    dev: Path = Path("/dev")

    def cpuinfo(self) -> dict[str, str]:
        """The fields of the first processor; empty outside Linux."""
        first = (read(self.proc / "cpuinfo") or "").strip().split("\n\n", 1)[0]
        pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
        return {key.strip(): value.strip() for key, value in pairs}

    def flags(self) -> frozenset[str]:
        """Instruction sets and the like, in the kernel's spelling."""
        info = self.cpuinfo()
        return frozenset((info.get("flags") or info.get("Features") or "").split())

    def meminfo_bytes(self, field: str) -> int | None:
        """A field of /proc/meminfo."""
        for line in (read(self.proc / "meminfo") or "").splitlines():
            name, _, rest = line.partition(":")
            if name == field:
                return int(rest.split()[0]) * 1024
        return None

    def cgroup_texts(self, controller: str, *names: str) -> list[tuple[str, ...]]:
        """The files of that name in this process's control group and all above it.

        Names are those of version 2 or 1; folders that lack one of them are left out.
        """
        found = []
        for folder in self._cgroups(controller):
            texts = tuple(read(folder / name) for name in names)
            if None not in texts:
                found.append(tuple((text or "").strip() for text in texts))
        return found

    def _cgroups(self, controller: str) -> list[Path]:
        base = self.sys / "fs/cgroup"
        folders = []
        for line in (read(self.proc / "self/cgroup") or "0::/").splitlines():
            _, controllers, path = (*line.split(":", 2), "", "")[:3]
            if controllers and controller not in controllers.split(","):
                continue
            root = base / controller if controllers else base
            # A container sees its own group as the root: the path may not exist there.
            parts = [part for part in path.split("/") if part not in ("", "..")]
            folders += [root.joinpath(*parts[:n]) for n in range(len(parts), -1, -1)]
        return folders


def read(path: Path) -> str | None:
    """The text of a file; None where it is absent or may not be read."""
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode(errors="replace")
    except (OSError, ValueError):
        return None


def read_line(path: Path) -> str | None:
    """The same without white space around it."""
    text = read(path)
    return None if text is None else text.strip()


def cpu_list(text: str) -> frozenset[int]:
    """The kernel's lists: `0-3,8` is {0, 1, 2, 3, 8}."""
    numbers: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers |= set(range(int(first), int(last or first) + 1))
    return frozenset(numbers)


def allowed_cpus() -> frozenset[int]:
    """The processors that this process may run on; all where the system does not restrict any."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))
