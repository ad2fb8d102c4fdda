"""Whether the GPUs that the driver sees are GPUs that torch can use, and if not, why not."""

from __future__ import annotations

import os
from pathlib import Path

from kvgauge.doctor.nvml import MISMATCH, NO_LIBRARY, PROHIBITED, Card, Driver, NoNvml
from kvgauge.doctor.system import System, read_line
from kvgauge.doctor.torch_facts import Torch, TorchGpu, runs_on
from kvgauge.doctor.types import Check, Section, Unavailable, section

_NVIDIA = "0x10de"
_DISPLAY_CLASS = "0x03"
_TORCH_FOR_CUDA = "install a CUDA build of torch that the driver supports"


def gpu_section(system: System, driver: Driver | NoNvml, torch: Torch | Unavailable) -> Section:
    """The driver, its device files, and torch against it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return section(
        "GPU",
        ("driver", lambda: driver_check(system, driver, torch)),
        ("device files", lambda: device_files(system, torch)),
        ("CUDA_VISIBLE_DEVICES", lambda: visible_check(visible)),
        ("torch", lambda: torch_check(system, driver, torch, visible)),
    )


def driver_check(system: System, driver: Driver | NoNvml, torch: Torch | Unavailable) -> Check:
    """The driver's version and the newest CUDA that it supports."""
    if isinstance(driver, NoNvml):
        return _no_nvml(system, driver, torch)
    cuda = driver.cuda if isinstance(driver.cuda, Unavailable) else "{}.{}".format(*driver.cuda)
    found = f"{driver.version}, CUDA {cuda}, {driver.count} GPU(s)"
    if isinstance(driver.count, Unavailable):
        return Check("driver", "warn", found, "its GPUs stay unseen", "see nvidia-smi")
    return Check("driver", "ok", found)


def _no_nvml(system: System, no: NoNvml, torch: Torch | Unavailable) -> Check:
    if isinstance(torch, Torch) and torch.gpus:
        return Check(
            "driver", "warn", f"NVML does not answer: {no.reason}",
            "torch uses the GPU, but clocks, throttling and neighbours stay unseen",
            "pip install nvidia-ml-py" if no.code is None else "a driver with its NVML library",
        )  # fmt: skip
    if (system.proc / "driver/nvidia/version").exists():
        return Check(
            "driver", "fail", f"the kernel module is loaded, NVML does not answer: {no.reason}",
            "the GPU cannot be used", _mend_nvml(no.code),
        )  # fmt: skip
    if _on_pci_bus(system):
        return Check(
            "driver", "warn", "an NVIDIA GPU is on the PCI bus, but no driver is here",
            "this machine runs as if it had none",
            "install the NVIDIA driver; in a container: start it with --gpus all",
        )  # fmt: skip
    return Check("driver", "unavailable", f"no NVIDIA driver here ({no.reason})")


def _mend_nvml(code: int | None) -> str:
    if code is None:
        return "pip install nvidia-ml-py"
    if code == MISMATCH:
        return "restart the machine: the driver was updated under the loaded module"
    if code == NO_LIBRARY:
        return "libnvidia-ml.so.1 of the driver; in a container: start it with --gpus all"
    return "see nvidia-smi, and whether this user may open /dev/nvidia*"


def _on_pci_bus(system: System) -> bool:
    return any(
        read_line(device / "vendor") == _NVIDIA
        and (read_line(device / "class") or "").startswith(_DISPLAY_CLASS)
        for device in (system.sys / "bus/pci/devices").glob("*")
    )


def device_files(system: System, torch: Torch | Unavailable) -> Check:
    """Whether this user may open the driver's files."""
    files = sorted(system.dev.glob("nvidia[0-9]*")) + [
        file for name in ("nvidiactl", "nvidia-uvm") if (file := system.dev / name).exists()
    ]
    if not files:
        return Check("device files", "unavailable", "no /dev/nvidia*")
    closed = _closed(files)
    if not closed:
        return Check("device files", "ok", f"{len(files)} of /dev/nvidia* may be opened")
    usable = isinstance(torch, Torch) and bool(torch.gpus)
    return Check(
        "device files", "warn" if usable else "fail",
        f"no permission to open {', '.join(file.name for file in closed)}",
        "CUDA does not find the GPU behind it",
        "join the group that owns them (ls -l /dev/nvidia*), often video or render",
    )  # fmt: skip


def _closed(files: list[Path]) -> list[Path]:
    return [file for file in files if not os.access(file, os.R_OK | os.W_OK)]


def visible_check(visible: str | None) -> Check:
    """Which GPUs the environment lets through."""
    if visible is None:
        return Check("CUDA_VISIBLE_DEVICES", "ok", "not set: all GPUs")
    return Check("CUDA_VISIBLE_DEVICES", "ok", visible if visible.strip() else "empty: no GPU")


