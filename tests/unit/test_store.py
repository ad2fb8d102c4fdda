"""The run folder: what is written is read back, and hostile folders are refused in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
    with RunFolder.create(path / "run") as folder:
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
    path = tmp_path / "a"
    with RunFolder.create(path) as folder:
        with pytest.raises(UserError, match=f"already in use: process {os.getpid()}"):
            RunFolder.create(path)
        folder.write_manifest(run_of().manifest)
        with pytest.raises(UserError, match=f"already in use: process {os.getpid()}"):
            RunFolder.reopen(path)
    with pytest.raises(UserError, match="already in use"):
        RunFolder.create(path)
    RunFolder.reopen(path).close()


def test_a_folder_whose_run_died_before_its_manifest_is_taken(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "a").close()
    (tmp_path / "a" / ".manifest.json.0badf00d.part").write_text("half")
    with pytest.raises(UserError, match="no run to resume"):
        RunFolder.reopen(tmp_path / "a")
    RunFolder.create(tmp_path / "a").close()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["records.jsonl"]


def test_the_lock_of_a_run_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time; from kvgauge.store.folder import RunFolder; "
        "folder = RunFolder.create(pathlib.Path(sys.argv[1])); print('locked', flush=True); "
        "time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert holder.stdout is not None
    with holder:
        holder.stdout.readline()
        with pytest.raises(UserError, match=f"already in use: process {holder.pid}"):
            RunFolder.create(tmp_path / "a")
        holder.kill()
    RunFolder.create(tmp_path / "a").close()


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


def test_a_torn_line_before_the_last_is_corrupt(tmp_path: Path) -> None:
    folder = written(tmp_path)
    first, second = (folder / "records.jsonl").read_text().splitlines()
    for torn in (first[:200] + "\n" + second, first[:200] + second):
        (folder / "records.jsonl").write_text(f"{torn}\n{second}\n")
        with pytest.raises(UserError, match=r"records\.jsonl:1"):
            reader.load_run(folder)


def test_unknown_fields_of_a_known_schema_are_ignored(tmp_path: Path) -> None:
    folder, run = written(tmp_path), run_of(record(), failed(cell(2048)))
    for name in ("manifest.json", "records.jsonl"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace("{", '{"of_a_later_kvgauge": [1], ', 1))
    assert reader.load_run(folder) == run


@pytest.mark.parametrize(
    ("name", "mine"),
    [("manifest.json", "kvgauge.manifest/1"), ("records.jsonl", "kvgauge.record/1")],
)
def test_another_schema_is_said_before_its_fields_are_looked_at(
    tmp_path: Path, name: str, mine: str
) -> None:
    folder = written(tmp_path)
    (folder / name).write_text('{"schema": "kvgauge.other/7"}\n')
    with pytest.raises(UserError) as caught:
        reader.load_run(folder)
    for part in (name, "kvgauge.other/7", mine, "with the kvgauge that wrote it"):
        assert part in str(caught.value)


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

    folder = RunFolder.reopen(written(tmp_path))
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


@pytest.mark.parametrize(("value", "says"), [(-1.0, "below 0"), (1e30, "spent.rest_s")])
def test_a_manifest_that_says_it_spent_what_no_run_spends_is_refused(
    tmp_path: Path, value: float, says: str
) -> None:
    with RunFolder.create(tmp_path / "run") as folder:
        folder.write_manifest(run_of(record()).manifest)
    path = tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["spent"] = {"rest_s": value}
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=says):
        reader.load_run(tmp_path / "run")


def test_a_records_file_that_is_a_link_is_not_written(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run") as folder:
        folder.write_manifest(run_of(record()).manifest)
    records, outside = tmp_path / "run" / "records.jsonl", tmp_path / "outside"
    records.rename(outside)
    records.symlink_to(outside)
    with pytest.raises(UserError, match="symbolic link"):
        RunFolder.reopen(tmp_path / "run")
