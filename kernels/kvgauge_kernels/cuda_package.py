"""Whether a package of CUDA kernels can be used on a device: what every adapter of one has to ask."""

from __future__ import annotations

import importlib
from collections.abc import Container
from dataclasses import dataclass

import torch

from kvgauge_kernels.protocol import no_cuda


@dataclass(frozen=True, slots=True)
class CudaPackage:
    """One function of a package, for a backend.

    `majors`: the compute capabilities that it runs on, by their first number; `needs` says so in words,
    after the backend's name. `install`: how the package comes to be there.
    """

    backend: str
    module: str
    function: str
    majors: Container[int]
    needs: str
    install: str

    def why_not(self, device: torch.device) -> str | None:
        """None where the function can be called on that device, else the reason."""
        if device.type != "cuda":
            return f"{self.backend} needs a CUDA device, not {device.type}"
        reason = no_cuda(device)
        if reason is not None:
            return reason
        major, minor = torch.cuda.get_device_capability(device)
        if major not in self.majors:
            return f"compute capability {major}.{minor}: {self.backend} {self.needs}"
        return self._unusable()

    def _unusable(self) -> str | None:
        package = self.module.split(".")[0]
        try:
            # A wheel built for another torch, or a package of that name without this function.
            if not hasattr(importlib.import_module(self.module), self.function):
                raise ImportError(f"cannot import name {self.function!r} from {self.module!r}")
        except ModuleNotFoundError as error:
            if error.name is not None and f"{self.module}.".startswith(f"{error.name}."):
                return f"package {error.name} is absent: {self.install}"
            return f"{package} is installed but misses {error.name}"
        except (ImportError, OSError) as error:
            return f"{package} is installed but does not load: {error}"
        return None
