"""The doctor on GPU machines: a stand-in driver, a made-up torch, each trouble made to fire."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from doctor_for_tests import NVMLError, StandInNvml, gpu_torch, process, put, states, tree
from kvgauge.doctor import gpu, gpu_state, torch_facts
from kvgauge.doctor.nvml import Driver, NoNvml, read_driver
from kvgauge.doctor.torch_facts import Torch, TorchGpu, read_torch, runs_on
from kvgauge.doctor.types import Check, Section, Unavailable

GOOD = TorchGpu(0, "00", (0, 0x65, 0), None)
CPU_TORCH = Torch("2.13.0+cpu", None, None, (), 8, ())


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def driver_of(monkeypatch: pytest.MonkeyPatch, lib: StandInNvml) -> Driver | NoNvml:
    monkeypatch.setitem(sys.modules, "pynvml", lib)
    return read_driver()


def gpu_section(
    monkeypatch: pytest.MonkeyPatch, root: Path, lib: StandInNvml, torch: Torch | Unavailable
) -> Section:
    return gpu.gpu_section(tree(root), driver_of(monkeypatch, lib), torch)


def card_section(
    monkeypatch: pytest.MonkeyPatch, root: Path, lib: StandInNvml, torch: Torch | None = None
) -> Section:
    driver = driver_of(monkeypatch, lib)
    assert isinstance(driver, Driver)
    return gpu_state.card_section(tree(root), driver.cards[0], torch or gpu_torch(GOOD))


def named(section: Section, name: str) -> Check:
    return next(check for check in section.checks if check.name == name)


def test_a_good_machine_has_nothing_to_mend(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm"):
        put(tmp_path / "dev" / name, "")
    lib = StandInNvml()
    assert set(states(gpu_section(monkeypatch, tmp_path, lib, gpu_torch(GOOD))).values()) == {"ok"}
    assert set(states(card_section(monkeypatch, tmp_path, lib)).values()) == {"ok"}
    assert lib.calls.count("nvmlShutdown") == lib.calls.count("nvmlInit") == 2


def test_nothing_is_set_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    lib = StandInNvml()
    driver_of(monkeypatch, lib)
    assert not [name for name in lib.calls if "Set" in name or "Reset" in name]


def test_no_driver_is_no_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    section = gpu_section(monkeypatch, tmp_path, StandInNvml(nvmlInit=NVMLError(12)), CPU_TORCH)
    assert set(states(section).values()) == {"unavailable", "ok"}
    assert "no NVIDIA driver" in named(section, "driver").found


def test_a_gpu_on_the_bus_without_a_driver_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device = tmp_path / "sys/bus/pci/devices/0000:65:00.0"
    put(device / "vendor", "0x10de\n")
    put(device / "class", "0x030200\n")
    lib = StandInNvml(nvmlInit=NVMLError(12))
    check = named(gpu_section(monkeypatch, tmp_path, lib, CPU_TORCH), "driver")
    assert check.state == "warn"
    assert "--gpus all" in check.right
    put(device / "class", "0x0c0330\n")  # a USB controller of the same maker
    check = named(gpu_section(monkeypatch, tmp_path, lib, CPU_TORCH), "driver")
    assert check.state == "unavailable"


@pytest.mark.parametrize(
    ("code", "right"), [(18, "restart"), (12, "libnvidia-ml"), (4, "/dev/nvidia")]
)
def test_a_loaded_module_that_cannot_be_asked_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, right: str
) -> None:
    put(tmp_path / "proc/driver/nvidia/version", "NVRM version: ...")
    lib = StandInNvml(nvmlInit=NVMLError(code))
    check = named(gpu_section(monkeypatch, tmp_path, lib, CPU_TORCH), "driver")
    assert check.state == "fail"
    assert right in check.right


def test_torch_on_a_gpu_without_nvml_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    driver = read_driver()
    section = gpu.gpu_section(tree(tmp_path), driver, gpu_torch(GOOD))
    assert named(section, "driver").state == "warn"
    assert "pip install nvidia-ml-py" in named(section, "driver").right
    assert named(section, "torch").state == "ok"


MIG_EMPTY: dict[str, Any] = {"nvmlDeviceGetMigMode": [1, 1]}


@pytest.mark.parametrize(
    ("answers", "torch", "visible", "found", "right"),
    [
        ({}, CPU_TORCH, None, "is a CPU build", "CUDA build of torch that the driver supports"),
        ({}, Unavailable("not installed"), None, "torch is not installed", "CUDA 13.0"),
        ({}, gpu_torch(), "", "CUDA_VISIBLE_DEVICES='' hides", "unset"),
        ({}, gpu_torch(), "-1", "CUDA_VISIBLE_DEVICES='-1' hides", "unset"),
        ({}, gpu_torch(), "7", "names none of them", "nvidia-smi -L"),
        (
            {"nvmlSystemGetCudaDriverVersion_v2": 12080, "nvmlSystemGetDriverVersion": "570.1"},
            gpu_torch(), None, "driver 570.1 supports CUDA 12.8, torch is a build for CUDA 13.0",
            "build of torch for CUDA 12.8",
        ),
        (MIG_EMPTY, gpu_torch(), None, "no instance", "mig -i 0 -cgi"),
        ({"nvmlDeviceGetComputeMode": 2}, gpu_torch(), None, "prohibited", "-c DEFAULT"),
        ({}, gpu_torch(complaint="system not yet initialized"), None, "not yet initialized", "dmesg"),
    ],
)  # fmt: skip
def test_a_gpu_that_torch_cannot_use_fails_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answers: dict[str, Any],
    torch: Torch | Unavailable, visible: str | None, found: str, right: str,
) -> None:  # fmt: skip
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    check = named(gpu_section(monkeypatch, tmp_path, StandInNvml(**answers), torch), "torch")
    assert check.state == "fail"
    assert found in check.found
    assert right in check.right


def test_a_driver_of_an_older_minor_release_serves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lib = StandInNvml(nvmlSystemGetCudaDriverVersion_v2=12020)
    torch = gpu_torch(cuda="12.8", complaint="something else")
    check = named(gpu_section(monkeypatch, tmp_path, lib, torch), "torch")
    assert "something else" in check.found  # CUDA 12.x runs on any driver for CUDA 12


def test_a_gpu_newer_than_the_build_fails_by_its_own_sum(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lib = StandInNvml(nvmlDeviceGetCudaComputeCapability=(12, 0))
    torch = gpu_torch(TorchGpu(0, "00", None, "AcceleratorError: no kernel image is available"))
    for section in (
        gpu_section(monkeypatch, tmp_path, lib, torch),
        card_section(monkeypatch, tmp_path, lib, torch),
    ):
        check = named(section, "torch")
        assert check.state == "fail"
        assert "no kernel image" in check.found
        assert "sm_120" in check.right


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((9, 0), ("sm_80", "sm_90"), True),
        ((8, 6), ("sm_80", "sm_90"), True),  # code of an older minor release of the same major
        ((8, 0), ("sm_86",), False),
        ((7, 0), ("sm_75", "sm_80"), False),
        ((12, 0), ("sm_90", "sm_100"), False),
        ((12, 0), ("sm_90", "compute_90"), True),  # PTX is compiled for what is newer
        ((9, 0), ("sm_90a",), True),
        ((10, 3), ("sm_100a",), False),
        ((10, 3), ("sm_100f",), True),
        ((9, 0), ("gfx942", "?"), False),
    ],
)
def test_architectures(
    capability: tuple[int, int], architectures: tuple[str, ...], runs: bool
) -> None:
    assert runs_on(capability, architectures) is runs


def test_device_files_that_may_not_be_opened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("nvidia0", "nvidiactl"):
        put(tmp_path / "dev" / name, "")
    monkeypatch.setattr(os, "access", lambda path, _mode: "nvidia0" not in str(path))
    section = gpu_section(monkeypatch, tmp_path, StandInNvml(), gpu_torch())
    assert named(section, "device files").state == "fail"
    assert "nvidia0" in named(section, "device files").found
    assert "nvidiactl" not in named(section, "device files").found
    section = gpu_section(monkeypatch, tmp_path, StandInNvml(), gpu_torch(GOOD))
    assert named(section, "device files").state == "warn"


@pytest.mark.parametrize(
    ("name", "answers", "found", "right"),
    [
        ("ECC", {"nvmlDeviceGetEccMode": [0, 1]}, "off, on after a restart", "-e 1"),
        ("ECC", {"nvmlDeviceGetTotalEccErrors": 3}, "3 since the start", "ROW_REMAPPER"),
        ("ECC", {"nvmlDeviceGetTotalEccErrors": {0: 0, 1: 2}}, "0 since the start, 2 ever", "reset"),
        ("persistence", {"nvmlDeviceGetPersistenceMode": 0}, "off", "-pm 1"),
        ("power limit", {"nvmlDeviceGetEnforcedPowerLimit": 350_000}, "350 W, default 700 W", "-pl 700"),
        ("MIG", MIG_EMPTY, "no instance", "-cgi"),
        ("display", {"nvmlDeviceGetDisplayActive": 1}, "attached", "--gpu"),
        ("throttling", {"nvmlDeviceGetCurrentClocksEventReasons": 0x45}, "power cap, hardware thermal", ""),
        ("neighbours", {"nvmlDeviceGetComputeRunningProcesses": [process(4242)]}, "4242 vllm", "stop"),
        (
            "neighbours",
            {"nvmlDeviceGetMemoryInfo": types.SimpleNamespace(total=80 * 2**30, free=8 * 2**30)},
            "a container hides", "stop",
        ),
        (
            "neighbours", {"nvmlDeviceGetUtilizationRates": types.SimpleNamespace(gpu=97)},
            "97% busy", "stop",
        ),
        ("clocks", {"nvmlDeviceGetClockInfo": {1: 345, 2: 2619}}, "345 of 1980", "-lgc 1980"),
        ("clocks", {"nvmlDeviceGetCurrentClocksEventReasons": 0}, "float", "-lmc 2619"),
    ],
)  # fmt: skip
def test_what_disturbs_a_card_warns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, answers: dict[str, Any],
    found: str, right: str,
) -> None:  # fmt: skip
    put(tmp_path / "proc/4242/comm", "vllm\n")
    section = card_section(monkeypatch, tmp_path, StandInNvml(**answers))
    check = named(section, name)
    assert check.state == "warn"
    assert found in check.found
    assert right in check.right
    assert [n for n, state in states(section).items() if state != "ok"] == [name]


def test_clocks_held_by_a_setting_do_not_warn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lib = StandInNvml(
        nvmlDeviceGetClockInfo={1: 1200, 2: 2619}, nvmlDeviceGetCurrentClocksEventReasons=0x2
    )
    assert named(card_section(monkeypatch, tmp_path, lib), "clocks").state == "ok"


def test_what_nvml_refuses_is_unavailable_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = [name for name in StandInNvml().answers if name.startswith("nvmlDeviceGet")]
    lib = StandInNvml()
    lib.answers |= {name: NVMLError(4) for name in asked if name != "nvmlDeviceGetCount"}
    section = card_section(monkeypatch, tmp_path, lib, gpu_torch())
    assert set(states(section).values()) == {"unavailable"}
    assert "Insufficient Permissions" in named(section, "ECC").found


def test_an_old_binding_without_a_function_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lib = StandInNvml()
    del lib.answers["nvmlDeviceGetMigMode"]
    del lib.answers["nvmlDeviceGetCurrentClocksEventReasons"]
    lib.answers["nvmlDeviceGetCurrentClocksThrottleReasons"] = 0x20
    section = card_section(monkeypatch, tmp_path, lib)
    assert "nvmlDeviceGetMigMode" in named(section, "MIG").found
    assert "software thermal" in named(section, "throttling").found


def test_a_card_hidden_beside_one_that_is_used_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    other = TorchGpu(0, "other", (0, 0x99, 0), None)
    check = named(card_section(monkeypatch, tmp_path, StandInNvml(), gpu_torch(other)), "torch")
    assert (check.state, "CUDA_VISIBLE_DEVICES=1" in check.found) == ("unavailable", True)


def test_an_instance_is_known_by_the_place_of_its_card(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lib = StandInNvml(nvmlDeviceGetMigMode=[1, 1], nvmlDeviceGetMigDeviceHandleByIndex=7)
    torch = gpu_torch(TorchGpu(0, "MIG-1234", (0, 0x65, 0), None))
    section = card_section(monkeypatch, tmp_path, lib, torch)
    assert named(section, "torch").state == "ok"
    assert "7 instance(s)" in named(section, "MIG").found


class StandInTensor:
    """What torch.ones(2) gives: its sum is 2."""

    def sum(self) -> float:
        return 2.0


def stand_in_torch(available: bool, ones: Any, init: Any = None) -> Any:
    space = types.SimpleNamespace
    facts = space(uuid="00", pci_domain_id=0, pci_bus_id=0x65, pci_device_id=0)
    return space(
        __version__="2.13.0", version=space(cuda="13.0", hip=None), ones=ones,
        get_num_threads=lambda: 8,
        cuda=space(
            is_available=lambda: available, device_count=lambda: 1, init=init,
            get_device_properties=lambda _index: facts, get_arch_list=lambda: ["sm_90"],
        ),
    )  # fmt: skip


def test_each_gpu_of_torch_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def ones(count: int, device: str) -> StandInTensor:
        made.append((count, device))
        return StandInTensor()

    monkeypatch.setitem(sys.modules, "torch", stand_in_torch(True, ones))
    torch = read_torch()
    assert isinstance(torch, Torch)
    assert torch.gpus == (GOOD,)
    assert made == [(2, "cuda:0")]

    def broken(_count: int, device: str) -> None:
        raise RuntimeError("no kernel image is available\nfor execution")

    monkeypatch.setitem(sys.modules, "torch", stand_in_torch(True, broken))
    torch = read_torch()
    assert isinstance(torch, Torch)
    assert torch.gpus[0].error == "RuntimeError: no kernel image is available"


def test_why_torch_finds_no_gpu_is_its_own_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old")

    monkeypatch.setitem(sys.modules, "torch", stand_in_torch(False, None, init))
    torch = read_torch()
    assert isinstance(torch, Torch)
    assert (torch.gpus, torch.complaint) == ((), "The NVIDIA driver on your system is too old")


def test_torch_that_is_absent_or_broken_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert torch_facts.read_torch() == Unavailable("not installed")
    monkeypatch.delitem(sys.modules, "torch")
    put(tmp_path / "torch.py", "raise OSError('libcudart.so.13: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    torch = torch_facts.read_torch()
    assert isinstance(torch, Unavailable)
    assert "libcudart.so.13" in torch.reason
