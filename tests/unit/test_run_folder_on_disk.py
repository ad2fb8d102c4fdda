"""What a run folder promises across a crash, a power loss, a full disk and an interrupt."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvgauge.errors import UserError
from kvgauge.store.folder import RunFolder
from kvgauge.store.reader import load_run
from records_for_tests import cell, record, run_of


def test_a_record_is_synced_before_append_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, synced, real = RunFolder.create(tmp_path / "run"), list[tuple[int, int]](), os.fsync

    def spy(fd: int) -> None:
        state = os.fstat(fd)
        synced.append((state.st_ino, state.st_size))
        real(fd)

    monkeypatch.setattr(os, "fsync", spy)
    for depth in (1024, 2048):
        folder.append(record(cell(depth)))
        # All of the file was there when it was synced: nothing was still in a buffer.
        state = (folder.path / "records.jsonl").stat()
        assert synced[-1] == (state.st_ino, state.st_size)
        synced.clear()


def test_a_manifest_that_cannot_be_moved_leaves_the_old_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = run_of(record()).manifest
    folder = RunFolder.create(tmp_path / "run")
    folder.write_manifest(replace(manifest, status="running"))
    before = (folder.path / "manifest.json").read_bytes()

    def refuse(*_args: Any) -> None:
        raise OSError("no")

    for owner, name in ((Path, "replace"), (Path, "rename"), (os, "replace"), (os, "rename")):
        monkeypatch.setattr(owner, name, refuse)
    with pytest.raises((OSError, UserError)):
        folder.write_manifest(manifest)
    monkeypatch.undo()
    assert (folder.path / "manifest.json").read_bytes() == before
    assert json.loads(before)["status"] == "running"
    folder.write_manifest(manifest)
    assert json.loads((folder.path / "manifest.json").read_bytes())["status"] == "complete"


def test_a_manifest_is_on_disk_before_it_takes_the_old_ones_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, order = RunFolder.create(tmp_path / "run"), list[str]()
    monkeypatch.setattr(os, "fsync", lambda _fd: order.append("synced"))
    real = Path.replace

    def move(self: Path, target: Path) -> Path:
        order.append("moved")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", move)
    folder.write_manifest(run_of(record()).manifest)
    assert order[:2] == ["synced", "moved"]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    """With a manifest and one record."""
    with RunFolder.create(tmp_path / "run") as made:
        made.write_manifest(run_of(record()).manifest)
        made.append(record())
        yield made


class Disk:
    """A disk with room for so many bytes more; a write takes what still fits, then there is none."""

    def __init__(self, room_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room_bytes, self._write = room_bytes, os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, handle: int, data: bytes) -> int:
        if not self.room_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = self._write(handle, bytes(data[: self.room_bytes]))
        self.room_bytes -= taken
        return taken


@pytest.mark.parametrize("room_bytes", [0, 1, 700])
def test_a_disk_full_in_a_record_leaves_the_earlier_ones_and_no_half(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, room_bytes: int
) -> None:
    file = folder.path / "records.jsonl"
    before = file.read_bytes()
    Disk(room_bytes, monkeypatch)
    with pytest.raises(UserError, match=r"records\.jsonl: cannot write: No space left"):
        folder.append(record(cell(2048)))
    assert file.read_bytes() == before
    monkeypatch.undo()
    folder.append(record(cell(2048)))  # not glued to anything
    assert load_run(folder.path).records == (record(), record(cell(2048)))


@pytest.mark.parametrize("room_bytes", [0, 1, 500])
def test_a_disk_full_in_a_manifest_leaves_the_old_one(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, room_bytes: int
) -> None:
    before = (folder.path / "manifest.json").read_bytes()
    Disk(room_bytes, monkeypatch)
    with pytest.raises(UserError, match=r"manifest\.json: cannot write: No space left"):
        folder.write_manifest(replace(run_of().manifest, status="interrupted"))
    assert (folder.path / "manifest.json").read_bytes() == before
    assert {p.name for p in folder.path.iterdir()} == {"manifest.json", "records.jsonl"}


def test_a_write_that_takes_a_part_is_gone_on_with(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, bytes(data[:7])))
    folder.append(record(cell(2048)))
    folder.write_manifest(run_of(record(), record(cell(2048))).manifest)
    assert load_run(folder.path) == run_of(record(), record(cell(2048)))


def test_a_record_that_cannot_be_synced_is_taken_back(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    before = (folder.path / "records.jsonl").read_bytes()
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(UserError, match="Input/output error"):
        folder.append(record(cell(2048)))
    assert (folder.path / "records.jsonl").read_bytes() == before


def test_a_half_that_cannot_be_taken_back_is_cut_off_when_the_run_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.write_manifest(run_of(record()).manifest)
    folder.append(record())

    def refuse(_handle: int, _size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    before = (folder.path / "records.jsonl").read_bytes()
    Disk(300, monkeypatch)
    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(UserError):
        folder.append(record(cell(2048)))
    monkeypatch.undo()
    assert load_run(folder.path).torn_lines == 1
    (folder.path / ".manifest.json.0badf00d.part").write_text("half")
    folder.close()
    with RunFolder.reopen(folder.path) as again:
        assert again.repair() == 300
        assert again.repair() == 0
    assert (folder.path / "records.jsonl").read_bytes() == before
    assert {p.name for p in folder.path.iterdir()} == {"manifest.json", "records.jsonl"}


def test_names_are_synced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, real = set[Path](), os.fsync

    def spy(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            synced.add(Path(f"/proc/self/fd/{handle}").resolve())
        real(handle)

    monkeypatch.setattr(os, "fsync", spy)
    with RunFolder.create(tmp_path / "a" / "b") as folder:
        assert synced == {tmp_path, tmp_path / "a", tmp_path / "a" / "b"}
        synced.clear()
        folder.write_manifest(run_of().manifest)
        assert synced == {tmp_path / "a" / "b"}


def test_an_interrupt_waits_until_a_record_is_whole(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def write(handle: int, data: bytes) -> int:
        signal.raise_signal(signal.SIGINT)
        return real(handle, bytes(data[:1000]))

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(KeyboardInterrupt):
        folder.append(record(cell(2048)))
    with pytest.raises(KeyboardInterrupt):
        folder.write_manifest(run_of(record(), record(cell(2048))).manifest)
    assert load_run(folder.path) == run_of(record(), record(cell(2048)))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_signal_stays_ignored(folder: RunFolder) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        folder.append(record(cell(2048)))
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
