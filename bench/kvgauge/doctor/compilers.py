"""Compilers, which only those need who build kernels from source."""

from __future__ import annotations

import re
import shutil
import subprocess

from kvgauge.doctor.types import Check, Section, section

_TIMEOUT_S = 3
_CPP = ("c++", "g++", "clang++")


def compiler_section(torch_cuda: str | None) -> Section:
    """The C++ compiler and nvcc."""
    return section(
        "Compilers", ("C++", cpp), ("nvcc", lambda: nvcc(_said("nvcc"), torch_cuda))
    )  # fmt: skip


def cpp() -> Check:
    """The first C++ compiler that answers."""
    for name in _CPP:
        said = _said(name)
        if said:
            return Check("C++", "ok", f"{name}: {said.splitlines()[0]}")
    return Check(
        "C++", "unavailable", "none of c++, g++, clang++",
        "torch.compile on the CPU and kernels from source need one", "apt install g++",
    )  # fmt: skip


def nvcc(said: str | None, torch_cuda: str | None) -> Check:
    """The CUDA compiler, and whether it is of torch's CUDA."""
    if not said:
        return Check(
            "nvcc",
            "unavailable",
            "not on the PATH",
            "flash-attn from source needs it; a wheel does not",
        )
    release = re.search(r"release (\d+)\.(\d+)", said)
    if release is None:
        return Check("nvcc", "unavailable", f"does not tell its release: {said.splitlines()[-1]}")
    version = f"{release[1]}.{release[2]}"
    if torch_cuda is not None and torch_cuda.split(".")[0] != release[1]:
        return Check(
            "nvcc", "warn", f"CUDA {version}, torch CUDA {torch_cuda}",
            "extensions built with it do not load into this torch",
            f"a CUDA {torch_cuda} toolkit, or wheels instead of building",
        )  # fmt: skip
    return Check("nvcc", "ok", f"CUDA {version}")


def _said(program: str) -> str | None:
    """What `program --version` prints; None where it is absent, fails or hangs."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603 - a fixed argument to a compiler of the PATH
            [path, "--version"], capture_output=True, timeout=_TIMEOUT_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None
