"""The run folder: what is written is read back, and hostile folders are refused in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kvgauge.errors import UserError
from kvgauge.store import provenance, reader
from kvgauge.store.atomic import write_atomic
from kvgauge.store.folder import RunFolder
from records_for_tests import cell, failed, record, run_of

FIELDS = (
    "schema", "run_id", "cell_id", "series_id", "attempt", "started_at", "suite", "scope", "status",
    "reason_code", "reason", "model", "trace", "cache", "backend", "device", "predicted",
    "measured", "probe", "ratio", "trust",
)  # fmt: skip


def written(path: Path) -> Path:
    run = run_of(record(), failed(cell(2048)))
    folder = RunFolder.create(path / "run")
    folder.write_manifest(run.manifest)
    for one in run.records:
        folder.append(one)
    return folder.path


def test_a_run_comes_back_as_it_was(tmp_path: Path) -> None:
    run = run_of(record(), failed(cell(2048)))
    assert reader.load_run(written(tmp_path)) == run


def test_every_field_of_the_contract_is_there(tmp_path: Path) -> None:
    line = json.loads((written(tmp_path) / "records.jsonl").read_text().splitlines()[1])
    for name in FIELDS:
        assert name in line
    assert line["measured"] is None  # null, not absent


def test_two_runs_never_share_a_folder(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "a")
    with pytest.raises(UserError, match="already in use"):
        RunFolder.create(tmp_path / "a")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="run folder"):
        RunFolder.create(tmp_path / "file" / "run")


def test_a_torn_last_line_is_dropped_and_counted(tmp_path: Path) -> None:
    folder = written(tmp_path)
    with (folder / "records.jsonl").open("a") as file:
        file.write('{"schema": "kvg')
    run = reader.load_run(folder)
    assert (len(run.records), run.torn_lines) == (2, 1)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("manifest.json", b"", "manifest.json"),
        ("manifest.json", b"[]", "Expected `object`"),
        ("manifest.json", b'{"schema": 1}', "manifest.json"),
        ("manifest.json", b"\xff\xfe", "manifest.json"),
        ("manifest.json", b"[" * 100_000, "manifest.json"),
        ("records.jsonl", b"{}\n", "records.jsonl:1"),
        ("records.jsonl", b'{"schema": NaN}\n', "records.jsonl:1"),
    ],
)
def test_a_hostile_folder_is_refused_by_place(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    folder = written(tmp_path)
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=expected) as caught:
        reader.load_run(folder)
    assert "\n" not in str(caught.value)


def test_another_schema_is_refused_by_name(tmp_path: Path) -> None:
    folder = written(tmp_path)
    lines = (folder / "records.jsonl").read_text().replace("kvgauge.record/1", "kvgauge.record/9")
    (folder / "records.jsonl").write_text(lines)
    with pytest.raises(UserError, match=r"kvgauge\.record/9"):
        reader.load_run(folder)


def test_a_wrong_type_is_named_with_its_field(tmp_path: Path) -> None:
    folder = written(tmp_path)
    text = (
        (folder / "records.jsonl").read_text().replace('"depth_tokens":1024', '"depth_tokens":"x"')
    )
    (folder / "records.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"records\.jsonl:1.*trace\.depth_tokens"):
        reader.load_run(folder)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"batch":1', '"batch":0', "trace.batch"),
        ('"depth_tokens":1024', f'"depth_tokens":{10**30}', "depth_tokens"),
        ('"median":1.0', '"median":0.0', "time_s"),
        ('"n":5', '"n":6', "time_s"),
        ('"flops_per_s":1000000000.0', '"flops_per_s":0.0', "probe"),
        ('"kind":"cpu"', '"kind":"xpu"', "device.kind"),
        ('"kv_bytes":1000', '"kv_bytes":-1', "kv_bytes"),
    ],
)
def test_a_figure_that_cannot_be_is_refused(tmp_path: Path, old: str, new: str, says: str) -> None:
    folder = written(tmp_path)
    text = (folder / "records.jsonl").read_text()
    assert old in text
    (folder / "records.jsonl").write_text(text.replace(old, new))
    with pytest.raises(UserError, match=says) as caught:
        reader.load_run(folder)
    assert "records.jsonl:1" in str(caught.value)


def test_a_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for target in (pipe, tmp_path, Path("/"), Path()):
        with pytest.raises(UserError, match="not a file"):
            write_atomic(target, b"x")
    assert pipe.is_fifo()


def test_a_full_disk_is_one_line_and_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    folder = RunFolder(written(tmp_path))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        folder.append(record())
    with pytest.raises(UserError, match="No space left"):
        folder.write_manifest(run_of().manifest)
    assert {p.name for p in folder.path.iterdir()} == {"manifest.json", "records.jsonl"}


def test_a_copy_in_another_repository_has_no_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "a/b/c/d/provenance.py"))
    assert provenance.git_state() == (None, None)


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(tmp_path)
    monkeypatch.setattr(reader, "MAX_RECORDS_BYTES", 10)
    with pytest.raises(UserError, match="at most 10"):
        reader.load_run(folder)


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run folder"):
        reader.load_run(tmp_path / "nothing")
