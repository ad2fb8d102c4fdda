"""`--device auto|cpu|cuda` to a Device; a GPU that torch cannot use is said, never passed over."""

from __future__ import annotations

import torch

from kvgauge.devices import cuda_calls
from kvgauge.devices.cpu import CpuDevice
from kvgauge.devices.cuda import CudaDevice
from kvgauge.devices.nvml import gpu_count
from kvgauge.devices.types import Device
from kvgauge.errors import UserError

CHOICES = ("auto", "cpu", "cuda")


def select_device(choice: str, index: int = 0) -> Device:
    """The device asked for; `auto` takes the GPU if there is one.

    Raises UserError for an unknown choice, for `cuda` without a usable GPU, and for `auto` where
    the driver sees a GPU that torch cannot use: a quiet CPU run would be taken for a GPU run.
    """
    if index < 0:
        raise UserError(f"--gpu {index}: must be 0 or more")
    if choice not in CHOICES:
        raise UserError(f"unknown device {choice!r}: one of {', '.join(CHOICES)}")
    if choice == "cpu":
        return CpuDevice()
    if cuda_calls.is_available():
        if not 0 <= index < cuda_calls.device_count():
            raise UserError(f"GPU {index}: this machine has {cuda_calls.device_count()}")
        return CudaDevice(index)
    seen = gpu_count()
    if seen:
        raise UserError(
            f"the driver sees {seen} GPU(s) but torch {torch.__version__} cannot use them "
            f"(CUDA of torch: {torch.version.cuda or 'none, a CPU build'}): install a CUDA build of "
            "torch that fits the driver, or say --device cpu"
        )
    if choice == "cuda":
        raise UserError("--device cuda: no CUDA GPU on this machine; say --device cpu or auto")
    return CpuDevice()
