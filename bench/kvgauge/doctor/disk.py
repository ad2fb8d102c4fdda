"""Where a run folder goes: room, permission, and whether what is written survives a power loss."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from kvgauge.doctor.system import System, read
from kvgauge.doctor.types import Check, Section, section
from kvgauge.units import decimal_bytes, seconds

_LEAST_FREE_BYTES = 20 * 10**6
_FEW_FREE_BYTES = 10**9
_SLOW_FSYNC_S = 0.1
_FSYNCS = 3
# What each costs the one who relies on it after a crash.
_RISKS = {
    "tmpfs": "it is memory: a power loss or a restart loses the run",
    "ramfs": "it is memory: a power loss or a restart loses the run",
    "overlay": "it is a container's own layer: removing the container loses the run",
    "nfs": "a network file system: locks and fsync depend on the server",
    "nfs4": "a network file system: locks and fsync depend on the server",
    "cifs": "a network file system: locks and fsync depend on the server",
    "9p": "a shared folder of the host: fsync may not reach its disk",
    "virtiofs": "a shared folder of the host: fsync may not reach its disk",
}


@dataclass(frozen=True, slots=True)
class Target:
    """The folder that runs go to, and the nearest one above it that exists."""

    asked: Path
    existing: Path


def target(asked: Path) -> Target:
    """Where files for `asked` would be made."""
    folder = Path(os.path.abspath(asked))  # noqa: PTH100 - a link's own place counts, not its target
    # os.path.exists takes a name that is too long, or a folder closed to us, for absent.
    while not os.path.exists(folder) and folder != folder.parent:  # noqa: PTH110
        folder = folder.parent
    return Target(asked, folder)


def disk_section(system: System, run_dir: Path) -> Section:
    """Checks of the folder; writes one small file without a name, which is gone at once."""
    where = target(run_dir)
    return section(
        "Disk",
        ("run folder", lambda: writable(where)),
        ("free space", lambda: free_space(where)),
        ("file system", lambda: file_system(system, where)),
        ("fsync", lambda: fsync(where)),
    )


def writable(where: Target) -> Check:
    """Whether a run can make its folder and files there."""
    found = str(where.asked)
    right = "--run-dir DIR in a folder that you may write to"
    if not where.existing.is_dir():
        return Check("run folder", "fail", f"{found}: {where.existing} is not a folder", "", right)
    try:
        with tempfile.TemporaryFile(dir=where.existing):
            pass
    except OSError as error:
        why = f"{found}: cannot write to {where.existing}: {error.strerror or error}"
        return Check("run folder", "fail", why, "a run cannot start", right)
    made = "" if where.existing == where.asked.absolute() else ", will be made"
    return Check("run folder", "ok", f"{found}{made}, writable")


def free_space(where: Target) -> Check:
    """Run folders are small, reports a few megabytes; logs of others may fill the disk."""
    free = shutil.disk_usage(where.existing).free
    found = f"{decimal_bytes(free)} free"
    if free < _LEAST_FREE_BYTES:
        return Check(
            "free space", "fail", found, "a run folder does not fit",
            f"free at least {decimal_bytes(_LEAST_FREE_BYTES)}, or choose --run-dir on another disk",
        )  # fmt: skip
    if free < _FEW_FREE_BYTES:
        return Check("free space", "warn", found, "a few reports fill it", "free some")
    return Check("free space", "ok", found)


def file_system(system: System, where: Target) -> Check:
    """The kind of file system, from the mount that holds the folder."""
    kind = mounted_kind(system, where.existing)
    if kind is None:
        return Check("file system", "unavailable", "the system lists no mounts")
    risk = _RISKS.get(kind) or (_RISKS["9p"] if kind.startswith("fuse") else None)
    if risk is None:
        return Check("file system", "ok", kind)
    return Check("file system", "warn", kind, risk, "--run-dir on a local disk or a mounted volume")


def mounted_kind(system: System, folder: Path) -> str | None:
    """The type of the innermost, last mount over the folder (proc(5), mountinfo)."""
    best: tuple[int, str] | None = None
    real = folder.resolve()
    for line in (read(system.proc / "self/mountinfo") or "").splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if not separator or len(fields) < 5 or not after:
            continue
        point = Path(_unescaped(fields[4]))
        depth = len(point.parts)
        if real.is_relative_to(point) and (best is None or depth >= best[0]):
            best = (depth, after.split(" ", 1)[0])
    return best[1] if best else None


def _unescaped(text: str) -> str:
    for octal, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(octal, character)
    return text


def fsync(where: Target) -> Check:
    """How long it takes until a record is on disk: a run waits so long after each cell."""
    times_s = []
    try:
        with tempfile.TemporaryFile(dir=where.existing) as file:
            for _ in range(_FSYNCS):
                file.write(b"\0" * 4096)
                file.flush()
                start = time.perf_counter()
                os.fsync(file.fileno())
                times_s.append(time.perf_counter() - start)
    except OSError as error:
        return Check(
            "fsync", "unavailable", f"does not work here: {error.strerror or error}",
            "a power loss may lose records that a run has reported",
        )  # fmt: skip
    median_s = statistics.median(times_s)
    found = f"{seconds(median_s)} a record"
    if median_s > _SLOW_FSYNC_S:
        return Check(
            "fsync", "warn", found, "a run waits for it after each cell",
            "--run-dir on a faster disk",
        )  # fmt: skip
    return Check("fsync", "ok", found)
