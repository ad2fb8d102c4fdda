"""What torch is and which GPUs it can use: asked once, each GPU by one small sum on it."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any

from kvgauge.doctor.types import Unavailable

_ARCH = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")


@dataclass(frozen=True, slots=True)
class TorchGpu:
    """A GPU that torch lists; `error` is what a sum on it raised."""

    index: int
    uuid: str
    pci: tuple[int, int, int] | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Torch:
    """The torch that is installed."""

    version: str
    cuda: str | None
    hip: str | None
    architectures: tuple[str, ...]
    threads: int
    gpus: tuple[TorchGpu, ...]
    complaint: str | None = None
    """What it says itself where it can use no GPU."""

    @property
    def build(self) -> str:
        """CPU, CUDA or ROCm."""
        if self.cuda is not None:
            return f"a build for CUDA {self.cuda}"
        return "a CPU build" if self.hip is None else f"a build for ROCm {self.hip}"


def read_torch() -> Torch | Unavailable:
    """Import torch and ask; unavailable where it is absent or does not load."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            import torch
        except ModuleNotFoundError as error:
            absent = error.name == "torch"
            return Unavailable("not installed" if absent else f"installed but misses {error.name}")
        except Exception as error:  # a library of the driver or of CUDA that does not load
            return Unavailable(f"installed but does not load: {type(error).__name__}: {error}")
        cuda = _text(getattr(torch.version, "cuda", None))
        hip = _text(getattr(torch.version, "hip", None))
        gpus, complaint = _gpus(torch) if cuda or hip else ((), None)
        architectures = tuple(torch.cuda.get_arch_list()) if cuda else ()
    if not gpus and complaint is None and said and cuda:
        complaint = str(said[-1].message)
    return Torch(
        str(torch.__version__), cuda, hip, architectures, torch.get_num_threads(), gpus, complaint
    )


def runs_on(capability: tuple[int, int], architectures: tuple[str, ...]) -> bool:
    """Whether machine code of those architectures (or their PTX) runs on that compute capability."""
    for match in filter(None, map(_ARCH.fullmatch, architectures)):
        major, minor = int(match[2]), int(match[3])
        if match[4] == "a":  # for that one architecture alone
            fits = (major, minor) == capability
        elif match[1] == "compute" and not match[4]:  # PTX is compiled for any newer one
            fits = (major, minor) <= capability
        else:
            fits = major == capability[0] and minor <= capability[1]
        if fits:
            return True
    return False


def _gpus(torch: Any) -> tuple[tuple[TorchGpu, ...], str | None]:
    if not torch.cuda.is_available():
        try:
            torch.cuda.init()
        except Exception as error:
            return (), str(error)
        return (), None
    return tuple(_gpu(torch, index) for index in range(torch.cuda.device_count())), None


def _gpu(torch: Any, index: int) -> TorchGpu:
    error: str | None = None
    uuid, pci = "", None
    try:
        facts = torch.cuda.get_device_properties(index)
        uuid = str(getattr(facts, "uuid", ""))
        if hasattr(facts, "pci_bus_id"):
            pci = (facts.pci_domain_id, facts.pci_bus_id, facts.pci_device_id)
        if float(torch.ones(2, device=f"cuda:{index}").sum()) != 2.0:
            error = "a sum of two ones is not 2"
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}".partition("\n")[0]
    return TorchGpu(index, uuid, pci, error)


def _text(value: object) -> str | None:
    return None if value is None else str(value)