def torch_check(
    system: System, driver: Driver | NoNvml, torch: Torch | Unavailable, visible: str | None
) -> Check:
    """Whether torch can use a GPU, if there is one."""
    cards = () if isinstance(driver, NoNvml) else driver.cards
    if isinstance(torch, Torch) and torch.gpus:
        broken = [gpu for gpu in torch.gpus if gpu.error]
        if len(broken) == len(torch.gpus):
            return _fail_on_gpu(broken[0], cards, torch)
        of = f" of the driver's {len(cards)}" if cards else ""
        return Check("torch", "ok", f"computes on {len(torch.gpus) - len(broken)} GPU(s){of}")
    if not cards:
        build = str(torch) if isinstance(torch, Unavailable) else torch.build
        return Check("torch", "unavailable", f"the driver shows no GPU; torch is {build}")
    reason, right = why_not(system, driver, torch, visible)
    found = f"the driver sees {len(cards)} GPU(s), torch can use none: {reason}"
    return Check(
        "torch", "fail", found, "`kvgauge run` stops unless it is told --device cpu", right
    )


def why_not(
    system: System, driver: Driver | NoNvml, torch: Torch | Unavailable, visible: str | None
) -> tuple[str, str]:
    """The first thing that keeps torch from the driver's GPUs, and what would be right."""
    assert isinstance(driver, Driver)  # noqa: S101 - there are cards
    if isinstance(torch, Unavailable):
        return f"torch is {torch.reason}", f"{_TORCH_FOR_CUDA}{_driver_limit(driver)}"
    if torch.cuda is None:
        return (
            f"torch {torch.version} is {torch.build}",
            f"{_TORCH_FOR_CUDA}{_driver_limit(driver)}",
        )
    if visible is not None and (not visible.strip() or visible.strip().startswith("-")):
        return f"CUDA_VISIBLE_DEVICES={visible!r} hides them", "unset CUDA_VISIBLE_DEVICES"
    if not isinstance(driver.cuda, Unavailable) and _major(torch.cuda) > driver.cuda[0]:
        limit = "{}.{}".format(*driver.cuda)
        return (
            f"driver {driver.version} supports CUDA {limit}, torch is {torch.build}",
            f"a driver for CUDA {torch.cuda}, or a build of torch for CUDA {limit}",
        )
    if all(without_instance(card) for card in driver.cards):
        return "MIG is on and no instance is made", _make_instance(driver.cards[0].index)
    if all(card.compute_mode == PROHIBITED for card in driver.cards):
        return "the compute mode is `prohibited`", "sudo nvidia-smi -c DEFAULT"
    if not (system.dev / "nvidia-uvm").exists() and (system.dev / "nvidiactl").exists():
        return "/dev/nvidia-uvm is absent", "sudo nvidia-modprobe -u -c 0"
    if visible is not None:
        return (
            f"CUDA_VISIBLE_DEVICES={visible!r} names none of them",
            "unset it, or name an index or UUID that `nvidia-smi -L` lists",
        )
    return torch.complaint or "it does not say why", "see nvidia-smi and dmesg"


def _fail_on_gpu(gpu: TorchGpu, cards: tuple[Card, ...], torch: Torch) -> Check:
    card = next((card for card in cards if is_same(card, gpu)), None)
    right = right_for(card, torch)
    return Check("torch", "fail", f"a sum on GPU {gpu.index} fails: {gpu.error}", "", right)


def right_for(card: Card | None, torch: Torch) -> str:
    """What to do about a GPU that torch lists and cannot compute on."""
    capability = card.capability if card is not None else Unavailable("not seen by the driver")
    if not isinstance(capability, Unavailable) and not runs_on(capability, torch.architectures):
        major, minor = capability
        has = ", ".join(torch.architectures)
        return f"a build of torch with sm_{major}{minor}; this one has {has}"
    return "free its memory and see nvidia-smi -q and dmesg for Xid errors"


def is_same(card: Card, gpu: TorchGpu) -> bool:
    """Whether the driver's card and torch's GPU are one, by UUID or, under MIG, by its place."""
    uuid = str(card.uuid).removeprefix("GPU-")
    by_uuid = bool(gpu.uuid) and uuid == gpu.uuid.removeprefix("GPU-")
    return by_uuid or (gpu.pci is not None and gpu.pci == card.pci)


def without_instance(card: Card) -> bool:
    """Whether the card is cut into MIG instances of which there is none: CUDA then sees nothing."""
    return not isinstance(card.mig, Unavailable) and card.mig[0] == 1 and card.mig_instances == 0


def _make_instance(index: int) -> str:
    return f"sudo nvidia-smi mig -i {index} -cgi PROFILE -C, or sudo nvidia-smi -i {index} -mig 0"


def _driver_limit(driver: Driver) -> str:
    return "" if isinstance(driver.cuda, Unavailable) else " (CUDA {}.{})".format(*driver.cuda)


def _major(version: str) -> int:
    return int(version.split(".")[0])
