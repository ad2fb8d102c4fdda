"""What the kernel counts of its OOM killer (Linux): evidence of why a process was killed."""

from __future__ import annotations

from pathlib import Path

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def oom_kills() -> dict[str, int]:
    """Processes killed so far, by who counts them; a counter that cannot be read is absent.

    The control group's counter is of this run and its like; the machine's is of everyone on it.
    """
    files = {"this control group": _cgroup_file(), "this machine": _PROC / "vmstat"}
    counts = {who: _oom_kill(path) for who, path in files.items()}
    return {who: count for who, count in counts.items() if count is not None}


def _cgroup_file() -> Path:
    """memory.events of control groups version 2, or memory.oom_control of version 1."""
    own = {}
    for line in _read(_PROC / "self/cgroup").splitlines():
        _number, controllers, path = line.split(":", 2)
        own[controllers] = path.lstrip("/")
    v1, v2 = _CGROUPS / "memory", _CGROUPS
    candidates = (
        v2 / own.get("", "") / "memory.events",
        v1 / own.get("memory", "") / "memory.oom_control",
        v1 / "memory.oom_control",  # in a container the group may be mounted as the root
    )
    return next((path for path in candidates if path.exists()), candidates[0])


def _oom_kill(path: Path) -> int | None:
    for line in _read(path).splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill" and count.isdigit():
            return int(count)
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
