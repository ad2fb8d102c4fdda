"""What a run folder promises across a crash: appended records are on disk, a manifest is whole."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvgauge.errors import UserError
from kvgauge.store.folder import RunFolder
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
