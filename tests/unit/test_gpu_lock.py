"""The lock of a GPU, by real processes; none of it needs a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvgauge import run_command
from kvgauge.devices.cuda import CudaDevice
from kvgauge.devices.lock import gpu_lock
from kvgauge.errors import UserError
from kvgauge.schema import DeviceRef

UUID = "GPU-5f3c0a66-0000-1111-2222-333344445555"
MIG = "MIG-9b1d0f5e-0000-1111-2222-333344445555"
HOLD = """
import sys
from kvgauge.devices.lock import gpu_lock
with gpu_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


@contextmanager
def holder(uuid: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, uuid],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def refusal(uuid: str) -> str:
    with pytest.raises(UserError) as caught, gpu_lock(uuid):
        pass
    return str(caught.value)


def test_a_second_run_is_told_who_holds_the_gpu_and_since_when() -> None:
    with holder(UUID) as process:
        text = refusal(UUID)
        assert UUID in text
        assert f"pid {process.pid}, since {datetime.now(UTC):%Y-%m-}" in text
        assert "\n" not in text


def test_other_gpus_and_mig_instances_are_free() -> None:
    with holder(UUID), gpu_lock(UUID[:-1] + "6"), gpu_lock(MIG):
        assert MIG in refusal(MIG)


def test_the_lock_dies_with_its_process_and_what_it_left_is_no_obstacle(runtime: Path) -> None:
    with holder(UUID) as process:
        process.kill()
        process.wait()
        (file,) = (runtime / "kvgauge").iterdir()
        assert f"pid {process.pid}" in file.read_text()
        with gpu_lock(UUID):
            assert f"pid {os.getpid()}" in file.read_text()
            assert str(process.pid) not in file.read_text()
    with gpu_lock(UUID):
        pass


def test_the_lock_ends_with_an_error_inside() -> None:
    with pytest.raises(KeyError), gpu_lock(UUID):
        raise KeyError
    with gpu_lock(UUID):
        pass


def test_a_started_process_does_not_inherit_the_lock() -> None:
    with gpu_lock(UUID):
        left = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with gpu_lock(UUID):
            pass
    finally:
        left.kill()
        left.wait()


def test_a_uuid_cannot_leave_the_directory(runtime: Path) -> None:
    with gpu_lock("../../etc/x\n" + "y" * 500):
        (file,) = (runtime / "kvgauge").iterdir()
        assert file.name.startswith("gpu-______etc_x_yyy")


def test_the_directory_is_the_users_own_and_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with gpu_lock(UUID):
        made = tmp_path / f"kvgauge-{os.geteuid()}"
        assert made.stat().st_mode & 0o777 == 0o700


def test_a_link_an_open_directory_or_another_users_is_refused(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = runtime / "kvgauge"
    (runtime / "elsewhere").mkdir(mode=0o700)
    path.symlink_to(runtime / "elsewhere")
    assert "mode 0700" in refusal(UUID)
    path.unlink()
    path.mkdir()
    path.chmod(0o755)
    assert "mode 0700" in refusal(UUID)
    path.chmod(0o700)
    with gpu_lock(UUID):
        pass
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    assert "of your own" in refusal(UUID)


def test_a_lock_that_is_a_link_is_refused(runtime: Path) -> None:
    (runtime / "kvgauge").mkdir(mode=0o700)
    victim = runtime / "victim"
    victim.write_text("precious")
    (runtime / "kvgauge" / f"gpu-{UUID}.lock").symlink_to(victim)
    assert "lock of the GPU" in refusal(UUID)
    assert victim.read_text() == "precious"


def test_a_runtime_directory_that_is_not_there_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "gone"))
    assert "XDG_RUNTIME_DIR" in refusal(UUID)


class Card(CudaDevice):
    """A GPU by its names alone."""

    def __init__(self, uuid: str) -> None:
        self._facts = SimpleNamespace(uuid=uuid)
        self.ref = DeviceRef("cuda", "a card", 0)


def test_run_takes_the_lock_before_it_makes_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(run_command, "select_device", lambda *_: Card(UUID.removeprefix("GPU-")))
    with holder(UUID), pytest.raises(UserError, match=f"{UUID} is held"):
        run_command.start(
            {"suites": ("footprint",)},
            run_command.Where("auto", 0, None),
            tmp_path / "run",
            run_command.Manner(isolate=False, timeout_s=None, only_list=False, as_json=False),
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("visible", "uuid"), [("", UUID), ("1,0", UUID), (UUID, UUID), (f"{MIG},{UUID}", MIG)]
)
def test_a_mig_instance_has_its_own_uuid(
    monkeypatch: pytest.MonkeyPatch, visible: str, uuid: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert Card(UUID.removeprefix("GPU-")).uuid == uuid
